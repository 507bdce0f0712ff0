"""A pipeline that ends and is taken up again, beside one that never ends: what they are set up with, get and tell."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from bundles import means_manifest

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
    comes after a gap, which nobody sees who was not there. connection: which one it comes in on, from 0 up; lost_at:
    the newest one until then at which the session was lost.
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
    connection: int = 0
    lost_at: int = 0

    def message(self, run: int) -> Message:
        received_ns, user = now_ns(run) - self.age_ns, (("n", str(self.number)),)
        properties = Properties("application/json", user, message_expiry_s=self.expiry_s)
        epoch = epoch_of(self.connection, run)
        return Message("t", self.payload, received_ns, 1, self.mid, False, self.dup, properties, epoch)


def epoch_of(connection: int, run: int) -> int:
    return 1 + connection + run


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
        for given_up in turn.given_up:
            self.seen.setdefault(given_up.stream, []).append(msgspec.msgpack.encode(given_up))
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
        self.lost_at = 0
        self.heard: dict[str, int] = {}

    def play(self, waiting: Sequence[Sent], cuts: Sequence[int], ends: Sequence[int] = ()) -> None:
        """Turns of these sizes, over and over. ends: turns in the middle of which the process ends."""
        done = 0
        while waiting:
            done, n, lost_at = done + 1, cuts[done % len(cuts)], self.lost_at
            turn, rest = self.ingest(waiting, n)
            if done in ends and self._may_end(waiting, lost_at):
                self.finish(turn)
                self.ingest(rest, n)
                self.restart()
                self.lost_at = lost_at
                waiting = [msgspec.structs.replace(one, dup=True) for one in waiting[: 2 * n]] + [*waiting[2 * n :]]
            else:
                self.finish(turn)
                self._settle(turn)
                waiting = rest

    def _may_end(self, waiting: Sequence[Sent], lost_at: int) -> bool:
        """Whether all that only this run of the process knows has been told. lost_at: as it was told by then."""
        unheard = [one for one in waiting if one.lost_at > self.heard.get(one.stream, 0)]
        near = soon(waiting)
        return not any(one.lost_at <= lost_at or one in near for one in unheard) and not any(one.paused for one in near)

    def restart(self) -> None:
        self.number += 1
        self.pipeline = self.case.pipeline(Ledger(), run=self.number)
        remembered = self.journal.remembered()
        assert self.pipeline.restore(remembered, same_windows=True, same_model=True) == 0
        assert marks(self.pipeline) == {stream: one.mark for stream, one in remembered.items()}

    def ingest(self, waiting: Sequence[Sent], n: int) -> tuple[Turn, list[Sent]]:
        """A turn of the next n messages, fewer where some gave way in between; and what is left."""
        runs: dict[str, Queued] = {}
        sent: dict[int, Sent] = {}
        for one in waiting[:n]:
            if one.given_up and one.stream in runs:
                break
            message = one.message(self.number)
            if one.lost_at > self.lost_at:
                self.lost_at = one.lost_at
                self.pipeline.session_lost(epoch_of(one.lost_at, self.number))
            sent[id(message)] = one
            runs.setdefault(one.stream, Queued(one.stream, [], one.given_up)).messages.append(message)
        turn = self.pipeline.ingest(list(runs.values()))
        left = []
        for run in turn.left_over:
            begun, *others = [sent[id(message)] for message in run.messages]
            left += [msgspec.structs.replace(begun, given_up=run.given_up), *others]
        return turn, [*left, *waiting[len(sent) :]]

    def finish(self, turn: Turn) -> None:
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
            self.heard[accepted.stream] = accepted.messages[-1].epoch - epoch_of(0, self.number)
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
    reconnects, connection, lost_at = rng.choice([0, 0.05]), 0, 0
    for _ in range(STEPS):
        if rng.random() < reconnects:
            connection += 1
            lost_at = rng.choice([lost_at, lost_at, connection])
            for sensor in sensors.values():
                sensor.at_s += rng.choice([0, 0.7])
        kind = rng.choice(ODD) if rng.random() < odd else "usual"
        one = sensors[rng.choice("aaab")].send(kind, rng.choice(sizes), rng.choice(LEVELS))
        sent.append(msgspec.structs.replace(one, connection=connection, lost_at=lost_at))
    return sent


def cuts(rng: random.Random) -> list[int]:
    """The first turn has a message of each stream."""
    return [3, *(rng.randint(1, rng.choice([2, 12])) for _ in range(20))]


SOURCES = [
    SourceSettings(topic="t", path="v", seq_field="n" * numbered, time_field="t" * timed)
    for numbered in (True, False)
    for timed in (True, False)
] + [SourceSettings(topic="t", format="msgpack", path="v", seq_property="n")]
