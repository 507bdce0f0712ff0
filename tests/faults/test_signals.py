"""Stopped, continued, and asked to end, in the middle of work."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from broker import Broker, until
from trial import Trial

pytestmark = pytest.mark.broker

STOP_S = 5.0
KEEPALIVE_S = 1


def test_a_process_that_was_stopped_for_longer_than_its_keepalive_goes_on_where_it_was(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=330, rate=100, mqtt=f"keepalive_s = {KEEPALIVE_S}")
    trial.begin()
    trial.live(0.3)
    trial.node.process.send_signal(signal.SIGSTOP)
    trial.live(2 * KEEPALIVE_S)
    trial.node.process.send_signal(signal.SIGCONT)
    verdict = trial.finish()

    assert verdict.problems == []
    assert trial.node.lives == 1


def test_sigterm_under_load_ends_within_five_seconds_and_loses_and_repeats_nothing(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=1800, rate=900, window=20)
    trial.begin()
    for n in (1, 2):
        until(lambda n=n: trial.sink.results() > n * 400, what="results")
        summary = trial.node.stop()
        assert trial.node.stops_s[-1] <= STOP_S
        assert summary["drained"]
        assert summary["balanced"]
        trial.node.start()
    verdict = trial.finish()

    assert verdict.problems == []
    assert (verdict.duplicates, verdict.inversions) == (0, 0)
