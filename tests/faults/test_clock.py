"""The wall clock jumps by years; nothing depends on it but times that are published."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from broker import Broker, until
from trial import Trial

pytestmark = pytest.mark.broker


def test_nothing_is_lost_when_the_wall_clock_jumps_by_a_year_either_way(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    """Forward, a kill, so that the next life begins a year before the last one ended; then back by two years."""
    trial = make_trial(keeping_broker, count=300, rate=150)
    trial.begin("clock")
    trial.live(0.3)
    for life, jumps in enumerate(((signal.SIGUSR1,), (signal.SIGUSR2, signal.SIGUSR2))):
        for n, jump in enumerate(jumps, 1):
            trial.node.process.send_signal(jump)
            until(lambda n=n: len(trial.node.events("clock_shifted")) == n, what="the clock was shifted")
        trial.live(0.3)
        if life == 0:
            trial.node.kill()
            trial.node.start("clock")
            trial.node.wait_connected()
    verdict = trial.finish()

    assert verdict.problems == []
