"""A pipeline that ends and is taken up again tells the same as one that never ended."""

from __future__ import annotations

import json
import logging
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import means_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.marks import Kept, Seen, StreamMark
from edge_runtime.records import (
    AlarmState,
    Carried,
    Floats,
    Message,
    Properties,
    Queued,
    Remembered,
    Segment,
    State,
    Told,
    Turn,
)
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.rows import make_rows_decoder
from edge_runtime.stream.states import StateSettings, StreamStates
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, ModelOfMeans

S = 1_000_000_000
UNIX_S = 1_700_000_000
RATE_HZ = 100.0
MEMORY = 24
NOT_A_NUMBER = 9.0
DECIDE = DecideSettings(alarm_on="moving", score=0.6, release=0.4, k=2, n=3)


class Means(ModelOfMeans):
    def predict(self, inputs: Floats) -> Floats:
        means = super().predict(inputs)
        return np.where(means > 1, np.float32(np.nan), means)


class Fading:
    """The state is half of the one before and the window's means; so are the scores."""

    def initial(self) -> State:
        return (np.zeros(2, np.float32),)

    def step(self, inputs: Floats, states: Sequence[State]) -> tuple[Floats, list[State]]:
        means = inputs.mean(axis=1, dtype=np.float32)
        after = (np.array([state[0] for state in states]) + np.where(means > 1, np.float32(np.nan), means)) / 2
        return after, [(row.copy(),) for row in after]


class Case(msgspec.Struct, frozen=True):
    """How a pipeline is set up."""

    source: SourceSettings
    window: WindowSettings
    rate_hz: float | None
    lead_in: int
    streaming: bool
    together: bool
    publish: str
    max_windows: int

    def pipeline(self, ledger: Ledger, *, run: int, keep: bool = True) -> Pipeline:
        """run: of the process; every run has a monotonic clock of its own."""
        spec = means_manifest(length=self.window.samples, hop=self.window.hop, rate_hz=self.rate_hz).input
        clock = ManualClock(monotonic_ns=now_ns(run), unix_ns=UNIX_S * S)
        return Pipeline(
            "p",
            spec=msgspec.structs.replace(spec, lead_in=min(self.lead_in, self.window.samples - 1)),
            window=self.window,
            decode=make_decoder(self.source, 2),
            decode_rows=make_rows_decoder(self.source, 2) if self.together else None,
            predictor=Means(),
            states=StreamStates(Fading(), StateSettings(max_windows=7)) if self.streaming else None,
            decider=Decider(DECIDE, labels=("still", "moving")),
            ledger=ledger,
            run_id=f"run{run}",
            memory=MEMORY,
            max_windows=self.max_windows,
            max_age_ns=60 * S,
            publish=self.publish,
            keep=keep,
            clock=clock.clock(),
        )


def now_ns(run: int) -> int:
    """What the monotonic clock of a run of the process says."""
    return (1000 + 77 * run) * S


class Sent(msgspec.Struct, frozen=True):
    """A message as the broker has it.

    age_ns: since it was first received. given_up: messages that gave way before it. paused: by time of receipt it
    comes after a gap, which nobody sees who was not there.
    """

    stream: str
    number: int
    payload: bytes
    age_ns: int
    mid: int
    given_up: int = 0
    dup: bool = False
    expiry_s: int | None = None
    paused: bool = False

    def message(self, run: int) -> Message:
        received_ns, user = now_ns(run) - self.age_ns, (("n", str(self.number)),)
        properties = Properties("application/json", user, message_expiry_s=self.expiry_s)
        return Message("t", self.payload, received_ns, qos=1, mid=self.mid, dup=self.dup, properties=properties)


class Journal:
    """What a store has of settled turns, as bytes."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rows: dict[tuple[str, str], bytes] = {}
        self.kept: dict[str, deque[Kept]] = {}
        self.seen: dict[str, list[bytes]] = {}

    def settle(self, turn: Turn) -> None:
        for kept in turn.kept:
            self.kept.setdefault(kept.stream, deque()).append(kept)
        for one in turn.accepted:
            row = Seen(one.stream, one.epoch, one.first, one.contents)
            self.seen.setdefault(one.stream, []).append(msgspec.msgpack.encode(row))
        states = {stream: (c.windows, [a.tolist() for a in c.state]) for stream, c in turn.model_states.items()}
        told = {"mark": turn.marks, "alarm": turn.alarms, "segment": turn.segments, "told": turn.told}
        for name, changed in (told | {"gap": turn.dropped_at_gap, "carried": states}).items():
            for stream, value in changed.items():
                self.rows[name, stream] = msgspec.msgpack.encode(value)
        for stream, mark in turn.marks.items():
            self._release(stream, mark)
        for kept in turn.kept:
            needed = turn.marks[kept.stream].window.needed
            assert kept in self.kept[kept.stream], "kept, but not needed"
            assert len(kept.messages) == 1 or kept.begin >= needed

    def _release(self, stream: str, mark: StreamMark) -> None:
        kept, window = self.kept.setdefault(stream, deque()), mark.window
        while kept and (
            kept[0].resets != window.resets or (kept[1].begin if len(kept) > 1 else kept[0].end) <= window.needed
        ):
            kept.popleft()
        needed_alone = list(kept)[1:]
        assert all(one.begin > window.needed for one in needed_alone)
        assert sum(one.end - one.begin for one in needed_alone) <= self.case.window.samples
        assert all(before.end <= after.begin for before, after in zip(kept, needed_alone, strict=False))

    def remembered(self) -> dict[str, Remembered]:
        def row(name: str, stream: str, kind: object, default: Any = None) -> Any:
            body = self.rows.get((name, stream))
            return default if body is None else msgspec.msgpack.decode(body, type=kind)

        found = {}
        for stream in [stream for name, stream in self.rows if name == "mark"]:
            carried = row("carried", stream, tuple[int, list[list[float]]])
            found[stream] = Remembered(
                row("mark", stream, StreamMark),
                [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Kept) for one in self.kept[stream]],
                [msgspec.msgpack.decode(body, type=Seen) for body in self.seen.get(stream, [])],
                row("alarm", stream, AlarmState),
                row("segment", stream, Segment | None),
                row("told", stream, Told),
                row("gap", stream, bool, False),
                carried and Carried(tuple(np.array(a, np.float32) for a in carried[1]), carried[0]),
            )
        return found


class Run:
    """A pipeline that takes messages in turns, and what it has told in those that were settled."""

    def __init__(self, case: Case) -> None:
        self.case, self.journal, self.ledger, self.number = case, Journal(case), Ledger(), 0
        self.pipeline = case.pipeline(Ledger(), run=0)
        self.told: dict[str, list[object]] = {}

    def play(self, waiting: Sequence[Sent], cuts: Sequence[int], ends: Sequence[int] = ()) -> None:
        """Turns of these sizes, over and over. ends: turns in the middle of which the process ends."""
        done = 0
        while waiting:
            done, n = done + 1, cuts[done % len(cuts)]
            turn, rest = self._ingest(waiting, n)
            if done in ends and not any(one.paused for one in soon(waiting)):
                self._finish(turn)
                self._ingest(rest, n)
                self._restart()
                waiting = [msgspec.structs.replace(one, dup=True) for one in waiting[: 2 * n]] + [*waiting[2 * n :]]
            else:
                self._finish(turn)
                self._settle(turn)
                waiting = rest

    def _restart(self) -> None:
        self.number += 1
        self.pipeline = self.case.pipeline(Ledger(), run=self.number)
        remembered = self.journal.remembered()
        assert self.pipeline.restore(remembered, same_windows=True, same_model=True) == 0
        assert marks(self.pipeline) == {stream: one.mark for stream, one in remembered.items()}

    def _ingest(self, waiting: Sequence[Sent], n: int) -> tuple[Turn, list[Sent]]:
        """A turn of the next n messages, fewer where some gave way in between; and what is left."""
        runs: dict[str, Queued] = {}
        sent: dict[int, Sent] = {}
        for one in waiting[:n]:
            if one.given_up and one.stream in runs:
                break
            message = one.message(self.number)
            sent[id(message)] = one
            runs.setdefault(one.stream, Queued(one.stream, [], one.given_up)).messages.append(message)
        turn = self.pipeline.ingest(list(runs.values()))
        left = []
        for run in turn.left_over:
            begun, *others = [sent[id(message)] for message in run.messages]
            left += [msgspec.structs.replace(begun, given_up=run.given_up), *others]
        return turn, [*left, *waiting[len(sent) :]]

    def _finish(self, turn: Turn) -> None:
        self.pipeline.predict(turn)
        self.pipeline.emit(turn)

    def _settle(self, turn: Turn) -> None:
        self.ledger.settle(turn)
        self.journal.settle(turn)
        for result in turn.results:
            self._tell(result.stream, msgspec.structs.replace(result, lat_ms=None))
        for event in turn.events:
            self._tell(f"{event.stream} ended", event)
        for change in turn.state_changes:
            self._tell(f"{change.stream} alarm", change)
        for letter in turn.dead_letters:
            self._tell(f"{letter.stream} dead", (letter.reason, letter.message.payload))
        for accepted in turn.accepted:
            for number, message in enumerate(accepted.messages, accepted.first):
                self._tell(f"{accepted.stream} taken", (accepted.epoch, number, message.payload))

    def _tell(self, stream: str, told: object) -> None:
        self.told.setdefault(stream, []).append(told)

    def account(self) -> list[dict[str, object]]:
        return [msgspec.structs.asdict(one) for one in self.ledger.snapshot({}, {}, {})]


def marks(pipeline: Pipeline) -> dict[str, StreamMark]:
    return {stream: state.mark for stream, state in pipeline._intake.streams.items()}


def soon(waiting: Sequence[Sent]) -> list[Sent]:
    """The next messages of each stream; that a windower takes none of so many is not to be expected."""
    return [one for stream in "abc" for one in [one for one in waiting if one.stream == stream][:6]]


ODD = ["lost", "late", "repeated", "dup", "restarted", "bad", "given up", "expired", "paused", "not finite"]
LEVELS = [0.0, 0.3, 0.5, 0.7, 1.0]
STEPS = 80


class Sensor:
    """One stream's producer. at_s: when its next sample is due."""

    def __init__(self, stream: str, case: Case) -> None:
        self.stream, self.case = stream, case
        self.number, self.at_s, self.mid = 3, 1.0, ord(stream) << 8
        self.sent: list[Sent] = []
        self.skipped: list[int] = []

    def send(self, odd: str, n: int, level: float) -> Sent:
        self.mid += 1
        if odd in ("repeated", "dup") and self.sent:
            before = self.sent[-1]
            again = {"dup": True} if odd == "dup" else {"mid": self.mid}
            return msgspec.structs.replace(before, given_up=0, paused=False, **again)
        gone = {"lost": n, "given up": 2}.get(odd, 0)
        self.skipped += range(self.number, self.number + gone)
        self.number += gone
        self.at_s += gone * n / RATE_HZ + 0.7 * (odd == "paused")
        number = self.skipped.pop() if odd == "late" and self.skipped else self.number
        if odd == "restarted":
            number, self.number, self.skipped = 0, 0, []
        self.number += number == self.number
        return self._sent(odd, number, n, level)

    def _sent(self, odd: str, number: int, n: int, level: float) -> Sent:
        source = self.case.source
        timed, numbered = source.time_field, source.seq_field or source.seq_property
        moving = [9.0 if odd == "not finite" else level + i / 1000 for i in range(n)]
        rows = [[1 - one if one <= 2 else one, one] for one in moving]
        body = {"i": self.mid, "n": number, "t": UNIX_S - 56 + self.at_s, "v": rows[0] if n == 1 else rows}
        self.at_s += n / RATE_HZ
        one = Sent(
            self.stream,
            number,
            b"{" if odd == "bad" else json.dumps(body).encode(),
            round((56 - self.at_s) * S),
            self.mid,
            given_up=2 if odd == "given up" else 0,
            expiry_s=1 if odd == "expired" else None,
            paused=odd == "paused" and not timed and not numbered,
        )
        self.sent.append(one)
        return one


def history(case: Case, rng: random.Random) -> list[Sent]:
    """What the sensors send; each begins with a good message."""
    sensors = {stream: Sensor(stream, case) for stream in "abc"}
    sizes, odd = rng.choice([[1], [1], [3], [1, 2, 5], [1, 1, 1, 1, 7]]), rng.choice([0.03, 0.2, 0.5])
    sent = [sensor.send("usual", 1, 0.5) for sensor in sensors.values()]
    for _ in range(STEPS):
        kind = rng.choice(ODD) if rng.random() < odd else "usual"
        sent.append(sensors[rng.choice("aaab")].send(kind, rng.choice(sizes), rng.choice(LEVELS)))
    return sent


def cuts(rng: random.Random) -> list[int]:
    """The first turn has a message of each stream."""
    return [3, *(rng.randint(1, rng.choice([2, 12])) for _ in range(20))]


SOURCES = [
    SourceSettings(topic="t", path="v", seq_field="n" * numbered, time_field="t" * timed)
    for numbered in (True, False)
    for timed in (True, False)
] + [SourceSettings(topic="t", format="msgpack", path="v", seq_property="n")]
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
    turn, _ = subject._ingest(sent, len(sent))
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
    turn, _ = subject._ingest(rest[:6], 6)
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
    turn, _ = subject._ingest(rest[:4], 4)
    subject._finish(turn)
    assert [(window.first_seq, window.fresh) for window in turn.windows] == [(8, True)]
    assert (turn.marks["a"].window.resets, turn.lost_before_us) == (1, {})


@pytest.mark.parametrize("same", [True, False])
def test_the_state_of_another_model_is_not_taken_up(same: bool) -> None:
    subject, rest = begun(FOUR, 4)
    (before,) = subject.journal.remembered().values()

    assert taken_up(subject, {"a": before}, same_model=same) == 0
    turn, _ = subject._ingest(rest[:2], 2)
    subject._finish(turn)
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
    found, wanted = subject._ingest(sent[2:], 2)[0], whole._ingest(sent, 4)[0]
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
    turn, _ = subject._ingest([sensor.send("usual", 1, 0.5)], 1)

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

    turn, _ = subject._ingest(again, len(again))
    assert (turn.duplicates, turn.accepted) == ({"a": 5}, [])
