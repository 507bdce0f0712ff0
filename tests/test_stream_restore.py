"""A pipeline that ends and is taken up again tells the same as one that never ended."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
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
    """A message as the broker has it. age_ns: since it was first received. given_up: messages that gave way before."""

    stream: str
    payload: bytes
    age_ns: int
    mid: int
    given_up: int = 0
    dup: bool = False
    expiry_s: int | None = None
    qos: int = 1

    def message(self, run: int) -> Message:
        properties = Properties(message_expiry_s=self.expiry_s, user=(("u", "1"),))
        return Message(
            "t", self.payload, now_ns(run) - self.age_ns, qos=self.qos, mid=self.mid, dup=self.dup, properties=properties
        )


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

    def _release(self, stream: str, mark: StreamMark) -> None:
        kept, window = self.kept.setdefault(stream, deque()), mark.window
        while kept and (
            kept[0].resets != window.resets
            or (kept[1].begin if len(kept) > 1 else kept[0].end) <= window.needed
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
        self.pipeline = case.pipeline(self.ledger, run=0)
        self.told: dict[str, list[object]] = {}

    def play(self, sent: Sequence[Sent], cuts: Sequence[int], ends: Sequence[int] = ()) -> None:
        """Turns of these sizes, over and over. ends: turns after which the process ends, two turns in flight."""
        waiting, turns = list(sent), 0
        while waiting:
            taken, rest = self._runs(waiting, cuts[turns % len(cuts)])
            turn, rest = self._ingest(taken, rest)
            turns += 1
            if turns in ends:
                self._end(rest, cuts[turns % len(cuts)])
                flying = [one for run in turn.messages for one in self.back[id(run)]] if False else waiting
                waiting = [msgspec.structs.replace(one, dup=True) for one in flying]
                continue
            self._settle(turn)
            waiting = rest
