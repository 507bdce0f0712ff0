"""Where the time of every window goes: one histogram a stage, cheap enough to be always on.

The histograms have the layout of HdrHistogram (lowest discernible value 1 µs, highest 60 s, 2 significant digits),
so that `hdrlog` can write them in the public format.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from math import ceil
from sys import maxsize
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.monitor.slowest import Slowest, SlowWindow
from edge_runtime.records import STAGES, Stage, Turn

log = logging.getLogger(__name__)

Timed = Literal[Stage, "e2e"]
TIMED: tuple[Timed, ...] = (*STAGES, "e2e")
Counts = npt.NDArray[np.int64]

LOWEST_NS = 1_000
HIGHEST_NS = 60_000_000_000
SIGNIFICANT_DIGITS = 2
PENDING = 1024
NS_PER_MS = 1e6

_UNIT_BITS = LOWEST_NS.bit_length() - 1
_HALF_BITS = (2 * int(10**SIGNIFICANT_DIGITS) - 1).bit_length() - 1
_SUB_BITS = _HALF_BITS + 1
_MASK = ((1 << _SUB_BITS) - 1) << _UNIT_BITS
_OFFSET = _UNIT_BITS << _HALF_BITS
SLOTS = (HIGHEST_NS.bit_length() - _SUB_BITS - _UNIT_BITS + 2) << _HALF_BITS
_APART = 32


def _lower_bounds_ns() -> Counts:
    """The lowest duration that is counted at each index, and at the one after the last; (SLOTS + 1,)."""
    index = np.arange(SLOTS + 1)
    shift = np.maximum((index >> _HALF_BITS) - 1, 0)
    bounds_ns: Counts = (index - (shift << _HALF_BITS)) << (shift + _UNIT_BITS)
    return bounds_ns


_BOUNDS_NS = _lower_bounds_ns()
_MIDDLES_NS = (_BOUNDS_NS[:-1] + _BOUNDS_NS[1:]) / 2


class LatencySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is timed and kept. enabled: stages are timed, and logged.

    interval_s: how often the log is written. log_mb: how large all its files may grow together. slowest: windows of
    each pipeline and interval that are kept with all their stages.
    """

    enabled: bool = True
    interval_s: Annotated[float, msgspec.Meta(ge=1.0, le=3600.0)] = 10.0
    log_mb: Annotated[float, msgspec.Meta(ge=1.0)] = 16.0
    slowest: Annotated[int, msgspec.Meta(ge=0, le=100)] = 5


class StageSummary(msgspec.Struct, frozen=True):
    """One stage, as exact as its histogram. saturated: values above 60 s or below 0, counted at that bound."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    saturated: int


class Deadline(msgspec.Struct, frozen=True):
    """How many results were written later than deadline_ms after their last message was received."""

    deadline_ms: float
    results: int
    misses: int


class Histogram:
    """Counts of durations in logarithmic buckets of 128 linear steps each: 2,688 steps, 21 KiB.

    A duration above 65 µs is known to 1 % (two digits), a shorter one to 0.5 µs. What is read (maximum and mean
    too) comes from the counts.
    """

    __slots__ = ("_counts", "saturated")

    def __init__(self, counts: Counts | None = None) -> None:
        """counts: (SLOTS,) to count in, of nothing saturated; by default of its own, all 0."""
        self._counts: Counts = np.zeros(SLOTS, np.int64) if counts is None else counts
        self.saturated = 0

    def record_all(self, durations_ns: Sequence[int] | Counts, times: Counts | int = 1) -> None:
        """Count durations, each so many times; one outside 0 to 60 s at the nearer bound, and as saturated."""
        wanted = np.asarray(durations_ns, np.int64)
        ns = np.minimum(np.maximum(wanted, 0), HIGHEST_NS)
        self.saturated += int(((ns != wanted) * times).sum())
        shift = np.frexp(ns | _MASK)[1] - _SUB_BITS
        np.add.at(self._counts, (shift << _HALF_BITS) + (ns >> shift) - _OFFSET, times)

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    @property
    def max_ns(self) -> int:
        """Upper bound of the highest step in use, 0 when empty."""
        used = self._used()
        return upper_bound_ns(used[-1]) if len(used) else 0

    @property
    def mean_ns(self) -> float:
        """Mean of the middles of the steps, 0 when empty."""
        return float(_MIDDLES_NS @ self._counts) / max(self.count, 1)

    def percentiles(self, wanted: Sequence[float]) -> list[int]:
        """The durations, in ns, that so many percent of the recorded ones do not exceed; 0 when empty.

        wanted: each 0 to 100. The upper bound of the step in which rank q * count / 100, rounded, lies (as
        HdrHistogram's C and Python versions have it); q = 0 is the minimum, the lower bound of its step.
        """
        if not all(0 <= q <= 100 for q in wanted):
            raise ValueError(f"percentiles {wanted}, wanted 0 to 100")
        return _percentiles_ns(self._counts.cumsum(), wanted)

    def snapshot(self) -> Histogram:
        """A copy that no longer changes."""
        copy = Histogram(self._counts.copy())
        copy.saturated = self.saturated
        return copy

    def since(self, mark: Histogram) -> Histogram | None:
        """What was counted here since it was equal to the mark, None for nothing; the mark becomes equal."""
        used = self._used()
        span = slice(used[0], used[-1] + 1) if len(used) else slice(0)
        added = self._counts[span] - mark._counts[span]
        if not added.any():
            return None
        found = Histogram()
        found._counts[span], found.saturated = added, self.saturated - mark.saturated
        mark._counts[span], mark.saturated = self._counts[span], self.saturated
        return found

    def used(self) -> tuple[npt.NDArray[np.intp], Counts]:
        """Index and count of every step in use, ascending; both (n,)."""
        used = self._used()
        return used, self._counts[used]

    def summary(self) -> StageSummary:
        running = self._counts.cumsum()
        count = int(running[-1])
        p50, p95, p99, highest = (ns / NS_PER_MS for ns in _percentiles_ns(running, (50, 95, 99, 100)))
        return StageSummary(
            count=count,
            mean_ms=float(_MIDDLES_NS @ self._counts) / max(count, 1) / NS_PER_MS,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            max_ms=highest,
            saturated=self.saturated,
        )

    def _used(self) -> npt.NDArray[np.intp]:
        return self._counts.astype(bool).nonzero()[0]  # four times as fast as on numbers


def _percentiles_ns(running: Counts, wanted: Sequence[float]) -> list[int]:
    """running: how many were counted up to each step."""
    count = int(running[-1])
    if not count:
        return [0] * len(wanted)
    steps = running.searchsorted([max(int(q * count / 100 + 0.5), 1) for q in wanted])
    return [
        int(_BOUNDS_NS[step + 1]) - 1 if q else int(_BOUNDS_NS[step]) for q, step in zip(wanted, steps, strict=True)
    ]


class Recorder(Protocol):
    """Takes what the loop and the pipeline measured, in ns."""

    def record_all(self, stage: Timed, durations_ns: list[int]) -> None: ...

    def record_turn(self, turn: Turn) -> None: ...

    def written(self, turn: Turn, written_ns: int) -> None: ...


class NoRecorder:
    """Times nothing."""

    def record_all(self, stage: Timed, durations_ns: list[int]) -> None: ...

    def record_turn(self, turn: Turn) -> None: ...

    def written(self, turn: Turn, written_ns: int) -> None: ...


class StageRecorder:
    """The stage times of one pipeline: since start, since they were last asked for, and of the interval that runs.

    Durations wait, at most about a thousand of a stage, until they are counted together. Memory is fixed: 0.7 MB of
    counts, of which only what is used is ever touched, and 0.2 MB of waiting durations. One thread records and reads.
    misses: results written later than the deadline, since start. recent_misses: those between the last two `recent`.
    negative_transits: messages received before they were sent, which proves a sensor's clock wrong.
    """

    def __init__(self, pipeline: str, *, deadline_ms: float = 0.0, slowest: int = 5) -> None:
        """deadline_ms: from receipt to written, 0 for none. slowest: windows kept in each interval."""
        self.pipeline, self.deadline_ms = pipeline, deadline_ms
        self.misses = self.recent_misses = self.negative_transits = 0
        self._earliest_ns = 0
        counts = np.zeros((3, len(TIMED), SLOTS), np.int64)
        totals, intervals, recents = ([Histogram(row) for row in rows] for rows in counts)
        self._totals = dict(zip(TIMED, totals, strict=True))
        self._ended, self._asked = dict(zip(TIMED, intervals, strict=True)), dict(zip(TIMED, recents, strict=True))
        # Stages with a value per message fill up together; bounds apart let their folding fall on different turns.
        self._pending: dict[Timed, tuple[array[int], int]] = {
            stage: (array("q"), PENDING - _APART * i) for i, stage in enumerate(TIMED)
        }
        self._shares: dict[Timed, tuple[array[int], int]] = {
            stage: (array("q"), most) for stage, (_, most) in self._pending.items()
        }
        self._asked_misses = 0
        self._slowest = Slowest(slowest)
        self._deadline_ns = ceil(deadline_ms * NS_PER_MS) or maxsize
        self._bar_ns = min(self._slowest.floor_ns, self._deadline_ns)

    @property
    def problem(self) -> str:
        """What the transits prove wrong, "" while they prove nothing."""
        if not self.negative_transits:
            return ""
        found = f"{self.negative_transits}, by up to {-self._earliest_ns / NS_PER_MS:.3f} ms"
        return f"{self.pipeline}: messages received before their time: {found}; source.clock_synced is not true"

    def record_all(self, stage: Timed, durations_ns: list[int]) -> None:
        """Count durations of a stage."""
        pending, most = self._pending[stage]
        pending.fromlist(durations_ns)
        if len(pending) >= most:
            self._fold(stage)

    def record_turn(self, turn: Turn) -> None:
        """Count what the stages of a turn cost."""
        for stage, durations_ns, times in turn.spent:
            if times == 1:
                self.record_all(stage, durations_ns)
            else:
                self.record_share(stage, durations_ns[0], times)

    def record_share(self, stage: Timed, share_ns: int, n: int) -> None:
        """Count a duration n times: of so many messages or windows that each took its share of a whole."""
        shares, most = self._shares[stage]
        shares.fromlist([share_ns, n])
        if len(shares) >= most:
            self._fold(stage)

    def written(self, turn: Turn, written_ns: int) -> None:
        """Time the results of a turn that have left: publish, e2e, the deadline, and whether they are the slowest."""
        e2e_ns, most = self._pending["e2e"]
        bar_ns, noteworthy = self._bar_ns, False
        for received_ns in turn.emitted_ns:
            ns = written_ns - received_ns
            e2e_ns.append(ns)
            if ns > bar_ns:
                noteworthy = True
        if len(e2e_ns) >= most:
            self._fold("e2e")
        self.record_share("publish", written_ns - turn.decided_ns - turn.commit_ns, len(turn.emitted_ns))
        if noteworthy:
            self._look_closer(turn, written_ns)

    def end_interval(self) -> dict[Timed, Histogram]:
        """The interval's histogram of each stage that was timed in it; the next interval begins empty."""
        return self._since(self._ended)

    def end_slowest(self) -> list[SlowWindow]:
        """The slowest windows of the interval, the slowest first; the next interval begins without any."""
        found = self._slowest.take()
        self._bar_ns = min(self._slowest.floor_ns, self._deadline_ns)
        return found

    def total(self, stage: Timed) -> Histogram:
        """A copy of everything recorded of a stage since start."""
        self._fold(stage)
        return self._totals[stage].snapshot()

    def summary(self) -> dict[Timed, StageSummary]:
        """Per stage since start, in the order of the stages; a stage never timed is left out."""
        self._fold_all()
        return {stage: total.summary() for stage, total in self._totals.items() if total.count}

    def deadline(self) -> Deadline | None:
        """How it was kept since start, None where there is none."""
        return Deadline(self.deadline_ms, self.total("e2e").count, self.misses) if self.deadline_ms else None

    def recent(self) -> dict[Timed, StageSummary]:
        """Per stage since the last call, in the order of the stages; a stage not timed since is left out."""
        self.recent_misses, self._asked_misses = self.misses - self._asked_misses, self.misses
        return {stage: recent.summary() for stage, recent in self._since(self._asked).items()}

    def _look_closer(self, turn: Turn, written_ns: int) -> None:
        """One of its results is late, or among the slowest."""
        e2e_ns = [written_ns - received_ns for received_ns in turn.emitted_ns]
        self.misses += sum(ns > self._deadline_ns for ns in e2e_ns)
        self._slowest.offer(turn, e2e_ns, written_ns)
        self._bar_ns = min(self._slowest.floor_ns, self._deadline_ns)

    def _since(self, marks: dict[Timed, Histogram]) -> dict[Timed, Histogram]:
        self._fold_all()
        found = {stage: total.since(marks[stage]) for stage, total in self._totals.items()}
        return {stage: added for stage, added in found.items() if added is not None}

    def _fold_all(self) -> None:
        for stage in TIMED:
            self._fold(stage)

    def _fold(self, stage: Timed) -> None:
        shares, _ = self._shares[stage]
        if shares:
            shares_ns, times = np.frombuffer(shares, np.int64).reshape(-1, 2).T.copy()
            del shares[:]
            self._totals[stage].record_all(shares_ns, times)
        pending, _ = self._pending[stage]
        if not pending:
            return
        durations_ns = np.array(pending)
        del pending[:]
        self._totals[stage].record_all(durations_ns)
        if stage == "transit" and (early := int(np.count_nonzero(durations_ns < 0))):
            self._earliest_ns = min(self._earliest_ns, int(durations_ns.min()))
            self.negative_transits += early
            if self.negative_transits == early:
                log.warning("transit_negative", extra={"pipeline": self.pipeline})


def lower_bound_ns(index: int) -> int:
    """The lowest duration that is counted at an index."""
    return int(_BOUNDS_NS[index])


def upper_bound_ns(index: int) -> int:
    """The highest duration that is counted at an index."""
    return lower_bound_ns(index + 1) - 1
