from __future__ import annotations

import itertools
import logging
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from broker import WAIT_S, Broker
from certificates import Authority
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from scripted import Scripted

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt import wire
from edge_runtime.mqtt.backoff import Backoff, delay_s
from edge_runtime.mqtt.client import CallbackClient
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.mqtt.settings import MqttSettings, parse_url, read_password
from edge_runtime.mqtt.topics import match
from edge_runtime.records import Message, Outgoing

MakeClient = Callable[..., CallbackClient]
QUICK = {"reconnect_min_s": 0.02, "reconnect_max_s": 0.1}
RECEIVE_MAXIMUM = 0x21
MAXIMUM_PACKET_SIZE = 0x27


@pytest.fixture
def make() -> Iterator[MakeClient]:
    """Makes clients with quick reconnects from a url, and stops them."""
    made: list[CallbackClient] = []

    def new(url: str, *, settings: dict[str, Any] | None = None, **options: Any) -> CallbackClient:
        known = MqttSettings(url=url, **{**QUICK, **(settings or {})})
        made.append(CallbackClient(known, **{"client_id": "client", **options}))
        made[-1].start()
        return made[-1]

    yield new
    for client in made:
        client.stop(0.5)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """The (event, reason) pairs logged so far."""
    caplog.set_level(logging.INFO, logger="edge_runtime.mqtt")
    return lambda: [(record.getMessage(), getattr(record, "reason", "")) for record in caplog.records]


def drive(client: CallbackClient, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        client.poll(0.02)
        assert time.monotonic() < deadline, f"not within {WAIT_S} s ({client.reason})"


def receive(client: CallbackClient, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(messages) < count:
        messages += client.poll(0.02)
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages ({client.reason})"
    return messages


def confirmed(client: CallbackClient, count: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    drive(client, lambda: found.extend(client.confirmed()) or len(found) >= count)
    return found


# Messages and their properties.


@pytest.mark.broker
def test_properties_of_mqtt_5_reach_the_record(make: MakeClient, broker: Broker) -> None:
    client = make(broker.url, subscriptions=[("in/#", 1)])
    drive(client, lambda: client.subscribed)
    sent = Properties(PacketTypes.PUBLISH)
    sent.ContentType = "application/octet-stream"
    sent.UserProperty = [("seq", "7"), ("seq", "8"), ("ünit", "g")]
    sent.ResponseTopic = "answers/1"
    sent.CorrelationData = b"\x00\x01"
    sent.MessageExpiryInterval = 60

    broker.probe().publish("in/a", b"x", properties=sent)
    [message] = receive(client, 1)

    found = message.properties
    assert found.content_type == "application/octet-stream"
    assert found.user == (("seq", "7"), ("seq", "8"), ("ünit", "g"))
    assert found.response_topic == "answers/1"
    assert found.correlation_data == b"\x00\x01"
    assert found.message_expiry_s in (59, 60)


@pytest.mark.broker
def test_content_type_and_expiry_of_a_result_reach_the_subscriber(make: MakeClient, broker: Broker) -> None:
    probe = broker.probe("out/#")
    client = make(broker.url)

    client.publish(Outgoing("out/a", b"x", qos=1, content_type="application/json", message_expiry_s=60))
    confirmed(client, 1)

    found = probe.wait_for(1)[0].properties
    assert found.ContentType == "application/json"
    assert 50 <= found.MessageExpiryInterval <= 60


def test_a_topic_that_is_not_utf_8_is_delivered_and_matches_no_filter(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)

    scripted.publish(b"plant/\xff\xfe/vib", b"bad", mid=1)
    scripted.publish(b"plant/p1/vib", b"good", mid=2)
    messages = receive(client, 2)

    assert [(m.topic, m.payload) for m in messages] == [
        ("\x00plant/\\xff\\xfe/vib", b"bad"),
        ("plant/p1/vib", b"good"),
    ]
    assert not match("#", messages[0].topic)
    client.acknowledge(messages[0].epoch, [1, 2])
    client.flush()
    assert [scripted.receive(client) for _ in range(2)] == [(0x40, b"\x00\x01"), (0x40, b"\x00\x02")]


def test_a_message_read_in_pieces_is_stamped_when_its_last_piece_is_read(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    scripted.send(b"\x30\x09\x00\x01a")
    for _ in range(3):
        assert client.poll(0.02) == []
    before_ns = time.monotonic_ns()
    scripted.send(b"\x00hello")
    [message] = receive(client, 1)

    assert message.payload == b"hello"
    assert message.received_ns >= before_ns


def test_poll_leaves_the_rest_for_the_next_call_after_about_64_messages(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    for n in range(200):
        scripted.publish(b"a", b"%d" % n)
    batches: list[int] = []

    total: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(total) < 200:
        batch = client.poll(0.1)
        batches.append(len(batch))
        total += batch
        assert time.monotonic() < deadline

    assert max(batches) == 64
    assert [int(m.payload) for m in total] == list(range(200))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_session_is_never_asked_to_start_clean(make: MakeClient, protocol: str) -> None:
    """mosquitto 2.0.11 forgets a session at its restart that was once opened with a clean start."""
    scripted = Scripted(protocol)
    client = make(scripted.url, settings={"protocol": protocol})
    flags = []
    for _ in range(3):
        _, body = scripted.accept(client)
        flags.append(body[7])
        scripted.hang_up()
        drive(client, lambda: client.counters.failures == len(flags))
    scripted.close()

    assert flags == [0, 0, 0]


def test_the_bounds_and_the_will_are_told_to_the_broker(make: MakeClient, scripted: Scripted) -> None:
    settings = {
        "session_expiry_s": 1_000_001,
        "receive_maximum": 77,
        "maximum_packet_bytes": 5_000_000,
        "will_delay_s": 9,
        "keepalive_s": 31,
    }
    presence = Presence(topic="edge/v1/n/status", boot_id="b")
    client = make(scripted.url, settings=settings, presence=presence, unix_s=lambda: 12.5)
    _, body = scripted.accept(client)

    assert body[:7] == b"\x00\x04MQTT\x05"
    assert body[7] == 0b00101100  # retained, QoS 1, a will, no clean start
    assert struct.unpack("!H", body[8:10]) == (31,)
    for identifier, value in ((0x11, 1_000_001), (MAXIMUM_PACKET_SIZE, 5_000_000), (0x18, 9)):
        assert struct.pack("!BI", identifier, value) in body
    assert struct.pack("!BH", RECEIVE_MAXIMUM, 77) in body
    assert b"edge/v1/n/status" in body
    assert b'{"state":"offline","since":12.5,"boot_id":"b"}' in body


# Nothing dies silently.


def test_an_exception_in_a_callback_comes_out_of_poll(
    make: MakeClient, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make(scripted.url)
    scripted.welcome(client)

    def broken(*_: object, **__: object) -> Message:
        raise ZeroDivisionError("a bug in a callback")

    monkeypatch.setattr(wire, "to_message", broken)
    scripted.publish(b"a", b"x")
    with pytest.raises(ZeroDivisionError, match="a bug in a callback"):
        drive(client, lambda: False)


def test_an_exception_in_the_birth_comes_out_of_poll(make: MakeClient, scripted: Scripted) -> None:
    def broken() -> list[Outgoing]:
        raise ZeroDivisionError("a bug in the birth")

    client = make(scripted.url, birth=broken)
    with pytest.raises(ZeroDivisionError, match="a bug in the birth"):
        scripted.welcome(client)


def test_a_bug_while_connecting_comes_out_of_poll(make: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make("mqtt://127.0.0.1:1")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug while connecting")

    monkeypatch.setattr(socket, "create_connection", broken)
    with pytest.raises(ZeroDivisionError, match="a bug while connecting"):
        drive(client, lambda: False)


# The window, and messages that cannot go out.


def publish_ids(packets: list[tuple[int, bytes]]) -> list[tuple[int, bool]]:
    """(packet id, DUP) of the PUBLISH packets at QoS 1."""
    found = []
    for first, body in packets:
        if first & 0xF0 == 0x30:
            size = struct.unpack("!H", body[:2])[0]
            found.append((struct.unpack("!H", body[2 + size : 4 + size])[0], bool(first & 8)))
    return found


def test_no_more_messages_are_in_flight_than_the_broker_takes(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client, properties=bytes([RECEIVE_MAXIMUM, 0, 3]))
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(5)]

    first = publish_ids(scripted.received(client))
    scripted.send_packet(0x40, struct.pack("!H", first[0][0]))
    second = publish_ids(scripted.received(client))

    assert len(first) == 3
    assert len(second) == 1
    assert client.confirmed() == [(tokens[0], "")]


def test_a_session_the_broker_still_holds_gets_the_same_ids_again(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(3)]
    first = publish_ids(scripted.received(client))

    scripted.welcome(client, session_present=True)
    again = publish_ids(scripted.received(client))
    for mid, _ in again:
        scripted.send_packet(0x40, struct.pack("!H", mid))

    assert again == [(mid, True) for mid, _ in first]
    assert confirmed(client, 3) == [(token, "") for token in tokens]


def test_what_was_in_flight_waits_for_a_window_that_has_shrunk(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(4)]
    assert len(publish_ids(scripted.received(client))) == 4

    scripted.welcome(client, session_present=True, properties=bytes([RECEIVE_MAXIMUM, 0, 2]))
    answered: list[tuple[int, str]] = []
    for expected in (2, 2):
        ids = publish_ids(scripted.received(client))
        assert len(ids) == expected
        for mid, _ in ids:
            scripted.send_packet(0x40, struct.pack("!H", mid))
        answered += confirmed(client, 2)

    assert answered == [(token, "") for token in tokens]


def test_a_new_session_gets_the_messages_anew(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(3)]
    scripted.received(client)

    scripted.welcome(client, session_present=False)
    again = publish_ids(scripted.received(client))
    for mid, _ in again:
        scripted.send_packet(0x40, struct.pack("!H", mid))

    assert [dup for _, dup in again] == [False] * 3
    assert confirmed(client, 3) == [(token, "") for token in tokens]
    assert client.counters.sessions_lost == 1


@pytest.mark.broker
def test_a_publish_the_broker_forbids_is_confirmed_with_its_reason(
    make: MakeClient, start_broker: Callable[..., Broker]
) -> None:
    broker = start_broker(acl=("topic readwrite out/a",))
    client = make(broker.url)
    drive(client, lambda: client.connected)

    bad = client.publish(Outgoing("secret/a", b"x", qos=1))
    good = client.publish(Outgoing("out/a", b"x", qos=1))

    assert sorted(confirmed(client, 2)) == [(bad, "Not authorized"), (good, "")]


@pytest.mark.broker
def test_a_message_larger_than_the_broker_takes_is_refused_here_and_the_connection_stays(
    make: MakeClient, start_broker: Callable[..., Broker]
) -> None:
    broker = start_broker(lines=("max_packet_size 2000",))
    client = make(broker.url)
    drive(client, lambda: client.connected)

    big = client.publish(Outgoing("out/a", bytes(2_000), qos=1))
    small = client.publish(Outgoing("out/a", bytes(1_500), qos=1))

    answers = dict(confirmed(client, 2))
    assert answers[big].startswith("packet too large: 2026 bytes, 2000 allowed")
    assert answers[small] == ""
    assert client.counters.disconnects == 0


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\x00b", "x" * 65_536])
def test_a_message_to_what_is_no_topic_is_confirmed_as_failed(make: MakeClient, scripted: Scripted, topic: str) -> None:
    client = make(scripted.url)
    scripted.welcome(client)

    token = client.publish(Outgoing(topic, b"x", qos=1))

    [(found, reason)] = client.confirmed()
    assert found == token
    assert reason.startswith("not a topic to publish to")


def test_qos_2_is_refused(make: MakeClient) -> None:
    with pytest.raises(ValueError, match="QoS 0 or 1"):
        make("mqtt://127.0.0.1:1").publish(Outgoing("a", b"", qos=2))
    with pytest.raises(ValueError, match="QoS 0 or 1"):
        make("mqtt://127.0.0.1:1", subscriptions=[("a", 2)])


def test_a_filter_the_broker_refuses_is_named(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url, subscriptions=[("in/a", 1), ("in/b", 1)])
    scripted.welcome(client)
    first, body = scripted.receive(client)
    assert first == 0x82
    assert not client.subscribed

    scripted.send_packet(0x90, body[:2] + b"\x00" + bytes([1, 0x87]))
    drive(client, lambda: client.subscribed)

    assert client.refused_filters == {"in/b": "Not authorized"}
    assert client.counters.filters_refused == 1


@pytest.mark.broker
def test_a_birth_the_broker_forbids_is_logged_and_nothing_else(
    make: MakeClient, start_broker: Callable[..., Broker], events: Callable[[], list[tuple[str, str]]]
) -> None:
    broker = start_broker(acl=("topic readwrite out/a",))
    presence = Presence(topic="status", boot_id="b")
    client = make(broker.url, presence=presence, birth=lambda: [presence.message("online", since_unix_s=1)])

    drive(client, lambda: ("mqtt_own_message_refused", "Not authorized") in events())

    assert client.connected
    assert client.confirmed() == []


# Connecting, and what the operator reads when it fails.


@pytest.mark.broker
def test_an_absent_broker_is_one_line_and_its_coming_another(
    make: MakeClient, new_broker: Callable[..., Broker], events: Callable[[], list[tuple[str, str]]]
) -> None:
    broker = new_broker()
    broker.start()
    broker.kill()
    client = make(broker.url)
    drive(client, lambda: client.counters.failures >= 5)
    broker.start()
    drive(client, lambda: client.connected)

    assert events() == [("mqtt_unreachable", "Connection refused"), ("mqtt_connected", "")]


@pytest.mark.broker
def test_a_broker_that_goes_and_comes_back_is_two_lines(
    make: MakeClient, broker: Broker, events: Callable[[], list[tuple[str, str]]]
) -> None:
    client = make(broker.url)
    drive(client, lambda: client.connected)
    broker.kill()
    drive(client, lambda: client.counters.failures >= 3)
    broker.start()
    drive(client, lambda: client.connected)

    assert [event for event, _ in events()] == ["mqtt_connected", "mqtt_lost", "mqtt_connected"]
    assert client.counters.connects == 2
    assert client.counters.disconnects == 1
    assert client.counters.sessions_lost == 1


def test_a_name_that_does_not_exist_is_a_clear_line(
    make: MakeClient, events: Callable[[], list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    client = make("mqtt://broker.invalid")
    drive(client, lambda: client.counters.failures >= 2)

    assert events() == [("mqtt_unreachable", "Name or service not known")]


def test_connecting_never_holds_up_the_loop(make: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server or a host that does not answer blocks for seconds; poll returns at once all the same."""
    asked = []

    def slow(*_: object, **__: object) -> None:
        asked.append(time.monotonic())
        time.sleep(0.5)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", slow)
    client = make("mqtt://broker.local")
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


def test_a_stop_does_not_wait_for_an_attempt_to_connect(make: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        time.sleep(0.5)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", slow)
    client = make("mqtt://broker.local")
    client.poll(0)
    before = time.monotonic()
    client.stop(5.0)

    assert time.monotonic() - before < 0.25


@pytest.mark.broker
def test_a_descriptor_to_select_on_is_there_while_connecting(make: MakeClient, broker: Broker) -> None:
    """The loop does not poll: it selects. An attempt that is over must wake it."""
    client = make(broker.url)
    deadline = time.monotonic() + WAIT_S
    client.poll(0)
    while not client.connected:
        writers = [client.fileno()] if client.wants_write() else []
        assert any(select.select([client.fileno()], writers, [], WAIT_S))
        client.poll(0)
        assert time.monotonic() < deadline


@pytest.mark.parametrize(("protocol", "answer"), [("5", b"\x00\x87\x00"), ("3.1.1", b"\x00\x05")])
def test_a_refusal_is_logged_once_with_its_reason_and_tried_again_only_late(
    make: MakeClient, events: Callable[[], list[tuple[str, str]]], protocol: str, answer: bytes
) -> None:
    scripted = Scripted(protocol)
    settings = {"protocol": protocol, "reconnect_min_s": 0.001, "reconnect_max_s": 0.2}
    client = make(scripted.url, settings=settings, uniform=lambda: 0.0)
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


def test_a_server_that_does_not_answer_connect_is_left_after_the_timeout(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url, settings={"connect_timeout_s": 0.1})
    scripted.accept(client)
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "no answer to CONNECT within 0.1 s"


def test_a_server_that_closes_on_connect_gets_a_hint_about_the_protocol(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.accept(client)
    scripted.hang_up()
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "connection closed by the broker before it answered CONNECT (does it expect MQTT 5?)"


def test_a_peer_that_does_not_speak_mqtt_is_named_as_such(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.accept(client)
    scripted.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 8)
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "the broker sent what is not MQTT"


def test_a_takeover_by_another_client_is_named(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    scripted.send_packet(0xE0, b"\x8e\x00")
    drive(client, lambda: client.counters.disconnects == 1)

    assert client.reason == "the broker disconnected us: Session taken over"


def test_a_silent_line_is_noticed_within_two_keepalives(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url, settings={"keepalive_s": 1})
    scripted.welcome(client)
    connected = time.monotonic()
    drive(client, lambda: client.counters.disconnects == 1)

    assert client.reason == "no sign of life within 1 s"
    assert time.monotonic() - connected < 4.0


def test_small_packets_are_sent_at_once(make: MakeClient, scripted: Scripted) -> None:
    client = make(scripted.url)
    scripted.welcome(client)
    with socket.socket(fileno=socket.dup(client.fileno())) as line:
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_tcp_options_are_left_alone_on_a_unix_socket() -> None:
    a, b = socket.socketpair(socket.AF_UNIX)
    with a, b:
        wire.no_delay(a)
        wire.quick_ack(a)


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_password_file_lets_us_in_and_a_wrong_one_is_refused(
    make: MakeClient, start_broker: Callable[..., Broker], tmp_path: Path, protocol: str
) -> None:
    broker = start_broker(users={"node": "s3cret"})
    settings = {"protocol": protocol, "username": "node", "reconnect_max_s": 0.2}
    for name, text in (("right", "s3cret\n"), ("wrong", "guess\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    client = make(broker.url, settings={**settings, "password_file": str(tmp_path / "right")})
    drive(client, lambda: client.connected)
    refused = make(broker.url, settings={**settings, "password_file": str(tmp_path / "wrong")}, client_id="other")
    drive(refused, lambda: refused.counters.refused == 1)

    assert refused.reason == "Not authorized"


# TLS.


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.mark.broker
def test_a_client_certificate_opens_a_tls_connection_and_large_messages_come_through(
    make: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    """One TLS record may hold several packets, and select does not see what OpenSSL has already read."""
    broker = start_broker(authority=authority, client_certificates=True)
    own = authority.issue("node")
    files = {"ca": str(authority.cert), "cert": str(own.cert), "key": str(own.key)}
    client = make(broker.url, settings=files, subscriptions=[("in/#", 1)])
    drive(client, lambda: client.subscribed)
    probe = broker.probe("out/#")
    sizes = [10, 100_000, 0, 16_384, 50_000, 1] * 20

    for size in sizes:
        probe.publish("in/a", bytes(size), qos=0)
    messages = receive(client, len(sizes))
    token = client.publish(Outgoing("out/a", bytes(300_000), qos=1))

    assert [len(m.payload) for m in messages] == sizes
    assert confirmed(client, 1) == [(token, "")]
    assert len(probe.wait_for(1)[0].payload) == 300_000


def test_packets_that_share_a_tls_record_are_all_read_at_once(make: MakeClient, authority: Authority) -> None:
    """After the first of them the rest lies inside OpenSSL, where select cannot see it."""
    own = authority.issue("broker", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)
    scripted = Scripted(tls=context)
    client = make(scripted.url, settings={"ca": str(authority.cert)})
    scripted.welcome(client)

    scripted.send(b"".join(scripted.published(b"a", b"%d" % n) for n in range(50)))
    select.select([client.fileno()], [], [], WAIT_S)
    messages = client.poll(0)
    scripted.close()

    assert [int(m.payload) for m in messages] == list(range(50))


@pytest.mark.broker
def test_a_broker_whose_certificate_we_cannot_trust_is_refused(
    make: MakeClient, start_broker: Callable[..., Broker], authority: Authority, tmp_path: Path
) -> None:
    broker = start_broker(authority=authority)
    client = make(broker.url, settings={"ca": str(Authority(tmp_path / "other").cert)})
    drive(client, lambda: client.counters.failures == 2)

    assert client.reason.startswith("certificate verify failed: ")
    assert client.counters.connects == 0


@pytest.mark.broker
def test_a_broker_with_a_certificate_for_another_host_is_refused(
    make: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = start_broker(authority=authority, hosts=("elsewhere.local",))
    client = make(broker.url, settings={"ca": str(authority.cert)})
    drive(client, lambda: client.counters.failures == 2)

    assert client.reason.startswith("certificate verify failed: Hostname mismatch")
    assert client.counters.connects == 0


@pytest.mark.broker
def test_a_broker_that_wants_a_certificate_we_do_not_have_says_so(
    make: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = start_broker(authority=authority, client_certificates=True)
    client = make(broker.url, settings={"ca": str(authority.cert)})
    drive(client, lambda: client.counters.failures == 1)

    assert "client certificate" in client.reason


@pytest.mark.broker
def test_tls_to_a_port_that_does_not_speak_it_is_a_clear_line(
    make: MakeClient, broker: Broker, authority: Authority
) -> None:
    url = broker.url.replace("mqtt://", "mqtts://")
    client = make(url, settings={"ca": str(authority.cert), "connect_timeout_s": 1.0})
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason.startswith(("EOF", "[SSL", "wrong version", "timed out", "Connection reset", "_ssl"))


# Settings.


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://broker.local", "broker.local", 1883, False),
        ("mqtts://broker.local", "broker.local", 8883, True),
        ("mqtt://10.0.0.7:2883/", "10.0.0.7", 2883, False),
        ("mqtts://[::1]:8884", "::1", 8884, True),
    ],
)
def test_a_url_names_host_port_and_tls(url: str, host: str, port: int, tls: bool) -> None:
    endpoint = parse_url(url)

    assert (endpoint.host, endpoint.port, endpoint.tls) == (host, port, tls)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("broker.local:1883", "must start with mqtt://"),
        ("http://broker.local", "must start with mqtt://"),
        ("mqtt://", "must be a host"),
        ("mqtt://broker.local/topic", "must be a host"),
        ("mqtt://broker.local?x=1", "must be a host"),
        ("mqtt://broker.local:0", "from 1 to 65535"),
        ("mqtt://broker.local:99999", "is no address"),
        ("mqtt://broker.local:mqtt", "is no address"),
        ("mqtt://[::1", "is no address"),
    ],
)
def test_a_url_that_is_none_is_refused_with_a_sentence(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MqttSettings(url=url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="use username and password_file") as caught:
        MqttSettings(url="mqtt://node:s3cret@broker.local")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ca": "ca.pem"}, "mqtts://"),
        ({"url": "mqtts://b", "cert": "c.pem"}, "both or neither"),
        ({"password_file": "p"}, "needs a username"),
        ({"reconnect_min_s": 5, "reconnect_max_s": 1}, "must not exceed"),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"receive_maximum": 70_000}, "receive_maximum"),
        ({"protocol": "3.1"}, "protocol"),
        ({"keep_alive": 3}, "keep_alive"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=problem):
        msgspec.convert({"url": "mqtt://broker.local", **settings}, MqttSettings)


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (b"secret\n", 0o644, r"open to every user \(mode 0644\); run: chmod 600"),
        (b"", 0o600, "on its one line"),
        (b"a\nb\n", 0o600, "on its one line; it has 2"),
        (b"\xff\n", 0o600, "cannot be read"),
    ],
)
def test_a_password_file_must_be_private_and_one_line(tmp_path: Path, text: bytes, mode: int, problem: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(text)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=problem):
        read_password(str(path))


def test_missing_files_are_named_with_their_key(tmp_path: Path, authority: Authority) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=f"mqtt: password_file: {missing} cannot be read: No such file"):
        read_password(missing)
    with pytest.raises(ConfigError, match=f"mqtt: ca: {missing} cannot be used: No such file"):
        CallbackClient(MqttSettings(url="mqtts://b", ca=missing), client_id="c")
    with pytest.raises(ConfigError, match=f"mqtt: cert: {missing} with {missing} cannot be used: No such file"):
        CallbackClient(MqttSettings(url="mqtts://b", ca=str(authority.cert), cert=missing, key=missing), client_id="c")


# Back-off and the queue, without a network.


@given(attempt=st.integers(1, 10_000), random=st.floats(0, 1, exclude_max=True))
def test_the_delay_stays_between_its_bounds(attempt: int, random: float) -> None:
    found = delay_s(attempt, minimum_s=0.2, maximum_s=30.0, random=random)

    assert 0.2 <= found <= min(30.0, 0.2 * 2.0 ** min(attempt, 60))


def test_the_delay_doubles_up_to_its_maximum() -> None:
    highest = [delay_s(n, minimum_s=1.0, maximum_s=10.0, random=1.0) for n in range(1, 6)]

    assert highest == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_only_a_connection_that_lasted_forgets_the_failures_before() -> None:
    backoff = Backoff(minimum_s=1.0, maximum_s=64.0, stable_after_s=60.0, random=lambda: 1.0)
    assert [backoff.failed(0) for _ in range(3)] == [2.0, 4.0, 8.0]

    backoff.connected(0)
    assert backoff.failed(59_000_000_000) == 16.0
    backoff.connected(0)
    assert backoff.failed(60_000_000_000) == 2.0
    assert backoff.failed(60_000_000_000) == 4.0


def test_a_hopeless_attempt_waits_half_the_maximum_at_least() -> None:
    backoff = Backoff(minimum_s=1.0, maximum_s=64.0, stable_after_s=60.0, random=lambda: 0.0)

    assert backoff.failed(0, longest=True) == 32.0


class Sent:
    """Stands for paho's MQTTMessageInfo."""

    def __init__(self) -> None:
        self.published = False

    def is_published(self) -> bool:
        return self.published


def test_an_id_shared_by_a_written_message_and_one_in_flight_confirms_the_right_one() -> None:
    """paho numbers QoS 0 messages too, and its numbers wrap: both may carry the same id at once."""
    send_queue = SendQueue(max_waiting=9, max_unwritten=9, now_ns=lambda: 0)
    slow, quick = Sent(), Sent()
    first = send_queue.add(Outgoing("a", b"", qos=1), connected=True)
    second = send_queue.add(Outgoing("b", b"", qos=0), connected=True)
    for handle in (slow, quick):
        entry = send_queue.take(9)
        assert entry is not None
        send_queue.handed_over(entry, 7, handle)

    quick.published = True
    send_queue.answer(7, "")
    send_queue.collect()
    assert send_queue.confirmed() == [(second, "")]

    slow.published = True
    send_queue.answer(7, "Quota exceeded")
    send_queue.collect()
    assert send_queue.confirmed() == [(first, "Quota exceeded")]


def test_a_refusal_is_not_forgotten_when_a_message_with_the_same_id_is_written_right_after_it() -> None:
    send_queue = SendQueue(max_waiting=9, max_unwritten=9, now_ns=lambda: 0)
    refused, written = Sent(), Sent()
    for qos, handle in ((1, refused), (0, written)):
        send_queue.add(Outgoing("a", b"", qos=qos), connected=True)
        entry = send_queue.take(9)
        assert entry is not None
        send_queue.handed_over(entry, 7, handle)

    refused.published = written.published = True
    send_queue.answer(7, "Quota exceeded")
    send_queue.answer(7, "")
    send_queue.collect()

    assert sorted(send_queue.confirmed()) == [(1, "Quota exceeded"), (2, "")]


@given(
    steps=st.lists(
        st.sampled_from(["add0", "add1", "own", "take", "write", "ack", "fail", "lose", "again", "collect"]),
        max_size=60,
    )
)
def test_whatever_happens_every_token_is_confirmed_exactly_once(steps: list[str]) -> None:
    send_queue = SendQueue(max_waiting=5, max_unwritten=2, now_ns=lambda: 0)
    tokens: list[int] = []
    known: list[int] = []
    with_library: list[tuple[int, int, Sent]] = []
    mid = 0
    for step in steps:
        if step in ("add0", "add1"):
            tokens.append(send_queue.add(Outgoing("t", b"", qos=int(step[-1])), connected=True))
        elif step == "own":
            send_queue.add_urgent(Outgoing("t", b"", qos=1))
        elif step == "take":
            entry = send_queue.take(3)
            if entry is not None:
                mid += 1
                with_library.append((mid, entry.message.qos, Sent()))
                send_queue.handed_over(entry, mid, with_library[-1][2])
        elif step in ("write", "ack", "fail"):
            qos = 0 if step == "write" else 1
            found = next((item for item in with_library if item[1] == qos), None)
            if found is not None:
                with_library.remove(found)
                found[2].published = True
                send_queue.answer(found[0], "refused" if step == "fail" else "")
        elif step == "lose":
            send_queue.disconnected()
            with_library = [item for item in with_library if item[1] == 1]
        elif step == "again":
            send_queue.collect()
            send_queue.disconnected()
            send_queue.send_again()
            with_library = []
        else:
            send_queue.collect()
        known += [token for token, _ in send_queue.confirmed()]
        assert len(known) == len(set(known))
    send_queue.close("stopped")
    known += [token for token, _ in send_queue.confirmed()]

    assert sorted(known) == sorted(tokens)
    assert len(send_queue) == 0
