"""What is known of the session: whether the broker still holds it, and whether another client takes it over."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest
from broker import WAIT_S, Broker
from driving import drive, receive
from scripted import RECEIVE_MAXIMUM, Scripted

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.transport import Waiter
from edge_runtime.testing import MemoryClient

MakeClient = Callable[..., MqttClient]
Events = Callable[[], list[tuple[str, str]]]

DISCONNECT, TAKEN_OVER = 0xE0, b"\x8e\x00"
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK = 0x82, 0x90, 0xA2, 0xB0


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


class Clock:
    """The monotonic clock, and so much more as a test has put it ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> int:
        return time.monotonic_ns() + round(self.ahead_s * 1e9)


@pytest.mark.parametrize("had_session", [False, True])
@pytest.mark.parametrize("present", [False, True])
def test_a_session_an_earlier_process_had_is_missed_at_the_first_connect(
    make_client: MakeClient, scripted: Scripted, events: Events, had_session: bool, present: bool
) -> None:
    client = make_client(scripted.url, had_session=had_session)
    scripted.welcome(client, session_present=present)
    lost = had_session and not present

    assert client.counters.sessions_lost == lost
    assert [event for event, _ in events()] == ["mqtt_connected"] + ["mqtt_session_lost"] * lost


def test_a_session_that_is_gone_at_a_reconnect_is_one_event_each_time(
    make_client: MakeClient, scripted: Scripted, events: Events
) -> None:
    client, lost_at = make_client(scripted.url), []
    for present in (False, True, False, False):
        scripted.welcome(client, session_present=present)
        lost_at.append(client.lost_at)

    assert lost_at[:2] == [0, 0]
    assert 0 < lost_at[2] < lost_at[3]
    assert client.counters.sessions_lost == 2
    assert [event for event, _ in events()].count("mqtt_session_lost") == 2


def test_stale_filters_are_dropped_before_any_subscription_until_the_broker_has_answered(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, subscriptions=[("new", 1)], stale=["old", "older"])
    for _ in range(2):
        scripted.welcome(client, session_present=True)
        (first, unsubscribe), (second, subscribe) = scripted.receive(client), scripted.receive(client)
        assert (first, unsubscribe[3:]) == (UNSUBSCRIBE, b"\x00\x03old\x00\x05older")
        assert (second, subscribe[3:-1]) == (SUBSCRIBE, b"\x00\x03new")
        scripted.send_packet(SUBACK, subscribe[:2] + b"\x00\x01")
        assert scripted.received(client, quiet_s=0.05) == []
        assert not client.subscribed

    scripted.send_packet(UNSUBACK, unsubscribe[:2] + b"\x00\x00\x11")
    drive(client, lambda: client.subscribed)
    scripted.welcome(client, session_present=True)
    assert scripted.receive(client)[0] == SUBSCRIBE


def test_an_unsubscription_that_is_never_answered_ends_the_connection(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, settings={"ack_timeout_s": 0.2}, stale=["old"])
    scripted.welcome(client, session_present=True)
    assert scripted.receive(client)[0] == UNSUBSCRIBE
    drive(client, lambda: not client.connected)

    assert client.reason == "no answer to the subscription within 0.2 s"


def test_a_broker_that_does_not_know_the_session_has_no_stale_filters(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, subscriptions=[("new", 1)], stale=["old"])
    for present in (False, True):
        scripted.welcome(client, session_present=present)
        assert scripted.receive(client)[0] == SUBSCRIBE


def test_a_filter_the_broker_will_not_drop_is_named(
    make_client: MakeClient, scripted: Scripted, events: Events
) -> None:
    client = make_client(scripted.url, stale=["old"])
    scripted.welcome(client, session_present=True)
    _, body = scripted.receive(client)
    scripted.send_packet(UNSUBACK, body[:2] + b"\x00\x87")
    drive(client, lambda: client.subscribed)

    assert ("mqtt_unsubscription_refused", "Not authorized") in events()


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_nothing_comes_by_a_filter_that_an_earlier_process_had(
    make_client: MakeClient, broker: Broker, protocol: str
) -> None:
    filters = [("in/old", 1), ("in/both", 1)]
    first = make_client(broker.url, settings={"protocol": protocol}, subscriptions=filters)
    drive(first, lambda: first.subscribed)
    first.stop(1.0)

    client = make_client(
        broker.url,
        settings={"protocol": protocol},
        subscriptions=[("in/both", 1), ("in/new", 1)],
        had_session=True,
        stale=["in/old"],
    )
    drive(client, lambda: client.subscribed)
    probe = broker.probe()
    for topic in ("in/old", "in/both", "in/new"):
        probe.publish(topic, b"")

    assert [message.topic for message in receive(client, 2)] == ["in/both", "in/new"]
    assert client.counters.sessions_lost == 0


def test_a_receive_maximum_of_its_own_is_what_the_connection_tells_the_broker(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url, settings={"receive_maximum": 77}, receive_maximum=7)
    _, body = scripted.accept(client)

    assert struct.pack("!BH", RECEIVE_MAXIMUM, 7) in body
    assert struct.pack("!BH", RECEIVE_MAXIMUM, 77) not in body


def contend(first: MqttClient, second: MqttClient, endings: int) -> None:
    """Poll two clients until each has lost so many connections."""
    deadline = time.monotonic() + WAIT_S
    while min(first.counters.disconnects, second.counters.disconnects) < endings:
        first.poll(0.005)
        second.poll(0.005)
        assert time.monotonic() < deadline, (first.counters, second.counters)


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_two_clients_with_one_id_wait_longer_each_time_and_say_so_until_one_is_left_alone(
    make_client: MakeClient, broker: Broker, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    clock = Clock()
    settings = {"protocol": protocol, "reconnect_min_s": 0.005, "reconnect_max_s": 60.0, "client_id": "node"}
    first, second = (
        make_client(broker.url, client_id="node", settings=settings, uniform=lambda: 1.0, now_ns=clock)
        for _ in range(2)
    )
    contend(first, second, endings=4)

    wait_s = {record.wait_s for record in caplog.records if hasattr(record, "wait_s")}
    assert {0.01, 0.02, 0.04, 0.08} <= wait_s
    assert "mqtt.client_id" in first.problem
    assert "another client uses the client id 'node'" in first.problem
    assert ("perhaps" in first.problem) == (first.counters.taken_over == 0)  # mosquitto 2.0.11 does not say why

    second.stop(1.0)
    drive(first, lambda: first.connected)
    assert first.problem
    clock.ahead_s = 60.0
    assert first.problem == ""


def test_a_take_over_is_an_event_of_its_own_and_the_row_ends_with_a_connection_that_lasts(
    make_client: MakeClient, scripted: Scripted, events: Events
) -> None:
    clock = Clock()
    client = make_client(scripted.url, settings={"stable_after_s": 30.0}, now_ns=clock)
    for _ in range(2):
        scripted.welcome(client)
        scripted.send_packet(DISCONNECT, TAKEN_OVER)
        drive(client, lambda: not client.connected)
    assert client.counters.taken_over == 2
    assert client.problem == "another client uses the client id 'client'; give each node its own node.id"
    assert [event for event, _ in events()].count("mqtt_session_taken_over") == 2

    scripted.welcome(client)
    assert client.problem
    clock.ahead_s = 30.0
    assert client.problem == ""
    scripted.hang_up()
    drive(client, lambda: not client.connected)
    assert client.problem == ""


def test_three_connections_closed_in_a_row_without_a_word_are_perhaps_another_client(
    make_client: MakeClient, scripted: Scripted
) -> None:
    client = make_client(scripted.url)
    problems = []
    for _ in range(3):
        scripted.welcome(client)
        scripted.hang_up()
        drive(client, lambda: not client.connected)
        problems.append(client.problem)

    assert problems[:2] == ["", ""]
    assert problems[2].startswith("the broker closed 3 connections in a row: perhaps another client uses the client id")


def test_connections_that_end_for_a_known_reason_accuse_nobody(make_client: MakeClient, scripted: Scripted) -> None:
    client = make_client(scripted.url)
    for known in (False, False, True, False, False):
        scripted.welcome(client)
        if known:
            scripted.send_packet(DISCONNECT, b"\x8b\x00")
        else:
            scripted.hang_up()
        drive(client, lambda: not client.connected)

    assert client.problem == ""
    assert client.counters.taken_over == 0


def test_input_that_a_held_client_has_left_wakes_nobody() -> None:
    client = MemoryClient()
    client.more = client.held = True
    wait, before = Waiter([client]), time.monotonic()
    wait(0.05)
    assert time.monotonic() - before >= 0.05

    client.held = False
    wait(WAIT_S)
    assert time.monotonic() - before < WAIT_S
