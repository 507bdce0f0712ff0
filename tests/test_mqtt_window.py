from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable

import pytest
from broker import WAIT_S, Broker
from driving import confirmed, drive, fates
from scripted import RECEIVE_MAXIMUM, Scripted, publish_ids

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.presence import Presence
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]
Events = Callable[[], list[tuple[str, str]]]


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


def test_no_more_messages_are_in_flight_than_the_broker_takes(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client, properties=bytes([RECEIVE_MAXIMUM, 0, 3]))
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(5)]

    first = publish_ids(scripted.received(client))
    scripted.send_packet(0x40, struct.pack("!H", first[0][0]))
    second = publish_ids(scripted.received(client))

    assert len(first) == 3
    assert len(second) == 1
    assert fates(client) == [(tokens[0], "")]


def test_messages_published_together_go_in_order_and_have_consecutive_tokens(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url)
    early = client.publish_all([Outgoing("out/a", b"%d" % n, qos=1) for n in range(3)])
    scripted.welcome(client)
    late = client.publish_all([Outgoing("out/a", b"%d" % n, qos=n % 2) for n in range(3, 7)])

    packets = scripted.received(client)
    for mid, _ in publish_ids([found for found in packets if found[0] == 0x32]):
        scripted.send_packet(0x40, struct.pack("!H", mid))

    assert [body[-1:] for _, body in packets] == [b"%d" % n for n in range(7)]
    assert (early, late) == (3, 7)
    assert sorted(confirmed(client, 7)) == [(token, "") for token in range(1, 8)]


def test_a_session_the_broker_still_holds_gets_the_same_ids_again(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(3)]
    first = publish_ids(scripted.received(client))

    scripted.welcome(client, session_present=True)
    again = publish_ids(scripted.received(client))
    for mid, _ in again:
        scripted.send_packet(0x40, struct.pack("!H", mid))

    assert again == [(mid, True) for mid, _ in first]
    assert confirmed(client, 3) == [(token, "") for token in tokens]


def test_what_was_in_flight_waits_for_a_window_that_has_shrunk(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
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


def test_a_new_session_gets_the_messages_anew(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
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


def test_a_message_that_is_never_answered_is_sent_again_on_a_new_connection(
    make_client: MakeClient, scripted: Scripted
) -> None:
    """An overloaded broker drops PUBACKs too, and MQTT sends again only after a reconnect."""
    client = make_client(scripted.url, settings={"ack_timeout_s": 0.2})
    scripted.welcome(client)
    token = client.publish(Outgoing("out/a", b"x", qos=1))
    [(mid, _)] = publish_ids(scripted.received(client, quiet_s=0.05))
    drive(client, lambda: client.counters.disconnects == 1)
    assert client.reason == "no answer to a message within 0.2 s"

    scripted.welcome(client, session_present=True)
    assert publish_ids(scripted.received(client, quiet_s=0.05)) == [(mid, True)]
    scripted.send_packet(0x40, struct.pack("!H", mid))
    assert confirmed(client, 1) == [(token, "")]


def test_a_message_sent_again_gets_its_full_time_to_be_answered(make_client: MakeClient, scripted: Scripted) -> None:
    ahead_s = [0.0]
    client = make_client(
        scripted.url, settings={"ack_timeout_s": 30}, now_ns=lambda: time.monotonic_ns() + round(ahead_s[0] * 1e9)
    )
    scripted.welcome(client)
    client.publish(Outgoing("out/a", b"x", qos=1))
    scripted.received(client, quiet_s=0.05)
    ahead_s[0] += 20
    scripted.welcome(client, session_present=True)
    ahead_s[0] += 20
    scripted.received(client, quiet_s=0.05)
    assert client.connected
    assert client.counters.disconnects == 1

    ahead_s[0] += 20
    drive(client, lambda: client.counters.disconnects == 2)


def test_a_subscription_that_is_never_answered_is_made_again_on_a_new_connection(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, settings={"ack_timeout_s": 0.2}, subscriptions=[("in/#", 1)])
    scripted.welcome(client)
    assert scripted.receive(client)[0] == 0x82
    drive(client, lambda: client.counters.disconnects == 1)
    assert client.reason == "no answer to the subscription within 0.2 s"

    scripted.welcome(client, session_present=True)
    assert scripted.receive(client)[0] == 0x82


def test_a_stop_says_stopped_and_disconnects(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url, presence=Presence(topic="status", boot_id="b"), unix_s=lambda: 3.0)
    scripted.welcome(client)
    client.stop(0.4)

    packets = scripted.left_over()
    assert [first & 0xF0 for first, _ in packets] == [0x30, 0xE0]
    assert b'{"state":"stopped","since":3.0,"boot_id":"b"}' in packets[0][1]


def test_a_stop_while_the_broker_accepts_us_still_ends_with_stopped(
    make_client: MakeClient, scripted: Scripted
) -> None:
    presence = Presence(topic="status", boot_id="b")
    client = make_client(scripted.url, presence=presence, birth=lambda: [presence.message("online", since_unix_s=1.0)])
    scripted.accept(client)
    scripted.send_packet(0x20, b"\x00\x00\x00")
    client.stop(0.4)

    packets = scripted.left_over()
    assert [first & 0xF0 for first, _ in packets] == [0x30, 0x30, 0xE0]
    assert [b"online" in packets[0][1], b"stopped" in packets[1][1]] == [True, True]


def test_a_stop_that_cannot_say_stopped_leaves_the_word_to_the_will(
    make_client: MakeClient, scripted: Scripted, events: Events
) -> None:
    client = make_client(scripted.url, presence=Presence(topic="status", boot_id="b"))
    scripted.welcome(client, properties=bytes([RECEIVE_MAXIMUM, 0, 1]))
    token = client.publish(Outgoing("out/a", b"x", qos=1))
    client.stop(0.4)

    assert [first & 0xF0 for first, _ in scripted.left_over()] == [0x30]
    assert ("mqtt_stopped_unsaid", "") in events()
    assert fates(client) == [(token, "stopped")]


@pytest.mark.broker
def test_a_publish_the_broker_forbids_is_confirmed_with_its_reason(
    make_client: MakeClient, start_broker: Callable[..., Broker]
) -> None:
    broker = start_broker(acl=("topic readwrite out/a",))
    client = make_client(broker.url)
    drive(client, lambda: client.connected)

    bad = client.publish(Outgoing("secret/a", b"x", qos=1))
    good = client.publish(Outgoing("out/a", b"x", qos=1))

    assert sorted(confirmed(client, 2)) == [(bad, "Not authorized"), (good, "")]


@pytest.mark.broker
def test_a_message_larger_than_the_broker_takes_is_refused_here_and_the_connection_stays(
    make_client: MakeClient, start_broker: Callable[..., Broker]
) -> None:
    broker = start_broker(lines=("max_packet_size 2000",))
    client = make_client(broker.url)
    drive(client, lambda: client.connected)

    big = client.publish(Outgoing("out/a", bytes(2_000), qos=1))
    small = client.publish(Outgoing("out/a", bytes(1_500), qos=1))

    answers = dict(confirmed(client, 2))
    assert re.fullmatch(r"packet too large: 20\d\d bytes, 2000 allowed", answers[big])
    assert answers[small] == ""
    assert client.counters.disconnects == 0


@pytest.mark.broker
def test_a_message_counts_as_written_when_it_has_left_and_not_while_it_waits(
    make_client: MakeClient, new_broker: Callable[..., Broker]
) -> None:
    broker = new_broker()
    client = make_client(broker.url, settings={"flush_timeout_s": 10.0, "max_inflight": 2})
    early = [client.publish(Outgoing("out/a", b"x", qos=n % 2)) for n in range(3)]
    client.poll(0)
    assert client.written == 0

    broker.start()
    drive(client, lambda: client.written == early[-1])
    assert sorted(confirmed(client, 3)) == [(token, "") for token in early]
    tokens = [client.publish(Outgoing("out/a", b"x", qos=1)) for _ in range(3)]
    client.flush()
    assert client.written == tokens[1]
    drive(client, lambda: client.written == tokens[2])

    client.stop(1.0)
    assert client.publish(Outgoing("out/a", b"x")) == client.written


def test_a_broker_that_does_not_read_leaves_messages_waiting_and_then_they_are_refused(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(
        scripted.url, settings={"max_unwritten_bytes": 50_000, "max_outgoing": 5, "flush_timeout_s": 0.01}
    )
    scripted.welcome(client)
    reasons: dict[int, str] = {}
    tokens: list[int] = []
    deadline = time.monotonic() + WAIT_S
    while "outgoing queue full" not in reasons.values():
        tokens.append(client.publish(Outgoing("out/a", bytes(60_000))))
        client.flush()
        reasons.update(fates(client))
        assert time.monotonic() < deadline

    refused = [token for token, reason in reasons.items() if reason]
    arrived = scripted.received(client)
    reasons.update(fates(client))
    assert refused == [tokens[-1]]
    assert reasons == {**dict.fromkeys(tokens, ""), tokens[-1]: "outgoing queue full"}
    assert len(arrived) == len(tokens) - 1
    assert client.counters.disconnects == 0


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\x00b", "x" * 65_536])
def test_a_message_to_what_is_no_topic_is_confirmed_as_failed(
    make_client: MakeClient, scripted: Scripted, topic: str
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)

    token = client.publish(Outgoing(topic, b"x", qos=1))

    [(found, reason)] = fates(client)
    assert found == token
    assert reason.startswith("cannot be published: ")


def test_qos_2_is_refused(make_client: MakeClient) -> None:
    with pytest.raises(ValueError, match="QoS 0 or 1"):
        make_client("mqtt://127.0.0.1:1").publish(Outgoing("a", b"", qos=2))
    with pytest.raises(ValueError, match="QoS 0 or 1"):
        make_client("mqtt://127.0.0.1:1", subscriptions=[("a", 2)])


def test_a_filter_the_broker_refuses_is_named(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url, subscriptions=[("in/a", 1), ("in/b", 1)])
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
    make_client: MakeClient, start_broker: Callable[..., Broker], events: Events
) -> None:
    broker = start_broker(acl=("topic readwrite out/a",))
    presence = Presence(topic="status", boot_id="b")
    client = make_client(broker.url, presence=presence, birth=lambda: [presence.message("online", since_unix_s=1)])

    drive(client, lambda: ("mqtt_own_message_refused", "Not authorized") in events())

    assert client.connected
    assert fates(client) == []
