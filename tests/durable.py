"""A node in memory over a real store: a broker that redelivers, and a process that may end at any call."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bundles import means_manifest

from edge_runtime.delivery.database import Connect
from edge_runtime.delivery.journal import Basis, Journal
from edge_runtime.delivery.ledger import Account, Ledger
from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.delivery.parcels import Parcels
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.monitor.latency import StageRecorder
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import Routes, Tree, parse_source
from edge_runtime.records import Message, Outgoing
from edge_runtime.recovery import take_up
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.states import StateSettings, StreamStates
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, MemoryClient, ModelOfMeans
from edge_runtime.worker import Worker

STORE = "store.db"
BASIS = Basis("windows", "model")
SOURCE = SourceSettings(topic="in/+machine", path="v", seq_field="n", time_field="at")
PLAIN = msgspec.structs.replace(SOURCE, seq_field="")
ALARM = DecideSettings(alarm_on="moving", score=0.6, release=0.4, k=2, n=3)
Called = Callable[[str], None]


class Crash(BaseException):
    """The process ends here."""


class Trap:
    """Ends the process at its N-th point; a point lies before and after each call that is told of."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0
        self.calls: list[str] = []

    def __call__(self, name: str) -> None:
        self.count += 1
        self.calls.append(name)
        if self.count == self.at:
            raise Crash(name)

    def around(self, owner: object, name: str) -> None:
        """Lay points around a method of that object."""
        call = getattr(owner, name)

        def trapped(*args: Any, **options: Any) -> Any:
            self(f"before {name}")
            found = call(*args, **options)
            self(f"after {name}")
            return found

        setattr(owner, name, trapped)


class Running:
    """A streaming model whose state is half of what it was and the window's mean; the scores are that, in shares."""

    def initial(self) -> tuple[np.ndarray, ...]:
        return (np.zeros(2, np.float32),)

    def step(self, inputs: np.ndarray, states: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, list]:
        after = [state[0] / 2 + rows.mean(axis=0) for rows, state in zip(inputs, states, strict=True)]
        return np.array([one / 2 for one in after], np.float32), [(one,) for one in after]


class SessionBroker:
    """Keeps what was sent and not acknowledged, and everything that was ever published."""

    def __init__(self) -> None:
        self.unacknowledged: dict[int, tuple[str, bytes, bool]] = {}
        self.published: list[Outgoing] = []
        self.acknowledged: list[int] = []
        self.sent = self.epoch = 0
        self._client: SessionClient | None = None

    def send(self, topic: str, payload: bytes, *, qos: int = 1) -> None:
        self.sent += 1
        if qos:
            self.unacknowledged[self.sent] = topic, payload, False
        if self._client is not None:
            self._client.give(topic, payload, mid=self.sent if qos else 0)

    def connect(self, client: SessionClient) -> None:
        """Send again, in order; DUP is set on what a client has had before."""
        self.epoch += 1
        self._client = client
        for mid, (topic, payload, had) in self.unacknowledged.items():
            client.give(topic, payload, mid=mid, dup=had)

    def had(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.mid in self.unacknowledged:
                self.unacknowledged[message.mid] = message.topic, message.payload, True

    def documents(self, part: str) -> list[tuple[str, dict[str, Any]]]:
        return [(out.topic, json.loads(out.payload)) for out in self.published if part in out.topic]

    def retained(self) -> dict[str, bytes]:
        return {out.topic: out.payload for out in self.published if out.retain}


class SessionClient(MemoryClient):
    """A connection to that broker."""

    def __init__(self, broker: SessionBroker, clock: ManualClock) -> None:
        super().__init__()
        self.broker, self._clock = broker, clock

    def give(self, topic: str, payload: bytes, *, mid: int, dup: bool = False) -> None:
        now_ns, epoch = self._clock.monotonic_ns, self.broker.epoch
        self.arrive(Message(topic, payload, now_ns, qos=int(mid > 0), mid=mid, dup=dup, epoch=epoch))

    def lose(self) -> None:
        """The connection is gone, with what was not read."""
        self._arrived.clear()

    def poll(self, timeout_s: float) -> list[Message]:
        messages = super().poll(timeout_s)
        self.broker.had(messages)
        return messages

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        super().acknowledge(epoch, mids)
        self.broker.acknowledged += mids
        for mid in mids:
            self.broker.unacknowledged.pop(mid, None)

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        self.broker.published += messages
        return super().publish_all(messages)


class Plan(msgspec.Struct):
    """A pipeline to be built. delivery: its tier."""

    source: SourceSettings = SOURCE
    window: WindowSettings = WindowSettings(samples=4, hop=2)
    decide: DecideSettings = ALARM
    publish: str = "window"
    streaming: bool = False
    delivery: str = "normal"
    basis: Basis = BASIS
    queue: QueueSettings = QueueSettings()


class Node:
    """One life of the process, from the store that the life before has left in the folder."""

    def __init__(
        self,
        folder: Path,
        broker: SessionBroker | None = None,
        plans: Mapping[str, Plan] | None = None,
        *,
        clock: ManualClock | None = None,
        store: StoreSettings = StoreSettings(commit_wait_ms=0),  # noqa: B008  immutable
        trap: Called | None = None,
        worker: bool = False,
        memory: int = 64,
        max_waiting: int = 1000,
        run_id: str = "run",
        model: object = None,
        connect: Connect = sqlite3.connect,
    ) -> None:
        self.folder, self.broker = folder, broker or SessionBroker()
        self.clock = clock or ManualClock(monotonic_ns=1_000_000_000)
        self.plans = dict(plans or {"p": Plan()})
        self.ledger, self.client = Ledger(), SessionClient(self.broker, self.clock)
        clocks = {"now_ns": lambda: self.clock.monotonic_ns, "unix_s": lambda: self.clock.unix_ns / 1e9}
        self.bases = {name: plan.basis for name, plan in self.plans.items() if plan.delivery != "memory"}
        self.store = Store(folder / STORE, store, connect=connect, **clocks)
        parcels = Parcels(now_ns=self.clock.monotonic_ns, unix_s=self.clock.unix_ns / 1e9)
        records = self.store.load(taken=parcels.take)
        self.journal = Journal(self.store, memory=memory, bases=self.bases)
        self.journal.restore(records)
        self.routes = Routes([(name, parse_source(plan.source.topic)) for name, plan in self.plans.items()])
        self.connection = Connection(self.client, self.routes)
        self.worker = Worker() if worker else None
        self.model, self._memory, self._run_id = model or ModelOfMeans(), memory, run_id
        self.lanes = {name: self._lane(name, plan, inline=not worker) for name, plan in self.plans.items()}
        publications = Publications(
            Tree("edge/v1", "n"), result_qos=dict.fromkeys(self.plans, 1), dead_letters=DeadLetterSettings(burst=100)
        )
        self.loop = Loop(
            [self.connection],
            self.lanes.values(),
            ledger=self.ledger,
            publications=publications,
            worker=self.worker,
            max_waiting=max_waiting,
            journal=self.journal,
            store=store,
            **clocks,
        )
        take_up(
            self.journal,
            parcels.oldest_first(self.store.holds),
            self.loop,
            self.lanes,
            bases=self.bases,
            ledger=self.ledger,
            publications=publications,
        )
        self._lay(trap)
        self.broker.connect(self.client)
        self.loop.states.renew()  # as the daemon does with every connection

    def _lane(self, name: str, plan: Plan, *, inline: bool) -> Lane:
        manifest, before = means_manifest(length=plan.window.samples), self.journal.before
        pipeline = Pipeline(
            name,
            spec=manifest.input,
            window=plan.window,
            decode=make_decoder(plan.source, 2),
            predictor=self.model,
            decider=Decider(plan.decide, labels=manifest.labels),
            ledger=self.ledger,
            run_id=self._run_id,
            memory=self._memory,
            keep=plan.delivery != "memory",
            states=StreamStates(Running(), StateSettings()) if plan.streaming else None,
            publish=plan.publish,
            clock=self.clock.clock(),
        )
        durable = plan.delivery != "memory"
        return Lane(
            pipeline,
            InputQueue(plan.queue, max_streams=8),
            StageRecorder(name),
            self.connection,
            inline=inline,
            durable=durable,
            sync=plan.delivery == "full",
            careful=durable and before is not None and not before.clean,
        )

    def _lay(self, trap: Called | None) -> None:
        if trap is None:
            return
        trap = trap if isinstance(trap, Trap) else _Told(trap)
        for lane in self.lanes.values():
            for name in ("ingest", "predict", "emit"):
                trap.around(lane.pipeline, name)
        trap.around(self.store, "commit")
        trap.around(self.client, "acknowledge")
        trap.around(self.client, "publish_all")

    def steps(self, n: int = 3, *, s: float = 0.0) -> None:
        """So many rounds, and the time each takes."""
        for _ in range(n):
            self.loop.step(0.0)
            self.clock.advance(s)
            assert self.loop.account().imbalances == ()

    def until(self, done: Callable[[], object]) -> None:
        for _ in range(5000):
            if done():
                return
            self.loop.step(0.005)
            self.clock.advance(0.001)
        raise AssertionError("nothing more happened")

    def crash(self) -> Path:
        """The process is gone; a folder with what it had written, as it lay there at that moment."""
        after = self.folder.with_name(f"{self.folder.name}'")
        after.mkdir()
        _copy(self.folder, after)
        self.store.close()
        shutil.rmtree(self.folder)
        if self.worker is not None:
            self.worker.stop()
        return after

    def end(self) -> Path:
        """An end in order: the folder."""
        assert self.loop.drain(self.clock.monotonic_ns + 10_000_000_000)
        self.journal.write_node(msgspec.structs.replace(self.journal.node, clean=True))
        assert self.journal.commit(sync=False)
        self.store.close()
        if self.worker is not None:
            self.worker.stop()
        return self.folder

    def account(self, pipeline: str = "p") -> Account:
        return next(one for one in self.loop.account().pipelines if one.pipeline == pipeline)

    def records(self) -> Counter[int]:
        """How many records of each kind lie on the disk."""
        with tempfile.TemporaryDirectory() as folder:
            _copy(self.folder, Path(folder))
            store = Store(Path(folder) / STORE, StoreSettings())
            kinds = Counter(record.kind for record in store.load())
            store.close()
        return kinds


def _copy(folder: Path, to: Path) -> None:
    """The files of a store, as they lie there at this moment."""
    for suffix in ("", "-wal"):
        if (found := folder / f"{STORE}{suffix}").exists():
            shutil.copy(found, to)


class _Told(Trap):
    """Only tells of the calls."""

    def __init__(self, told: Called) -> None:
        super().__init__()
        self._told = told

    def __call__(self, name: str) -> None:
        self._told(name)


def row(n: int, moving: float, *, numbered: bool = True) -> bytes:
    """One sample."""
    found: dict[str, object] = {"at": 1_700_000_000 + n, "v": [1 - moving, moving]}
    return json.dumps({"n": n, **found} if numbered else found).encode()


def swinging(count: int, *, streams: str = "ab", numbered: bool = True) -> list[tuple[str, bytes]]:
    """Messages of these streams in turn whose alarms come and go; (topic, payload)."""
    levels = (0.0, 0.25, 0.75, 1.0, 1.0, 0.5, 0.75, 1.0, 0.25, 0.0, 0.0, 0.5)
    return [
        (f"in/{stream}", row(n, levels[(n + 5 * k) % len(levels)], numbered=numbered))
        for n in range(count)
        for k, stream in enumerate(streams)
    ]
