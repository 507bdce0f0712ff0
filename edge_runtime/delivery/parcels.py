"""Parcels: messages of one turn that are kept together, and the records they are in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from sys import intern
from typing import Literal

import msgspec

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.journal import PARCEL
from edge_runtime.records import Outgoing

REPLAYED = (("replayed", "1"),)
NS = 1e9

Kind = Literal["result", "event", "dead"]
_encode = msgspec.msgpack.Encoder().encode


class Parcel:
    """Messages of one turn that are kept together.

    record: its id in the store, 0 when it is not durable. todo: indices of what is on the shelf, to be handed over;
    open: messages whose fate is not known yet; dropped: (index, reason) of those given up. size: bytes of its record.
    refused: times the broker did not want one of them.
    """

    __slots__ = ("dropped", "kind", "made_ns", "open", "pipeline", "record", "refused", "size", "streams", "todo")

    def __init__(self, pipeline: str, kind: Kind, streams: Sequence[str], *, made_ns: int) -> None:
        """made_ns: by the monotonic clock; before this process it may be less than 0."""
        self.pipeline, self.kind, self.streams, self.made_ns = pipeline, kind, streams, made_ns
        self.open = len(streams)
        self.todo: Sequence[int] = ()
        self.dropped: tuple[tuple[int, str], ...] = ()
        self.record = self.size = self.refused = 0


class _Body(msgspec.Struct, frozen=True, array_like=True):
    """A parcel as it is stored. streams, topics: one each, or one for all. unix_s: when it was made."""

    pipeline: str
    kind: Kind
    unix_s: float
    qos: int
    content_type: str
    streams: list[str]
    topics: list[str]
    payloads: list[bytes]


def packed(parcel: Parcel, messages: Sequence[Outgoing], *, unix_s: float) -> bytes:
    """The body of its record. messages: of one QoS and content type. unix_s: now."""
    first, streams, topics = messages[0], parcel.streams, [message.topic for message in messages]
    same = topics.count(first.topic) == len(topics)
    body = _Body(
        parcel.pipeline,
        parcel.kind,
        unix_s,
        first.qos,
        first.content_type,
        [streams[0]] if same else list(streams),
        topics[:1] if same else topics,
        [message.payload for message in messages],
    )
    return _encode(body)


def messages_of(packed: bytes) -> list[Outgoing]:
    """What is to be sent of a record, marked as replayed. Raises msgspec.DecodeError."""
    body = msgspec.msgpack.decode(packed, type=_Body)
    topics = body.topics * len(body.payloads) if len(body.topics) == 1 else body.topics
    return [
        Outgoing(topic, payload, body.qos, content_type=body.content_type, user=REPLAYED)
        for topic, payload in zip(topics, body.payloads, strict=True)
    ]


class Parcels:
    """Those found in a store: where they are and what is in them, without the messages."""

    def __init__(self, *, now_ns: int, unix_s: float) -> None:
        """Both clocks, now."""
        self._now_ns, self._unix_s = now_ns, unix_s
        self._found: dict[int, Parcel] = {}
        self._problem: msgspec.MsgspecError | None = None

    def take(self, record: Record) -> bool:
        """Whether that is one."""
        if record.kind != PARCEL:
            return False
        try:
            body = msgspec.msgpack.decode(record.body, type=_Body)
        except msgspec.MsgspecError as error:
            self._problem = error
            return True
        age_ns = int(max(0.0, self._unix_s - body.unix_s) * NS)
        parcel = Parcel(intern(body.pipeline), body.kind, _streams(body), made_ns=self._now_ns - age_ns)
        parcel.record, parcel.size = record.id, len(record.body)
        self._found[record.id] = parcel
        return True

    def oldest_first(self, holds: Callable[[int], bool]) -> list[Parcel]:
        """Those that the store still holds, as their file may have been moved aside.

        Raises msgspec.DecodeError when one was of another version.
        """
        if self._problem is not None:
            raise self._problem
        return [self._found[record] for record in sorted(self._found) if holds(record)]


def _streams(body: _Body) -> tuple[str, ...]:
    """Of each message; the many parcels of the same stream share one."""
    if len(body.streams) == 1:
        return _same(intern(body.streams[0]), len(body.payloads))
    return tuple(map(intern, body.streams))


@lru_cache(4096)
def _same(stream: str, n: int) -> tuple[str, ...]:
    return (stream,) * n


@lru_cache
def whole(n: int) -> Sequence[int]:
    """The indices of all of a parcel's messages."""
    return range(n)
