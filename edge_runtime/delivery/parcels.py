"""Parcels: messages of one turn that are kept together, and the records they are in the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.journal import PARCEL
from edge_runtime.records import Outgoing

REPLAYED = (("replayed", "1"),)

Kind = Literal["result", "event", "dead"]
_encode = msgspec.msgpack.Encoder().encode


class Parcel:
    """Messages of one turn that are kept together.

    record: its id in the store, 0 when it is not durable. todo: indices of what is on the shelf, to be handed over;
    open: messages whose fate is not known yet; dropped: (index, reason) of those given up. size: bytes of its record.
    refused: times the broker did not want one of them.
    """

    __slots__ = ("dropped", "kind", "open", "pipeline", "record", "refused", "size", "streams", "todo", "unix_s")

    def __init__(self, pipeline: str, kind: Kind, streams: Sequence[str], *, unix_s: float) -> None:
        self.pipeline, self.kind, self.streams, self.unix_s = pipeline, kind, streams, unix_s
        self.open = len(streams)
        self.todo: list[int] = []
        self.dropped: list[tuple[int, str]] = []
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


def packed(parcel: Parcel, messages: Sequence[Outgoing]) -> bytes:
    """The body of its record. messages: of one QoS and content type."""
    first, streams, topics = messages[0], parcel.streams, [message.topic for message in messages]
    same = topics.count(first.topic) == len(topics)
    body = _Body(
        parcel.pipeline,
        parcel.kind,
        parcel.unix_s,
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


def parcels_of(records: Iterable[Record]) -> list[Parcel]:
    """What of the store's records waits to be sent. Raises msgspec.DecodeError."""
    parcels = []
    for record in records:
        if record.kind == PARCEL:
            body = msgspec.msgpack.decode(record.body, type=_Body)
            streams = body.streams * len(body.payloads) if len(body.streams) == 1 else body.streams
            parcel = Parcel(body.pipeline, body.kind, streams, unix_s=body.unix_s)
            parcel.record, parcel.size = record.id, len(record.body)
            parcels.append(parcel)
    return parcels
