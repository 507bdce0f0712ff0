"""Scores to results: every window of a turn decided, and what is to be published of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from itertools import compress
from math import isfinite

import msgspec

from edge_runtime.records import Prediction, Remembered, Result, StageTimes, StateChange, Told, Turn, Window
from edge_runtime.stream.decide import Alarm, Decider, Decision
from edge_runtime.stream.segments import Segments

RESULT_SCHEMA = 1
NS_PER_S = 1e9
FLAGS: dict[tuple[bool, bool], tuple[str, ...]] = {
    (False, False): (),
    (True, False): ("receipt_time",),
    (False, True): ("gap",),
    (True, True): ("receipt_time", "gap"),
}
"""By whether times are those of receipt, and whether a marked gap lies inside."""

Times = tuple[int, int, int, int]
Scores = list[float]


class Results:
    """What one pipeline decides, and what it has told of each of its streams."""

    def __init__(
        self,
        pipeline: str,
        *,
        samples: int,
        decider: Decider,
        on_change: bool,
        now_ns: Callable[[], int],
    ) -> None:
        """samples: of a window. on_change: only a new label or alarm is told."""
        self._pipeline, self._samples, self._on_change = pipeline, samples, on_change
        self._decider, self._now_ns = decider, now_ns
        self._id = blake2b(f"{pipeline}|".encode(), digest_size=16)
        self._segments = Segments()
        self._told: dict[str, Told] = {}
        self._dropped_at_gap: set[str] = set()

    def restore(self, stream: str, remembered: Remembered) -> None:
        """Take up where another run of the process ended."""
        if self._decider.has_alarm and remembered.alarm is not None:
            self._decider.alarms[stream] = remembered.alarm
        if self._decider.has_alarm and remembered.segment is not None:
            self._segments.open[stream] = remembered.segment
        if remembered.told is not None:
            self._told[stream] = remembered.told
        if remembered.dropped_at_gap:
            self._dropped_at_gap.add(stream)

    def tell(self, turn: Turn, prediction: Prediction) -> None:
        """Decide the windows of a turn, oldest first; each is said to have taken its share of the time."""
        start_ns = self._now_ns()
        windows, rows, times_ns = turn.windows, prediction.scores.tolist(), turn.times_ns
        if self._dropped_at_gap or not isfinite(sum(map(sum, rows))):
            windows, rows, times_ns = self._finite(turn, rows, prediction.started_ns)
        decisions = self._decider.decide(rows)
        alarms = self._alarms(turn, windows, decisions) if self._decider.has_alarm else [None] * len(windows)
        decided_ns = turn.decided_ns = self._now_ns()
        decide_ns = (decided_ns - start_ns) // len(turn.windows)
        decided = zip(windows, decisions, alarms, times_ns, strict=True)
        self._add_results(turn, prediction, decide_ns, decided)
        turn.spent += ("infer", [prediction.infer_ns], len(turn.windows)), ("decide", [decide_ns], len(windows))

    def _add_results(
        self,
        turn: Turn,
        prediction: Prediction,
        decide_ns: int,
        decided: Iterable[tuple[Window, Decision, Alarm | None, Times]],
    ) -> None:
        """decided: per window what was decided, its alarm if one is configured, and its times as the turn has them."""
        model, started_ns, begin_id, on_change = prediction.model, prediction.started_ns, self._id.copy, self._on_change
        results, emitted_ns, waits_ns = turn.results, turn.emitted_ns, []
        infer_ms, decide_ms = prediction.infer_ns // 100 / 10_000, decide_ns // 100 / 10_000
        before: Times | None = None
        for window, (label, score, by_label), alarm, times in decided:
            if times != before:
                queue_ns, decode_ns, window_ns, cut_ns = before = times
                wait_ns = started_ns - cut_ns
                lat_ms = StageTimes(
                    queue_ns // 100 / 10_000, decode_ns // 100 / 10_000, window_ns // 100 / 10_000,
                    wait_ns // 100 / 10_000, infer_ms, decide_ms,
                )  # fmt: skip
            waits_ns.append(wait_ns)
            on = None if alarm is None else alarm.state.on
            is_news = not on_change or self._is_news(turn, window.stream, (label, on))
            if not (is_news or on):
                continue
            identity = begin_id()
            identity.update(f"{window.key}|{window.ordinal}".encode())
            result = Result(
                RESULT_SCHEMA, identity.hexdigest(), self._pipeline, window.stream, model, label, score, by_label, on,
                window.t0_unix_ns / NS_PER_S, window.t1_unix_ns / NS_PER_S, self._samples,
                (window.first_seq, window.last_seq), window.missing, FLAGS[window.by_receipt, window.gap], lat_ms,
            )  # fmt: skip
            if alarm is not None:
                self._follow(turn, result, alarm, fresh=window.fresh)
            if is_news:
                results.append(result)
                emitted_ns.append(window.received_ns)
        turn.spent.append(("wait", waits_ns, 1))

    def _finite(
        self, turn: Turn, rows: list[Scores], started_ns: int
    ) -> tuple[list[Window], list[Scores], list[Times]]:
        """The windows whose scores are numbers; the others are dropped.

        Where the first window after a gap is dropped, the next one of its stream stands for it.
        """
        finite = [isfinite(sum(row)) for row in rows]
        windows: list[Window] = []
        for window, is_finite, (*_, cut_ns) in zip(turn.windows, finite, turn.times_ns, strict=True):
            stream = window.stream
            if not is_finite:
                turn.spent.append(("wait", [started_ns - cut_ns], 1))
                key = stream, "not_finite"
                turn.window_drops[key] = turn.window_drops.get(key, 0) + 1
                if window.fresh or window.gap:
                    self._dropped_at_gap.add(stream)
                    turn.dropped_at_gap[stream] = True
            elif stream in self._dropped_at_gap:
                self._dropped_at_gap.remove(stream)
                turn.dropped_at_gap[stream] = False
                windows.append(msgspec.structs.replace(window, fresh=True))
            else:
                windows.append(window)
        return windows, list(compress(rows, finite)), list(compress(turn.times_ns, finite))

    def _alarms(self, turn: Turn, windows: list[Window], decisions: list[Decision]) -> list[Alarm | None]:
        alarms: list[Alarm | None] = []
        for window, (_, _, by_label) in zip(windows, decisions, strict=True):
            alarm = self._decider.follow(window.stream, by_label, window.t1_unix_ns)
            turn.alarms[window.stream] = alarm.state
            alarms.append(alarm)
        return alarms

    def _is_news(self, turn: Turn, stream: str, now: Told) -> bool:
        """Whether label and alarm are new to the stream; if not, the window counts, but is not published."""
        if now != self._told.get(stream):
            self._told[stream] = turn.told[stream] = now
            return True
        turn.unchanged[stream] = turn.unchanged.get(stream, 0) + 1
        return False

    def _follow(self, turn: Turn, result: Result, alarm: Alarm, *, fresh: bool) -> None:
        """What a window does to the segment of its stream. fresh: it is the first after a gap that reset its stream."""
        stream, state = result.stream, alarm.state
        if alarm.changed:
            since = state.since_unix_ns / NS_PER_S
            turn.state_changes.append(StateChange(state.on, result.label, result.score, since, result.id, stream))
        if state.on:
            turn.segments[stream] = self._segments.extend(result, alarm.evidence, fresh=fresh)
        elif (ended := self._segments.end(stream)) is not None:
            turn.events.append(ended)
            turn.segments[stream] = None
