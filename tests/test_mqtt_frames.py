from __future__ import annotations

from collections.abc import Coroutine
from itertools import zip_longest
from typing import Any

import mqtt5
import msgspec
import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from hypothesis import given
from hypothesis import strategies as st
from packed import (
    Packed,
    check_cut,
    fuzz,
    new_cutter,
    packed_3,
    packed_5,
    packet_ids,
    payloads,
    places,
    sample,
    text,
    topics,
)
from scripted import packet

from edge_runtime.mqtt.encode import puback_frames, publish_frame, publish_frames
from edge_runtime.records import Outgoing


@fuzz
@given(packed=st.lists(packed_5, max_size=8), places=places)
def test_what_the_rust_codec_packs_comes_out_the_same_wherever_it_was_split(
    packed: list[Packed], places: list[int]
) -> None:
    check_cut(packed, places, five=True)


@fuzz
@given(packed=st.lists(packed_3, max_size=8), places=places)
def test_what_amqtt_packs_comes_out_the_same_wherever_it_was_split(packed: list[Packed], places: list[int]) -> None:
    check_cut(packed, places, five=False)


@pytest.mark.parametrize("five", [True, False], ids=["5", "3.1.1"])
def test_a_frame_may_be_split_at_every_byte_and_at_all_of_them(five: bool) -> None:
    packed = sample(five=five)
    size = sum(len(raw) for raw, _ in packed)
    for place in range(size + 1):
        check_cut(packed, [place], five=five)
    check_cut(packed, range(size), five=five)


def test_a_message_is_received_when_the_read_that_completed_it_began() -> None:
    frame = packet(0x30, b"\x00\x01a\x00" + b"x" * 10)
    cutter = new_cutter()
    stamps = []
    for now, piece in enumerate([frame[:3], frame[3:] + frame[:1], b"", frame[1:] + frame + frame[:-1], frame[-1:]]):
        stamps += [message.received_ns for message in cutter.cut(piece, now, ()).messages]

    assert stamps == [1, 3, 3, 4]


# What we build, read by the same codecs.

outgoing = st.builds(
    Outgoing,
    topic=topics,
    payload=payloads,
    qos=st.sampled_from([0, 1]),
    retain=st.booleans(),
    content_type=st.just("") | text,
    user=st.just(()) | st.lists(st.tuples(text, text), max_size=30).map(tuple),
    response_topic=st.just("") | topics,
    correlation_data=st.just(b"") | st.binary(max_size=20),
)
expiries = st.sampled_from([None, 0, 2**32 - 1]) | st.integers(0, 2**32 - 1)


@fuzz
@given(message=outgoing, mid=packet_ids, dup=st.booleans(), expiry_s=expiries)
def test_the_rust_codec_reads_what_was_built(message: Outgoing, mid: int, dup: bool, expiry_s: int | None) -> None:
    raw = publish_frame(message, mid=mid, dup=dup, expiry_s=expiry_s, five=True)
    found, size = mqtt5.read(memoryview(raw))

    assert size == len(raw)
    assert (found.topic, found.payload, int(found.qos)) == (message.topic, message.payload, message.qos)
    assert (found.retain, found.duplicate) == (message.retain, dup)
    assert found.packet_id == (mid if message.qos else None)
    assert found.message_expiry_interval == expiry_s
    assert (found.content_type or "", found.response_topic or "") == (message.content_type, message.response_topic)
    assert found.correlation_data or message.correlation_data == b""
    assert found.user_properties == list(message.user)
    assert (found.topic_alias, found.subscription_ids, found.payload_format_indicator) == (None, [], 0)


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never has to wait, such as one that reads from a buffer."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


def read_3(raw: bytes, kind: type[PublishPacket | PubackPacket]) -> Any:
    reader = BufferReader(raw)
    header = awaited(MQTTFixedHeader.from_stream(reader))
    assert header.bytes_length + header.remaining_length == len(raw)
    return awaited(kind.from_stream(reader, fixed_header=header))


@fuzz
@given(message=outgoing, mid=packet_ids, dup=st.booleans(), expiry_s=expiries)
def test_amqtt_reads_what_was_built(message: Outgoing, mid: int, dup: bool, expiry_s: int | None) -> None:
    found = read_3(publish_frame(message, mid=mid, dup=dup, expiry_s=expiry_s, five=False), PublishPacket)

    assert (found.topic_name, found.data, found.qos) == (message.topic, message.payload, message.qos)
    assert (found.retain_flag, found.dup_flag) == (message.retain, dup)
    assert found.packet_id == (mid if message.qos else None)


@fuzz
@given(mids=st.lists(packet_ids, max_size=80))
def test_both_codecs_read_the_acknowledgements_that_were_built(mids: list[int]) -> None:
    raw = puback_frames(mids)
    found = [mqtt5.read(memoryview(raw)[place : place + 4])[0] for place in range(0, len(raw), 4)]

    assert [(answer.packet_id, int(answer.reason_code)) for answer in found] == [(mid, 0) for mid in mids]
    assert [read_3(raw[place : place + 4], PubackPacket).packet_id for place in range(0, len(raw), 4)] == mids


@pytest.mark.parametrize(
    "message",
    [
        Outgoing("", b""),
        Outgoing("a/+", b""),
        Outgoing("a/#", b""),
        Outgoing("a\x00", b""),
        Outgoing("\ud800", b""),
        Outgoing("t" * 65_536, b""),
        Outgoing("t", b"", 2),
        Outgoing("t", b"", content_type="c" * 65_536),
        Outgoing("t", b"", correlation_data=bytes(65_536)),
        Outgoing("t", b"", user=(("k", "\ud800"),)),
    ],
    ids=lambda message: repr(message)[:40],
)
def test_what_mqtt_cannot_carry_is_refused_every_time(message: Outgoing) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="."):
            publish_frame(message, mid=1, dup=False, expiry_s=None, five=True)


plain = outgoing.map(lambda m: msgspec.structs.replace(m, user=(), response_topic="", correlation_data=b""))
like_it = st.tuples(payloads, st.booleans(), st.sampled_from(["", "text/plain"]))
several = st.lists(st.tuples(plain, st.lists(like_it, min_size=1, max_size=4)), min_size=1, max_size=5).map(
    lambda runs: [
        msgspec.structs.replace(message, payload=payload, retain=retain, content_type=content_type)
        for message, found in runs
        for payload, retain, content_type in found
    ]
)


@fuzz
@given(messages=several, qos=st.sampled_from([0, 1]), five=st.booleans())
def test_frames_built_together_are_those_built_one_by_one(messages: list[Outgoing], qos: int, five: bool) -> None:
    alike = [msgspec.structs.replace(message, qos=qos) for message in messages]
    mids = range(65_535, 65_535 - len(alike), -1) if qos else ()
    frames = [
        publish_frame(message, mid=mid, dup=False, expiry_s=None, five=five)
        for message, mid in zip_longest(alike, mids, fillvalue=0)
    ]
    largest = max(map(len, frames))

    assert publish_frames(alike, mids, limit=largest, five=five) == b"".join(frames)
    with pytest.raises(ValueError, match=f"a packet of {largest} bytes, {largest - 1} allowed"):
        publish_frames(alike, mids, limit=largest - 1, five=five)


@pytest.mark.parametrize(
    "other",
    [
        Outgoing("t", b"", 1),
        Outgoing("t", b"", message_expiry_s=1),
        Outgoing("t", b"", user=(("k", "v"),)),
        Outgoing("t", b"", response_topic="r"),
        Outgoing("t", b"", correlation_data=b"c"),
        Outgoing("#", b""),
    ],
)
def test_frames_of_messages_that_are_not_alike_are_not_built_together(other: Outgoing) -> None:
    with pytest.raises(ValueError, match="."):
        publish_frames([Outgoing("t", b""), other], (), limit=99, five=True)


def test_a_frame_has_at_most_the_bytes_its_length_can_say() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 268_435_452

    for retain, allowed in [(False, True), (True, False)]:
        topic = "t" if allowed else "tt"
        message = Outgoing(topic, Huge(), retain=retain)
        if allowed:
            frame = publish_frame(message, mid=0, dup=False, expiry_s=None, five=False)
            assert frame.startswith(b"\x30\xff\xff\xff\x7f")
        else:
            with pytest.raises(ValueError, match="268435456 bytes; MQTT allows 268435455"):
                publish_frame(message, mid=0, dup=False, expiry_s=None, five=False)
