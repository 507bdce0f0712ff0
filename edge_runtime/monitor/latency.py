"""Where the time of every window goes: one histogram a stage, cheap enough to be always on.

The histograms have the layout of HdrHistogram (lowest discernible value 1 µs, highest 60 s, 2 significant digits),
so that `hdrlog` can write them in the public format. Memory is fixed; a value is never kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from typing import Annotated, Literal

import msgspec

from edge_runtime.records import STAGES, Stage

Timed = Literal[Stage, "e2e"]
TIMED: tuple[Timed, ...] = (*STAGES, "e2e")

LOWEST_NS = 1_000
HIGHEST_NS = 60_000_000_000
SIGNIFICANT_DIGITS = 2

_UNIT_BITS = LOWEST_NS.bit_length() - 1
_HALF_BITS = (2 * int(10**SIGNIFICANT_DIGITS) - 1).bit_length() - 1
_SUB_BITS = _HALF_BITS + 1
_MASK = ((1 << _SUB_BITS) - 1) << _UNIT_BITS
_OFFSET = _UNIT_BITS << _HALF_BITS
_SLOTS = (HIGHEST_NS.bit_length() - _SUB_BITS - _UNIT_BITS + 2) << _HALF_BITS
_POSITIONS = range(_SLOTS)
_ZEROS = [0] * _SLOTS


class LatencySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the latency log is written, and how large it may grow (current and rotated file together)."""

    interval_s: Annotated[float, msgspec.Meta(ge=1.0, le=3600.0)] = 10.0
    log_mb: Annotated[float, msgspec.Meta(ge=1.0)] = 16.0


class StageSummary(msgspec.Struct, frozen=True):
    """One stage, as exact as its histogram. saturated: values above 60 s or below 0, counted at that bound."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    saturated: int


class Histogram:
    """Counts of durations in logarithmic buckets of 128 linear steps each.

    A duration above 65 µs is known to 1 % (two digits), a shorter one to 0.5 µs. One thread records; what is read
    (minimum, maximum and mean too) comes from the counts, which keeps recording to one list update.
    """

    __slots__ = ("_counts", "saturated")

    def __init__(self) -> None:
        self._counts = _ZEROS.copy()
        self.saturated = 0

    def record(self, ns: int) -> None:
        """Count one duration; outside 0 to 60 s it is counted at the nearer bound, and as saturated."""
        if not 0 <= ns <= HIGHEST_NS:
            self.saturated += 1
            ns = HIGHEST_NS if ns > 0 else 0
        shift = (ns | _MASK).bit_length() - _SUB_BITS
        self._counts[(shift << _HALF_BITS) + (ns >> shift) - _OFFSET] += 1

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def min_ns(self) -> int:
        """Lower bound of the lowest step in use, 0 when empty."""
        index = next(self._used(), None)
        return 0 if index is None else lower_bound_ns(index)

    @property
    def max_ns(self) -> int:
        """Upper bound of the highest step in use, 0 when empty."""
        used = self.last_index()
        return 0 if used is None else upper_bound_ns(used)

    @property
    def mean_ns(self) -> float:
        """Mean of the middles of the steps, 0 when empty."""
        return _mean_ns(list(self._used()), self._counts)

    def percentile(self, q: float) -> int:
        """The duration, in ns, that q percent of the recorded ones do not exceed; 0 when empty.

        q: 0 to 100. The upper bound of the step in which rank q * count / 100, rounded, lies (as HdrHistogram's C
        and Python versions have it); q = 0 is the minimum.
        """
        return self.percentiles((q,))[0]

    def percentiles(self, wanted: Sequence[float]) -> list[int]:
        """Several percentiles in one pass, in the order asked for."""
        used = list(self._used())
        running = list(accumulate(self._counts[index] for index in used))
        return [_percentile_ns(q, used, running) for q in wanted]

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one."""
        self.saturated += other.saturated
        for index in other._used():
            self._counts[index] += other._counts[index]

    def snapshot(self) -> Histogram:
        """A copy that no longer changes."""
        copy = Histogram()
        copy._counts[:] = self._counts
        copy.saturated = self.saturated
        return copy

    def reset(self) -> None:
        self._counts[:] = _ZEROS
        self.saturated = 0

    def last_index(self) -> int | None:
        """Index of the highest step in use, None when empty."""
        return max(self._used(), default=None)

    def counts(self) -> tuple[int, ...]:
        """The count of every step up to the highest in use, as HdrHistogram's counts array has them."""
        last = self.last_index()
        return () if last is None else tuple(self._counts[: last + 1])

    def summary(self) -> StageSummary:
        p50, p95, p99, highest = (ns / 1e6 for ns in self.percentiles((50, 95, 99, 100)))
        return StageSummary(
            count=self.count,
            mean_ms=self.mean_ns / 1e6,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=highest,
            saturated=self.saturated,
        )

    def _used(self) -> Iterator[int]:
        return compress(_POSITIONS, self._counts)


class StageRecorder:
    """The stage times of one pipeline: since start, and of the interval that runs.

    A time is recorded once, into the running interval; `end_interval` adds that to the total. One thread records.
    """

    def __init__(self, pipeline: str) -> None:
        self.pipeline = pipeline
        self._interval: dict[Timed, Histogram] = {stage: Histogram() for stage in TIMED}
        self._ended: dict[Timed, Histogram] = {stage: Histogram() for stage in TIMED}

    def record(self, stage: Timed, duration_ns: int) -> None:
        """Count one duration of a stage."""
        self._interval[stage].record(duration_ns)

    def end_interval(self) -> dict[Timed, Histogram]:
        """The interval's histogram of each stage that was timed in it; the next interval begins empty."""
        ended: dict[Timed, Histogram] = {}
        for stage, running in self._interval.items():
            if running.last_index() is None:
                continue
            ended[stage] = running.snapshot()
            self._ended[stage].merge(running)
            running.reset()
        return ended

    def total(self, stage: Timed) -> Histogram:
        """A copy of everything recorded of a stage since start, the running interval included."""
        total = self._ended[stage].snapshot()
        total.merge(self._interval[stage])
        return total

    def summary(self) -> dict[Timed, StageSummary]:
        """Per stage since start, in the order of the stages; a stage never timed is left out."""
        totals = ((stage, self.total(stage)) for stage in TIMED)
        return {stage: total.summary() for stage, total in totals if total.last_index() is not None}


def lower_bound_ns(index: int) -> int:
    """The lowest duration that is counted at an index."""
    shift = max((index >> _HALF_BITS) - 1, 0)
    return (index - (shift << _HALF_BITS)) << (shift + _UNIT_BITS)


def upper_bound_ns(index: int) -> int:
    """The highest duration that is counted at an index."""
    return lower_bound_ns(index + 1) - 1


def _percentile_ns(q: float, used: list[int], running: list[int]) -> int:
    """used: indices in use, ascending. running: how many values lie at or below each."""
    if not 0 <= q <= 100:
        raise ValueError(f"percentile {q}, wanted 0 to 100")
    if not used:
        return 0
    if q == 0:
        return lower_bound_ns(used[0])
    rank = max(int(q * running[-1] / 100 + 0.5), 1)
    return upper_bound_ns(used[bisect_left(running, rank)])


def _mean_ns(used: list[int], counts: list[int]) -> float:
    total = count = 0
    for index in used:
        shift = max((index >> _HALF_BITS) - 1, 0)
        middle = (2 * (index - (shift << _HALF_BITS)) + 1) << (shift + _UNIT_BITS - 1)
        total += middle * counts[index]
        count += counts[index]
    return total / count if count else 0.0
