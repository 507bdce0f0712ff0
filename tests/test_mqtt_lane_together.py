"""Messages handed to the lane together fare as they would one by one."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import lane_server
import pytest
from driving import confirmed, fates
from hypothesis import given
from hypothesis import strategies as st
from lane_server import Connected, Server
from packed import fuzz
from scripted import MAXIMUM_PACKET_SIZE, RECEIVE_MAXIMUM

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.encode import puback_frames
from edge_runtime.mqtt.frames import Cut, FrameCutter
from edge_runtime.mqtt.lane import LaneTraffic
from edge_runtime.mqtt.lane_socket import LaneSocket
from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.transport import Counters
from edge_runtime.records import Outgoing

server, connected = lane_server.server, lane_server.connected

LIMITS = wire.Limits(session_expiry_s=0, keepalive_s=0, receive_maximum=4, maximum_packet_bytes=600)


class Line:
    """A socket that takes as many bytes as a test allows."""

    def __init__(self) -> None:
        self.room = 0
        self.taken = b""

    def send(self, output: bytes | memoryview) -> int:
        if not self.room:
            raise BlockingIOError
        taken = bytes(output[: self.room])
        self.room -= len(taken)
        self.taken += taken
        return len(taken)

    def recv_into(self, _buffer: memoryview) -> int:
        raise BlockingIOError


class Driven:
    """A lane without a client around it. together: publish what a step holds with one call, else message by message."""

    def __init__(self, line: socket.socket, *, together: bool) -> None:
        self.queue = SendQueue(max_waiting=6, now_ns=lambda: 0)
        self.tokens: list[int] = []
        self.sent: list[list[tuple[Any, ...]]] = []
        self.delivered: set[int] = set()
        self.failed: set[tuple[int, str]] = set()
        self._together = together
        settings = MqttSettings(url="mqtt://localhost", max_unwritten_bytes=1_500)
        self._link: Any = SimpleNamespace(client=SimpleNamespace(socket=lambda: self.lane), line=line, open=True)
        given = {"link": self._link, "queue": self.queue, "counters": Counters()}
        self.traffic = LaneTraffic(settings, wire.Account("", None, None), **given)
        self._connect(session_present=False)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        if self._together:
            last = self.traffic.publish_all(messages)
            self.tokens += range(last - len(messages) + 1, last + 1)
        else:
            self.tokens += [self.traffic.publish(message) for message in messages]

    def write(self, size: int) -> None:
        self._line.room += size
        self.traffic.flush()

    def answer(self, refuse: bool) -> None:
        """The oldest message in flight, if it has left."""
        if self.queue.in_flight and len(self._messages()) and not self.queue.again:
            mid = next(iter(self.queue.in_flight))
            self.queue.answered([(mid, "refused" if refuse else "")])

    def reconnect(self, session_present: bool) -> None:
        self.traffic.lost()
        self._note()
        self._connect(session_present=session_present)

    def close(self) -> None:
        self.traffic.lost()
        self.queue.close("stopped")
        self._note()

    def cut(self) -> Cut:
        """What the connection has carried."""
        return FrameCutter(five=True, epoch=0, max_packet_bytes=1 << 24).cut(self._line.taken, 0, ())

    def _connect(self, *, session_present: bool) -> None:
        self._line = Line()
        self.lane = LaneSocket(self._line, flush_timeout_s=0.0)  # type: ignore[arg-type]
        self.traffic.opened(1)
        self.traffic.accepted(LIMITS, session_present=session_present)

    def _messages(self) -> list[tuple[Any, ...]]:
        return [(m.topic, m.payload, m.qos, m.dup, m.retain, m.properties) for m in self.cut().messages]

    def _note(self) -> None:
        self.sent.append([*self._messages(), (len(self._line.taken),)])
        delivered, failed = self.queue.confirmed()
        self.delivered.update(delivered)
        self.failed.update(failed)


TOPICS = ["a", "a/long/topic", "not/#"]
messages = st.lists(
    st.builds(
        Outgoing,
        topic=st.sampled_from(TOPICS[:2]) | st.sampled_from(TOPICS),
        payload=st.sampled_from([0, 5, 100, 200]).map(bytes) | st.integers(0, 700).map(bytes),
        qos=st.just(0) | st.sampled_from([0, 1]),
        content_type=st.sampled_from(["", "text/plain"]),
        message_expiry_s=st.sampled_from([None, None, None, 0, 9]),
    ),
    min_size=1,
    max_size=8,
)
alike = st.tuples(st.integers(1, 8), st.sampled_from([0, 1]), st.integers(0, 500)).map(
    lambda drawn: [Outgoing(TOPICS[0], b"%03d" % n + bytes(drawn[2]), drawn[1]) for n in range(drawn[0])]
)
steps = st.one_of(
    st.tuples(st.just("publish"), alike),
    st.tuples(st.just("publish"), messages),
    st.tuples(st.just("write"), st.integers(0, 900)),
    st.tuples(st.just("answer"), st.booleans()),
    st.tuples(st.just("reconnect"), st.booleans()),
)


@fuzz
@given(played=st.lists(steps, max_size=12))
def test_messages_published_together_have_the_fate_they_would_have_one_by_one(played: list[tuple[str, Any]]) -> None:
    ours, far = socket.socketpair()
    with ours, far:
        both = [Driven(ours, together=together) for together in (True, False)]
        for driven in both:
            for step, argument in played:
                getattr(driven, step)(argument)
            driven.close()
    one, other = both

    assert one.tokens == other.tokens == list(range(1, len(one.tokens) + 1))
    assert one.sent == other.sent
    assert (one.delivered, one.failed) == (other.delivered, other.failed)
    assert one.delivered.isdisjoint(token for token, _ in one.failed)
    assert len(one.delivered) + len(one.failed) == len(one.tokens) == one.queue.written


def test_of_messages_cut_off_on_their_way_out_only_those_that_have_not_left_go_again() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.publish([Outgoing("a", b"%d" % n + bytes(200)) for n in range(4)])
        driven.write(driven.lane.queued * 5 // 8)
        driven.reconnect(session_present=True)
        assert driven.delivered == {1, 2}

        driven.traffic.pump()
        driven.write(10_000)
        driven.close()

    assert [[payload[:1] for _, payload, *_ in sent[:-1]] for sent in driven.sent] == [[b"0", b"1"], [b"2", b"3"]]
    assert driven.delivered == {1, 2, 3, 4}


def four_in_flight(line: socket.socket) -> Driven:
    """More messages have been sent than fit into the output at once."""
    driven = Driven(line, together=True)
    driven.publish([Outgoing("a", b"%d" % n + bytes(550), qos=1) for n in range(4)])
    driven.write(10_000)
    driven.write(10_000)
    return driven


def test_what_is_in_flight_goes_again_only_as_far_as_there_is_room_and_before_what_is_new() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = four_in_flight(ours)
        mids = [*driven.queue.in_flight]
        driven.reconnect(session_present=True)
        assert 1_500 <= driven.lane.queued < 2_100

        driven.publish([Outgoing("a", b"new", qos=0)])
        for _ in range(2):
            driven.write(900)
            assert driven.lane.queued - driven.lane.sent < 2_100
            assert driven.queue.written == 4
        driven.write(10_000)
        driven.write(10_000)
        driven.close()

    assert [(payload[:3], dup) for _, payload, _, dup, *_ in driven.sent[1][:-1]] == [
        *((b"%d\0\0" % n, True) for n in range(4)),
        (b"new", False),
    ]
    assert [m.mid for m in driven.cut().messages[:-1]] == mids
    assert driven.delivered == {5}


def test_what_is_to_go_again_has_not_left_and_goes_once_on_each_connection() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.publish([Outgoing("a", b"%d" % n + bytes(550), qos=1) for n in range(4)])
        driven.write(600)
        assert len(driven.queue.in_flight) == 4
        driven.reconnect(session_present=True)
        put = driven.lane.queued
        assert len(driven.queue.again) == 1
        driven.reconnect(session_present=True)
        driven.write(put)
        assert (driven.lane.sent, driven.queue.written) == (put, 3)

        driven.write(10_000)
        driven.close()

    assert [payload[:1] for _, payload, *_ in driven.sent[-1][:-1]] == [b"0", b"1", b"2", b"3"]


def test_a_message_is_unanswered_since_the_read_before_it_was_sent_on_this_connection() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.traffic.read(5)
        driven.publish([Outgoing("a", bytes(550), qos=1)] * 2)
        driven.traffic.read(7)
        driven.publish([Outgoing("a", bytes(550), qos=1)])
        mids = [*driven.queue.in_flight]
        assert driven.queue.oldest_ns() == 5
        driven.queue.answered([(mid, "") for mid in mids[:2]])
        assert driven.queue.oldest_ns() == 7

        driven.publish([Outgoing("a", bytes(550), qos=1)] * 3)
        driven.write(10_000)
        driven.write(10_000)
        driven.traffic.read(10)
        driven.reconnect(session_present=True)
        driven.queue.answered([(mid, "") for mid in [*driven.queue.in_flight][:3]])
        assert (len(driven.queue.again), driven.queue.oldest_ns()) == (1, None)
        driven.traffic.read(20)
        driven.write(10_000)
        assert driven.queue.oldest_ns() == 20


def test_a_message_that_is_answered_before_it_went_again_does_not_go_again() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = four_in_flight(ours)
        driven.reconnect(session_present=True)
        driven.queue.answered([(driven.queue.again[0], "")])
        driven.write(10_000)
        driven.write(10_000)
        driven.close()

    assert [payload[:1] for _, payload, *_ in driven.sent[1][:-1]] == [b"0", b"1", b"2"]


def test_messages_published_together_get_packet_ids_of_their_own() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.publish([Outgoing("a", b"", qos=1)] * 4)
        first, second, third, fourth = driven.queue.in_flight
        driven.queue.answered([(mid, "") for mid in (first, second, fourth)])
        driven.publish([Outgoing("a", b"", qos=1)] * 2)
        assert [*driven.queue.in_flight] == [third, fourth + 1, fourth + 2]
        driven.queue.answered([(fourth + 1, ""), (fourth + 2, "")])
        driven.publish([Outgoing("a", b"", qos=1)] * 2)
        assert [*driven.queue.in_flight] == [third, fourth + 3, fourth + 4]

        driven.traffic._mid = first
        driven.queue.answered([(fourth + 3, "")])
        driven.publish([Outgoing("a", b"", qos=1)] * 2)
        assert [*driven.queue.in_flight] == [third, fourth + 4, second, fourth]


def test_messages_published_together_go_only_as_far_as_what_is_unwritten_leaves_room() -> None:
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.publish([Outgoing("a", bytes(500))] * 2)
        driven.publish([Outgoing("a", bytes(400))] * 3)

        assert 1_500 <= driven.lane.queued < 1_900


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_published_together_arrive_in_order_and_are_confirmed_each(
    connected: Connected, server: Server, qos: int
) -> None:
    client = connected()
    first = client.publish(Outgoing("out/a", b"first", qos))
    last = client.publish_all([Outgoing("out/a", b"%d" % n, qos) for n in range(100, 164)])
    client.flush()
    heard = server.hear(client, lambda heard: len(heard.messages) == 65).messages
    assert len({message.mid for message in heard}) == (65 if qos else 1)
    if qos:
        server.line.sendall(puback_frames([message.mid for message in heard]))

    assert [message.payload for message in heard] == [b"first"] + [b"%d" % n for n in range(100, 164)]
    assert last == first + 64
    assert confirmed(client, 65) == [(token, "") for token in range(first, last + 1)]
    assert client.written == last


def test_of_messages_published_together_those_the_broker_does_not_take_fail_alone(
    connected: Connected, server: Server
) -> None:
    if not server.five:
        pytest.skip("MQTT 3.1.1 states no limits")
    client = connected(properties=bytes([MAXIMUM_PACKET_SIZE, 0, 0, 4, 0, RECEIVE_MAXIMUM, 0, 2]))
    bodies = [b"0", bytes(2_000), b"2", b"3"]
    last = client.publish_all([Outgoing("out/a", body, qos=1) for body in bodies])

    heard = server.hear(client, lambda heard: len(heard.messages) == 2).messages
    [(failed, reason)] = fates(client)
    server.line.sendall(puback_frames([heard[0].mid]))
    third = server.hear(client, lambda heard: len(heard.messages) == 1).messages

    assert [message.payload for message in heard + third] == [b"0", b"2", b"3"]
    assert failed == last - 2
    assert reason.startswith("packet too large")


class Wanting:
    """A TLS socket in the middle of a renegotiation."""

    def __init__(self) -> None:
        self.wants: list[type[ssl.SSLError]] = []
        self.taken = b""

    def pending(self) -> int:
        return 0

    def send(self, output: bytes | memoryview) -> int:
        if self.wants:
            raise self.wants.pop()
        self.taken += output
        return len(output)

    def recv_into(self, _buffer: memoryview) -> int:
        raise self.wants.pop() if self.wants else ssl.SSLWantReadError


@pytest.fixture
def wanting() -> Iterator[tuple[Wanting, Driven]]:
    sock = Wanting()
    ours, far = socket.socketpair()
    with ours, far:
        driven = Driven(ours, together=True)
        driven.traffic._lane = LaneSocket(sock, flush_timeout_s=0.0)  # type: ignore[arg-type]
        yield sock, driven


def test_a_write_for_which_tls_needs_input_waits_for_input_and_goes_on_after_a_read(
    wanting: tuple[Wanting, Driven],
) -> None:
    sock, driven = wanting
    sock.wants = [ssl.SSLWantReadError]
    driven.publish([Outgoing("a", b"x")])
    driven.traffic.flush()
    assert not driven.traffic.wants_write()
    assert sock.taken == b""

    driven.traffic.read(1)
    assert sock.taken == b"\x30\x05\x00\x01a\x00x"
    driven.traffic.flush()
    assert driven.queue.confirmed() == ([1], [])


def test_a_write_for_which_tls_needs_room_waits_for_room(wanting: tuple[Wanting, Driven]) -> None:
    sock, driven = wanting
    sock.wants = [ssl.SSLWantWriteError]
    driven.publish([Outgoing("a", b"x")])
    driven.traffic.flush()
    assert driven.traffic.wants_write()

    driven.traffic.flush()
    assert not driven.traffic.wants_write()


def test_a_read_for_which_tls_needs_room_waits_for_room(wanting: tuple[Wanting, Driven]) -> None:
    sock, driven = wanting
    sock.wants = [ssl.SSLWantWriteError]
    assert driven.traffic.read(1) == []
    assert driven.traffic.wants_write()

    assert driven.traffic.read(2) == []
    assert not driven.traffic.wants_write()
