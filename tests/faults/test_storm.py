"""Ten times more than the model can take: the policy decides what gives way, and memory is bounded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broker import Broker, until
from scene import MACHINES, SLOW_ROUNDS
from trial import LONG, Trial

from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings

pytestmark = pytest.mark.broker

TIMES = 10
STORM_S = 20.0 if LONG else 2.0
QUEUE = 64
MOST_GROWTH_MB = 25.0
STREAMS = len(MACHINES)


def capacity(bundle: Path) -> float:
    """Windows a second of the slow model."""
    session = Session(read(bundle), SessionSettings())
    window = np.full((1, 4, 2), SLOW_ROUNDS, np.float32)
    took_s = []
    for _ in range(20):
        begun_s = time.perf_counter()
        session.predict(window)
        took_s.append(time.perf_counter() - begun_s)
    return 1 / min(took_s)


@pytest.mark.parametrize("policy", ["drop_oldest", "latest_only", "block"])
def test_a_storm_of_ten_times_the_capacity_is_met_as_the_policy_says_in_bounded_memory(
    keeping_broker: Broker, make_trial: Callable[..., Trial], policy: str
) -> None:
    queue = f'queue = {{ max = {QUEUE}, when_full = "{policy}" }}'
    trial = make_trial(keeping_broker, count=20, rate=100, kinds=("burst",), pipeline=queue)
    rate = TIMES * capacity(trial.config.parent / "slow.edge")
    storm = trial.storm(count=STREAMS * int(rate * STORM_S / STREAMS), rate=rate)
    trial.node.start()
    trial.wait_subscribed()
    storm.start()
    until(lambda: trial.sink.results() > 20, what="results")
    rss_mb = [trial.node.rss_mb]
    while not storm.done:
        time.sleep(0.1)
        rss_mb.append(trial.node.rss_mb)
    if policy != "block":
        last = dict.fromkeys(MACHINES, storm.sent // STREAMS - 1)
        until(lambda: {one["stream"]: one["seq"][0] for one in results(trial)} == last, what="the newest results")
    summary = trial.node.stop()
    trial.sink.catch_up()

    assert max(rss_mb) - rss_mb[0] < MOST_GROWTH_MB
    assert_accounted_for(trial, storm.sent, summary, policy)


def results(trial: Trial) -> list[dict[str, Any]]:
    return [json.loads(one.payload) for one in list(trial.sink.arrivals) if "/out/" in one.topic]


def assert_accounted_for(trial: Trial, sent: int, summary: dict[str, Any], policy: str) -> None:
    """Every message that came is in one of the ledger's drawers, and the results say so, too."""
    (account,) = [one for one in summary["ledger"]["pipelines"] if one["pipeline"] == "storm"]
    told = results(trial)
    dropped = account["dropped"].get("queue_full", 0)

    assert summary["balanced"]
    assert account["received"] == account["accepted"] + sum(account["dropped"].values()) + account["queued"]
    assert account["accepted"] == account["results"] == account["confirmed"] == len(told)
    assert len({one["id"] for one in told}) == len(told)
    for machine in MACHINES:
        numbers = [one["seq"][0] for one in told if one["stream"] == machine]
        assert numbers == sorted(numbers)
    if policy == "block":
        assert dropped == 0
        assert account["received"] < sent
    else:
        assert account["received"] == sent
        assert dropped > sent / 2
