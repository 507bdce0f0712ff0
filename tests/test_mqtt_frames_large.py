"""Messages larger than is taken, which a broker of MQTT 3.1.1 cannot be told not to send."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import Packed, cut, fuzz, new_cutter, packed_3, places, split
from scripted import packet

from edge_runtime.mqtt.frames import Cut
from edge_runtime.records import Message

LIMIT = 600
TOPIC = b"\x00\x03a/b"
LARGE: list[Packed] = [
    (packet(0x30, TOPIC + bytes(LIMIT)), Message("a/b", b"", 5, epoch=7)),
    (packet(0x3B, TOPIC + b"\x01\x02" + bytes(20_000)), Message("a/b", b"", 5, 1, 258, True, True, epoch=7)),
    (packet(0x32, b"\x04\x00" + b"t" * 1_024 + b"\x00\x09"), Message("t" * 1_024, b"", 5, 1, 9, epoch=7)),
    (packet(0x30, b"\x00\x02\xff/" + bytes(LIMIT)), cut([packet(0x30, b"\x00\x02\xff/")], five=False)[0].messages[0]),
]
SMALL: list[Packed] = [
    (packet(0x32, TOPIC + b"\x00\x07x"), Message("a/b", b"x", 5, 1, 7, epoch=7)),
    (packet(0xD0, b""), packet(0xD0, b"")),
    (packet(0x40, (40_001).to_bytes(2, "big")), (40_001, 0)),
]


def check(packed: list[Packed], pieces: Iterable[bytes]) -> None:
    found, problem = cut(pieces, five=False, max_packet_bytes=LIMIT)

    assert problem == ""
    assert found.messages == [what for _, what in packed if isinstance(what, Message)]
    assert found.answers == [what for _, what in packed if isinstance(what, tuple)]
    assert found.control == b"".join(what for _, what in packed if isinstance(what, bytes))


@pytest.mark.parametrize("large", LARGE, ids=["QoS 0", "QoS 1", "nothing but a topic", "no UTF-8"])
def test_what_is_around_a_message_that_is_too_large_comes_wherever_it_was_split(large: Packed) -> None:
    packed = [*SMALL, large, *SMALL, large, large, *SMALL]
    raw = b"".join(found for found, _ in packed)
    ahead = sum(len(found) for found, _ in SMALL)
    behind = ahead + len(large[0])
    for place in [*range(ahead + 40), *range(behind - 5, behind + ahead + 40)]:
        check(packed, split(raw, [place]))
        check(packed, split(raw, [place, place + 1, place + 100]))
    check(packed, split(raw, range(len(raw))))
    check(packed, [piece for part in split(raw, range(0, len(raw), 99)) for piece in (b"", part)])


@fuzz
@given(packed=st.lists(packed_3 | st.sampled_from(LARGE), max_size=8), places=places)
def test_large_messages_come_out_empty_among_any_others(packed: list[Packed], places: list[int]) -> None:
    packed = [(raw, what) for raw, what in packed if len(raw) <= LIMIT or (raw, what) in LARGE]
    check(packed, split(b"".join(raw for raw, _ in packed), places))


def test_a_large_message_is_received_with_its_last_byte() -> None:
    frame = LARGE[1][0]
    cutter = new_cutter(five=False, max_packet_bytes=LIMIT)
    pieces = [frame[:2], frame[2:500], frame[500:-1], frame[-1:] + frame[:-1], frame[-1:] + frame]
    stamps = [[found.received_ns for found in cutter.cut(piece, n, ()).messages] for n, piece in enumerate(pieces)]

    assert stamps == [[], [], [], [3], [4, 4]]


def test_the_largest_message_of_mqtt_is_stepped_over_without_being_kept() -> None:
    head, chunk = b"\x32\xff\xff\xff\x7f\x00\x01a\x00\x09", bytes(2**18)
    left = 268_435_455 - 5
    cutter = new_cutter(five=False, max_packet_bytes=LIMIT)
    tracemalloc.start()
    try:
        assert cutter.cut(head, 1, ()) == Cut()
        while left > len(chunk):
            assert cutter.cut(chunk, 2, ()) == Cut()
            left -= len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * len(chunk)
    found = cutter.cut(chunk[:left] + SMALL[0][0], 5, ())
    assert found.messages == [Message("a", b"", 5, 1, 9, epoch=7), SMALL[0][1]]


def test_a_topic_in_small_pieces_costs_no_more_than_its_size() -> None:
    frame = packet(0x30, b"\xff\xff" + b"t" * 65_535 + bytes(LIMIT))
    cutter = new_cutter(five=False, max_packet_bytes=LIMIT)
    found = [cutter.cut(frame[n : n + 10], 5, ()) for n in range(0, len(frame), 10)]

    assert [message.topic for part in found for message in part.messages] == ["t" * 65_535]


def test_a_connection_warns_of_it_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        cut([LARGE[1][0], *split(LARGE[0][0] * 3, [8, 700])], five=False, max_packet_bytes=LIMIT)

    facts = [(found.getMessage(), vars(found)["topic"], vars(found)["bytes"]) for found in caplog.records]
    assert facts == [("mqtt_message_too_large", "a/b", len(LARGE[1][0]))] * 2


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (packet(0x32, TOPIC + b"\x00\x00" + bytes(LIMIT)), "PUBLISH: packet id 0"),
        (packet(0x30, b"\x00\x00" + bytes(LIMIT)), "PUBLISH: an empty topic"),
        (packet(0x30, b"\xff\xff" + b"t" * LIMIT), "PUBLISH: its fields reach beyond its end"),
        (packet(0x32, b"\x02\x58" + b"t" * LIMIT), "PUBLISH: its fields reach beyond its end"),
        (packet(0x32, b"\x02\x58" + b"t" * LIMIT + b"\x00"), "PUBLISH: its fields reach beyond its end"),
        (packet(0x36, TOPIC + bytes(LIMIT)), "a packet of 608 bytes, 600 allowed"),
        (packet(0x34, TOPIC + bytes(LIMIT)), "a packet of 608 bytes, 600 allowed"),
        (packet(0x40, bytes(LIMIT)), "a packet of 603 bytes, 600 allowed"),
        (packet(0x90, bytes(LIMIT)), "a packet of 603 bytes, 600 allowed"),
        (b"\x30\xff\xff\xff\xff\x01", "a length of more than 4 bytes"),
    ],
)
def test_what_the_broker_had_no_right_to_send_is_a_fault(bad: bytes, problem: str) -> None:
    good = SMALL[0][0] + LARGE[0][0]
    for place in itertools.chain(range(0, len(good), 50), range(len(good), len(good) + len(bad) + 1)):
        found, said = cut(split(good + bad + good, [place]), five=False, max_packet_bytes=LIMIT)

        assert said == problem
        assert found.messages == [SMALL[0][1], LARGE[0][1]]
