from __future__ import annotations

from collections.abc import Callable

import pytest
from broker import Broker
from subject import POINTS
from trial import LONG, Trial

pytestmark = pytest.mark.broker

KILLS = 60 if LONG else 20
MAX_INFLIGHT = 100


def test_nothing_is_lost_and_nothing_changed_by_kills_at_random_moments(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=40 * KILLS, rate=60)
    trial.begin()
    for _ in range(KILLS):
        trial.kill_and_restart()
    verdict = trial.finish()

    assert verdict.problems == []
    assert trial.node.kills == KILLS
    assert verdict.duplicates <= KILLS * MAX_INFLIGHT


def test_nothing_is_lost_by_kills_at_every_named_point(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=1200, rate=180)
    points = list(POINTS)
    trial.random.shuffle(points)
    trial.begin(f"{points[0]}:{trial.random.randint(1, 30)}")
    for following in (*points[1:], ""):
        trial.node.await_death()
        trial.node.start(*([f"{following}:{trial.random.randint(1, 30)}"] if following else []))
    verdict = trial.finish()

    assert verdict.problems == []
    assert trial.node.kills == len(POINTS)
