"""The N-th call of SQLite or of a socket fails, for N = 1, 2, 3 ... until a run no longer comes to it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import msgspec
import pytest
from broker import Broker
from faulty import ERRORS, Disk
from oracle import Verdict, judge, missing
from scene import Document, Expected, Input, expected, inputs, write_scene
from sender import Sender
from sink import Sink
from subject import Fault, planted
from trial import LONG

from edge_runtime import daemon as daemon_module
from edge_runtime.config import load
from edge_runtime.daemon import Daemon
from edge_runtime.delivery.store import Store
from edge_runtime.records import Message
from edge_runtime.testing import ManualClock, MemoryClient

NODE = "calls"
KINDS = ("rows",)
MOST_S = 10.0
STEP_S = 1.0
MOST_CALLS = 2000


class Device:
    """A daemon in this process, with a wire in memory, a disk that fails on demand and a clock of its own."""

    def __init__(self, config: Path, messages: list[Input], monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.messages = config, messages
        self.clock, self.wire, self.disk = ManualClock(), MemoryClient(), Disk()
        monkeypatch.setattr(daemon_module, "make_client", lambda *_args, **_options: self.wire)
        opened = Store.__init__

        def open_store(store: Store, path: Path, settings: object) -> None:
            clock = {"now_ns": lambda: self.clock.monotonic_ns, "sleep": self.clock.advance}
            opened(store, path, settings, connect=self._connect, **clock)

        monkeypatch.setattr(Store, "__init__", open_store)

    def _connect(self, *args: object, **options: object) -> object:
        return self.disk.connect(*args, **options)

    def live(self, begin: int, end: int) -> dict:
        """From a start to an orderly end, over some of the messages; the ledger."""
        daemon = Daemon(load(self.config), str(self.config), clock=self.clock.clock())
        for i in range(begin, end, 3):
            self.wire.arrive(
                *[Message(*one, 0, qos=1, mid=1 + n, epoch=1) for n, one in self._some(i, min(i + 3, end))]
            )
            self._step(daemon)
        for _ in range(8):
            self._step(daemon)
        view = daemon.loop.account()
        daemon._close_store()
        daemon._latency_log.close()
        daemon.close()
        return {"balanced": not view.imbalances, "ledger": msgspec.to_builtins(view)}

    def _some(self, begin: int, end: int) -> list[tuple[int, Input]]:
        return list(enumerate(self.messages))[begin:end]

    def _step(self, daemon: Daemon) -> None:
        daemon.loop.step(0.0)
        daemon._do_what_is_due()
        self.clock.advance(STEP_S)

    def verdict(self, wanted: Expected, summary: dict) -> Verdict:
        found = [Document(one.topic, json.loads(one.payload)) for one in self.wire.published if "/p/" in one.topic]
        retained = {one.topic: one.payload for one in found if "/state/" in one.topic}
        return judge(wanted, found, retained=retained, summary=summary)

    def forget(self) -> None:
        for path in (self.config.parent / "state").glob("store.db*"):
            path.unlink()


@pytest.fixture
def calm(tmp_path: Path) -> tuple[Path, list[Input], Expected]:
    config = write_scene(tmp_path, "mqtt://127.0.0.1:1", node=NODE, delivery="normal", kinds=KINDS, metrics_s=0)
    messages = inputs(1, 30, node=NODE, kinds=KINDS)
    Daemon(load(config), str(config)).close()  # the gate's reports are there from now on
    return config, messages, expected(config, messages)


@pytest.mark.parametrize("late", [(False,), (True,)] if LONG else [(False, True)])
def test_whichever_call_of_sqlite_fails_nothing_is_lost(
    calm: tuple[Path, list[Input], Expected], monkeypatch: pytest.MonkeyPatch, late: tuple[bool, ...]
) -> None:
    config, messages, wanted = calm
    failed = 0
    for n in range(1, MOST_CALLS):
        with monkeypatch.context() as patch:
            device = Device(config, messages, patch)
            device.forget()
            device.disk = Disk(ERRORS[n % len(ERRORS)], late=late[n % len(late)])
            device.disk.refuse = n
            device.live(0, len(messages) // 2)
            summary = device.live(len(messages) // 2, len(messages))
            verdict = device.verdict(wanted, summary)
        assert verdict.problems == [], f"call {n} of SQLite: {verdict.problems}"
        assert {mid for _, mid in device.wire.acknowledged} == set(range(1, len(messages) + 1)), f"call {n}"
        if not device.disk.refused:
            break
        failed += 1
    assert failed > 20
    assert verdict.duplicates == 0


class Line:
    """A daemon in this thread on a real broker; producers and sink have threads of their own."""

    def __init__(self, folder: Path, broker: Broker, node: str) -> None:
        self.config = write_scene(folder, broker.url, node=node, delivery="normal", kinds=KINDS, metrics_s=0)
        self.messages = inputs(1, 24, node=node, kinds=KINDS)
        self.sink = Sink(broker.port, node=node)
        self.sender = Sender(broker.port, self.messages, client_id=f"sender-{node}", rate=1000)

    def live(self, wanted: Expected) -> None:
        """From a start to an end in order, with all results delivered."""
        daemon = Daemon(load(self.config), str(self.config))
        for connection in daemon._connections:
            connection.client.start()
        deadline = time.monotonic() + MOST_S
        while not all(connection.client.subscribed for connection in daemon._connections):
            daemon.loop.step(0.01)
            assert time.monotonic() < deadline, "no subscription"
        self.sender.start()
        n = sum(account["accepted"] for account in wanted.accounts.values())
        found = daemon.loop.account().overall
        while missing(wanted, self.sink.documents()) or found.accepted < n or found.waiting:
            daemon.loop.step(0.01)
            found = daemon.loop.account().overall
            assert time.monotonic() < deadline, f"not everything was delivered: {found}"
        assert daemon.loop.drain(int(deadline * 1e9))
        daemon._say_goodbye(time.monotonic_ns() + 10**9)
        view = daemon.loop.account()
        daemon._close_store()
        daemon._latency_log.close()
        self.summary = {"balanced": not view.imbalances, "ledger": msgspec.to_builtins(view)}

    def verdict(self, wanted: Expected) -> Verdict:
        self.sink.catch_up()
        retained = self.sink.retained(sum("/state/" in topic for topic in {topic for topic, _ in wanted.documents}))
        return judge(wanted, self.sink.documents(), retained=retained, summary=self.summary)

    def close(self) -> None:
        self.sender.close()
        self.sink.close()


@pytest.mark.broker
@pytest.mark.parametrize("kind", ["recv", "send"])
def test_whichever_call_of_a_socket_fails_nothing_is_lost(broker: Broker, tmp_path: Path, kind: str) -> None:
    failed = 0
    for n in range(1, MOST_CALLS):
        line = Line(tmp_path / str(n), broker, f"calls{n}")
        try:
            wanted = expected(line.config, line.messages)
            with planted(Fault(kind, n), thread=threading.get_ident()) as (count,):
                line.live(wanted)
            verdict = line.verdict(wanted)
        finally:
            line.close()
        assert verdict.problems == [], f"{kind} {n}: {verdict.problems}"
        if not count.struck:
            break
        failed += 1
    assert failed >= 3
