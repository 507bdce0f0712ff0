"""A message larger than a broker takes that has not said how much it takes: given up, and not sent for ever."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from broker import Broker
from driving import confirmed, drive, fates
from scripted import Scripted, publish_ids

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.oversize import Oversize
from edge_runtime.mqtt.sending import Entry
from edge_runtime.mqtt.settings import MAX_PACKET_BYTES
from edge_runtime.mqtt.transport import is_permanent
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]
Packets = list[tuple[int, bytes]]

DISCONNECT, TOO_LARGE = 0xE0, b"\x95\x00"
SMALL, BIG = bytes(100), bytes(5_000)


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


def sizes(packets: Packets) -> list[int]:
    """Bytes of the payloads of the messages, to the hundred."""
    return [len(body) // 100 * 100 for first, body in packets if first & 0xF0 == 0x30]


def acknowledge(scripted: Scripted, packets: Packets, *, below: int = 1_000) -> None:
    for packet in packets:
        if len(packet[1]) < below:
            for mid, _ in publish_ids([packet]):
                scripted.send_packet(0x40, struct.pack("!H", mid))


def break_off(client: MqttClient, scripted: Scripted) -> None:
    """What a broker does with a packet it finds too large."""
    scripted.send_packet(DISCONNECT, TOO_LARGE)
    drive(client, lambda: not client.connected)


@pytest.mark.parametrize("present", [True, False])
def test_the_largest_message_on_two_connections_that_ended_over_a_size_is_given_up(
    make_client: MakeClient, scripted: Scripted, caplog: pytest.LogCaptureFixture, present: bool
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    small, big, late = (client.publish(Outgoing("out/a", body, qos=1)) for body in (SMALL, BIG, SMALL))
    acknowledge(scripted, scripted.received(client)[:1])
    drive(client, lambda: client.written >= late)
    break_off(client, scripted)
    scripted.welcome(client, session_present=present)
    assert sizes(scripted.received(client)) == [5_000, 100]
    break_off(client, scripted)
    scripted.welcome(client, session_present=present)
    packets = scripted.received(client)
    acknowledge(scripted, packets)

    assert sizes(packets) == [100]
    answers = dict(confirmed(client, 3))
    assert (answers[small], answers[late]) == ("", "")
    assert answers[big].startswith("packet too large: 50")
    assert is_permanent(answers[big])
    found = [record for record in caplog.records if record.getMessage() == "mqtt_packet_too_large"]
    assert [(record.topic, record.bytes, record.given_up) for record in found] == [
        ("out/a", 5_005, False),
        ("out/a", 5_005, True),
    ]


def test_a_message_of_qos_0_that_was_too_large_is_not_blamed_on_those_behind_it(
    make_client: MakeClient, scripted: Scripted
) -> None:
    """A broker answers in order: what is innocent is answered on the next connection, before the next one too large."""
    client = make_client(scripted.url)
    scripted.welcome(client)
    tokens = []
    for _ in range(4):
        tokens += [client.publish(Outgoing("m", BIG, qos=0)), client.publish(Outgoing("out/a", SMALL, qos=1))]
        acknowledge(scripted, scripted.received(client, quiet_s=0.05)[:-2])
        break_off(client, scripted)
        scripted.welcome(client, session_present=True)
        acknowledge(scripted, scripted.received(client, quiet_s=0.05))

    assert sorted(confirmed(client, 8)) == [(token, "") for token in tokens]


def test_a_birth_that_is_too_large_is_left_out_of_the_third_connection(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, birth=lambda: [Outgoing("info", BIG, qos=1), Outgoing("status", SMALL, qos=1)])
    seen = []
    for _ in range(3):
        scripted.welcome(client)
        seen.append(sizes(scripted.received(client)))
        break_off(client, scripted)

    assert seen == [[5_000, 100], [5_000, 100], [100]]


@pytest.mark.broker
@pytest.mark.parametrize("kind", ["lane"], indirect=True)
def test_mosquittos_refusal_of_a_large_message_is_permanent(
    make_client: MakeClient, start_broker: Callable[..., Broker]
) -> None:
    broker = start_broker(lines=("message_size_limit 1000",))
    client = make_client(broker.url)
    drive(client, lambda: client.connected)
    big = client.publish(Outgoing("out/a", BIG, qos=1))

    [(token, reason)] = confirmed(client, 1)
    assert token == big
    assert is_permanent(reason)
    assert client.counters.disconnects == 0


def entry(token: int, size: int, topic: str = "t") -> Entry:
    return Entry(token, Outgoing(topic, bytes(size - len(topic)), 1), 0)


def test_only_who_is_the_largest_twice_running_sets_the_limit_and_that_can_be_forgotten() -> None:
    subject = Oversize()
    for sent in ([entry(1, 10), entry(2, 50)], [entry(3, 60), entry(2, 50)], [entry(2, 50)], []):
        subject.refused(sent)
        assert subject.limit == MAX_PACKET_BYTES
    subject.refused([entry(2, 50), entry(4, 40)])
    assert subject.limit == 50

    subject.forget()
    assert subject.limit == MAX_PACKET_BYTES
    subject.refused([entry(2, 50)])
    assert subject.limit == MAX_PACKET_BYTES


def test_nothing_is_open_after_a_message_was_given_up(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    token = client.publish(Outgoing("out/a", BIG, qos=1))
    for _ in range(2):
        scripted.welcome(client, session_present=True)
        assert sizes(scripted.received(client)) == [5_000]
        break_off(client, scripted)
    scripted.welcome(client, session_present=True)
    late = client.publish(Outgoing("out/a", BIG, qos=1))
    client.flush()

    assert client.written == late
    assert [found for found, _ in fates(client)] == [token, late]
    assert scripted.received(client) == []
