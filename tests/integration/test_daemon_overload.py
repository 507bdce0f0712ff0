"""A pipeline that blocks loses nothing and holds no more than it should, beside one that drops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Broker, until
from bundles import slow_model, write_means_bundle
from daemon import Daemon, account, subscribed, write_config

pytestmark = pytest.mark.broker

MESSAGES, ROOM, PADDING = 120, 20, "x" * 20_000
READ_BYTES = 262_144
DROPPING = """
[pipelines.q]
source = { topic = "in/+machine/v", path = "v", seq_field = "n", max_payload_bytes = 100_000 }
model = "means"
execution = "worker"
queue = { max = 2 }
"""


@pytest.fixture(params=["5", "3.1.1"])
def daemon(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[Daemon]:
    blocking = f'execution = "worker"\nqueue = {{ max = {ROOM}, when_full = "block" }}'
    config = write_config(tmp_path, broker.url, mqtt=f'protocol = "{request.param}"', pipeline=blocking, more=DROPPING)
    write_means_bundle(tmp_path / "means.edge", model=slow_model(length=4, channels=2))
    started = Daemon(config)
    started.wait_connected(2)
    subscribed(broker, tmp_path, filters=2)
    yield started
    started.close()


def test_one_pipeline_holds_the_broker_back_while_another_on_the_same_topic_drops(
    broker: Broker, daemon: Daemon
) -> None:
    results, metrics = broker.probe("edge/v1/n1/p/p/out/#"), broker.probe("edge/v1/n1/metrics")
    source = broker.probe()
    for n in range(MESSAGES):
        source.publish("in/a/v", json.dumps({"n": n, "v": [[1e5, 0]] * 4, "padding": PADDING}).encode())
    found = [json.loads(message.payload) for message in results.wait_for(MESSAGES, timeout_s=30.0)]
    depths = [json.loads(message.payload)["pipelines"]["p"]["queue_depth"] for message in metrics.seen()]
    until(lambda: not metrics.seen(), what="no more metrics are waiting")
    summary = daemon.stop()

    assert [result["seq"] for result in found] == [[n, n] for n in range(MESSAGES)]
    assert max(depths) <= ROOM + READ_BYTES // len(PADDING) + 1
    blocking, dropping = account(summary, "p"), account(summary, "q")
    assert (blocking["received"], blocking["confirmed"], blocking["dropped"]) == (MESSAGES, MESSAGES, {})
    assert dropping["dropped"]["queue_full"] > 0
    assert summary["balanced"]
