"""The network between the node and the broker, spoilt by a proxy of our own; the producers' and the sink's is not."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from broker import Broker, until
from proxy import Proxy
from trial import LONG, Trial

pytestmark = pytest.mark.broker

KEEPALIVE_S = 1
BACK_OFF_S = 0.5
CONNECT_TIMEOUT_S = 1.0
SLACK_S = 0.5
QUICK = f"keepalive_s = {KEEPALIVE_S}\nconnect_timeout_s = {CONNECT_TIMEOUT_S}"
LASTS_S = 5.0 if LONG else 0.4


def slow(proxy: Proxy) -> None:
    proxy.latency_s, proxy.jitter_s = 0.02, 0.03


def drip(proxy: Proxy) -> None:
    proxy.drip_bytes = 7


def flap(proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.cut()


FAULTS: tuple[Callable[[Proxy], None], ...] = (slow, drip, Proxy.cut, Proxy.reset, Proxy.half_close, flap, Proxy.stall)


def test_nothing_is_lost_on_a_line_that_delays_drips_breaks_and_stalls(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=560, rate=140, through_proxy=True, mqtt=QUICK)
    faults = list(FAULTS)
    trial.random.shuffle(faults)
    trial.begin()
    trial.live(0.3)
    for fault in faults:
        fault(trial.proxy)
        trial.live(LASTS_S)
        trial.proxy.heal()
        trial.live(0.1)
    verdict = trial.finish()

    assert verdict.problems == []
    assert trial.proxy.connections >= 4


@pytest.mark.parametrize("ways", ["both", "up", "down"] if LONG else ["both"])
def test_after_a_silent_partition_it_delivers_within_two_keepalives_and_the_back_off(
    keeping_broker: Broker, make_trial: Callable[..., Trial], ways: str
) -> None:
    trial = make_trial(keeping_broker, count=330, rate=100, through_proxy=True, mqtt=QUICK)
    trial.begin()
    trial.live(0.5)
    trial.proxy.up, trial.proxy.down = ways == "down", ways == "up"
    begun_s = time.monotonic()
    until(lambda: bool(trial.node.events("mqtt_lost")), what="the partition is noticed")
    noticed_s = time.monotonic() - begun_s
    trial.proxy.heal()
    recovery_s = trial.results_after(time.monotonic())
    verdict = trial.finish()

    assert verdict.problems == []
    assert recovery_s <= 2 * KEEPALIVE_S + BACK_OFF_S + SLACK_S
    if ways != "up":  # while we hear the broker, it is the broker who has to notice, and mosquitto takes its time
        assert noticed_s <= 2 * KEEPALIVE_S + SLACK_S
