"""The suite's own proof: it is quiet where nothing was disturbed, and finds what the `memory` tier loses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from broker import Broker
from trial import Trial

pytestmark = pytest.mark.broker


def test_an_undisturbed_run_is_found_equal_to_what_was_worked_out_beforehand(
    keeping_broker: Broker, make_trial: Callable[..., Trial]
) -> None:
    trial = make_trial(keeping_broker, count=360, rate=600, delivery="memory")
    trial.begin()
    verdict = trial.finish()

    assert verdict.problems == []
    assert (verdict.duplicates, verdict.inversions) == (0, 0)
    assert verdict.delivered == verdict.expected > 200


def test_what_the_memory_tier_loses_to_kills_is_found(keeping_broker: Broker, make_trial: Callable[..., Trial]) -> None:
    trial = make_trial(keeping_broker, count=300, rate=200, delivery="memory")
    trial.begin("after_ack:30")
    trial.node.await_death()
    trial.node.start("before_publish:30")
    trial.node.await_death()
    trial.node.start()
    verdict = trial.finish()

    assert len(verdict.lost) >= 2
    assert any("accepted" in sentence for sentence in verdict.ledger)
