from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.stream.decide import Alarm, Decider, DecideSettings

LABELS = {"labels": ("ok", "worn", "broken")}
ERRORS = {"labels": (), "threshold": 2.0}


def alarms(settings: DecideSettings, evidence: list[float], label: str = "worn") -> list[bool]:
    index = LABELS["labels"].index(label)
    rows = [[value if i == index else (1 - value) / 2 for i in range(3)] for value in evidence]
    return [alarm.state.on for alarm in follow(Decider(settings, **LABELS), rows)]


def follow(decider: Decider, rows: list[list[float]], stream: str = "s", *, first_ns: int = 0) -> list[Alarm]:
    """The alarm after each window of a stream, one window a ns."""
    decisions = decider.decide(rows)
    return [decider.follow(stream, scores, t_ns) for t_ns, (_, _, scores) in enumerate(decisions, start=first_ns)]


def test_the_label_is_the_one_with_the_highest_score() -> None:
    decisions = Decider(DecideSettings(), **LABELS).decide([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])

    assert decisions == [
        ("worn", 0.7, {"ok": 0.2, "worn": 0.7, "broken": 0.1}),
        ("broken", 0.7, {"ok": 0.1, "worn": 0.2, "broken": 0.7}),
    ]


def test_of_equal_scores_the_first_label_counts() -> None:
    ((label, _, _),) = Decider(DecideSettings(), **LABELS).decide([[0.2, 0.4, 0.4]])

    assert label == "worn"


def test_scores_that_are_not_one_a_label_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores, wanted 3"):
        Decider(DecideSettings(), **LABELS).decide([[0.2, 0.8]])


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
    told = follow(decider, [[0, value, 0] for value in (0, 0, 1, 1, 0)], first_ns=100)

    assert [alarm.changed for alarm in told] == [True, False, True, False, True]
    assert [alarm.state.since_unix_ns for alarm in told] == [100, 100, 102, 102, 104]


def test_streams_have_alarms_of_their_own() -> None:
    decider = Decider(DecideSettings(alarm_on="worn", score=0.5), **LABELS)

    assert follow(decider, [[0, 1, 0]], "a")[0].state.on
    assert not follow(decider, [[1, 0, 0]], "b")[0].state.on


def test_a_reconstruction_error_alarms_at_the_bundles_threshold() -> None:
    decider, errors = Decider(DecideSettings(), **ERRORS), [[1.9], [2.0]]

    assert decider.decide(errors) == [("normal", 1.9, {"error": 1.9}), ("anomaly", 2.0, {"error": 2.0})]
    assert [alarm.state.on for alarm in follow(decider, errors)] == [False, True]
    assert Decider(DecideSettings(score=3.0), **ERRORS).decide([[2.5]])[0][0] == "normal"


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
