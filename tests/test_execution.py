"""Where and in what company a window is predicted changes nothing about its result, and holds up nobody else."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broker import Broker, until
from bundles import REFERENCE, means_manifest, slow_model, write_means_bundle
from daemon import Daemon as DaemonProcess
from daemon import account, payload, subscribed, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge_runtime import report
from edge_runtime.check import check
from edge_runtime.config import load
from edge_runtime.daemon import Daemon
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.model.bundle import Golden, read, write
from edge_runtime.model.session import Session, SessionSettings
from edge_runtime.model.threads import ThreadChoice
from edge_runtime.monitor.latency import NoRecorder
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import Routes, Tree, parse_source
from edge_runtime.records import Message
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, MemoryClient
from edge_runtime.worker import Worker

MANIFEST = means_manifest(length=2, hop=2)
STREAMS = "abcdef"
MAX_AGE_NS = 1_000_000_000


def root_model() -> bytes:
    """x (batch, 2, 2) -> roots of the means per channel: NaN where a mean is negative."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), helper.make_node("Sqrt", ["m"], ["y"])]
    graph = helper.make_graph(nodes, "roots", [x], [y], initializer=[axes])
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Session]:
    """The model of roots, by windows in a run."""
    path = tmp_path_factory.mktemp("roots") / "roots.edge"
    inputs = np.random.default_rng(0).random((6, 2, 2), dtype=np.float32)
    golden = Golden(inputs, np.sqrt(inputs.mean(axis=1)))
    write(path, MANIFEST, model=root_model(), golden=golden, reference=REFERENCE, card="")
    return {size: Session(read(path), SessionSettings(max_batch=size)) for size in (1, 2, 3, 64)}


KINDS = ("window", "window", "window", "half", "not finite", "expired", "duplicate", "malformed")
SENT = st.tuples(st.sampled_from(STREAMS), st.sampled_from(KINDS), st.floats(0, 1, width=16))


def messages(sent: Sequence[tuple[str, str, float]], now_ns: int) -> list[Message]:
    """Each stream numbers its own; a duplicate is its stream's last one once more."""
    numbers: Counter[str] = Counter()
    last: dict[str, bytes] = {}
    found = []
    for mid, (stream, kind, level) in enumerate(sent, 1):
        body = last.get(stream, b"{") if kind == "duplicate" else b"{"
        if kind not in ("duplicate", "malformed"):
            first = -1.0 if kind == "not finite" else level
            rows = [[first, 1 - level]] * (1 if kind == "half" else 2)
            body = json.dumps({"n": numbers[stream], "v": rows}).encode()
            numbers[stream] += 1
            last[stream] = body
        received_ns = now_ns - 2 * MAX_AGE_NS * (kind == "expired")
        found.append(Message(f"in/{stream}", body, received_ns, qos=1, mid=mid, epoch=1))
    return found


class Run:
    """One pipeline in a loop of its own, on the worker or not."""

    def __init__(self, session: Session, *, worker: bool) -> None:
        self.clock, self.client, self.ledger = ManualClock(monotonic_ns=10 * MAX_AGE_NS), MemoryClient(), Ledger()
        self.worker = Worker() if worker else None
        connection = Connection(self.client, Routes([("p", parse_source("in/+machine"))]))
        pipeline = Pipeline(
            "p",
            spec=MANIFEST.input,
            window=WindowSettings(samples=2, hop=2),
            decode=make_decoder(SourceSettings(topic="in/+machine", path="v", seq_field="n"), 2),
            predictor=session,
            decider=Decider(DecideSettings(alarm_on="moving", score=0.5, k=2, n=3), labels=MANIFEST.labels),
            ledger=self.ledger,
            run_id="run",
            max_age_ns=MAX_AGE_NS,
            clock=self.clock.clock(),
        )
        queue = InputQueue(QueueSettings(), max_streams=len(STREAMS))
        self.loop = Loop(
            [connection],
            [Lane(pipeline, queue, NoRecorder(), connection, inline=not worker)],
            ledger=self.ledger,
            publications=Publications(Tree("r", "n"), result_qos={"p": 1}, dead_letters=DeadLetterSettings()),
            worker=self.worker,
            max_waiting=1000,
            now_ns=lambda: self.clock.monotonic_ns,
        )

    def take(self, sent: Sequence[tuple[str, str, float]], sizes: Sequence[int]) -> dict[str, Any]:
        """What comes of the messages when they arrive in reads of these sizes, over and over."""
        waiting, size = messages(sent, self.clock.monotonic_ns), cycle(sizes)
        while waiting:
            self.client.arrive(*waiting[: (n := next(size))])
            waiting = waiting[n:]
            self.loop.step(0.0)
        until(lambda: self.loop.step(0.01) or len(self.client.acknowledged) == len(sent), what="all acknowledged")
        if self.worker is not None:
            self.worker.stop()
        view = self.loop.account()
        assert view.imbalances == ()
        assert self.client.acknowledged == [(1, mid) for mid in range(1, len(sent) + 1)]
        return {"account": view.overall, "out": self._told("out"), "state": self._told("state")}

    def _told(self, what: str) -> dict[str, list[tuple[Any, ...]]]:
        """Results or alarms by stream, in order."""
        found: dict[str, list[tuple[Any, ...]]] = {stream: [] for stream in STREAMS}
        keys = ("id", "seq", "label", "score", "alarm", "on", "missing")
        for out in self.client.published:
            if f"/{what}/" in out.topic:
                document = json.loads(out.payload)
                found[out.topic[-1]].append(tuple(document.get(key) for key in keys))
        return found


@given(
    sent=st.lists(SENT, min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    max_batch=st.sampled_from([1, 2, 3, 64]),
    worker=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_result_is_its_streams_whatever_was_sent_and_predicted_beside_it(
    sessions: dict[int, Session],
    sent: list[tuple[str, str, float]],
    sizes: list[int],
    max_batch: int,
    worker: bool,
) -> None:
    sent.sort(key=lambda one: one[1] != "expired")  # times of receipt only rise
    one_by_one = Run(sessions[64], worker=False).take(sent, [1])

    assert Run(sessions[max_batch], worker=worker).take(sent, sizes) == one_by_one


def test_neighbours_that_come_to_nothing_leave_the_others_their_results(sessions: dict[int, Session]) -> None:
    kinds = ("expired", "window", "window", "malformed", "window", "duplicate", "window", "not finite", "window")
    levels = {"a": 0.04, "b": 0.09, "c": 0.16, "d": 0.25, "e": 0.36, "f": 0.49}
    sent = [(stream, kind, level) for kind in kinds for stream, level in levels.items()]

    for worker, max_batch in product((False, True), (1, 2, 64)):
        found = Run(sessions[max_batch], worker=worker).take(sent, [len(sent)])

        for stream, level in levels.items():
            scores = [told[3] for told in found["out"][stream]]
            assert scores == pytest.approx([max(level, 1 - level) ** 0.5] * 5)
        account = found["account"]
        assert (account.dropped, account.windows_dropped) == ({"expired": 6}, {"not_finite": 6})
        assert (account.duplicates, account.dead_lettered, account.results) == (6, 6, 30)


SLOW = """
[models.slow]
bundle = "slow.edge"
max_batch = 1

[pipelines.slow]
source = { topic = "slow/+machine/v", path = "v", seq_field = "n" }
model = "slow"
execution = "worker"
queue = { max = 8 }
"""
BURST, QUICK = 30, 6
PUBACK = "Received PUBACK from edge-runtime-n1"
LINE = r"edge-runtime-n1 \(.*?m(\d+), '(slow|in)/"


class SlowBesideQuick:
    """A daemon with `slow` on the worker and `p` inline; how many rounds take the slow model 50 ms."""

    def __init__(self, folder: Path, broker: Broker, client: str) -> None:
        path = write_means_bundle(folder / "slow.edge", model=slow_model(length=4, channels=2))
        config = write_config(folder, broker.url, mqtt=f'keepalive_s = 1\nclient = "{client}"', more=SLOW)
        self.rounds = rounds_in(0.05, Session(read(path), SessionSettings()))
        self.broker, self.daemon = broker, DaemonProcess(config)
        self.seen, self.sender = broker.probe("edge/v1/n1/p/+/out/#"), broker.probe()

    def send(self, topic: str, number: int, first: float) -> None:
        self.sender.publish(topic, payload(number, [[first, 0.0]] * 4))

    def acknowledged(self, count: int) -> None:
        """Wait until the daemon has acknowledged so many messages."""
        until(lambda: self.broker.log.count(PUBACK) == count, what=f"{count} acknowledged", timeout_s=60)

    def next_result(self) -> tuple[str, int]:
        """Pipeline and last message number of the next result."""
        body = json.loads(self.seen.wait_for(1)[0].payload)
        return body["pipeline"], body["seq"][1]


def rounds_in(seconds: float, session: Session) -> int:
    """How many rounds take slow_model so long, at its quickest."""
    window = np.full((1, 4, 2), 2000, np.float32)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        session.predict(window)
        times.append(time.perf_counter() - start)
    return int(2000 * seconds / min(times))


@pytest.fixture(params=["lane", "callbacks"])
def slow(request: pytest.FixtureRequest, tmp_path: Path, start_broker: Any) -> Iterator[SlowBesideQuick]:
    found = SlowBesideQuick(tmp_path, start_broker(lines=("max_inflight_messages 0",)), request.param)
    try:
        found.daemon.wait_connected()
        subscribed(found.broker, tmp_path)
        yield found
    finally:
        found.daemon.close()


@pytest.mark.broker
def test_while_the_worker_predicts_the_network_goes_on(slow: SlowBesideQuick) -> None:
    for number in range(BURST):
        slow.send("slow/a/v", number, slow.rounds)
    told: list[tuple[str, int]] = []
    for number in range(QUICK):
        slow.send("in/b/v", number, 1.0)
        told += iter(slow.next_result, ("p", number))
    told_early = len(told)
    slow.acknowledged(BURST + QUICK)
    slow.send("slow/a/v", BURST, 50 * slow.rounds)
    slow.acknowledged(BURST + QUICK + 1)

    summary = slow.daemon.stop()
    assert summary["balanced"]
    found, log = account(summary, "slow"), slow.broker.log
    assert found["dropped"]["queue_full"] + found["confirmed"] == found["received"] == BURST + 1
    assert account(summary, "p")["confirmed"] == QUICK
    told += [slow.next_result() for _ in range(found["confirmed"] - len(told))]
    assert [pipeline for pipeline, _ in told] == ["slow"] * len(told)
    assert [number for _, number in told] == sorted(number for _, number in told)
    assert told_early < found["confirmed"] - 1, "the quick results had to wait for the slow ones"
    sent = re.findall(f"Sending PUBLISH to {LINE}", log)
    assert re.findall(PUBACK + r" \(Mid: (\d+)", log) == [mid for mid, _ in sent]
    during_the_long_run = log.rpartition("Sending PUBLISH to edge-runtime-n1")[2].rpartition("slow/out/a")[0]
    assert "Received PINGREQ from edge-runtime-n1" in during_the_long_run
    assert len(slow.daemon.events("mqtt_connected")) == 1
    ready = {event["pipeline"]: event["execution"] for event in slow.daemon.events("pipeline_ready")}
    assert ready == {"p": "inline", "slow": "worker"}


def built(folder: Path, caplog: pytest.LogCaptureFixture, **lines: str) -> dict[str, Any]:
    """What a daemon says while it is built, by event. lines: more of the config, by what they come after."""
    config = write_config(folder, "mqtt://127.0.0.1:1")
    text = config.read_text()
    for after, line in lines.items():
        text = re.sub(rf"(?m)^{after} = .*$", rf"\g<0>\n{line}", text)
    config.write_text(text)
    caplog.set_level("INFO", logger="edge_runtime")
    daemon = Daemon(load(config), str(config))
    if daemon._worker is not None:
        daemon._worker.stop()
    counted = Counter(record.getMessage() for record in caplog.records)
    assert set(counted.values()) == {1}
    return {record.getMessage(): record for record in caplog.records}


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ({}, "inline"),
        ({"state_dir": "inline_limit_ms = 0"}, "worker"),
        ({"state_dir": "inline_limit_ms = 0", "model": 'execution = "inline"'}, "inline"),
        ({"model": 'execution = "worker"'}, "worker"),
    ],
)
def test_where_a_pipeline_runs_is_chosen_by_its_models_time_or_set_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: dict[str, str], wanted: str
) -> None:
    ready = built(tmp_path, caplog, **lines)["pipeline_ready"]

    assert (ready.pipeline, ready.execution, ready.threads) == ("p", wanted, 1)
    assert 0 < ready.infer_ms < 1


def test_threads_are_measured_where_the_config_says_auto_and_the_check_shows_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.daemon.choose_threads", lambda *_: ThreadChoice(2, {1: 3.0, 2: 1.5}))

    events = built(tmp_path, caplog, bundle='intra_op_threads = "auto"')
    config = load(tmp_path / "device.toml")
    found = check(config, "device.toml")

    assert config.models["means"].session().intra_op_threads == 1
    assert events["pipeline_ready"].threads == 2
    assert [pipeline.threads for pipeline in found.pipelines] == [2]
    header, row = (line for line in report.check(found).splitlines() if "means" in line or "threads" in line)
    cells = zip(*(re.split(r"\s{2,}", line.strip()) for line in (header, row)), strict=True)
    assert dict(cells)["threads"] == "2"
