"""A pipeline that ends and is taken up again tells the same as one that never ended."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import RATE_HZ, SOURCES, Case, Run, Sensor, Sent, cuts, history, marks

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Carried, Queued, Remembered
from edge_runtime.stream.window import WindowSettings

CASES = st.builds(
    Case,
    source=st.sampled_from(SOURCES),
    window=st.builds(
        WindowSettings,
        samples=st.integers(1, 6),
        hop=st.integers(1, 9),
        max_gap_samples=st.sampled_from([0, 0, 2, 5]),
        on_gap=st.sampled_from(["reset", "hold", "mark"]),
    ),
    rate_hz=st.sampled_from([None, RATE_HZ]),
    lead_in=st.sampled_from([0, 0, 1, 3]),
    streaming=st.booleans(),
    together=st.booleans(),
    publish=st.sampled_from(["window", "change"]),
    max_windows=st.sampled_from([256, 8]),
)


@settings(deadline=None, max_examples=150)
@given(case=CASES, seed=st.integers(0, 2**32))
def test_what_a_pipeline_tells_does_not_depend_on_how_often_its_process_ends(case: Case, seed: int) -> None:
    rng = random.Random(seed)
    sent = history(case, rng)
    undisturbed, disturbed = Run(case), Run(case)

    undisturbed.play(sent, cuts(rng))
    disturbed.play(sent, cuts(rng), rng.sample(range(2, 20), 3))

    assert disturbed.told == undisturbed.told
    assert disturbed.account() == undisturbed.account()
    assert disturbed.journal.rows == undisturbed.journal.rows


FOUR = Case(
    source=SOURCES[1],
    window=WindowSettings(samples=4, hop=2),
    rate_hz=RATE_HZ,
    lead_in=0,
    streaming=True,
    together=True,
    publish="change",
    max_windows=256,
)
TIMED, COUNTED = (msgspec.structs.replace(FOUR, source=source) for source in SOURCES[2:4])


def begun(case: Case, n: int = 5, **fields: object) -> tuple[Run, list[Sent]]:
    """A run that has settled a turn of so many messages of one sample, and the next ones."""
    sensor, subject = Sensor("a", case), Run(case)
    sent = [msgspec.structs.replace(sensor.send("usual", 1, i / 20), **fields) for i in range(20)]
    subject.play(sent[:n], [n])
    return subject, sent[n:]


def taken_up(subject: Run, remembered: dict[str, Remembered], **same: bool) -> int:
    """How many streams another run of the process begins anew."""
    subject.number += 1
    subject.pipeline = subject.case.pipeline(Ledger(), run=subject.number)
    return subject.pipeline.restore(remembered, **{"same_windows": True, "same_model": True, **same})


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    records = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [(record.getMessage(), record.stream, record.reason) for record in records]


def windows_of(subject: Run, sent: Sequence[Sent]) -> list[tuple[int, int, bool]]:
    turn, _ = subject.ingest(sent, len(sent))
    return [(window.first_seq, window.last_seq, window.fresh) for window in turn.windows]


def test_without_keeping_a_turn_remembers_nothing() -> None:
    for n in (1, 8):
        pipeline = FOUR.pipeline(Ledger(), run=0, keep=False)
        sensor = Sensor("a", FOUR)
        turn = pipeline.process([Queued("a", [sensor.send("usual", 1, 0.5).message(0) for _ in range(n)])])

        assert (turn.marks, turn.kept, {one.contents for one in turn.accepted}) == ({}, [], {()})


def test_windows_that_are_whole_messages_keep_no_inputs() -> None:
    case = msgspec.structs.replace(FOUR, window=WindowSettings(samples=1, hop=1))
    for n in (1, 8):
        subject, _ = begun(case, n)
        assert subject.journal.kept == {"a": deque()}
        assert list(subject.journal.remembered()["a"].mark.window.held) == []


@pytest.mark.parametrize("spoil", ["payload", "missing", "resets", "other rows"])
def test_a_stream_whose_kept_inputs_are_not_all_there_begins_anew_and_says_so(
    caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    subject, rest = begun(FOUR)
    remembered = subject.journal.remembered()
    (kept,) = remembered["a"].kept  # of two messages
    payloads = {"payload": b"{", "other rows": b'{"n": 7, "t": 1, "v": [[1, 0], [0, 1]]}'}
    spoiled = [msgspec.structs.replace(one, payload=payloads.get(spoil, one.payload)) for one in kept.messages]
    other = kept.resets + (spoil == "resets")
    remembered["a"].kept = [msgspec.structs.replace(kept, messages=spoiled, resets=other)] * (spoil != "missing")

    assert taken_up(subject, remembered) == 1
    ((event, stream, reason),) = warnings(caplog)
    assert (event, stream) == ("stream_begins_anew", "a")
    assert ("malformed" in reason) == (spoil == "payload")
    turn, _ = subject.ingest(rest[:6], 6)
    assert [(window.first_seq, window.last_seq, window.fresh) for window in turn.windows] == [
        (8, 11, True),
        (10, 13, False),
    ]
    assert turn.marks["a"].window.resets == 1
    assert turn.lost_before_us == {}


def test_other_window_settings_begin_the_windows_anew_and_leave_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    subject, rest = begun(FOUR)
    remembered = subject.journal.remembered()

    assert taken_up(subject, remembered, same_windows=False) == 0
    assert warnings(caplog) == []
    turn, _ = subject.ingest(rest[:4], 4)
    subject.finish(turn)
    assert [(window.first_seq, window.fresh) for window in turn.windows] == [(8, True)]
    assert (turn.marks["a"].window.resets, turn.lost_before_us) == (1, {})


@pytest.mark.parametrize("same", [True, False])
def test_the_state_of_another_model_is_not_taken_up(same: bool) -> None:
    subject, rest = begun(FOUR, 4)
    (before,) = subject.journal.remembered().values()

    assert taken_up(subject, {"a": before}, same_model=same) == 0
    turn, _ = subject.ingest(rest[:2], 2)
    subject.finish(turn)
    assert before.carried is not None
    assert before.carried.windows == 1
    assert turn.model_states["a"].windows == 1 + same


def test_a_state_of_another_shape_is_not_taken_up_and_said(caplog: pytest.LogCaptureFixture) -> None:
    subject, rest = begun(FOUR, 4)
    remembered = subject.journal.remembered()
    remembered["a"].carried = Carried((np.zeros(3, np.float32),), 7)

    assert taken_up(subject, remembered) == 1
    assert [reason for _, _, reason in warnings(caplog)] == ["the model's state is of another shape"]
    assert windows_of(subject, rest[:2]) == [(5, 8, False)]


@pytest.mark.parametrize(("case", "seen"), [(COUNTED, False), (TIMED, True)])
def test_after_a_restart_a_pause_is_a_gap_only_by_the_sensors_clock(case: Case, seen: bool) -> None:
    subject, _ = begun(case)
    sensor = Sensor("a", case)
    for _ in range(5):
        sensor.send("usual", 1, 0.5)
    late = [msgspec.structs.replace(sensor.send("paused", 1, 0.5), age_ns=0), sensor.send("usual", 1, 0.5)]
    taken_up(subject, subject.journal.remembered())

    assert windows_of(subject, late[:1]) == ([] if seen else [(2, 5, False)])


@pytest.mark.parametrize("case", [FOUR, COUNTED])
def test_a_mark_is_taken_up_whatever_else_is_left(case: Case) -> None:
    subject, _ = begun(case)
    remembered = subject.journal.remembered()
    remembered["a"].seen = []
    taken_up(subject, remembered)

    assert marks(subject.pipeline) == {"a": remembered["a"].mark}


def test_a_gap_that_was_bridged_is_bridged_again_by_the_row_before_it() -> None:
    case = msgspec.structs.replace(FOUR, window=WindowSettings(samples=8, hop=8, max_gap_samples=3), streaming=False)
    sensor, subject, whole = Sensor("a", case), Run(case), Run(case)
    sent = [sensor.send("usual", 3, 0.1), *(sensor.send(odd, 1, 0.9) for odd in ("lost", "usual", "usual"))]
    subject.play(sent[:2], [2])
    (mark,) = (one.mark for one in subject.journal.remembered().values())
    assert mark.window.held == ((3, 3),)

    assert taken_up(subject, subject.journal.remembered()) == 0
    found, wanted = subject.ingest(sent[2:], 2)[0], whole.ingest(sent, 4)[0]
    assert [window.missing for window in found.windows] == [3]
    assert np.array_equal(found.inputs, wanted.inputs)


def test_messages_that_are_never_compared_are_counted_on_all_the_same() -> None:
    """At QoS 0 without numbers nothing is remembered of them but how many there were."""
    subject = Run(COUNTED)
    sensor = Sensor("a", COUNTED)
    for _ in range(2):
        message = msgspec.structs.replace(sensor.send("usual", 1, 0.5).message(subject.number), qos=0)
        turn = subject.pipeline.process([Queued("a", [message])])
        subject.journal.settle(turn)
        remembered = subject.journal.remembered()
        remembered["a"].seen = []
        taken_up(subject, remembered)

    assert [(one.epoch, one.first) for one in turn.accepted] == [("run0", 1)]


def test_a_stream_that_never_had_a_good_message_begins_in_the_run_that_sees_one() -> None:
    subject = Run(COUNTED)
    sensor = Sensor("a", COUNTED)
    subject.play([sensor.send("bad", 1, 0.5)], [1])
    taken_up(subject, subject.journal.remembered())
    turn, _ = subject.ingest([sensor.send("usual", 1, 0.5)], 1)

    assert [(one.epoch, one.first) for one in turn.accepted] == [("run1", 0)]
    assert turn.marks["a"].given_up == 0


def test_redeliveries_from_before_a_restart_of_the_producer_are_known_after_one_of_the_process() -> None:
    subject, _ = begun(FOUR)
    before = Sensor("a", FOUR)
    old = [before.send("usual", 1, i / 20) for i in range(5)]
    producer = Sensor("a", FOUR)
    producer.at_s, producer.mid = 1.1, 9000
    new = [producer.send(odd, 1, 0.5) for odd in ("restarted", "usual")]
    subject.play(new, [2])
    taken_up(subject, subject.journal.remembered())
    again = [msgspec.structs.replace(one, dup=True) for one in (*old[2:], *new)]

    turn, _ = subject.ingest(again, len(again))
    assert (turn.duplicates, turn.accepted) == ({"a": 5}, [])


@pytest.mark.parametrize("case", [FOUR, COUNTED])
@pytest.mark.parametrize(("odd", "expiry_s"), [("bad", None), ("expired", None), ("expired", 1)])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_given_up_and_comes_again_is_a_duplicate_and_leaves_no_second_hole(
    case: Case, odd: str, expiry_s: int | None, restarted: bool
) -> None:
    sensor, subject = Sensor("a", case), Run(case)
    sent = [sensor.send(kind, 1, 0.5) for kind in ("usual", odd, *["usual"] * 5)]
    subject.play(sent[:4], [4])
    if restarted:
        taken_up(subject, subject.journal.remembered())
    again = [msgspec.structs.replace(one, dup=True) for one in sent[1:4]]
    again[0] = msgspec.structs.replace(again[0], expiry_s=expiry_s)

    turn, _ = subject.ingest([*again, *sent[4:]], 6)
    assert (turn.duplicates, turn.dead_letters, turn.dropped, turn.lost_before_us) == ({"a": 3}, [], {}, {})
    assert [(window.last_seq - window.first_seq, window.fresh) for window in turn.windows] == [(3, True)]


def test_what_gave_way_before_its_turn_and_comes_again_is_a_duplicate() -> None:
    subject, rest = begun(COUNTED, 4)
    subject.pipeline.gave_way("a", rest[0].message(0))
    again = msgspec.structs.replace(rest[0], dup=True)

    turn, _ = subject.ingest([again, *rest[1:]], 16)
    assert turn.duplicates == {"a": 1}
    assert len(turn.accepted) == len(rest) - 1


def test_redeliveries_from_before_several_restarts_of_the_producer_are_known_after_one_of_the_process() -> None:
    subject = Run(FOUR)
    sent = []
    for _ in range(3):
        producer = Sensor("a", FOUR)
        producer.mid += len(sent)
        sent += [producer.send(odd, 1, 0.5) for odd in ("restarted", "usual")]
    subject.play(sent, [2])
    taken_up(subject, subject.journal.remembered())

    turn, _ = subject.ingest([msgspec.structs.replace(one, dup=True) for one in sent], len(sent))
    assert (turn.duplicates, turn.accepted, turn.restarts) == ({"a": 6}, [], {})
