"""What of every settled turn has to survive this process, as records of the store; and what they come to at a start.

Records of their own are the inputs that open windows still need, and, now and then, what is known of messages
against redelivery. The small states of the streams and the ledger's accounts share one record a commit. Each goes when
nothing needs it any more, or newer ones speak of all that it speaks of.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.latest import Latest, Row
from edge_runtime.delivery.ledger import Ledger, as_row, from_row, tally
from edge_runtime.delivery.seen import SeenRecords
from edge_runtime.delivery.store import Store
from edge_runtime.marks import Kept, Seen, StreamMark, WindowMark
from edge_runtime.records import (
    AlarmState,
    Carried,
    Message,
    Remembered,
    Segment,
    StateChange,
    Told,
    Turn,
)

PARCEL, INPUT, SEEN, LATEST, NOTE, NODE = range(1, 7)
STREAM, ACCOUNT = range(2)
SEEN_TOGETHER = 32
"""Messages of a stream that are remembered with its state, before they get a record of their own."""
NOTED_TOO_OFTEN = 2
"""Ends of the process in the very turn of a message, after which it is not tried again."""

Key = tuple[str, str]
_encode = msgspec.msgpack.Encoder().encode


class Node(msgspec.Struct, frozen=True, array_like=True):
    """The run that writes the store. clean: it has ended in order. sessions: mqtt.sessions.KnownSessions says what."""

    clean: bool = False
    sessions: dict[str, tuple[str, ...]] = {}


class Basis(msgspec.Struct, frozen=True, array_like=True):
    """What a pipeline's windows, and its model's states, depend on: of another basis they mean nothing."""

    windows: str
    model: str


class _Stream(msgspec.Struct, array_like=True):
    """The small states of one stream. carried: windows, and (dtype, shape, bytes) of each array. shown: its alarm.
    holes: messages given up in line since the last turn that was told of such. recent: the last ones dealt with.
    """

    pipeline: str
    stream: str
    basis: Basis
    mark: StreamMark | None = None
    alarm: AlarmState | None = None
    segment: Segment | None = None
    told: Told | None = None
    dropped_at_gap: bool = False
    carried: tuple[int, list[tuple[str, tuple[int, ...], bytes]]] | None = None
    shown: StateChange | None = None
    holes: int = 0
    recent: list[Seen] = []


class _Place(NamedTuple):
    """Where the store has a Kept, and which samples it holds."""

    record: int
    resets: int
    begin: int
    end: int


class Journal:
    """Writes settled turns to the store, and reads them back at start.

    node: of this run; before: of the run before, None when there was none. settled: the ledger as of what was settled.
    memory: messages of a stream remembered against redelivery.
    """

    def __init__(self, store: Store, *, memory: int, bases: Mapping[str, Basis]) -> None:
        """bases: of every pipeline that is kept."""
        self.settled, self.node = Ledger(), Node()
        self.before: Node | None = None
        self.store, self.memory, self._bases = store, memory, bases
        self._node_record = 0
        self._streams: dict[Key, _Stream] = {}
        self._latest = Latest(store, LATEST)
        self._touched: dict[Key, _Stream] = {}
        self._counted: set[Key] = set()
        self._inputs: dict[Key, deque[_Place]] = {}
        self._seen = SeenRecords(store, memory=memory)
        self._notes: dict[bytes, tuple[int, int]] = {}
        self._remembered: dict[str, dict[str, Remembered]] = {}

    # Of a turn that was emitted, and of what happens beside turns.

    def keep(self, turn: Turn) -> None:
        """Put what of a turn has to survive; its results are the outbox's."""
        pipeline = turn.pipeline
        for kept in turn.kept:
            self._add_input(pipeline, kept, self.store.put(INPUT, _encode((pipeline, kept))))
        for one in turn.accepted:
            self._remember(pipeline, Seen(one.stream, one.epoch, one.first, one.contents))
        for seen in turn.given_up:
            self._remember(pipeline, seen)
        for stream, mark in turn.marks.items():
            state = self._touch(pipeline, stream)
            state.mark = mark
            self._release(pipeline, stream, mark)
        self._keep_decisions(turn)
        self._account(turn)

    def _keep_decisions(self, turn: Turn) -> None:
        touch, pipeline = self._touch, turn.pipeline
        for stream, alarm in turn.alarms.items():
            touch(pipeline, stream).alarm = alarm
        for stream, segment in turn.segments.items():
            touch(pipeline, stream).segment = segment
        for stream, told in turn.told.items():
            touch(pipeline, stream).told = told
        for stream, dropped in turn.dropped_at_gap.items():
            touch(pipeline, stream).dropped_at_gap = dropped
        for stream, carried in turn.model_states.items():
            touch(pipeline, stream).carried = _carried_row(carried)
        for change in turn.state_changes:
            touch(pipeline, change.stream).shown = change

    def _account(self, turn: Turn) -> None:
        """Count the turn, its messages as received now: what is not settled comes again after a crash."""
        settled, pipeline = self.settled, turn.pipeline
        for queued in turn.messages:
            settled.received(pipeline, queued.stream, len(queued.messages))
            self._counted.add((pipeline, queued.stream))
            if queued.given_up:
                state = self._touch(pipeline, queued.stream)
                state.holes = max(0, state.holes - queued.given_up)
        for stream, n in tally([window.stream for window in turn.windows]).items():
            settled.windows_completed(pipeline, stream, n)
        settled.settle(turn)

    def _remember(self, pipeline: str, seen: Seen) -> None:
        if seen.contents:
            self._touch(pipeline, seen.stream).recent.append(seen)

    def gave_way(self, pipeline: str, seen: Seen) -> None:
        """A message gave way before a turn took it. seen: what it is known by when it comes again."""
        self.dropped(pipeline, seen.stream, "queue_full")
        self._remember(pipeline, seen)

    def dropped(self, pipeline: str, stream: str, reason: str, n: int = 1) -> None:
        """Messages were given up before a turn took them."""
        self.settled.received(pipeline, stream, n)
        self.settled.dropped(pipeline, stream, reason, n)
        self._counted.add((pipeline, stream))
        self._touch(pipeline, stream).holes += n

    def dead_lettered(self, pipeline: str, stream: str, n: int = 1) -> None:
        """Messages were rejected outside of a turn."""
        self.settled.received(pipeline, stream, n)
        self.settled.dead_lettered(pipeline, stream, n)
        self._counted.add((pipeline, stream))

    def counting(self, pipeline: str, stream: str) -> Ledger:
        """The ledger to post what became of a result of the stream; it is written with the next commit."""
        self._counted.add((pipeline, stream))
        return self.settled

    @property
    def dirty(self) -> bool:
        """Whether something is to be written, be it only deletions."""
        return bool(self._counted or self._touched) or self.store.dirty

    def commit(self, *, sync: bool) -> bool:
        """Write all of it in one transaction; whether it is on the disk. sync: it has to survive a loss of power."""
        touched, self._touched = self._touched, {}
        counted, self._counted = self._counted, set()
        for state in touched.values():
            if sum([len(one.contents) for one in state.recent]) >= SEEN_TOGETHER:
                recent, state.recent = state.recent, []
                record = self.store.put(SEEN, _encode((state.pipeline, recent)))
                self._seen.add((state.pipeline, state.stream), record, recent)
        rows: dict[Row, object] = {(STREAM, *key): state for key, state in touched.items()}
        rows |= {(ACCOUNT, *key): as_row(self.settled.account(*key)) for key in counted}
        self._latest.put(rows)
        return self.store.commit(sync=sync)

    # Messages after which the process ended before.

    def examine(self, pipeline: str, message: Message) -> bool:
        """Note a message before its turn, once more if it was noted; False when that was too often already."""
        key = _note_key(pipeline, message)
        times, record = self._notes.get(key, (0, 0))
        if times >= NOTED_TOO_OFTEN:
            return False
        if record:
            self.store.discard(record)
        self._notes[key] = times + 1, self.store.put(NOTE, _encode((key, times + 1)))
        return True

    def survived(self, pipeline: str, message: Message) -> None:
        """The turn of a noted message is over."""
        _, record = self._notes.pop(_note_key(pipeline, message), (0, 0))
        if record:
            self.store.discard(record)

    def forget_notes(self) -> None:
        """What was noted and did not come again has nothing to do with it any more."""
        for _, record in self._notes.values():
            self.store.discard(record)
        self._notes.clear()

    # The run itself.

    def write_node(self, node: Node) -> None:
        if self._node_record:
            self.store.discard(self._node_record)
        self.node, self._node_record = node, self.store.put(NODE, _encode(node))

    def restore(self, records: Iterable[Record]) -> None:
        """Take up what the run before has left. Raises msgspec.DecodeError for what this version cannot read."""
        read = {
            INPUT: self._read_input,
            SEEN: self._read_seen,
            LATEST: self._read_latest,
            NOTE: self._read_note,
            NODE: self._read_node,
        }
        for record in records:
            if record.kind in read:
                read[record.kind](record)

    def remembered(self, pipeline: str) -> dict[Basis, dict[str, Remembered]]:
        """What the pipeline left, per stream, by what it is based on; asked once."""
        found: dict[Basis, dict[str, Remembered]] = {}
        for stream, one in self._remembered.pop(pipeline, {}).items():
            state = self._streams.get((pipeline, stream))
            if state is None or state.mark is None:
                continue
            one.mark, one.alarm, one.segment, one.told = state.mark, state.alarm, state.segment, state.told
            one.dropped_at_gap, one.carried = state.dropped_at_gap, _carried_of(state.carried)
            if state.holes:
                given_up, state.holes = state.mark.given_up + state.holes, 0
                one.mark = state.mark = msgspec.structs.replace(state.mark, given_up=given_up)
            one.seen += state.recent
            one.kept = [kept for kept in one.kept if kept.resets == state.mark.window.resets]
            found.setdefault(state.basis, {})[stream] = one
        return found

    def shown(self) -> list[tuple[str, StateChange]]:
        """(pipeline, the alarm it last published) of every stream that has one."""
        return [(state.pipeline, state.shown) for state in self._streams.values() if state.shown is not None]

    def forget_silent(self, pipeline: str, *, most: int, waiting: Container[Key]) -> None:
        """At a start: of more streams than may be open, forget those that have been silent longest.

        They are counted as one then. waiting: those that have results to be sent stay.
        """
        keys = [key for key in self._streams if key[0] == pipeline]
        keys.sort(key=self._written)
        silent = [key for key in keys[: max(0, len(keys) - most)] if key not in waiting]
        for key in silent:
            self._forget_stream(key)
            self.settled.fold(*key)
            self._forget_account(key)
        if silent:
            self._write_anew()

    def _forget_stream(self, key: Key) -> None:
        self._streams.pop(key, None)
        self._touched.pop(key, None)
        self._remembered.get(key[0], {}).pop(key[1], None)
        self._latest.drop((STREAM, *key))
        for place in self._inputs.pop(key, ()):
            self.store.discard(place.record)
        self._seen.forget(key)

    def forget(self, pipeline: str, *, account: bool) -> None:
        """Of a pipeline that is no longer kept here. account: and what was counted of it."""
        for key in [key for key in {*self._streams, *self._inputs} if key[0] == pipeline]:
            self._forget_stream(key)
        for key in [key for key in self.settled.accounts() if key[0] == pipeline] if account else []:
            self.settled.forget(*key)
            self._forget_account(key)
        self._write_anew()

    def _forget_account(self, key: Key) -> None:
        self._counted.discard(key)
        self._latest.drop((ACCOUNT, *key))

    def _write_anew(self) -> None:
        """All of what is newest: a record that is kept for other rows must not bring back the forgotten ones."""
        oldest_first = sorted(self._streams, key=self._written)
        self._touched.update({key: self._streams[key] for key in oldest_first})
        self._counted.update(self.settled.accounts())

    def _written(self, key: Key) -> int:
        """The higher, the later something was last said of the stream."""
        return self._latest.record((STREAM, *key))

    def pipelines(self) -> set[str]:
        """Of which anything is kept."""
        return {pipeline for pipeline, _ in {*self._streams, *self._inputs, *self.settled.accounts()}}

    def _read_input(self, record: Record) -> None:
        pipeline, kept = msgspec.msgpack.decode(record.body, type=tuple[str, Kept])
        self._add_input(pipeline, kept, record.id)
        self._left(pipeline, kept.stream).kept.append(kept)

    def _read_seen(self, record: Record) -> None:
        pipeline, seen = msgspec.msgpack.decode(record.body, type=tuple[str, list[Seen]])
        self._seen.add((pipeline, seen[0].stream), record.id, seen)
        for one in seen:
            self._left(pipeline, one.stream).seen.append(one)

    def _read_latest(self, record: Record) -> None:
        rows = msgspec.msgpack.decode(record.body, type=list[tuple[int, str, str, msgspec.Raw]])
        for what, pipeline, stream, row in rows:
            if what == STREAM:
                self._streams[pipeline, stream] = msgspec.msgpack.decode(row, type=_Stream)
                self._left(pipeline, stream)
            else:
                self.settled.restore(from_row(msgspec.msgpack.decode(row)))
        self._latest.place(record.id, [row[:3] for row in rows])

    def _read_note(self, record: Record) -> None:
        key, times = msgspec.msgpack.decode(record.body, type=tuple[bytes, int])
        self._notes[key] = times, record.id

    def _read_node(self, record: Record) -> None:
        self.before, self._node_record = msgspec.msgpack.decode(record.body, type=Node), record.id

    def _left(self, pipeline: str, stream: str) -> Remembered:
        streams = self._remembered.setdefault(pipeline, {})
        if stream not in streams:
            streams[stream] = Remembered(NO_MARK)
        return streams[stream]

    def _touch(self, pipeline: str, stream: str) -> _Stream:
        key = pipeline, stream
        state = self._streams.get(key)
        if state is None:
            state = self._streams[key] = _Stream(pipeline, stream, self._bases[pipeline])
        if state.basis != self._bases[pipeline]:
            state.basis, state.carried = self._bases[pipeline], None
        self._touched[key] = state
        return state

    def _add_input(self, pipeline: str, kept: Kept, record: int) -> None:
        place = _Place(record, kept.resets, kept.begin, kept.end)
        self._inputs.setdefault((pipeline, kept.stream), deque()).append(place)

    def _release(self, pipeline: str, stream: str, mark: StreamMark) -> None:
        """Discard the inputs that windows to come do not need (records.Kept)."""
        places, window = self._inputs.get((pipeline, stream)), mark.window
        while places:
            place = places[0]
            over = places[1].begin if len(places) > 1 else place.end
            if place.resets == window.resets and over > window.needed:
                return
            self.store.discard(places.popleft().record)


NO_MARK = StreamMark(-1, "", False, 0, (), 0, 0, WindowMark(0, 0, 0, 0, True, 0))


def _carried_row(carried: Carried) -> tuple[int, list[tuple[str, tuple[int, ...], bytes]]]:
    return carried.windows, [(array.dtype.str, array.shape, array.tobytes()) for array in carried.state]


def _carried_of(row: tuple[int, list[tuple[str, tuple[int, ...], bytes]]] | None) -> Carried | None:
    if row is None:
        return None
    windows, arrays = row
    return Carried(tuple(np.frombuffer(data, dtype).reshape(shape).copy() for dtype, shape, data in arrays), windows)


def _note_key(pipeline: str, message: Message) -> bytes:
    identity = hashlib.blake2b(f"{pipeline}|{message.topic}|".encode(), digest_size=16)
    identity.update(message.payload)
    return identity.digest()
