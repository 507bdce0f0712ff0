"""What a running daemon knows of its own latency: deadlines, slowest windows, transit; and nothing, where asked to."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, Probe
from daemon import Daemon, payload, subscribed, write_config
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from edge_runtime import daemon as daemon_module
from edge_runtime.config import load
from edge_runtime.daemon import Daemon as InProcess
from edge_runtime.device.clock import KernelClock

pytestmark = pytest.mark.broker

STILL = [[1, 0]] * 4
RunDaemon = Callable[..., Daemon]


@pytest.fixture
def run_daemon(tmp_path: Path, broker: Broker) -> Iterator[RunDaemon]:
    made: list[Daemon] = []

    def run(**options: str) -> Daemon:
        made.append(Daemon(write_config(tmp_path, broker.url, **options)))
        made[-1].wait_connected()
        subscribed(broker, tmp_path)
        return made[-1]

    yield run
    for daemon in made:
        daemon.close()


def served(probe: Probe, count: int) -> list[dict[str, Any]]:
    for n in range(count):
        probe.publish("in/a/v", payload(n, STILL))
    return [json.loads(message.payload) for message in probe.wait_for(count)]


def test_every_result_later_than_its_deadline_is_counted_and_told(broker: Broker, run_daemon: RunDaemon) -> None:
    daemon = run_daemon(pipeline="deadline_ms = 0.001")
    out, metrics = broker.probe("edge/v1/n1/p/p/out/#"), broker.probe("edge/v1/n1/metrics")
    served(out, 20)

    def told() -> dict[str, Any]:
        (message,) = metrics.wait_for(1)
        found: dict[str, Any] = json.loads(message.payload)
        return found

    found, recent = told(), 0
    while found["latency"]["p"].get("e2e", {"count": 0})["count"] < 20:
        recent += found["pipelines"]["p"]["recent_misses"]
        found = told()
    told_last = found["pipelines"]["p"]
    assert (told_last["deadline_ms"], told_last["deadline_misses"]) == (0.001, 20)
    assert recent + told_last["recent_misses"] <= 20
    assert daemon.stop()["deadlines"] == {"p": {"deadline_ms": 0.001, "results": 20, "misses": 20}}


def test_the_slowest_windows_lie_beside_the_log_and_are_those_that_were_published(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    daemon = run_daemon(more="[latency]\nslowest = 3")
    results = {result["id"]: result for result in served(broker.probe("edge/v1/n1/p/p/out/#"), 10)}
    summary = daemon.stop()

    lines = [json.loads(line) for line in (tmp_path / "state/latency/slowest.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    slowest_ms = [line["lat_ms"]["e2e"] for line in lines]
    assert slowest_ms == sorted(slowest_ms, reverse=True)
    assert slowest_ms[0] == pytest.approx(summary["latency"]["p"]["e2e"]["max_ms"], rel=0.02)
    for line in lines:
        result = results[line["id"]]
        assert (line["pipeline"], line["stream"], line["seq"]) == ("p", "a", result["seq"])
        assert {stage: line["lat_ms"][stage] for stage in result["lat_ms"]} == result["lat_ms"]
        left_ms = line["lat_ms"]["commit"] + line["lat_ms"]["publish"]
        assert sum(result["lat_ms"].values()) + left_ms <= line["lat_ms"]["e2e"] + 0.001
        assert 1 <= line["batch"] <= 10
        assert result["t1"] <= line["at"] <= result["t1"] + 60


def test_every_stage_that_a_window_goes_through_is_in_the_log(
    broker: Broker, run_daemon: RunDaemon, tmp_path: Path
) -> None:
    daemon = run_daemon()
    served(broker.probe("edge/v1/n1/p/p/out/#"), 20)
    log = daemon.stop()["latency_log"]

    counts = Counter[str]()
    with closing(HistogramLogReader(log, HdrHistogram(1_000, 60_000_000_000, 2))) as reader:
        for interval in iter(reader.get_next_interval_histogram, None):
            counts[interval.get_tag()] += interval.get_total_count()
    stages = ("queue", "decode", "window", "wait", "infer", "decide", "commit", "publish", "puback", "e2e")
    assert counts == {f"p/{stage}": 20 for stage in stages}


def test_where_nothing_is_to_be_timed_or_told_results_come_all_the_same(broker: Broker, tmp_path: Path) -> None:
    config = tmp_path / "device.toml"
    write_config(tmp_path, broker.url, more="[latency]\nenabled = false")
    quiet = config.read_text().replace("metrics_interval_s = 0.2", "metrics_interval_s = 0")
    config.write_text(quiet)
    daemon = Daemon(config)
    try:
        daemon.wait_connected()
        subscribed(broker, tmp_path)
        assert len(served(broker.probe("edge/v1/n1/p/p/out/#"), 20)) == 20
        summary = daemon.stop()
    finally:
        daemon.close()

    assert (summary["latency"], summary["deadlines"], summary["latency_log"]) == ({}, {}, "")
    assert summary["balanced"]
    assert not (tmp_path / "state/latency").exists()
    assert "'edge/v1/n1/info'" in broker.log
    assert "'edge/v1/n1/metrics'" not in broker.log


TRUE_CLOCK = """
import edge_runtime.daemon
from edge_runtime.device.clock import KernelClock
edge_runtime.daemon.kernel_clock = lambda: KernelClock(state=0, status=0, max_error_us=500)
from edge_runtime.cli import main
main()
"""


def trusting(tmp_path: Path, url: str) -> Path:
    """A configuration that says that the sensors' clocks are true."""
    path = write_config(tmp_path, url)
    path.write_text(
        path.read_text().replace('seq_field = "n"', 'seq_field = "n", time_field = "t", clock_synced = true')
    )
    return path


def test_the_way_from_the_sensor_is_timed_and_a_sensor_ahead_of_us_degrades_the_node(
    broker: Broker, tmp_path: Path
) -> None:
    daemon = Daemon(trusting(tmp_path, broker.url), program=("-c", TRUE_CLOCK))
    out, status = broker.probe("edge/v1/n1/p/p/out/#"), broker.probe("edge/v1/n1/status")
    try:
        daemon.wait_connected()
        subscribed(broker, tmp_path)
        assert json.loads(status.wait_for(1)[0].payload)["state"] == "online"
        for n, ahead_s in enumerate((-2.0, -2.0, 3.0)):
            out.publish("in/a/v", json.dumps({"n": n, "t": time.time() + ahead_s, "v": STILL}).encode())
        out.wait_for(3)
        assert json.loads(status.wait_for(1)[0].payload)["state"] == "degraded"
        metrics = broker.probe("edge/v1/n1/metrics")
        problems = [problem for message in metrics.wait_for(2) for problem in json.loads(message.payload)["problems"]]
        summary = daemon.stop()
    finally:
        daemon.close()

    assert problems[-1].startswith("p: messages received before their time: 1, by up to 2")
    transit = summary["latency"]["p"]["transit"]
    assert (transit["count"], transit["saturated"]) == (3, 1)
    assert 2000 <= transit["max_ms"] < 2000 + 10_000
    assert len(daemon.events("transit_negative")) == 1


def test_the_way_from_the_sensor_is_timed_only_while_our_own_clock_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trusting(tmp_path, "mqtt://127.0.0.1:1")
    kernel: KernelClock | None = KernelClock(state=0, status=0, max_error_us=500)
    monkeypatch.setattr(daemon_module, "kernel_clock", lambda: kernel)
    daemon = InProcess(load(path), str(path))
    pipeline = daemon.lanes["p"].pipeline
    seen = [pipeline.transit]
    for state in (None, KernelClock(5, 0x40, 16_000_000), KernelClock(0, 0, 500)):
        kernel = state
        daemon._trust_clocks()
        seen.append(pipeline.transit)

    assert seen == [True, False, False, True]
