"""The slowest windows of an interval, each with where its time went: what a percentile cannot tell."""

from __future__ import annotations

from heapq import heappush, heapreplace
from sys import maxsize
from typing import NamedTuple

import msgspec

from edge_runtime.records import Result, StageTimes, Turn

NS_PER_S = 1e9


class WindowTimes(StageTimes, frozen=True, kw_only=True, gc=False):
    """Every stage of one window, ms. commit: decided to safe, 0 where nothing is committed.

    publish: from there to written. e2e: receipt of its last message to written.
    """

    commit: float = 0.0
    publish: float
    e2e: float


class SlowLine(msgspec.Struct, frozen=True):
    """One line of the log.

    at: when its result had been written, Unix seconds. id, seq: of its result. batch: windows in the run it was in.
    temperature_c, throttled: of the device at the interval's end, null when unknown.
    """

    at: float
    pipeline: str
    stream: str
    id: str
    seq: tuple[int, int]
    batch: int
    lat_ms: WindowTimes
    temperature_c: float | None
    throttled: tuple[str, ...] | None


class SlowWindow(NamedTuple):
    """One window that was among the slowest. nth: of all that were offered; it settles which of equals is kept."""

    e2e_ns: int
    nth: int
    commit_ns: int
    publish_ns: int
    written_ns: int
    batch: int
    result: Result

    def line(
        self, *, now_ns: int, unix_ns: int, temperature_c: float | None, throttled: tuple[str, ...] | None
    ) -> SlowLine:
        """now_ns, unix_ns: both clocks at the same moment."""
        result = self.result
        times = msgspec.structs.asdict(result.lat_ms)
        return SlowLine(
            at=(unix_ns - (now_ns - self.written_ns)) / NS_PER_S,
            pipeline=result.pipeline,
            stream=result.stream,
            id=result.id,
            seq=result.seq,
            batch=self.batch,
            lat_ms=WindowTimes(**times, commit=_ms(self.commit_ns), publish=_ms(self.publish_ns), e2e=_ms(self.e2e_ns)),
            temperature_c=temperature_c,
            throttled=throttled,
        )


class Slowest:
    """Keeps so many of the windows it is offered. floor_ns: what a window must exceed to be kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[SlowWindow] = []
        self._offered = 0
        self.floor_ns = self._floor_ns()

    def offer(self, turn: Turn, e2e_ns: list[int], written_ns: int) -> None:
        """Look at every result of a turn. e2e_ns: per result."""
        commit_ns, publish_ns = turn.commit_ns, written_ns - turn.decided_ns - turn.commit_ns
        for result, ns in zip(turn.results, e2e_ns, strict=True):
            if ns > self.floor_ns:
                self._offered += 1
                found = SlowWindow(ns, self._offered, commit_ns, publish_ns, written_ns, len(turn.windows), result)
                keep = heapreplace if len(self._kept) == self._most else heappush
                keep(self._kept, found)
                self.floor_ns = self._floor_ns()

    def take(self) -> list[SlowWindow]:
        """What was kept since the last call, the slowest first."""
        kept, self._kept = self._kept, []
        self.floor_ns = self._floor_ns()
        return sorted(kept, reverse=True)

    def _floor_ns(self) -> int:
        if not self._most:
            return maxsize
        return self._kept[0].e2e_ns if len(self._kept) == self._most else -1


def _ms(ns: int) -> float:
    return ns // 100 / 10_000
