from __future__ import annotations

import sys

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.monitor.latency import (
    HIGHEST_NS,
    LOWEST_NS,
    SIGNIFICANT_DIGITS,
    TIMED,
    Histogram,
    StageRecorder,
    lower_bound_ns,
    upper_bound_ns,
)
from edge_runtime.records import STAGES

ms = 1_000_000
exponents = st.integers(0, HIGHEST_NS.bit_length() - 1)
durations = st.one_of(
    st.integers(0, HIGHEST_NS),
    exponents.flatmap(lambda e: st.integers(max((1 << e) - 3, 0), min((1 << e) + 3, HIGHEST_NS))),
)
quantiles = st.one_of(st.integers(0, 100), st.floats(0, 100))


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def oracle_of(values: list[int]) -> HdrHistogram:
    oracle = HdrHistogram(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
    for value in values:
        assert oracle.record_value(value)
    return oracle


@given(values=st.lists(durations, max_size=200))
def test_counts_lie_at_the_same_index_as_in_the_public_implementation(values: list[int]) -> None:
    oracle = oracle_of(values)
    counts = recorded(values).counts()

    assert list(counts) == [oracle.get_count_at_index(i) for i in range(len(counts))]
    assert sum(counts) == oracle.get_total_count() == len(values)


@given(values=st.lists(durations, max_size=200), wanted=st.lists(quantiles, min_size=1, max_size=5))
def test_percentiles_are_those_of_the_public_implementation(values: list[int], wanted: list[float]) -> None:
    oracle, histogram = oracle_of(values), recorded(values)

    expected = [oracle.get_value_at_percentile(q) for q in wanted]
    assert histogram.percentiles(wanted) == expected
    assert [histogram.percentile(q) for q in wanted] == expected


@given(values=st.lists(durations, min_size=1, max_size=100).filter(any))
def test_count_minimum_maximum_and_mean_are_those_of_the_public_implementation(values: list[int]) -> None:
    oracle, histogram = oracle_of(values), recorded(values)

    assert histogram.count == len(values)
    assert (histogram.min_ns, histogram.max_ns) == (oracle.get_min_value(), oracle.get_max_value())
    assert histogram.mean_ns == pytest.approx(oracle.get_mean_value())


@given(value=durations)
def test_a_duration_is_known_to_one_percent_or_half_a_microsecond(value: int) -> None:
    histogram = recorded([value])

    assert histogram.min_ns <= value <= histogram.max_ns
    assert histogram.max_ns - histogram.min_ns <= max(0.01 * value, 512)


def test_bounds_of_neighbouring_steps_meet() -> None:
    steps = len(recorded([HIGHEST_NS]).counts())

    assert all(upper_bound_ns(i) + 1 == lower_bound_ns(i + 1) for i in range(steps))
    assert lower_bound_ns(0) == 0
    assert lower_bound_ns(steps - 1) <= HIGHEST_NS <= upper_bound_ns(steps - 1)


def test_a_duration_above_a_minute_is_counted_there_and_as_saturated() -> None:
    histogram = recorded([1 * ms, HIGHEST_NS, HIGHEST_NS + 1, 10**15])

    assert (histogram.count, histogram.saturated) == (4, 2)
    assert histogram.counts()[-1] == 3


def test_a_negative_duration_is_counted_as_nothing_and_as_saturated() -> None:
    histogram = recorded([-1, -(10**15)])

    assert (histogram.count, histogram.saturated) == (2, 2)
    assert histogram.counts() == (2,)


def test_an_empty_histogram_answers_zero() -> None:
    histogram = Histogram()

    assert (histogram.count, histogram.min_ns, histogram.max_ns, histogram.mean_ns) == (0, 0, 0, 0.0)
    assert histogram.percentiles((0, 50, 100)) == [0, 0, 0]
    assert histogram.counts() == ()


@pytest.mark.parametrize("q", [-0.1, 100.1, float("nan")])
def test_a_percentile_outside_its_range_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="wanted 0 to 100"):
        recorded([1]).percentile(q)


@given(first=st.lists(durations | st.just(2 * HIGHEST_NS)), second=st.lists(durations | st.just(-1)))
def test_merging_is_the_same_as_recording_everything_in_one(first: list[int], second: list[int]) -> None:
    merged, both = recorded(first), recorded(first + second)
    merged.merge(recorded(second))

    assert (merged.counts(), merged.saturated) == (both.counts(), both.saturated)


def test_a_snapshot_keeps_what_was_there_when_recording_and_resetting_go_on() -> None:
    histogram = recorded([2 * ms, 2 * HIGHEST_NS])
    snapshot = histogram.snapshot()
    histogram.record(5 * ms)
    histogram.reset()
    histogram.record(7 * ms)

    assert (snapshot.count, snapshot.saturated) == (2, 1)
    assert (histogram.count, histogram.saturated) == (1, 0)
    assert histogram.min_ns <= 7 * ms <= histogram.max_ns


def test_memory_does_not_grow_with_what_is_recorded() -> None:
    histogram = Histogram()
    before = sys.getsizeof(histogram._counts)
    for value in range(0, 10**9, 20_011):
        histogram.record(value)

    assert sys.getsizeof(histogram._counts) == before
    assert histogram.count == 49_973


def test_every_stage_and_the_whole_way_are_timed() -> None:
    assert (*STAGES, "e2e") == TIMED


def test_a_time_is_in_one_interval_and_in_the_total() -> None:
    recorder = StageRecorder("vibration")
    recorder.record("infer", 3 * ms)
    recorder.record("infer", 4 * ms)
    first = recorder.end_interval()
    recorder.record("infer", 9 * ms)
    second = recorder.end_interval()

    assert [first["infer"].count, second["infer"].count] == [2, 1]
    assert recorder.total("infer").count == 3
    assert recorder.end_interval() == {}
    assert recorder.total("infer").count == 3


def test_the_total_includes_the_running_interval() -> None:
    recorder = StageRecorder("vibration")
    recorder.record("e2e", 3 * ms)
    recorder.end_interval()
    recorder.record("e2e", 5 * ms)
    recorder.record("e2e", 2 * HIGHEST_NS)

    assert recorder.total("e2e").count == 3
    assert recorder.summary()["e2e"].saturated == 1


def test_the_summary_has_percentiles_in_ms_of_the_stages_that_ran() -> None:
    recorder = StageRecorder("vibration")
    for n in range(1, 101):
        recorder.record("decode", n * ms)
    recorder.record("queue", 0)

    summary = recorder.summary()

    assert list(summary) == ["queue", "decode"]
    decode = summary["decode"]
    assert decode.count == 100
    found = (decode.mean_ms, decode.p50_ms, decode.p95_ms, decode.p99_ms, decode.max_ms)
    assert found == pytest.approx((50.5, 50, 95, 99, 100), rel=0.01)


def test_the_summary_takes_its_figures_from_the_histogram() -> None:
    histogram = recorded([n * n * 1000 for n in range(500)])
    summary = histogram.summary()

    assert summary.p99_ms == histogram.percentile(99) / 1e6
    assert summary.max_ms == histogram.max_ns / 1e6
    assert summary.mean_ms == histogram.mean_ns / 1e6
