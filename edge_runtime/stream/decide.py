"""Scores to a label, and to an alarm where one is configured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from edge_runtime.records import AlarmState

NORMAL, ANOMALY, ERROR = "normal", "anomaly", "error"
MAX_ALARM_WINDOWS = 64
QUIET = AlarmState()


class DecideSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a stream is in alarm.

    alarm_on: a label, or "not LABEL"; empty means no alarm. A window speaks for it when its score for that reaches
    `score`, and against it below `release` (by default the same: no hysteresis). The alarm goes on when k of the
    last n windows speak for it, and off when k of the last n speak against it; windows before a turn do not count
    towards the next one.
    A model of reconstruction errors alarms by itself, at the bundle's threshold unless `score` is given.
    """

    alarm_on: str = ""
    score: float | None = None
    release: float | None = None
    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_ALARM_WINDOWS)] = 1
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_ALARM_WINDOWS)] = 1


Decision = tuple[str, float, dict[str, float]]
"""What one window was decided to be: its label, the score of that, and all its scores by label."""


class Alarm(msgspec.Struct, frozen=True, gc=False):
    """The alarm of a stream after a window.

    changed: it went on or off, or was never told. evidence: what spoke for it in this window: the score of its label,
    1 minus that for "not LABEL", or the error.
    """

    state: AlarmState
    changed: bool
    evidence: float


class Decider:
    """Labels and alarms of one pipeline; owns the alarm state of each stream.

    has_alarm: one is configured, or the score is a reconstruction error.
    """

    def __init__(self, settings: DecideSettings, *, labels: tuple[str, ...], threshold: float | None = None) -> None:
        """labels: one per score; none means that the score is a reconstruction error, judged by the threshold.

        Raises ValueError when the settings do not fit the model.
        """
        self.alarms: dict[str, AlarmState] = {}
        self._labels = labels
        self._width = len(labels) or 1
        self._k, self._window_mask = settings.k, (1 << settings.n) - 1
        if settings.k > settings.n:
            raise ValueError(f"k = {settings.k} of n = {settings.n} windows; k must be at most n")
        self._on_at, self._alarm_name, self._negated = _alarm_rule(settings, labels, threshold)
        self._off_below = settings.release if settings.release is not None else self._on_at
        if self._off_below > self._on_at:
            raise ValueError(f"release = {self._off_below} lies above score = {self._on_at}")
        self.has_alarm = not labels or bool(settings.alarm_on)

    def decide(self, rows: Sequence[Sequence[float]]) -> list[Decision]:
        """Label windows. rows: of each its scores, one a label, or its reconstruction error; all finite."""
        labels, decisions = self._labels, []
        for row in rows:
            if len(row) != self._width:
                raise ValueError(f"{len(row)} scores, wanted {self._width}")
            score = max(row)
            if labels:
                label, scores = labels[row.index(score)], dict(zip(labels, row))  # noqa: B905  as long, as checked
            else:
                label, scores = ANOMALY if score >= self._on_at else NORMAL, {ERROR: score}
            decisions.append((label, score, scores))
        return decisions

    def follow(self, stream: str, scores: dict[str, float], t_unix_ns: int) -> Alarm:
        """Take a window into its stream's alarm. t_unix_ns: its end, the time an alarm is said to begin or end."""
        at_alarm = scores[self._alarm_name]
        evidence = 1.0 - at_alarm if self._negated else at_alarm
        before = self.alarms.get(stream)
        state = self.alarms[stream] = self._step(before or QUIET, evidence, t_unix_ns)
        return Alarm(state, before is None or state.on != before.on, evidence)

    def _step(self, before: AlarmState, evidence: float, t_unix_ns: int) -> AlarmState:
        on_bits = (before.on_bits << 1 | (evidence >= self._on_at)) & self._window_mask
        off_bits = (before.off_bits << 1 | (evidence < self._off_below)) & self._window_mask
        on = off_bits.bit_count() < self._k if before.on else on_bits.bit_count() >= self._k
        if on != before.on:
            return AlarmState(on, on_bits & 1, off_bits & 1, t_unix_ns)
        return AlarmState(on, on_bits, off_bits, before.since_unix_ns or t_unix_ns)


def _alarm_rule(settings: DecideSettings, labels: tuple[str, ...], threshold: float | None) -> tuple[float, str, bool]:
    """Score that speaks for the alarm, its label, whether the label is negated."""
    if not labels:
        if settings.alarm_on:
            raise ValueError(f"alarm_on = {settings.alarm_on!r}: the model has no labels, only a reconstruction error")
        limit = settings.score if settings.score is not None else threshold
        if limit is None:
            raise ValueError("a reconstruction error needs a threshold: give score, the bundle has none")
        return limit, ERROR, False
    negated = settings.alarm_on.startswith("not ") and settings.alarm_on not in labels
    label = settings.alarm_on.removeprefix("not ") if negated else settings.alarm_on
    if label and label not in labels:
        raise ValueError(f"alarm_on = {settings.alarm_on!r}: the model has the labels {list(labels)}")
    score = settings.score if settings.score is not None else 0.5
    return score, label, negated
