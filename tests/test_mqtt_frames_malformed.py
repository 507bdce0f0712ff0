from __future__ import annotations

import struct
import time

import mqtt5
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packed import Packed, cut, fuzz, new_cutter, packed_3, packed_5, places, published, sample, split
from paho.mqtt.client import MQTTMessage
from scripted import packet

from edge_runtime.mqtt import frames, wire
from edge_runtime.mqtt.encode import puback_frames, publish_frame
from edge_runtime.mqtt.frames import TRUNCATED, Cut
from edge_runtime.mqtt.topics import match
from edge_runtime.records import Message, Outgoing, Properties

MALFORMED_5 = {
    "QoS 3": packet(0x36, b"\x00\x01a\x00\x01\x00x"),
    "QoS 3 and DUP": packet(0x3E, b"\x00\x01a\x00\x01\x00x"),
    "no topic length": packet(0x30, b""),
    "half a topic length": packet(0x30, b"\x00"),
    "topic beyond the frame": packet(0x30, b"\x00\x05abc"),
    "empty topic": packet(0x30, b"\x00\x00\x00x"),
    "no packet id": published(b"", first=0x32),
    "half a packet id": published(b"\x00", first=0x32),
    "packet id 0": published(b"\x00\x00\x00", first=0x32),
    "no property length": published(b""),
    "endless property length": published(b"\xff\xff\xff\xff\x01"),
    "cut off property length": published(b"\x80"),
    "properties beyond the frame": published(b"\x03\x01\x00"),
    "unknown property": published(b"\x02\x7f\x00"),
    "property of a CONNACK": published(b"\x03\x21\x00\x01"),
    "topic alias": published(b"\x03\x23\x00\x01"),
    "content type twice": published(b"\x08\x03\x00\x01a\x03\x00\x01b"),
    "expiry twice": published(b"\x0a" + b"\x02\x00\x00\x00\x01" * 2),
    "format twice": published(b"\x04\x01\x00\x01\x00"),
    "cut off byte": published(b"\x01\x01"),
    "cut off expiry": published(b"\x04\x02\x00\x00\x00"),
    "cut off content type": published(b"\x04\x03\x00\x02a"),
    "cut off text length": published(b"\x02\x03\x00"),
    "cut off correlation data": published(b"\x03\x09\x00\x01"),
    "cut off subscription id": published(b"\x02\x0b\x80"),
    "endless subscription id": published(b"\x06\x0b\xff\xff\xff\xff\x01"),
    "user property without a value": published(b"\x04\x26\x00\x01k"),
    "content type is not UTF-8": published(b"\x04\x03\x00\x01\xff"),
    "content type with a NUL": published(b"\x04\x03\x00\x01\x00"),
    "endless length": b"\xd0\xff\xff\xff\xff\x01",
    "PUBACK without an id": packet(0x40, b""),
    "PUBACK with half an id": packet(0x40, b"\x01"),
    "PUBACK for id 0": packet(0x40, b"\x00\x00"),
    "PUBACK with flags": packet(0x42, b"\x9c\x41"),
    "PUBACK with properties cut off": packet(0x40, b"\x9c\x41\x00\x01"),
    "PUBACK with too much": packet(0x40, b"\x9c\x41\x00\x00\x00"),
}
MALFORMED_3 = {
    name: MALFORMED_5[name]
    for name in [
        "QoS 3", "no topic length", "topic beyond the frame", "no packet id", "half a packet id", "endless length",
        "PUBACK without an id", "PUBACK for id 0", "PUBACK with flags",
    ]
} | {
    "empty topic": packet(0x30, b"\x00\x00x"),
    "packet id 0": published(b"\x00\x00", first=0x32),
    "PUBACK with a reason": packet(0x40, b"\x9c\x41\x00"),
}  # fmt: skip
MALFORMED = [(True, name) for name in MALFORMED_5] + [(False, name) for name in MALFORMED_3]


@pytest.mark.parametrize(("five", "name"), MALFORMED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_malformed_frame_ends_the_cutting_and_what_was_ahead_of_it_is_kept(five: bool, name: str) -> None:
    good = b"".join(raw for raw, _ in sample(five=five))
    bad = (MALFORMED_5 if five else MALFORMED_3)[name]
    wanted, _ = cut([good], five=five)
    for raw in (good + bad, good + bad + good):
        for place in (0, len(good), len(good) + 1, len(good) + 3, len(good) + len(bad) - 1):
            found, problem = cut(split(raw, [place]), five=five)

            assert problem
            assert found == wanted


def test_a_topic_that_is_known_is_not_completed_by_what_follows_a_frame_too_short_for_it() -> None:
    known = packet(0x30, b"\x00\x03abc")
    found, problem = cut([known + packet(0x30, b"\x00\x03a") + b"bc"], five=False)

    assert (len(found.messages), problem) == (1, TRUNCATED)


def test_the_properties_that_are_not_used_are_stepped_over() -> None:
    properties = b"\x01\x01" + b"\x0b\x01" + b"\x0b\xff\xff\xff\x7f" + b"\x26\x00\x01k\x00\x00" + b"\x03\x00\x01c"
    found, problem = cut([published(bytes([len(properties)]) + properties + b"x")])

    assert problem == ""
    assert found.messages == [Message("a", b"x", 5, properties=Properties("c", (("k", ""),)), epoch=7)]


def test_a_topic_that_is_not_utf_8_is_marked_as_the_callbacks_mark_it() -> None:
    topic = b"plant/\xff\xc3"
    (message,) = cut([packet(0x30, struct.pack("!H", len(topic)) + topic + b"\x00x")])[0].messages
    by_paho = wire.to_message(MQTTMessage(topic=topic), received_ns=5, epoch=7)

    assert message.topic == by_paho.topic
    assert not match("#", message.topic)


def test_two_answers_to_one_message_are_both_told_and_the_reason_with_them() -> None:
    refusal = packet(0x40, struct.pack("!H", 40_001) + b"\x87")
    found, _ = cut([refusal + puback_frames([40_001, 1])])

    assert found.answers == [(40_001, 0x87), (40_001, 0)]
    assert found.control == puback_frames([1])


@pytest.mark.parametrize("first", [0x30, 0x34, 0xD0], ids=["PUBLISH", "QoS 2", "control"])
@pytest.mark.parametrize(("size", "length_bytes"), [(1024, 2), (20_000, 3)])
def test_a_frame_may_be_as_large_as_allowed_and_not_one_byte_larger(first: int, size: int, length_bytes: int) -> None:
    body = b"\x00\x01a\x00\x01\x00" + bytes(size - 7 - length_bytes)
    fits, too_large = packet(first, body), packet(first, body + b"x")
    assert len(fits) == size
    for pieces in ([fits], split(fits, range(0, size, 100))):
        found, problem = cut(pieces, max_packet_bytes=size)
        assert problem == ""
        assert len(found.messages) + len(found.control) == (1 if first == 0x30 else size)
    for pieces in ([too_large], [too_large[: 1 + length_bytes]], split(too_large, [1, 2])):
        assert cut(pieces, max_packet_bytes=size)[1] == f"a packet of {size + 1} bytes, {size} allowed"


@pytest.mark.parametrize("length", [0x7F, 0x80, 0x3FFF, 0x4000, 0x4080, 0x1FFFFF, 0x200000])
def test_lengths_are_read_and_written_at_the_steps_of_their_encoding(length: int) -> None:
    frame = packet(0x30, b"\x00\x01a\x00" + bytes(length - 4))
    assert publish_frame(Outgoing("a", bytes(length - 4)), mid=0, dup=False, expiry_s=None, five=True) == frame
    for pieces in ([frame + frame], split(frame + frame, [1, 2, 3, 4, 5, len(frame) - 1, len(frame) + 2])):
        found, problem = cut(pieces, max_packet_bytes=len(frame))
        assert problem == ""
        assert [len(message.payload) for message in found.messages] == [length - 4] * 2


def test_the_largest_length_of_mqtt_is_taken() -> None:
    cutter = new_cutter(max_packet_bytes=300_000_000)
    assert cutter.cut(b"\x30\xff\xff\xff\x7f\x00\x01a\x00", 5, ()) == Cut()


def test_a_large_frame_in_small_pieces_costs_no_more_than_its_size() -> None:
    """Joined anew at every piece, these bytes would be copied 8,000 times over, which takes half a minute."""
    frame = packet(0x30, b"\x00\x01a\x00" + bytes(16 * 2**20))
    cutter = new_cutter(max_packet_bytes=2**25)
    before_ns = time.thread_time_ns()
    found = [cutter.cut(frame[place : place + 1024], 5, ()) for place in range(0, len(frame), 1024)]
    cost_s = (time.thread_time_ns() - before_ns) / 1e9

    assert [len(message.payload) for part in found for message in part.messages] == [16 * 2**20]
    assert cost_s < 3.0


def test_what_is_remembered_of_topics_and_properties_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_CACHED_HEADS", 50)
    cutter = new_cutter()
    names = [f"plant/{number % 130}" for number in range(400)] + ["long/" + "x" * 5_000]
    raw = b"".join(publish_frame(Outgoing(name, b""), mid=0, dup=False, expiry_s=None, five=True) for name in names)

    assert [message.topic for message in cutter.cut(raw, 5, ()).messages] == names
    assert 0 < len(cutter._heads) <= 50
    assert max(map(len, cutter._heads)) <= frames.MAX_CACHED_BYTES


def outcome(pieces: list[bytes], *, five: bool) -> tuple[Cut, bool]:
    found, problem = cut(pieces, five=five)
    return found, bool(problem)


def check_anything(raw: bytes, places: list[int], *, five: bool) -> None:
    """Nothing but FrameError may be raised, no byte may come out twice, and the splits must not show."""
    found, failed = outcome([raw], five=five)
    assert outcome(split(raw, places), five=five) == (found, failed)
    assert outcome([raw[place : place + 1] for place in range(len(raw))], five=five) == (found, failed)
    carried = sum(len(message.payload) for message in found.messages)
    assert len(found.control) + carried + 4 * len(found.answers) <= len(raw)


@fuzz
@given(raw=st.binary(max_size=60), places=places, five=st.booleans())
@example(raw=b"\x30", places=[], five=True)
@example(raw=b"\x30\x80", places=[1], five=True)
@example(raw=b"\x30\x80\x00", places=[], five=False)
@example(raw=b"\x30\x01\x00\x30\x04\x00\x01ax", places=[3], five=False)
def test_random_bytes_raise_a_frame_error_or_are_passed_on(raw: bytes, places: list[int], five: bool) -> None:
    check_anything(raw, places, five=five)


@st.composite
def mutated(draw: st.DrawFn, packed: st.SearchStrategy[Packed]) -> bytes:
    """Well-formed packets in which a few bytes were changed, cut out or doubled."""
    raw = bytearray(b"".join(found for found, _ in draw(st.lists(packed, min_size=1, max_size=3)))[:2_000])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, min(len(raw) - 1, 40)))
        change = draw(st.sampled_from(["set", "cut", "double"]))
        if change == "set":
            raw[place] = draw(st.integers(0, 255))
        else:
            end = place + draw(st.integers(1, 4))
            raw[place:end] = b"" if change == "cut" and len(raw) > 5 else raw[place:end] * 2
    return bytes(raw)


@fuzz
@given(raw=mutated(packed_5), places=places)
def test_mutated_packets_of_mqtt_5_raise_a_frame_error_or_are_passed_on(raw: bytes, places: list[int]) -> None:
    check_anything(raw, places, five=True)


@fuzz
@given(raw=mutated(packed_3), places=places)
def test_mutated_packets_of_mqtt_3_1_1_raise_a_frame_error_or_are_passed_on(raw: bytes, places: list[int]) -> None:
    check_anything(raw, places, five=False)


PROPERTIES = [
    b"\x01\x00", b"\x01\x01", b"\x02\x00\x00\x00\x05", b"\x03\x00\x01c", b"\x03\x00\x00", b"\x08\x00\x01r",
    b"\x09\x00\x02co", b"\x0b\x05", b"\x0b\x06", b"\x26\x00\x01k\x00\x01v", b"\x26\x00\x00\x00\x00",
    b"\x11\x00\x00\x00\x01", b"\x1f\x00\x01r", b"\x7f",
]  # fmt: skip


def by_the_rust_codec(raw: bytes) -> Properties | None:
    try:
        found, _ = mqtt5.read(memoryview(raw))
    except ValueError:
        return None
    return Properties(
        content_type=found.content_type or "",
        user=tuple(found.user_properties),
        message_expiry_s=found.message_expiry_interval,
        response_topic=found.response_topic or "",
        correlation_data=found.correlation_data or b"",
    )


@fuzz
@given(
    properties=st.lists(st.sampled_from(PROPERTIES), max_size=6).map(b"".join), cut_off=st.sampled_from([0, 0, 0, 1, 2])
)
def test_properties_are_taken_or_refused_as_by_the_rust_codec(properties: bytes, cut_off: int) -> None:
    properties = properties[: len(properties) - cut_off]
    raw = published(bytes([len(properties)]) + properties)
    found, problem = cut([raw])

    assert (None if problem else found.messages[0].properties) == by_the_rust_codec(raw)
