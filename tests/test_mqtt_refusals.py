"""Which failures of a message are for good, and how they are told apart."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from broker import Broker
from driving import confirmed, drive
from scripted import Scripted, publish_ids

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.transport import EXPIRED, NOT_CONNECTED, QUEUE_FULL, STOPPED, UNPUBLISHABLE, is_permanent
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]

CODES = {
    0x80: ("Unspecified error", False),
    0x83: ("Implementation specific error", False),
    0x87: ("Not authorized", False),
    0x90: ("Topic name invalid", True),
    0x91: ("Packet identifier in use", False),
    0x97: ("Quota exceeded", False),
    0x99: ("Payload format invalid", True),
}


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


def test_every_code_a_puback_may_have_is_told_by_its_name_and_is_for_good_or_not() -> None:
    """MQTT 5.0, table 3-4; the policy is ours."""
    assert {code: (wire.refusal(code), is_permanent(wire.refusal(code))) for code in CODES} == CODES
    assert [wire.refusal(code) for code in (0x00, 0x10)] == ["", ""]


def test_a_code_that_no_puback_may_have_is_told_by_its_number_and_is_tried_again() -> None:
    unknown = [code for code in range(wire.FAILURE, 0x100) if code not in {*CODES, wire.TOO_LARGE_CODE}]

    assert {wire.refusal(code) for code in unknown} == {f"reason code 0x{code:02x}" for code in unknown}
    assert not any(is_permanent(wire.refusal(code)) for code in unknown)


@pytest.mark.parametrize(
    ("reason", "permanent"),
    [
        (QUEUE_FULL, False),
        (NOT_CONNECTED, False),
        (STOPPED, False),
        (EXPIRED, True),
        (f"{UNPUBLISHABLE}: 'a/+' has a wildcard in it", True),
        (wire.too_large(5_000, 2_000), True),
        (wire.refusal(wire.TOO_LARGE_CODE), True),
        ("", False),
        ("Not authorized: packet too large", False),
    ],
)
def test_a_reason_of_our_own_is_for_good_when_time_does_not_change_it(reason: str, permanent: bool) -> None:
    assert is_permanent(reason) is permanent


@pytest.mark.parametrize("code", CODES)
def test_a_refusal_reaches_the_confirmation_by_both_ways(
    make_client: MakeClient, scripted: Scripted, code: int
) -> None:
    client = make_client(scripted.url)
    scripted.welcome(client)
    token = client.publish(Outgoing("out/a", b"x", qos=1))
    [(mid, _)] = publish_ids(scripted.received(client, quiet_s=0.05))
    scripted.send_packet(0x40, struct.pack("!HB", mid, code))

    assert confirmed(client, 1) == [(token, CODES[code][0])]
    assert client.counters.no_subscribers == 0


@pytest.mark.broker
def test_a_message_for_nobody_is_delivered_and_counted(make_client: MakeClient, broker: Broker) -> None:
    broker.probe("heard/#")
    client = make_client(broker.url)
    drive(client, lambda: client.connected)
    topics = ["heard/a", "unheard/a", "unheard/b", "heard/b"]
    last = client.publish_all([Outgoing(topic, b"x", qos=1) for topic in topics])

    assert sorted(confirmed(client, 4)) == [(token, "") for token in range(last - 3, last + 1)]
    assert client.counters.no_subscribers == 2
