from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Callable

import pytest
from broker import WAIT_S, Broker
from driving import drive
from scripted import Scripted

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.client import MqttClient

MakeClient = Callable[..., MqttClient]
Events = Callable[[], list[tuple[str, str]]]


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


@pytest.mark.broker
def test_an_absent_broker_is_one_line_and_its_coming_another(
    make_client: MakeClient, new_broker: Callable[..., Broker], events: Events
) -> None:
    broker = new_broker()
    client = make_client(broker.url)
    drive(client, lambda: client.counters.failures >= 5)
    broker.start()
    drive(client, lambda: client.connected)

    assert events() == [("mqtt_unreachable", "Connection refused"), ("mqtt_connected", "")]


@pytest.mark.broker
def test_a_broker_that_goes_and_comes_back_without_our_session_is_three_lines(
    make_client: MakeClient, broker: Broker, events: Events
) -> None:
    client = make_client(broker.url)
    drive(client, lambda: client.connected)
    broker.kill()
    drive(client, lambda: client.counters.failures >= 3)
    broker.start()
    drive(client, lambda: client.connected)

    assert [event for event, _ in events()] == ["mqtt_connected", "mqtt_lost", "mqtt_connected", "mqtt_session_lost"]
    assert client.counters.connects == 2
    assert client.counters.disconnects == 1
    assert client.counters.sessions_lost == 1


def test_a_name_that_does_not_exist_is_a_clear_line(
    make_client: MakeClient, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    client = make_client("mqtt://broker.invalid")
    drive(client, lambda: client.counters.failures >= 2)

    assert events() == [("mqtt_unreachable", "Name or service not known")]


def test_connecting_never_holds_up_the_loop(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server or a host that does not answer blocks for seconds; poll returns at once all the same."""
    asked = []

    def slow(*_: object, **__: object) -> None:
        asked.append(time.monotonic())
        time.sleep(0.5)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", slow)
    client = make_client("mqtt://broker.local")
    longest = 0.0
    deadline = time.monotonic() + WAIT_S
    while client.counters.failures == 0:
        before = time.monotonic()
        client.poll(0)
        longest = max(longest, time.monotonic() - before)
        assert time.monotonic() < deadline

    assert len(asked) == 1
    assert longest < 0.25
    assert client.reason == "timed out"


def test_a_stop_does_not_wait_for_an_attempt_to_connect(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, **__: object) -> None:
        time.sleep(0.5)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", slow)
    client = make_client("mqtt://broker.local")
    client.poll(0)
    before = time.monotonic()
    client.stop(5.0)

    assert time.monotonic() - before < 0.25


@pytest.mark.broker
def test_a_descriptor_to_select_on_is_there_while_connecting(make_client: MakeClient, broker: Broker) -> None:
    """The loop does not poll: it selects. An attempt that is over must wake it."""
    client = make_client(broker.url)
    deadline = time.monotonic() + WAIT_S
    client.poll(0)
    while not client.connected:
        writers = [client.fileno()] if client.wants_write() else []
        assert any(select.select([client.fileno()], writers, [], WAIT_S))
        client.poll(0)
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("protocol", "answer"), [("5", b"\x00\x87\x00"), ("3.1.1", b"\x00\x05")])
def test_a_refusal_is_logged_once_with_its_reason_and_tried_again_only_late(
    make_client: MakeClient, events: Events, protocol: str, answer: bytes
) -> None:
    scripted = Scripted(protocol)
    settings = {"protocol": protocol, "reconnect_min_s": 0.001, "reconnect_max_s": 0.2}
    client = make_client(scripted.url, settings=settings, uniform=lambda: 0.0)
    times = []
    for n in range(1, 4):
        scripted.accept(client)
        times.append(time.monotonic())
        scripted.send_packet(0x20, answer)
        drive(client, lambda n=n: client.counters.refused == n)
    scripted.close()

    assert events() == [("mqtt_refused", "Not authorized")]
    assert client.reason == "Not authorized"
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.1


def test_a_server_that_does_not_answer_connect_is_left_after_the_timeout(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, settings={"connect_timeout_s": 0.1})
    scripted.accept(client)
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "no answer to CONNECT within 0.1 s"


def test_a_server_that_closes_on_connect_gets_a_hint_about_the_protocol(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url)
    scripted.accept(client)
    scripted.hang_up()
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "connection closed by the broker before it answered CONNECT (does it expect MQTT 5?)"


def test_a_peer_that_does_not_speak_mqtt_is_named_as_such(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    scripted.accept(client)
    scripted.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason.startswith("the broker sent what is not MQTT")


def test_a_takeover_by_another_client_is_named(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    scripted.send_packet(0xE0, b"\x8e\x00")
    drive(client, lambda: client.counters.disconnects == 1)

    assert client.reason == "the broker disconnected us: Session taken over"


def test_a_silent_line_is_noticed_within_two_keepalives(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url, settings={"keepalive_s": 1})
    scripted.welcome(client)
    connected = time.monotonic()
    drive(client, lambda: client.counters.disconnects == 1)

    assert client.reason == "no sign of life within 1 s"
    assert time.monotonic() - connected < 4.0


def test_a_client_that_only_listens_still_pings(make_client: MakeClient, scripted: Scripted) -> None:
    """A broker breaks a connection on which it hears nothing for one and a half keepalives, however much it sends."""
    client = make_client(scripted.url, settings={"keepalive_s": 1})
    scripted.welcome(client)
    packets: list[tuple[int, bytes]] = []
    deadline = time.monotonic() + WAIT_S
    while not packets:
        scripted.publish(b"a", b"x")
        packets = scripted.received(client, quiet_s=0.02)
        assert time.monotonic() < deadline, "no PINGREQ"

    assert packets == [(0xC0, b"")]


def test_small_packets_are_sent_at_once(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    with socket.socket(fileno=socket.dup(client.fileno())) as line:
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_tcp_options_are_left_alone_on_a_unix_socket() -> None:
    a, b = socket.socketpair(socket.AF_UNIX)
    with a, b:
        wire.no_delay(a)
        wire.quick_ack(a)
