"""The broker ends, the soft and the hard way, and comes back on the same port with what it had saved."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from broker import Broker, until
from scene import NUMBERED_KINDS
from trial import AUTOSAVE_S, Trial

pytestmark = pytest.mark.broker

AWAY_S = 0.5
RECOVERY_S = 2.0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_broker_that_comes_back_finds_nothing_lost_and_is_served_within_two_seconds(
    keeping_broker: Broker, make_trial: Callable[..., Trial], how: str
) -> None:
    """Only numbered streams: the producers, too, send again what the broker has not confirmed."""
    trial = make_trial(keeping_broker, count=400, rate=150, kinds=NUMBERED_KINDS)
    trial.begin()
    trial.live(AUTOSAVE_S + 0.7)  # the sessions are saved by now: what is not, no client can hold against it
    getattr(keeping_broker, how)()
    trial.live(AWAY_S)
    keeping_broker.start()
    recovery_s = trial.results_after(time.monotonic())
    verdict = trial.finish()

    assert verdict.problems == []
    assert recovery_s <= RECOVERY_S


def test_results_wait_for_a_broker_that_stays_away_over_the_end_of_the_process(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    """What was taken in before the broker's end is worked off, kept, and delivered by the next life."""
    trial = make_trial(keeping_broker, count=400, rate=1000, kinds=("chunk",), pipeline='execution = "worker"')
    trial.begin()
    until(lambda: trial.sink.results() > 100, what="results")
    trial.sender.pause()
    until(lambda: trial.sender.idle, what="the producers have nothing unconfirmed")
    keeping_broker.stop()
    trial.live(0.2)
    trial.node.kill()
    trial.node.start()
    trial.live(0.3)
    keeping_broker.start()
    trial.sender.resume()
    verdict = trial.finish()

    assert verdict.problems == []
