"""The one hook of paho that the frame lane needs, and how paho uses the socket it is handed: no broker, no network.

Runs over the paho that is installed, and in a child process over paho 2.0.0, the oldest 2.x.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from scripted import packet

from edge_runtime.mqtt.lane_socket import hook_problem

OLDEST = Path(sys.prefix) / "paho-oldest"
ROOT = Path(__file__).parents[2]
PINGREQ, PINGRESP, PUBLISH = b"\xc0\x00", b"\xd0\x00", 0x30


class Lane:
    """All that a lane has to be for paho; whatever else paho might ask of it is an AttributeError.

    calls: what paho asked, in order. control: the bytes paho has yet to read. full: send takes nothing.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls: list[str] = []
        self.control = b""
        self.ended = self.full = False
        self.sent = bytearray()

    def recv(self, size: int) -> bytes:
        self.calls.append("recv")
        if not self.control and not self.ended:
            raise BlockingIOError
        found, self.control = self.control[:size], self.control[size:]
        return found

    def send(self, raw: bytes | bytearray) -> int:
        self.calls.append("send")
        if self.full:
            raise BlockingIOError
        self.sent += raw
        return len(raw)

    def pending(self) -> int:
        return len(self.control)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self.calls.append(f"setblocking({flag})")
        self._sock.setblocking(flag)

    def close(self) -> None:
        self.calls.append("close")
        self._sock.close()


class Hooked(paho.Client):
    """Hands paho a lane over one end of a socketpair for every connection it makes."""

    def __init__(self, *, five: bool, defer_writes: bool = False) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id="c",
            clean_session=None if five else True,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self.five = five
        self.lanes: list[Lane] = []
        self.peers: list[socket.socket] = []
        self.events: list[tuple[Any, ...]] = []
        self.on_connect = lambda _c, _u, flags, code, _p: self.events.append(
            ("connect", flags.session_present, code.value)
        )
        self.on_disconnect = lambda _c, _u, _flags, code, _p: self.events.append(("disconnect", code.is_failure))
        self.on_subscribe = lambda _c, _u, mid, codes, _p: self.events.append(
            ("subscribe", mid, [code.value for code in codes])
        )
        self.on_unsubscribe = lambda _c, _u, mid, _codes, _p: self.events.append(("unsubscribe", mid))
        self.on_publish = lambda _c, _u, mid, _code, _p: self.events.append(("publish", mid))
        self.on_message = lambda _c, _u, message: self.events.append(("message", message.topic, message.payload))
        self.on_socket_open = lambda _c, _u, sock: self.events.append(("open", sock))
        self.on_socket_close = lambda _c, _u, sock: self.events.append(("closed", sock))
        if defer_writes:
            self.on_socket_register_write = lambda _c, _u, _sock: None

    def _create_socket(self) -> Any:
        ours, theirs = socket.socketpair()
        self.peers.append(theirs)
        self.lanes.append(Lane(ours))
        return self.lanes[-1]

    @property
    def lane(self) -> Lane:
        return self.lanes[-1]

    def begin(self, keepalive_s: int = 60) -> None:
        self.connect("host.invalid", 1883, keepalive_s, **({"clean_start": True} if self.five else {}))

    def fed(self, *packets: bytes) -> list[tuple[Any, ...]]:
        """What paho called back for these packets, read as the lane has it read."""
        before = len(self.events)
        self.lane.control += b"".join(packets)
        while self.lane.pending():
            assert self.loop_read() == paho.MQTT_ERR_SUCCESS
        return self.events[before:]

    def properties(self) -> bytes:
        return b"\x00" if self.five else b""

    def welcomed(self) -> None:
        assert self.fed(packet(0x20, b"\x00\x00" + self.properties())) == [("connect", False, 0)]
        self.lane.sent.clear()

    def release(self) -> None:
        for sock in self.peers:
            sock.close()
        if self.lanes and self.lane.fileno() >= 0:
            self.lane.close()


MakeHooked = Callable[..., Hooked]


@pytest.fixture(params=[True, False], ids=["5", "3.1.1"])
def make(request: pytest.FixtureRequest) -> Iterator[MakeHooked]:
    made: list[Hooked] = []

    def begin(*, welcome: bool = True, keepalive_s: int = 60, **options: Any) -> Hooked:
        client = Hooked(five=request.param, **options)
        made.append(client)
        client.begin(keepalive_s)
        if welcome:
            client.welcomed()
        return client

    yield begin
    for client in made:
        client.release()


def test_connecting_asks_for_one_socket_then_sends_connect(make: MakeHooked) -> None:
    client = make(welcome=False)

    assert len(client.lanes) == 1
    assert client.socket() is client.lane
    assert client.events == [("open", client.lane)]
    assert client.lane.calls == ["setblocking(False)", "send"]
    assert client.lane.sent[0] == 0x10
    assert client.lane.sent[1] == len(client.lane.sent) - 2


def test_nothing_is_sent_from_inside_a_call_when_writing_was_asked_to_wait(make: MakeHooked) -> None:
    client = make(welcome=False, defer_writes=True)
    assert client.lane.calls == ["setblocking(False)"]
    assert client.want_write()

    client.loop_write()
    assert client.lane.sent[0] == 0x10
    assert not client.want_write()
    client.fed(packet(0x20, b"\x00\x00" + client.properties()))
    client.lane.sent.clear()
    client.subscribe("a")
    assert client.lane.sent == b""
    client.loop_write()
    assert client.lane.sent[0] == 0x82


def test_a_connack_is_told_with_its_session_and_reason(make: MakeHooked) -> None:
    assert make().events[-1] == ("connect", False, 0)
    present = make(welcome=False)
    assert present.fed(packet(0x20, b"\x01\x00" + present.properties())) == [("connect", True, 0)]


def test_a_subscription_has_packet_id_1_and_its_answer_is_told(make: MakeHooked) -> None:
    client = make()
    _, mid = client.subscribe([("a/b", 1)])

    assert mid == 1
    assert bytes(client.lane.sent[:1] + client.lane.sent[2:4]) == b"\x82\x00\x01"
    assert client.fed(packet(0x90, b"\x00\x01" + client.properties() + b"\x01")) == [("subscribe", 1, [1])]


def test_packet_ids_only_advance_with_what_paho_itself_sends(make: MakeHooked) -> None:
    """So ids above those of the (un)subscriptions of one connection are free for the lane."""
    client = make()
    assert [client.subscribe("a")[1], client.unsubscribe("a")[1], client.subscribe("b")[1]] == [1, 2, 3]

    client.fed(PINGRESP, packet(0x40, b"\x9c\x41"), packet(0x34, b"\x00\x01t\x00\x09" + client.properties()))
    assert client.subscribe("c")[1] == 4
    assert client.fed(packet(0xB0, b"\x00\x02" + client.properties() + (b"\x00" if client.five else b""))) == [
        ("unsubscribe", 2)
    ]


def test_answers_to_packet_ids_it_does_not_know_are_ignored(make: MakeHooked) -> None:
    client = make()
    assert client.fed(packet(0x40, b"\x9c\x41"), packet(0x40, b"\x00\x01")) == []
    if client.five:
        assert client.fed(packet(0x40, b"\x9c\x41\x87"), packet(0x40, b"\x9c\x41\x87\x00")) == []
    assert client.socket() is client.lane


def test_reading_when_there_is_nothing_does_nothing(make: MakeHooked) -> None:
    client = make()
    before = len(client.events)

    assert client.loop_read() == paho.MQTT_ERR_SUCCESS
    assert client.events[before:] == []
    assert client.socket() is client.lane


def test_a_packet_may_come_in_pieces(make: MakeHooked) -> None:
    client = make(welcome=False)
    connack = packet(0x20, b"\x00\x00" + client.properties())
    told = [client.fed(connack[place : place + 1]) for place in range(len(connack))]

    assert told[:-1] == [[]] * (len(connack) - 1)
    assert told[-1] == [("connect", False, 0)]


def test_the_loop_does_not_wait_while_something_is_pending(make: MakeHooked) -> None:
    client = make()
    client.lane.control = PINGRESP
    before = time.monotonic()

    client.loop(5.0)

    assert time.monotonic() - before < 2.0
    assert client.lane.control == b""


def test_qos_2_goes_its_whole_way_through_paho(make: MakeHooked) -> None:
    client = make()
    assert client.fed(packet(0x34, b"\x00\x01t\x00\x09" + client.properties() + b"x")) == []
    assert client.lane.sent == packet(0x50, b"\x00\x09")
    client.lane.sent.clear()

    assert client.fed(packet(0x62, b"\x00\x09")) == [("message", "t", b"x")]
    client.ack(9, 2)
    assert client.lane.sent == packet(0x70, b"\x00\x09")


def test_the_end_of_the_stream_is_told_and_closes_the_socket(make: MakeHooked) -> None:
    client = make()
    lane, client.lane.ended = client.lane, True
    before = len(client.events)

    assert client.loop_read() != paho.MQTT_ERR_SUCCESS

    assert client.events[before:] == [("closed", lane), ("disconnect", True)]
    assert lane.calls[-1] == "close"
    assert client.socket() is None


def test_disconnecting_sends_disconnect_then_closes(make: MakeHooked) -> None:
    client = make()
    lane = client.lane
    lane.calls.clear()

    client.disconnect()

    assert lane.sent[0] == 0xE0
    assert lane.calls == ["send", "close"]
    assert ("disconnect", False) in client.events
    assert client.socket() is None


def test_reconnecting_asks_for_another_socket(make: MakeHooked) -> None:
    client = make()
    old = client.lane
    old.ended = True
    client.loop_read()

    client.reconnect()

    assert len(client.lanes) == 2
    assert client.socket() is client.lane is not old
    assert client.lane.sent[0] == 0x10
    client.welcomed()
    assert client.subscribe("a")[0] == paho.MQTT_ERR_SUCCESS


def test_what_a_full_lane_refuses_is_sent_later(make: MakeHooked) -> None:
    """Refused with BlockingIOError: a send that returned 0 would lose the packet without a word."""
    client = make()
    client.lane.full = True
    client.subscribe("a")
    assert client.lane.sent == b""
    assert client.want_write()

    client.lane.full = False
    client.loop_write()

    assert client.lane.sent[0] == 0x82
    assert not client.want_write()


def test_pings_are_sent_and_answered_by_loop_misc(make: MakeHooked, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make(keepalive_s=10)
    ahead_s = [0.0]
    monkeypatch.setattr(paho, "time_func", lambda: time.monotonic() + ahead_s[0])
    client.loop_misc()
    assert client.lane.sent == b""

    ahead_s[0] = 11.0
    client.loop_misc()
    assert client.lane.sent == PINGREQ
    client.fed(PINGRESP)
    ahead_s[0] = 22.0
    client.loop_misc()
    assert client.lane.sent == PINGREQ * 2
    assert client.socket() is client.lane

    ahead_s[0] = 33.0
    client.loop_misc()
    assert client.events[-1] == ("disconnect", True)
    assert client.lane.calls[-1] == "close"


def test_the_rehearsal_at_start_up_finds_nothing_wrong() -> None:
    assert hook_problem() == ""


def test_the_rehearsal_notices_a_paho_without_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(paho.Client, "_create_socket")
    assert hook_problem() == "paho.Client has no _create_socket"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("reconnect", lambda self: paho.MQTT_ERR_SUCCESS),
        ("loop_read", lambda self, max_packets=1: paho.MQTT_ERR_SUCCESS),
        ("loop_write", lambda self: paho.MQTT_ERR_SUCCESS),
        ("subscribe", lambda self, topic: (paho.MQTT_ERR_SUCCESS, 1)),
        ("_call_socket_register_write", lambda self: None),
        ("_mid_generate", lambda self: 40_000),
    ],
)
def test_the_rehearsal_notices_a_paho_that_works_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[..., Any]
) -> None:
    monkeypatch.setattr(paho.Client, name, instead)
    assert hook_problem()


class Wrapped(paho.Client):
    """Keeps what the real hook returned, which the lane would wrap."""

    def _create_socket(self) -> Any:
        self.made = super()._create_socket()
        return self.made


def wrapped(**options: Any) -> Wrapped:
    return Wrapped(CallbackAPIVersion.VERSION2, client_id="c", **options)


def test_the_hook_itself_returns_a_socket_that_is_connected() -> None:
    client = wrapped()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connect(*listener.getsockname()[:2])
        server, _ = listener.accept()
        with server, client.made as sock:
            assert type(sock) is socket.socket
            assert sock.getpeername() == listener.getsockname()
            assert server.recv(1) == b"\x10"


def test_over_tls_the_hook_returns_a_socket_that_has_shaken_hands(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.issue("broker", hosts=("127.0.0.1",))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(signed.cert, signed.key)
    client = wrapped()
    client.tls_set(str(authority.cert))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first: list[bytes] = []

        def serve() -> None:
            with theirs.wrap_socket(listener.accept()[0], server_side=True) as server:
                first.append(server.recv(1))

        thread = threading.Thread(target=serve)
        thread.start()
        client.connect(*listener.getsockname()[:2])
        thread.join(10)
        with client.made as sock:
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.version() is not None
            assert first == [b"\x10"]


def test_over_websockets_the_hook_returns_what_frames_them_and_not_a_socket() -> None:
    assert not issubclass(paho._WebsocketWrapper, socket.socket)


def test_the_oldest_paho_2_keeps_the_same_contract() -> None:
    if not OLDEST.is_dir():
        pytest.skip(f"{OLDEST} is absent: make test installs paho 2.0.0 there")
    run = (
        "import sys, pytest, paho.mqtt; print('paho', paho.mqtt.__version__); "
        "sys.exit(pytest.main([*sys.argv[1:], '-q', '-p', 'no:cacheprovider', '-k', 'not oldest']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, str(Path(__file__))],
        env={"PYTHONPATH": str(OLDEST)}, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("paho 2.0.0\n")
    assert " passed" in done.stdout
