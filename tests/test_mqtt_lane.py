from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker import WAIT_S
from driving import receive
from paho.mqtt import client as paho
from scripted import Scripted

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt import traffic, wire
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.lane_socket import LaneSocket, hook_problem
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]
Events = Callable[[], list[tuple[str, str]]]

NOWHERE = "mqtt://127.0.0.1:1"


@pytest.fixture
def found_out_anew() -> Iterator[None]:
    """What a process finds out about paho once is found out again."""
    traffic._lane_problem.cache_clear()
    yield
    traffic._lane_problem.cache_clear()


@pytest.mark.parametrize(("asked", "got"), [("auto", "lane"), ("lane", "lane"), ("callbacks", "callbacks")])
def test_messages_take_the_way_that_was_asked_for_and_the_lane_by_default(
    make_client: MakeClient, asked: str, got: str
) -> None:
    assert make_client(NOWHERE, settings={"client": asked}).kind == got


@pytest.mark.usefixtures("found_out_anew")
def test_without_the_hook_callbacks_serve_and_that_is_said_once(
    make_client: MakeClient, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(paho.Client, "_create_socket")
    kinds = [make_client(NOWHERE, client_id=f"client-{n}").kind for n in range(3)]

    assert kinds == ["callbacks"] * 3
    assert events() == [("mqtt_lane_unavailable", "paho.Client has no _create_socket")]
    with pytest.raises(ConfigError, match="mqtt: client: the lane cannot be used: paho.Client has no _create_socket"):
        make_client(NOWHERE, settings={"client": "lane"})


@pytest.mark.usefixtures("found_out_anew")
def test_over_websockets_callbacks_serve_and_that_is_said_once(make_client: MakeClient, events: Events) -> None:
    kinds = [make_client("ws://127.0.0.1:1", client_id=f"client-{n}").kind for n in range(3)]

    assert kinds == ["callbacks"] * 3
    assert events() == [("mqtt_lane_unavailable", "it does not work over websockets")]


def test_the_rehearsal_finds_the_paho_installed_fit_for_a_lane() -> None:
    assert hook_problem() == ""


def test_the_rehearsal_finds_a_paho_that_does_not_use_what_the_hook_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    def reconnect(self: Any) -> None:
        self._sock = socket.create_connection(("127.0.0.1", 1))

    monkeypatch.setattr(paho.Client, "reconnect", reconnect)
    assert hook_problem() == "ConnectionRefusedError: [Errno 111] Connection refused"


def test_the_rehearsal_finds_a_paho_that_counts_its_packets_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paho.Client, "_mid_generate", lambda _: 40_000)
    assert "'82069c40'" in hook_problem()


class Counting:
    """A socket that writes down what is asked of it."""

    def __init__(self, sock: socket.socket, *, takes: int = 1 << 30) -> None:
        self._sock, self._takes = sock, takes
        self.calls: list[str] = []

    def send(self, output: bytes | memoryview) -> int:
        self.calls.append("send")
        return self._sock.send(memoryview(output)[: self._takes])

    def recv_into(self, buffer: memoryview) -> int:
        self.calls.append("recv")
        return self._sock.recv_into(buffer)

    def sendall(self, output: bytes) -> None:
        self.calls.append("sendall")
        self._sock.sendall(output)

    def settimeout(self, timeout_s: float) -> None: ...

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, far = socket.socketpair()
    ours.setblocking(False)
    with ours, far:
        yield ours, far


def lane_over(sock: Counting) -> LaneSocket:
    return LaneSocket(sock, flush_timeout_s=0.2)  # type: ignore[arg-type]


def test_packets_of_paho_acknowledgements_and_messages_leave_in_order_in_one_write(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, far = pair
    counting = Counting(ours)
    lane = lane_over(counting)
    lane.put(b"\x40\x02\x00\x01")
    assert lane.send(bytearray(b"\xc0\x00")) == 2
    lane.put(b"\x30\x04\x00\x01ax")
    lane.write()
    lane.write()

    assert counting.calls == ["send"]
    assert far.recv(100) == b"\x40\x02\x00\x01\xc0\x00\x30\x04\x00\x01ax"
    assert (lane.queued, lane.sent) == (12, 12)


def test_what_the_socket_does_not_take_is_kept_and_goes_first(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, far = pair
    lane = lane_over(Counting(ours, takes=5))
    lane.put(b"0123456")
    lane.write()
    lane.put(b"789")
    assert (lane.queued, lane.sent) == (10, 5)
    lane.write()
    lane.write()

    assert far.recv(100) == b"0123456789"
    assert lane.sent == 10


def test_a_close_after_disconnect_writes_what_is_left_and_another_close_does_not(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, far = pair
    lane = lane_over(Counting(ours, takes=3))
    lane.put(b"last words")
    lane.write()
    lane.send(b"\xe0\x00")
    lane.close()
    assert far.recv(100) == b"last words\xe0\x00"
    assert far.recv(100) == b""

    ours, far = socket.socketpair()
    with ours, far:
        lane = lane_over(Counting(ours))
        lane.put(b"never sent")
        lane.close()
        assert far.recv(100) == b""


def test_paho_reads_what_is_its_own_then_nothing_and_then_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    lane = lane_over(Counting(ours))
    lane.control += b"\xd0\x00\x90"
    assert [lane.recv(1), lane.recv(5)] == [b"\xd0", b"\x00\x90"]
    with pytest.raises(BlockingIOError):
        lane.recv(1)

    lane.control += b"\xd0"
    lane.end()
    assert [lane.recv(1), lane.recv(1)] == [b"\xd0", b""]
    lane.end(ConnectionResetError("reset"))
    with pytest.raises(ConnectionResetError, match="reset"):
        lane.recv(1)


def test_a_message_in_and_its_result_out_cost_one_read_and_one_write(
    make_client: MakeClient, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(scripted.url, settings={"client": "lane"})
    scripted.welcome(client)
    lane: LaneSocket = client._traffic._lane  # type: ignore[attr-defined]
    counting = Counting(lane._sock)
    scripted.send(b"".join(scripted.published(b"in/a", b"%d" % n, mid=n) for n in range(1, 5)))
    client._link.wait(WAIT_S, writing=False)
    with monkeypatch.context() as replaced:
        replaced.setattr(lane, "_sock", counting)
        messages = client.poll(0.0)
        client.acknowledge(messages[0].epoch, [message.mid for message in messages])
        for message in messages:
            client.publish(Outgoing("out/a", message.payload, qos=1))
        client.flush()
        client.confirmed()

    assert counting.calls == ["recv", "send"]
    assert [first for first, _ in scripted.received(client)] == [0x40] * 4 + [0x32] * 4


@pytest.mark.parametrize("kind", ["lane", "callbacks"])
def test_what_was_read_is_acknowledged_by_the_kernel_at_once(
    make_client: MakeClient, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked: list[socket.socket] = []
    monkeypatch.setattr(wire, "quick_ack", lambda line: lambda: asked.append(line))
    client = make_client(scripted.url, settings={"client": kind})
    scripted.welcome(client)
    asked.clear()
    scripted.send(scripted.published(b"in/a", b"x"))
    client._link.wait(WAIT_S, writing=False)
    assert len(client.poll(0.0)) == 1

    assert asked == [client._link.line]


def test_a_message_that_expired_in_flight_goes_again_with_nothing_left_of_its_time(
    make_client: MakeClient, scripted: Scripted
) -> None:
    """A session the broker still holds must get it again; whether it is too late is then the broker's to say."""
    ahead_s = [0.0]
    client = make_client(
        scripted.url, settings={"client": "lane"}, now_ns=lambda: time.monotonic_ns() + round(ahead_s[0] * 1e9)
    )
    scripted.welcome(client)
    client.publish(Outgoing("out/a", b"x", qos=1, message_expiry_s=20))
    [(first, body)] = scripted.received(client, quiet_s=0.05)
    ahead_s[0] += 25
    scripted.welcome(client, session_present=True)
    [(again, later)] = scripted.received(client, quiet_s=0.05)

    assert (first, again) == (0x32, 0x3A)
    assert body[7:] == later[7:9] + b"\x05\x02\x00\x00\x00\x14x"
    assert later[7:] == later[7:9] + b"\x05\x02\x00\x00\x00\x00x"


def test_a_property_with_a_byte_order_mark_is_text_like_any_other(make_client: MakeClient, scripted: Scripted) -> None:
    """paho itself takes U+FEFF for a malformed packet and breaks the connection."""
    client = make_client(scripted.url, settings={"client": "lane"})
    scripted.welcome(client)
    properties = b"\x03\x00\x04\xef\xbb\xbfx" + b"\x26\x00\x03\xef\xbb\xbf\x00\x01v"
    scripted.send_packet(0x30, b"\x00\x01a" + bytes([len(properties)]) + properties + b"payload")
    [message] = receive(client, 1)

    assert message.properties.content_type == "\ufeffx"
    assert message.properties.user == (("\ufeff", "v"),)
    assert message.payload == b"payload"
    assert client.connected
