"""What every implementation of transport.Client must do, against a real broker."""

from __future__ import annotations

import json
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from broker import WAIT_S, Broker, until
from driving import cut, drive, fates, receive

from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.transport import Client, Waiter
from edge_runtime.records import Message, Outgoing

pytestmark = pytest.mark.broker

KINDS = ("lane", "callbacks")

STATUS = "edge/v1/n/status"
PRESENCE = Presence(topic=STATUS, boot_id="boot-1")


class Made:
    """Makes clients of one kind and protocol, and stops them."""

    def __init__(self, kind: str, protocol: str) -> None:
        self.kind = kind
        self.protocol = protocol
        self._clients: list[Client] = []

    def __call__(self, broker: Broker, *, settings: dict[str, Any] | None = None, **options: Any) -> Client:
        quick = {"client": self.kind, "reconnect_min_s": 0.02, "reconnect_max_s": 0.1, "protocol": self.protocol}
        known = MqttSettings(url=broker.url, **{**quick, **(settings or {})})
        client = make_client(known, **{"client_id": f"client-{len(self._clients)}", **options})
        self._clients.append(client)
        return client

    def connected(self, broker: Broker, **options: Any) -> Client:
        client = self(broker, **options)
        client.start()
        drive(client, lambda: client.subscribed, what="subscribed")
        return client

    def close(self) -> None:
        for client in self._clients:
            client.stop(1.0)


@pytest.fixture(params=[(kind, protocol) for kind in KINDS for protocol in ("5", "3.1.1")], ids="-".join)
def make(request: pytest.FixtureRequest) -> Iterator[Made]:
    made = Made(*request.param)
    yield made
    made.close()


def settle(client: Client, tokens: list[int]) -> dict[int, str]:
    """Poll until the fate of every token is known. Fails when one is told twice."""
    known: dict[int, str] = {}

    def all_known() -> bool:
        for token, reason in fates(client):
            assert token not in known, f"token {token} was confirmed twice"
            known[token] = reason
        return set(tokens) <= set(known)

    drive(client, all_known, what="all tokens confirmed")
    return known


def test_a_message_comes_in_and_a_result_goes_out(make: Made, broker: Broker) -> None:
    probe = broker.probe("out/#")
    client = make.connected(broker, subscriptions=[("in/+", 1)])
    before_ns = time.monotonic_ns()

    probe.publish("in/a", b"\x00\xff payload")
    [message] = receive(client, 1)
    token = client.publish(Outgoing("out/a", b"result", qos=1, content_type="application/json"))

    assert (message.topic, message.payload, message.qos) == ("in/a", b"\x00\xff payload", 1)
    assert message.mid > 0
    assert message.epoch > 0
    assert not message.dup
    assert before_ns <= message.received_ns <= time.monotonic_ns()
    assert settle(client, [token]) == {token: ""}
    assert [m.payload for m in probe.wait_for(1)] == [b"result"]


def test_qos_0_is_confirmed_when_written(make: Made, broker: Broker) -> None:
    probe = broker.probe("out/#")
    client = make.connected(broker, settings={"flush_timeout_s": 10.0})

    tokens = [client.publish(Outgoing("out/a", b"%d" % n)) for n in range(500)]
    client.flush()

    assert fates(client) == [(token, "") for token in tokens]
    assert not client.wants_write()
    assert [m.payload for m in probe.wait_for(500)] == [b"%d" % n for n in range(500)]


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_published_together_arrive_in_order(make: Made, broker: Broker, qos: int) -> None:
    probe = broker.probe("out/#")
    client = make.connected(broker)
    last = client.publish_all([Outgoing("out/a", b"%d" % n, qos) for n in range(120)])

    assert settle(client, [*range(last - 119, last + 1)]) == dict.fromkeys(range(1, 121), "")
    assert [m.payload for m in probe.wait_for(120)] == [b"%d" % n for n in range(120)]


def test_user_properties_reach_the_subscriber_on_5_and_are_left_out_on_3_1_1(make: Made, broker: Broker) -> None:
    """Replayed results are marked by one; they go together with those that are not."""
    probe = broker.probe("out/#")
    client = make.connected(broker)
    marks = [(("replayed", "1"),) if n % 3 else () for n in range(60)]
    last = client.publish_all([Outgoing("out/a", b"%d" % n, qos=1, user=mark) for n, mark in enumerate(marks)])

    assert settle(client, [last]) == dict.fromkeys(range(1, 61), "")
    found = probe.wait_for(60)
    assert [m.payload for m in found] == [b"%d" % n for n in range(60)]
    wanted = marks if make.protocol == "5" else [()] * 60
    assert [tuple(getattr(m.properties, "UserProperty", ())) for m in found] == wanted


def test_the_broker_holds_back_what_goes_beyond_the_connections_receive_maximum(make: Made, broker: Broker) -> None:
    """Only until the first acknowledgement: for each one, mosquitto 2.0.11 sends the whole number anew (its #2301)."""
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)], receive_maximum=5)
    for n in range(40):
        probe.publish("in/a", b"%d" % n)
    messages = receive(client, 5)
    if make.protocol == "5":
        assert client.poll(0.1) == []
        assert len(messages) == 5
    acknowledged = 0
    while len(messages) < 40:
        client.acknowledge(messages[0].epoch, [m.mid for m in messages[acknowledged:]])
        client.flush()
        acknowledged = len(messages)
        messages += receive(client, 1)

    assert [m.payload for m in messages] == [b"%d" % n for n in range(40)]


def test_what_comes_stays_outside_while_the_client_is_held(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    client.held = True
    assert client.poll(0) == []
    for n in range(20):
        probe.publish("in/a", b"%d" % n)
    wait, before = Waiter([client]), time.monotonic()
    wait(0.2)
    assert client.poll(0.0) == []
    assert time.monotonic() - before >= 0.2

    client.held = False
    wait(WAIT_S)
    assert [m.payload for m in receive(client, 20)] == [b"%d" % n for n in range(20)]
    assert time.monotonic() - before < WAIT_S


def test_a_held_client_keeps_its_connection_and_notices_the_end_of_it(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)], settings={"keepalive_s": 1})
    client.held = True
    for n in range(100):
        probe.publish("in/a", b"%d" % n + bytes(5_000))
    end = time.monotonic() + 2.6
    while time.monotonic() < end:
        client.poll(0.05)
    assert client.counters.disconnects == 0
    broker.kill()
    drive(client, lambda: client.counters.disconnects == 1, what="the end noticed")


def test_an_unacknowledged_message_comes_again_and_an_acknowledged_one_does_not(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    for n in range(4):
        probe.publish("in/a", b"%d" % n)
    messages = receive(client, 4)
    client.acknowledge(messages[0].epoch, [messages[0].mid, messages[2].mid])
    client.flush()

    cut(client)
    again = receive(client, 2)

    assert [m.payload for m in again] == [b"1", b"3"]
    assert all(m.dup for m in again)
    assert all(m.epoch > messages[0].epoch for m in again)


def test_an_acknowledgement_of_a_past_connection_is_never_sent(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    probe.publish("in/a", b"x")
    [old] = receive(client, 1)
    cut(client)
    [again] = receive(client, 1)

    client.acknowledge(old.epoch, [old.mid, again.mid])
    client.flush()
    cut(client)
    [third] = receive(client, 1)

    assert third.payload == b"x"
    assert third.dup


def test_acknowledging_a_qos_0_message_sends_nothing(make: Made, broker: Broker) -> None:
    """A PUBACK for packet id 0 is a protocol error; mosquitto ends the connection over it."""
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    probe.publish("in/a", b"x", qos=0)
    [message] = receive(client, 1)

    client.acknowledge(message.epoch, [message.mid])
    client.flush()
    probe.publish("in/a", b"y", qos=0)

    assert receive(client, 1)[0].epoch == message.epoch


def test_epochs_are_unique_among_all_connections(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    clients = [make.connected(broker, subscriptions=[("in/#", 1)]) for _ in range(3)]
    probe.publish("in/a", b"x")

    epochs = {receive(client, 1)[0].epoch for client in clients}

    assert len(epochs) == 3


def test_a_broker_absent_at_start_is_found_when_it_comes(make: Made, new_broker: Callable[..., Broker]) -> None:
    broker = new_broker()
    client = make(broker, subscriptions=[("in/#", 1)])
    client.start()
    drive(client, lambda: client.counters.failures >= 3, what="three attempts")

    assert not client.connected
    assert client.reason == "Connection refused"
    broker.start()
    drive(client, lambda: client.subscribed, what="subscribed")
    broker.probe().publish("in/a", b"x")
    assert receive(client, 1)[0].payload == b"x"
    assert client.reason == ""


def test_every_token_is_confirmed_exactly_once_when_the_broker_is_killed(make: Made, broker: Broker) -> None:
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    tokens: list[int] = []
    known: Counter[int] = Counter()
    reasons: set[str] = set()
    for n in range(600):
        tokens.append(client.publish(Outgoing("out/a", b"%d" % n, qos=n % 3 and 1)))
        if n % 7 == 0:
            client.poll(0)
        if n in (200, 400):
            broker.kill()
        if n == 300:
            broker.start()
        for token, reason in fates(client):
            known[token] += 1
            reasons.add(reason)
    assert not client.connected
    broker.start()

    def all_known() -> bool:
        for token, reason in fates(client):
            known[token] += 1
            reasons.add(reason)
        return len(known) == len(tokens)

    drive(client, all_known, what="all tokens confirmed")
    drive(client, lambda: client.subscribed, what="subscribed")
    broker.probe().publish("in/a", b"x")
    receive(client, 1)
    assert fates(client) == []
    assert set(known) == set(tokens)
    assert set(known.values()) == {1}
    assert reasons == {""}


def test_nothing_published_is_lost_when_the_line_breaks_again_and_again(make: Made, broker: Broker) -> None:
    probe = broker.probe("out/#")
    client = make.connected(broker)
    tokens = []
    for n in range(300):
        tokens.append(client.publish(Outgoing("out/a", b"%d" % n, qos=1)))
        client.poll(0)
        if n % 60 == 30 and client.connected:
            cut(client)

    known = settle(client, tokens)

    assert set(known.values()) == {""}
    seen: set[bytes] = set()
    until(
        lambda: seen.update(m.payload for m in probe.seen()) or len(seen) == 300, what="all results at the subscriber"
    )
    assert client.counters.disconnects >= 1


def test_what_does_not_fit_into_the_queue_is_refused_with_the_reason(
    make: Made, new_broker: Callable[..., Broker]
) -> None:
    broker = new_broker()
    client = make(broker, settings={"max_outgoing": 3})
    client.start()

    tokens = [client.publish(Outgoing("out/a", b"%d" % n, qos=1)) for n in range(5)]

    assert fates(client) == [(tokens[3], "not connected"), (tokens[4], "not connected")]
    broker.start()
    assert settle(client, tokens[:3]) == dict.fromkeys(tokens[:3], "")


def test_a_message_that_expired_while_it_waited_is_not_sent(make: Made, new_broker: Callable[..., Broker]) -> None:
    broker = new_broker()
    client = make(broker)
    client.start()

    token = client.publish(Outgoing("out/a", b"x", qos=1, message_expiry_s=0))
    broker.start()

    assert settle(client, [token]) == {token: "expired while waiting"}


def test_the_status_is_online_then_stopped_and_the_will_is_never_sent(make: Made, broker: Broker) -> None:
    probe = broker.probe(STATUS)
    settings = {"will_delay_s": 0}
    client = make(
        broker, settings=settings, presence=PRESENCE, birth=lambda: [PRESENCE.message("online", since_unix_s=7.25)]
    )
    client.start()
    drive(client, lambda: client.connected, what="connected")
    online = probe.wait_for(1)[0]

    client.stop(5.0)
    stopped = probe.wait_for(1)[0]

    assert json.loads(online.payload) == {"state": "online", "since": 7.25, "boot_id": "boot-1"}
    assert json.loads(stopped.payload)["state"] == "stopped"
    [retained] = broker.probe(STATUS).wait_for(1)
    assert retained.retain
    assert retained.payload == stopped.payload
    assert probe.seen() == []


def test_a_clean_stop_under_load_never_fires_the_will(make: Made, broker: Broker) -> None:
    """Closing with input unread resets the connection, and the broker may never see the DISCONNECT before it."""
    probe = broker.probe(STATUS)
    broker.flood("in/a", 20_000)
    for _ in range(6):
        client = make.connected(
            broker,
            client_id="n",
            settings={"will_delay_s": 0},
            subscriptions=[("in/#", 0)],
            presence=PRESENCE,
            birth=lambda: [PRESENCE.message("online", since_unix_s=0)],
        )
        receive(client, 100)
        client.stop(5.0)
    probe.publish(STATUS, b'{"state": "end"}')

    states = [json.loads(m.payload)["state"] for m in probe.wait_for(13)]
    assert states == ["online", "stopped"] * 6 + ["end"]


def test_a_connection_that_breaks_fires_the_will_and_the_birth_comes_again(make: Made, broker: Broker) -> None:
    probe = broker.probe(STATUS)
    client = make(
        broker,
        settings={"will_delay_s": 0},
        presence=PRESENCE,
        birth=lambda: [PRESENCE.message("online", since_unix_s=0)],
    )
    client.start()
    drive(client, lambda: client.connected, what="connected")
    probe.wait_for(1)

    cut(client)
    drive(client, lambda: client.counters.connects == 2 and client.connected, what="connected again")
    client.flush()

    states = [json.loads(m.payload)["state"] for m in probe.wait_for(2)]
    assert states == ["offline", "online"]


def test_tokens_still_open_at_the_stop_are_confirmed_as_stopped(make: Made, new_broker: Callable[..., Broker]) -> None:
    broker = new_broker()
    client = make(broker)
    client.start()
    waiting = client.publish(Outgoing("out/a", b"x", qos=1))
    client.poll(0)

    client.stop(1.0)
    late = client.publish(Outgoing("out/a", b"y", qos=1))

    assert fates(client) == [(waiting, "stopped"), (late, "stopped")]
    assert client.poll(0) == []
    assert client.fileno() == -1


def test_a_retained_message_is_marked_on_3_1_1_and_not_sent_for_a_subscription_on_5(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    probe.publish("in/a", b"old", retain=True)
    client = make(broker, subscriptions=[("in/#", 1)])
    client.start()
    messages = drive(client, lambda: client.subscribed, what="subscribed")
    probe.publish("in/b", b"live")

    wanted = 1 if make.protocol == "5" else 2
    messages += receive(client, wanted - len(messages))

    found = [(m.payload, m.retain) for m in messages]
    assert found == ([(b"live", False)] if make.protocol == "5" else [(b"old", True), (b"live", False)])


def test_a_loop_that_selects_on_the_descriptor_sees_everything(make: Made, broker: Broker) -> None:
    """The loop never waits in poll: it selects, and a message must not be left where select cannot see it."""
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    for n in range(300):
        probe.publish("in/a", b"%d" % n + bytes(5_000))
    messages: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(messages) < 300:
        assert time.monotonic() < deadline, f"{len(messages)} of 300 messages"
        writers = [client.fileno()] if client.wants_write() else []
        select.select([client.fileno()], writers, [], 1.0)
        fresh = client.poll(0)
        messages += fresh
        client.acknowledge(messages[-1].epoch if messages else 0, [m.mid for m in fresh])

    assert [int(m.payload.rstrip(b"\x00")) for m in messages] == list(range(300))


def test_poll_returns_as_soon_as_a_message_comes_and_never_waits_at_zero(make: Made, broker: Broker) -> None:
    probe = broker.probe()
    client = make.connected(broker, subscriptions=[("in/#", 1)])
    client.poll(0)
    before = time.monotonic()
    for _ in range(50):
        client.poll(0)
    assert time.monotonic() - before < 1.0

    timer = threading.Timer(0.1, probe.publish, ("in/a", b"x"))
    timer.start()
    before = time.monotonic()
    messages: list[Message] = []
    while not messages:
        messages = client.poll(5.0)
    timer.join()
    assert time.monotonic() - before < 3.0
