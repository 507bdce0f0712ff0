"""Packets as independent codecs pack them, what the lane's cutter has to make of them, and its bytes in pieces."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence

import mqtt5
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.pingresp import PingRespPacket
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket
from hypothesis import settings
from hypothesis import strategies as st
from scripted import packet

from edge_runtime.mqtt.frames import Cut, FrameCutter, FrameError
from edge_runtime.records import Message, Properties

MAX_BYTES = 1_000_000
IN_FLIGHT = range(40_000, 40_010)
LONG = [127, 128, 255, 16_383, 16_384, 70_000]  # around the steps of a length's bytes

fuzz = settings(max_examples=100, deadline=None)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
topics = text.filter(lambda topic: topic and not set(topic) & {"+", "#"})
payloads = st.binary(max_size=40) | st.sampled_from(LONG).map(bytes)
packet_ids = st.integers(1, 65_535)


def new_cutter(*, five: bool = True, max_packet_bytes: int = MAX_BYTES) -> FrameCutter:
    return FrameCutter(five=five, epoch=7, max_packet_bytes=max_packet_bytes)


def cut(pieces: Iterable[bytes], *, five: bool = True, **options: int) -> tuple[Cut, str]:
    """All that came out of the pieces, each read at time 5, and the error that ended it."""
    cutter = new_cutter(five=five, **options)
    found, problem = Cut(), ""
    for piece in pieces:
        try:
            fresh = cutter.cut(piece, 5, IN_FLIGHT)
        except FrameError as error:
            fresh, problem = error.before, str(error)
        found.messages += fresh.messages
        found.answers += fresh.answers
        found.control += fresh.control
        if problem:
            break
    return found, problem


def split(raw: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    return [raw[start:end] for start, end in itertools.pairwise(edges)]


# What independent codecs pack, and what it has to come out as.

Packed = tuple[bytes, Message | tuple[int, int] | bytes]


@st.composite
def published_5(draw: st.DrawFn) -> Packed:
    qos, topic, payload, retain = draw(st.sampled_from([0, 1, 2])), draw(topics), draw(payloads), draw(st.booleans())
    dup = draw(st.booleans()) if qos else False
    mid = draw(packet_ids) if qos else None
    used = {
        "content_type": draw(st.none() | text),
        "message_expiry_interval": draw(st.none() | st.integers(0, 2**32 - 1)),
        "response_topic": draw(st.none() | topics),
        "correlation_data": draw(st.none() | st.binary(max_size=20)),
        "user_properties": draw(st.lists(st.tuples(text, text), max_size=20)),
    }
    raw = mqtt5.PublishPacket(
        topic,
        payload,
        qos=mqtt5.QoS(qos),
        retain=retain,
        packet_id=mid,
        duplicate=dup,
        payload_format_indicator=draw(st.sampled_from([0, 1])),
        subscription_ids=draw(st.lists(st.integers(1, 268_435_455), max_size=3)),
        **used,
    ).write()
    properties = Properties(
        content_type=used["content_type"] or "",
        user=tuple(used["user_properties"]),
        message_expiry_s=used["message_expiry_interval"],
        response_topic=used["response_topic"] or "",
        correlation_data=used["correlation_data"] or b"",
    )
    return raw, raw if qos == 2 else Message(topic, payload, 5, qos, mid or 0, retain, dup, properties, 7)


@st.composite
def answered_5(draw: st.DrawFn) -> Packed:
    mid = draw(st.sampled_from(IN_FLIGHT) | packet_ids)
    code = mqtt5.PubAckReasonCode(draw(st.sampled_from([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])))
    raw = mqtt5.PubAckPacket(
        mid,
        reason_code=code,
        reason_str=draw(st.none() | text),
        user_properties=draw(st.lists(st.tuples(text, text), max_size=3)),
    ).write()
    return raw, (mid, int(code)) if mid in IN_FLIGHT else raw


CONTROL_5 = [
    mqtt5.ConnAckPacket(session_present=True, receive_max=20, user_properties=[("a", "b")] * 30),
    mqtt5.SubAckPacket(1, [mqtt5.SubAckReasonCode.GRANTED_QOS_AT_LEAST_ONCE]),
    mqtt5.UnsubAckPacket(2, [mqtt5.UnsubAckReasonCode.SUCCESS]),
    mqtt5.PingRespPacket(),
    mqtt5.PubRecPacket(40_000),
    mqtt5.PubRelPacket(40_000),
    mqtt5.PubCompPacket(40_000),
    mqtt5.AuthPacket(reason_code=mqtt5.AuthReasonCode.CONTINUE_AUTHENTICATION, authentication_method="m"),
    mqtt5.DisconnectPacket(reason_code=mqtt5.DisconnectReasonCode.SERVER_BUSY, reason_str="x" * 200),
]
controlled_5: st.SearchStrategy[Packed] = st.sampled_from([(raw, raw) for raw in (p.write() for p in CONTROL_5)])


@st.composite
def published_3(draw: st.DrawFn) -> Packed:
    qos, topic, payload, retain = draw(st.sampled_from([0, 1, 2])), draw(topics), draw(payloads), draw(st.booleans())
    dup = draw(st.booleans()) if qos else False
    mid = draw(packet_ids) if qos else None
    raw = PublishPacket.build(topic, payload, mid, dup, qos, retain).to_bytes()
    return raw, raw if qos == 2 else Message(topic, payload, 5, qos, mid or 0, retain, dup, epoch=7)


def answered_3(mid: int) -> Packed:
    raw = PubackPacket.build(mid).to_bytes()
    return raw, (mid, 0) if mid in IN_FLIGHT else raw


CONTROL_3 = [
    ConnackPacket.build(1, 0),
    SubackPacket.build(1, [1, 128]),
    PingRespPacket.build(),
    PubrelPacket.build(40_000),
]
controlled_3: st.SearchStrategy[Packed] = st.sampled_from([(raw, raw) for raw in (p.to_bytes() for p in CONTROL_3)])

packed_5 = published_5() | answered_5() | controlled_5
packed_3 = published_3() | (st.sampled_from(IN_FLIGHT) | packet_ids).map(answered_3) | controlled_3
places = st.lists(st.integers(0, 400), max_size=8)


def check_cut(packed: list[Packed], places: Sequence[int], *, five: bool) -> None:
    found, problem = cut(split(b"".join(raw for raw, _ in packed), places), five=five)

    wanted = [what for _, what in packed]
    assert problem == ""
    assert found.messages == [what for what in wanted if isinstance(what, Message)]
    assert found.answers == [what for what in wanted if isinstance(what, tuple)]
    assert found.control == b"".join(what for what in wanted if isinstance(what, bytes))


def sample(*, five: bool) -> list[Packed]:
    """One of each kind, with lengths of one and of two bytes."""
    properties = b"\x03\x00\x01j" if five else b""
    head = struct.pack("!H", 3) + b"a/b"
    encoded = bytes([len(properties)]) + properties if five else b""
    known = Properties(content_type="j") if five else Properties()
    long = b"y" * 200
    return [
        (packet(0x31, head + encoded + b"x"), Message("a/b", b"x", 5, 0, 0, True, False, known, 7)),
        (packet(0xD0, b""), b"\xd0\x00"),
        (packet(0x3A, head + b"\x01\x02" + encoded + long), Message("a/b", long, 5, 1, 258, False, True, known, 7)),
        (packet(0x40, struct.pack("!H", 40_001)), (40_001, 0)),
        (packet(0x40, struct.pack("!H", 1)), packet(0x40, struct.pack("!H", 1))),
        (packet(0x34, head + b"\x01\x02" + encoded), packet(0x34, head + b"\x01\x02" + encoded)),
        (packet(0x30, head + encoded), Message("a/b", b"", 5, 0, 0, False, False, known, 7)),
    ]  # fmt: skip


def published(fields: bytes, *, first: int = 0x30) -> bytes:
    return packet(first, b"\x00\x01a" + fields)
