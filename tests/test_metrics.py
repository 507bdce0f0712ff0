from __future__ import annotations

import json

import msgspec
import pytest
from test_loop import MOVING, STILL, Bench, HeldModel

from edge_runtime.delivery.ledger import Account, Imbalance, LedgerView
from edge_runtime.device.heat import Heat
from edge_runtime.device.memory import rss_mb
from edge_runtime.metrics import MOST_LISTED, Meter, Metrics, problems

S = 1_000_000_000


class Gauge:
    """A meter over a bench, and the CPU time it sees."""

    def __init__(self, bench: Bench, *, timed: bool = True) -> None:
        self.bench, self.cpu_ns = bench, 0
        lanes = bench.loop._lanes
        self.recorders = {name: lane.recorder for name, lane in lanes.items()} if timed else {}
        self.meter = Meter(
            lanes,
            [bench.connection],
            self.recorders,
            models=dict.fromkeys(lanes, "means@1.0.0"),
            boot_id="b1",
            every_s=10.0,
            started_ns=bench.clock.monotonic_ns,
            counted=bench.loop.account().pipelines,
            cpu_ns=lambda: self.cpu_ns,
        )

    def read(self, seconds: float = 0.0, *, heat: Heat = Heat()) -> Metrics:  # noqa: B008  immutable
        """The document after so much more time."""
        clock = self.bench.clock
        clock.advance(seconds)
        return self.meter.document(
            self.bench.loop.account(),
            [],
            heat,
            publish_refusals=self.bench.loop.publish_refusals,
            now_ns=clock.monotonic_ns,
            unix_ns=clock.unix_ns,
        )


def test_rates_and_recent_percentiles_are_those_since_the_document_before() -> None:
    bench = Bench()
    gauge = Gauge(bench)
    for _ in range(4):
        bench.arrive(STILL)
    bench.steps()
    first, second = gauge.read(2.0), gauge.read(8.0)
    bench.arrive(MOVING)
    bench.steps()
    third = gauge.read(0.5)

    found = [
        (d.interval_s, d.pipelines["p"].messages_per_s, d.pipelines["p"].results_per_s) for d in (first, second, third)
    ]
    assert found == [(2.0, 2.0, 2.0), (8.0, 0.0, 0.0), (0.5, 2.0, 2.0)]
    assert [d.recent["p"].get("decode") and d.recent["p"]["decode"].count for d in (first, second, third)] == [
        4,
        None,
        1,
    ]
    assert [d.latency["p"]["decode"].count for d in (first, second, third)] == [4, 4, 5]
    assert [d.uptime_s for d in (first, second, third)] == [2.0, 10.0, 10.5]
    assert [d.at - first.at for d in (first, second, third)] == [0.0, 8.0, 8.5]


def test_what_earlier_runs_counted_is_no_rate_of_this_one() -> None:
    bench = Bench()
    bench.loop._ledger.restore(Account("p", "s", received=900, accepted=900, windows=400, results=400, confirmed=400))
    gauge = Gauge(bench)
    bench.arrive(STILL)
    bench.steps()
    found = gauge.read(2.0).pipelines["p"]

    assert (found.messages_per_s, found.results_per_s) == (0.5, 0.5)


def test_a_document_tells_what_waits_how_long_and_what_is_on_the_worker() -> None:
    model = HeldModel()
    bench = Bench(model=model, worker=True)
    gauge = Gauge(bench)
    for _ in range(3):
        bench.arrive(STILL)
        bench.loop.step(0.0)
        bench.clock.advance(0.25)
    held = gauge.read(0.5).pipelines["p"]
    model.let_go.set()
    bench.step_until(lambda: len(bench.results()) == 3)
    bench.worker.stop()
    after = gauge.read().pipelines["p"]

    assert (held.execution, held.turns_in_flight, held.queue_depth) == ("worker", 2, 1)
    assert held.oldest_ms == 750.0
    assert held.messages_per_s == 2.4
    assert (after.turns_in_flight, after.queue_depth, after.oldest_ms) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("durable", "sync", "told"), [(False, False, "memory"), (True, False, "normal"), (True, True, "full")]
)
def test_a_pipeline_tells_its_tier_of_delivery(durable: bool, sync: bool, told: str) -> None:
    bench = Bench()
    gauge = Gauge(bench)
    lane = bench.loop._lanes["p"]
    lane.durable, lane.sync = durable, sync

    assert gauge.read(1.0).pipelines["p"].delivery == told


def test_cpu_time_is_told_as_cores_used_over_the_interval() -> None:
    gauge = Gauge(Bench())
    gauge.cpu_ns = 3 * S
    first = gauge.read(2.0)
    gauge.cpu_ns += S // 2

    assert (first.cpu_cores, gauge.read(2.0).cpu_cores) == (1.5, 0.25)


def test_memory_is_that_of_the_process() -> None:
    assert Gauge(Bench()).read(1.0).rss_mb == pytest.approx(rss_mb(), rel=0.02)


def test_results_later_than_the_deadline_are_told_in_all_and_of_the_interval() -> None:
    bench = Bench()
    gauge = Gauge(bench)
    recorder = gauge.recorders["p"]
    recorder.deadline_ms = 5.0
    recorder.misses = 3
    first = gauge.read(1.0).pipelines["p"]
    recorder.misses = 4
    second = gauge.read(1.0).pipelines["p"]

    assert (first.deadline_ms, first.deadline_misses, first.recent_misses) == (5.0, 3, 3)
    assert (second.deadline_misses, second.recent_misses) == (4, 1)


def test_a_pipeline_that_is_not_timed_is_counted_all_the_same() -> None:
    bench = Bench()
    gauge = Gauge(bench, timed=False)
    bench.arrive(STILL)
    bench.steps()
    found = gauge.read(1.0)

    assert (found.latency, found.recent) == ({}, {})
    assert found.pipelines["p"].results_per_s == 1.0


def test_a_document_reads_back_as_it_was_written_and_tells_its_connections() -> None:
    bench = Bench("p", "q")
    bench.client.counters.connects, bench.client.counters.disconnects = 2, 1
    gauge = Gauge(bench)
    bench.arrive(STILL)
    bench.steps()
    found = gauge.read(1.0, heat=Heat(51.5, ("throttled",)))
    body = msgspec.json.encode(found)

    assert msgspec.json.decode(body, type=Metrics) == found
    (connection,) = json.loads(body)["mqtt"]
    assert (connection["client"], connection["connected"]) == (bench.client.kind, True)
    assert (connection["connects"], connection["disconnects"]) == (2, 1)
    assert (found.temperature_c, found.throttled) == (51.5, ("throttled",))
    assert list(found.pipelines) == list(found.latency) == list(found.recent) == ["p", "q"]


def test_problems_name_what_is_wrong_and_stay_short_however_much_there_is() -> None:
    bench = Bench()
    gauge = Gauge(bench)
    nothing = Account("*", "*")
    off = tuple(Imbalance("p", f"s{n}", "messages", 1, 0) for n in range(1000))
    bench.client.refused_filters = {"in/+": "Not authorized"}
    recorder = gauge.recorders["p"]
    recorder.record_all("transit", [-5_000_000])
    recorder.recent()
    view = LedgerView((), nothing, off)
    found = problems(view, [bench.connection], gauge.recorders.values(), "latency.hlog: No space left on device")
    document = gauge.meter.document(view, found, Heat(), publish_refusals=0, now_ns=1, unix_ns=1)

    assert recorder.problem.startswith("p: ")
    assert found[0] == "p s0: 1 messages received, 0 accounted for"
    assert found[MOST_LISTED:] == [
        "990 more counts that do not add up",
        "latency.hlog: No space left on device",
        recorder.problem,
        "in/+: Not authorized",
    ]
    assert len(document.ledger.imbalances) == MOST_LISTED


@pytest.mark.parametrize("pipelines", [("p",), ("p", "q")])
def test_all_is_well_means_no_problems(pipelines: tuple[str, ...]) -> None:
    bench = Bench(*pipelines)

    assert problems(bench.loop.account(), [bench.connection], [], "") == []
