from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pytest
from broker import WAIT_S, Broker
from driving import confirmed, drive, receive
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from scripted import MAXIMUM_PACKET_SIZE, RECEIVE_MAXIMUM, Scripted

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.topics import match
from edge_runtime.records import Message, Outgoing

MakeClient = Callable[..., MqttClient]


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


@pytest.mark.broker
def test_properties_of_mqtt_5_reach_the_record(make_client: MakeClient, broker: Broker) -> None:
    client = make_client(broker.url, subscriptions=[("in/#", 1)])
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
def test_content_type_and_expiry_of_a_result_reach_the_subscriber(make_client: MakeClient, broker: Broker) -> None:
    probe = broker.probe("out/#")
    client = make_client(broker.url)

    client.publish(Outgoing("out/a", b"x", qos=1, content_type="application/json", message_expiry_s=60))
    confirmed(client, 1)

    found = probe.wait_for(1)[0].properties
    assert found.ContentType == "application/json"
    assert 50 <= found.MessageExpiryInterval <= 60


def test_a_topic_that_is_not_utf_8_is_delivered_and_matches_no_filter(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url)
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


def test_a_message_of_qos_2_is_completed_at_once_and_has_no_id_to_acknowledge(
    make_client: MakeClient, scripted: Scripted
) -> None:
    """We subscribe at QoS 0 and 1; a session that somebody else began may still hold one."""
    client = make_client(scripted.url)
    scripted.welcome(client)
    scripted.send_packet(0x34, b"\x00\x01a\x00\x07\x00payload")
    assert scripted.receive(client) == (0x50, b"\x00\x07")
    scripted.send_packet(0x62, b"\x00\x07")
    [message] = receive(client, 1)
    client.acknowledge(message.epoch, [message.mid])

    assert (message.payload, message.qos, message.mid) == (b"payload", 2, 0)
    assert scripted.received(client) == [(0x70, b"\x00\x07")]


def test_a_message_read_in_pieces_is_stamped_when_its_last_piece_is_read(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    scripted.send(b"\x30\x09\x00\x01a")
    for _ in range(3):
        assert client.poll(0.02) == []
    before_ns = time.monotonic_ns()
    scripted.send(b"\x00hello")
    [message] = receive(client, 1)

    assert message.payload == b"hello"
    assert message.received_ns >= before_ns


def test_poll_leaves_the_rest_for_the_next_call_after_64_messages(
    make_client: MakeClient, scripted: Scripted, kind: str
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    scripted.send(b"".join(scripted.published(b"a", b"%d" % n) for n in range(200)))
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
def test_the_session_is_never_asked_to_start_clean(make_client: MakeClient, protocol: str) -> None:
    """mosquitto 2.0.11 forgets a session at its restart that was once opened with a clean start."""
    scripted = Scripted(protocol)
    client = make_client(scripted.url, settings={"protocol": protocol})
    flags = []
    for _ in range(3):
        _, body = scripted.accept(client)
        flags.append(body[7])
        scripted.hang_up()
        drive(client, lambda: client.counters.failures == len(flags))
    scripted.close()

    assert flags == [0, 0, 0]


def test_the_bounds_and_the_will_are_told_to_the_broker(make_client: MakeClient, scripted: Scripted) -> None:
    settings = {
        "session_expiry_s": 1_000_001,
        "receive_maximum": 77,
        "maximum_packet_bytes": 5_000_000,
        "will_delay_s": 9,
        "keepalive_s": 31,
    }
    presence = Presence(topic="edge/v1/n/status", boot_id="b")
    client = make_client(scripted.url, settings=settings, presence=presence, unix_s=lambda: 12.5)
    _, body = scripted.accept(client)

    assert body[:7] == b"\x00\x04MQTT\x05"
    assert body[7] == 0b00101100  # retained, QoS 1, a will, no clean start
    assert struct.unpack("!H", body[8:10]) == (31,)
    for identifier, value in ((0x11, 1_000_001), (MAXIMUM_PACKET_SIZE, 5_000_000), (0x18, 9)):
        assert struct.pack("!BI", identifier, value) in body
    assert struct.pack("!BH", RECEIVE_MAXIMUM, 77) in body
    assert b"edge/v1/n/status" in body
    assert b'{"state":"offline","since":12.5,"boot_id":"b"}' in body


def test_an_exception_in_a_callback_comes_out_of_poll(
    make_client: MakeClient, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)

    def broken(*_: object, **__: object) -> Message:
        raise ZeroDivisionError("a bug in a callback")

    monkeypatch.setattr(wire, "to_message", broken)
    scripted.send_packet(0x34, b"\x00\x01a\x00\x07\x00")
    scripted.send_packet(0x62, b"\x00\x07")
    with pytest.raises(ZeroDivisionError, match="a bug in a callback"):
        drive(client, lambda: False)


def test_an_exception_in_the_birth_comes_out_of_poll(make_client: MakeClient, scripted: Scripted) -> None:
    def broken() -> list[Outgoing]:
        raise ZeroDivisionError("a bug in the birth")

    client = make_client(scripted.url, birth=broken)
    with pytest.raises(ZeroDivisionError, match="a bug in the birth"):
        scripted.welcome(client)


def test_a_bug_while_connecting_comes_out_of_poll(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client("mqtt://127.0.0.1:1")

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug while connecting")

    monkeypatch.setattr(socket, "create_connection", broken)
    with pytest.raises(ZeroDivisionError, match="a bug while connecting"):
        drive(client, lambda: False)
