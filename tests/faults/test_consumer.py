"""Others on the broker: one that never reads, one that takes our name, and a broker that lets us send one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from broker import Broker, until
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from scene import ROOT
from trial import PERSISTENT, Trial

pytestmark = pytest.mark.broker

FIGHT_S = 2.0
MOST_CONNECTS = 10
"""Of a back-off that starts at 0.05 s; at that pace there would be 20 of them in FIGHT_S."""


@contextmanager
def client_on(broker: Broker, client_id: str) -> Iterator[paho.Client]:
    """A client with a session, which acknowledges nothing; its loop is the caller's."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5, manual_ack=True)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", broker.port, clean_start=False, properties=properties)
    try:
        yield client
    finally:
        client.disconnect()


def test_a_consumer_that_never_reads_holds_up_nobody(keeping_broker: Broker, make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(keeping_broker, count=300, rate=300)
    with client_on(keeping_broker, f"deaf-{trial.name}") as deaf:
        deaf.subscribe(f"{ROOT}/{trial.name}/#", 1)
        deaf.loop(0.1)
        trial.begin()
        verdict = trial.finish()

    assert verdict.problems == []


def test_a_broker_that_takes_one_message_at_a_time_gets_them_all(
    start_broker: Callable[..., Broker], make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(start_broker(lines=(PERSISTENT[-1], "max_inflight_messages 1")), count=240, rate=300)
    trial.begin()
    trial.live(0.5)
    trial.node.kill()
    trial.node.start()
    verdict = trial.finish()

    assert verdict.problems == []


def test_a_second_client_of_our_name_is_met_with_growing_pauses_and_an_alarm_and_costs_nothing(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=300, rate=100, reconnect_max_s=3.0)
    trial.begin()
    trial.live(0.3)
    with client_on(keeping_broker, f"edge-runtime-{trial.name}") as rival:
        rival.reconnect_delay_set(0.05, 0.2)
        rival.loop_start()
        begun_s = time.monotonic()
        until(lambda: time.monotonic() - begun_s > FIGHT_S, what="the end of the fight")
        rival.loop_stop()
    verdict = trial.finish()

    assert verdict.problems == []
    assert 1 < len(trial.node.events("mqtt_connected")) <= MOST_CONNECTS
    assert "degraded" in [one["state"] for one in trial.node.events("state_changed")]
