"""When results leave, and when the broker has them: the last stages of their latency."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from edge_runtime.monitor.latency import Recorder
from edge_runtime.records import Turn

NOT_YET = -1


class _Leaving(NamedTuple):
    """A turn whose results were handed over, the last one under that token."""

    turn: Turn
    last: int


class Departures:
    """Follows the results of turns by their tokens. recorders: of each pipeline."""

    def __init__(self, recorders: Mapping[str, Recorder]) -> None:
        self._recorders = recorders
        self._unwritten: deque[_Leaving] = deque()
        self._left_ns: dict[int, int] = {}
        self._written = 0

    def handed_over(self, turn: Turn, last: int, *, answered: bool) -> None:
        """Its results are on their way. answered: each gets a PUBACK."""
        if answered:
            self._left_ns.update(dict.fromkeys(range(last - len(turn.results) + 1, last + 1), NOT_YET))
        self._unwritten.append(_Leaving(turn, last))

    def written(self, written: int, now_ns: int) -> None:
        """Messages up to that token have left. A turn's when all have, as some may have to wait for the broker."""
        if written == self._written:
            return
        if self._left_ns:
            tokens = range(self._written + 1, written + 1)
            self._left_ns.update({token: now_ns for token in tokens if token in self._left_ns})
        self._written = written
        while self._unwritten and self._unwritten[0].last <= written:
            turn, _ = self._unwritten.popleft()
            self._recorders[turn.pipeline].written(turn, now_ns)

    def delivered(self, tokens: Sequence[int], pipelines: Sequence[str], now_ns: int) -> None:
        """The broker has answered; pipelines: of each message, "" where it is no result."""
        if not self._left_ns:
            return
        took: dict[str, list[int]] = {}
        for token, pipeline in zip(tokens, pipelines, strict=True):
            left_ns = self._left_ns.pop(token, NOT_YET)
            if left_ns != NOT_YET:
                took.setdefault(pipeline, []).append(now_ns - left_ns)
        for pipeline, durations_ns in took.items():
            self._recorders[pipeline].record_all("puback", durations_ns)

    def failed(self, token: int) -> None:
        self._left_ns.pop(token, None)

    def forget(self, is_waiting: Callable[[int], bool]) -> None:
        """Some have failed: turns whose last result is no longer waited for are not timed."""
        self._unwritten = deque(leaving for leaving in self._unwritten if is_waiting(leaving.last))
