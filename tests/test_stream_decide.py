from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.stream.decide import Decider, DecideSettings

LABELS = {"labels": ("ok", "worn", "broken")}
ERRORS = {"labels": (), "threshold": 2.0}


def alarms(settings: DecideSettings, evidence: list[float], label: str = "worn") -> list[bool]:
    decider = Decider(settings, **LABELS)
    index = LABELS["labels"].index(label)
    rows = [[value if i == index else (1 - value) / 2 for i in range(3)] for value in evidence]
    return [decider.decide("s", row, t).alarm.on for t, row in enumerate(rows)]


def test_the_label_is_the_one_with_the_highest_score() -> None:
    decision = Decider(DecideSettings(), **LABELS).decide("s", [0.2, 0.7, 0.1], 0)

    assert (decision.label, decision.score, decision.alarm) == ("worn", 0.7, None)
    assert decision.scores == {"ok": 0.2, "worn": 0.7, "broken": 0.1}


def test_scores_that_are_not_one_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores, wanted 3"):
        Decider(DecideSettings(), **LABELS).decide("s", [0.2, 0.8], 0)


def test_an_alarm_follows_its_label() -> None:
    assert alarms(DecideSettings(alarm_on="worn", score=0.6), [0.5, 0.6, 0.7, 0.59]) == [False, True, True, False]


def test_an_alarm_on_not_ok_counts_every_other_label() -> None:
    settings = DecideSettings(alarm_on="not ok", score=0.8)

    assert alarms(settings, [0.9, 0.2, 0.19, 0.21], label="ok") == [False, True, True, False]


def test_hysteresis_keeps_an_alarm_between_release_and_score() -> None:
    settings = DecideSettings(alarm_on="worn", score=0.8, release=0.4)

    assert alarms(settings, [0.5, 0.9, 0.5, 0.4, 0.39, 0.5]) == [False, True, True, True, False, False]


def test_k_of_n_windows_switch_the_alarm_both_ways() -> None:
    settings = DecideSettings(alarm_on="worn", score=0.5, k=2, n=3)

    assert alarms(settings, [1, 0, 1, 1, 0, 1, 0, 0]) == [False, False, True, True, True, True, False, False]


@given(
    k=st.integers(1, 5),
    more=st.integers(0, 5),
    before=st.lists(st.floats(0, 1), max_size=12),
    constant=st.sampled_from([0.1, 0.9]),
)
def test_steady_evidence_turns_an_alarm_at_most_once(k: int, more: int, before: list[float], constant: float) -> None:
    settings = DecideSettings(alarm_on="worn", score=0.6, release=0.4, k=k, n=k + more)
    states = alarms(settings, [*before, *[constant] * 30])[len(before) :]

    assert sum(a != b for a, b in itertools.pairwise(states)) <= 1
    assert states[-1] is (constant > 0.5)


def test_a_change_is_told_at_first_and_whenever_the_alarm_turns() -> None:
    decider = Decider(DecideSettings(alarm_on="worn", score=0.5), **LABELS)
    decisions = [decider.decide("s", [0, value, 0], t) for t, value in enumerate([0, 0, 1, 1, 0], start=100)]

    assert [decision.changed for decision in decisions] == [True, False, True, False, True]
    assert [decision.alarm.since_unix_ns for decision in decisions] == [100, 100, 102, 102, 104]


def test_streams_have_alarms_of_their_own() -> None:
    decider = Decider(DecideSettings(alarm_on="worn", score=0.5), **LABELS)

    assert decider.decide("a", [0, 1, 0], 1).alarm.on
    assert not decider.decide("b", [1, 0, 0], 1).alarm.on


def test_a_reconstruction_error_alarms_at_the_bundles_threshold() -> None:
    decider = Decider(DecideSettings(), **ERRORS)
    decisions = [decider.decide("s", [error], 1) for error in (1.9, 2.0)]

    assert [(d.label, d.score, d.alarm.on) for d in decisions] == [("normal", 1.9, False), ("anomaly", 2.0, True)]
    assert Decider(DecideSettings(score=3.0), **ERRORS).decide("s", [2.5], 1).label == "normal"


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        (DecideSettings(alarm_on="hot"), LABELS, "'hot'.*'ok', 'worn', 'broken'"),
        (DecideSettings(alarm_on="not hot"), LABELS, "not hot"),
        (DecideSettings(alarm_on="worn", k=3, n=2), LABELS, "k = 3 of n = 2"),
        (DecideSettings(alarm_on="worn", score=0.5, release=0.6), LABELS, "release = 0.6 lies above score"),
        (DecideSettings(alarm_on="worn"), ERRORS, "no labels"),
    ],
)
def test_a_rule_the_model_cannot_follow_is_refused(settings, model, words) -> None:
    with pytest.raises(ValueError, match=words):
        Decider(settings, **model)
