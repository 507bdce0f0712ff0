"""Scores to results: every window of a turn decided, and what is to be published of it."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from math import isfinite

from edge_runtime.records import AlarmState, Prediction, Result, Stage, StageTimes, StateChange, Turn, Window
from edge_runtime.stream.decide import Decider, Decision
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
NOT_TIMED = StageTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Results:
    """What one pipeline decides, and what it has told of each of its streams."""

    def __init__(
        self,
        pipeline: str,
        *,
        samples: int,
        decider: Decider,
        on_change: bool,
        record_all: Callable[[Stage, list[int]], None],
        now_ns: Callable[[], int],
    ) -> None:
        """samples: of a window. on_change: only a new label or alarm is told."""
        self._pipeline, self._samples, self._on_change = pipeline, samples, on_change
        self._decide, self._record_all, self._now_ns = decider.decide, record_all, now_ns
        self._segments = Segments()
        self._told: dict[str, tuple[str, bool | None]] = {}
        self._dropped_at_gap: set[str] = set()

    def tell(self, turn: Turn, prediction: Prediction) -> None:
        """Decide the windows of a turn, oldest first; each is said to have taken its share of the time."""
        windows, started_ns, record_all = turn.windows, prediction.started_ns, self._record_all
        start_ns = self._now_ns()
        decide, rows = self._decide, prediction.scores.tolist()
        decisions = [
            decide(window.stream, row, window.t1_unix_ns) if isfinite(sum(row)) else None
            for window, row in zip(windows, rows, strict=True)
        ]
        decided_ns = self._now_ns()
        decide_ns = (decided_ns - start_ns) // len(windows)
        infer_ms, decide_ms = prediction.infer_ns // 100 / 10_000, decide_ns // 100 / 10_000
        for window, decision, times_ns in zip(windows, decisions, turn.times_ns, strict=True):
            if decision is None:
                self._drop(turn, window)
            elif not (self._on_change and self._is_told(turn, window, decision, prediction.model)):
                queue_ns, decode_ns, window_ns, cut_ns = times_ns
                lat_ms = StageTimes(
                    queue_ns // 100 / 10_000,
                    decode_ns // 100 / 10_000,
                    window_ns // 100 / 10_000,
                    (started_ns - cut_ns) // 100 / 10_000,
                    infer_ms,
                    decide_ms,
                )
                result = self._result(window, decision, prediction.model, lat_ms)
                if decision.alarm is not None:
                    self._follow_alarm(turn, window, decision, decision.alarm, result)
                turn.emitted_ns.append((window.received_ns, decided_ns))
                turn.results.append(result)
        record_all("wait", [started_ns - cut_ns for _, _, _, cut_ns in turn.times_ns])
        record_all("infer", [prediction.infer_ns] * len(windows))
        record_all("decide", [decide_ns] * (len(windows) - decisions.count(None)))

    def _drop(self, turn: Turn, window: Window) -> None:
        key = window.stream, "not_finite"
        turn.window_drops[key] = turn.window_drops.get(key, 0) + 1
        if window.fresh or window.gap:
            self._dropped_at_gap.add(window.stream)

    def _is_told(self, turn: Turn, window: Window, decision: Decision, model: str) -> bool:
        """Whether label and alarm were told like this before; the window then counts, but is not published."""
        stream, alarm = window.stream, decision.alarm
        now = decision.label, None if alarm is None else alarm.on
        if now != self._told.get(stream):
            self._told[stream] = now
            return False
        turn.unchanged[stream] = turn.unchanged.get(stream, 0) + 1
        if alarm is not None:
            unpublished = self._result(window, decision, model, NOT_TIMED) if alarm.on else None
            self._follow_alarm(turn, window, decision, alarm, unpublished)
        return True

    def _follow_alarm(
        self, turn: Turn, window: Window, decision: Decision, alarm: AlarmState, result: Result | None
    ) -> None:
        """What a window does to its stream's alarm and segment. result: None where the alarm is off and was before."""
        stream = window.stream
        turn.alarms[stream] = alarm
        fresh = window.fresh or stream in self._dropped_at_gap
        self._dropped_at_gap.discard(stream)
        if result is None:
            return
        if decision.changed:
            since = alarm.since_unix_ns / NS_PER_S
            change = StateChange(alarm.on, decision.label, decision.score, since, result.id, stream)
            turn.state_changes.append(change)
        if alarm.on:
            turn.segments[stream] = self._segments.extend(result, decision.evidence, fresh=fresh)
            return
        ended = self._segments.end(stream)
        if ended is not None:
            turn.events.append(ended)
            turn.segments[stream] = None

    def _result(self, window: Window, decision: Decision, model: str, lat_ms: StageTimes) -> Result:
        identity = f"{self._pipeline}|{window.key}|{window.ordinal}".encode()
        alarm = decision.alarm
        return Result(
            RESULT_SCHEMA,
            blake2b(identity, digest_size=16).hexdigest(),
            self._pipeline,
            window.stream,
            model,
            decision.label,
            decision.score,
            decision.scores,
            None if alarm is None else alarm.on,
            window.t0_unix_ns / NS_PER_S,
            window.t1_unix_ns / NS_PER_S,
            self._samples,
            (window.first_seq, window.last_seq),
            window.missing,
            FLAGS[window.by_receipt, window.gap],
            lat_ms,
        )
