"""What a user sees of a daemon that was ended and started again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Broker
from daemon import Daemon, account, payload, subscribed, write_config

pytestmark = pytest.mark.broker

ROWS = [[0, 1]] * 4


@pytest.fixture
def lives(broker: Broker, tmp_path: Path) -> Iterator[list[Daemon]]:
    """The last one runs; append another to start it after that."""
    made: list[Daemon] = []
    yield made
    for daemon in made:
        daemon.close()


def start(broker: Broker, folder: Path, lives: list[Daemon], *, delivery: str) -> Daemon:
    lives.append(Daemon(write_config(folder, broker.url, pipeline=f'delivery = "{delivery}"')))
    lives[-1].wait_connected()
    subscribed(broker, folder)
    return lives[-1]


def send(broker: Broker, first: int, count: int) -> None:
    """Messages, and wait until every result is out."""
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    for n in range(first, first + count):
        probe.publish("in/a/v", payload(n, ROWS))
    probe.wait_for(count)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_the_ledger_goes_on_and_the_rates_do_not(
    broker: Broker, tmp_path: Path, lives: list[Daemon], killed: bool
) -> None:
    first = start(broker, tmp_path, lives, delivery="normal")
    send(broker, 0, 40)
    if killed:
        first.process.kill()
        first.process.wait(10)
    else:
        assert not first.stop()["continued"]
    metrics = broker.probe("edge/v1/n1/metrics")
    second = start(broker, tmp_path, lives, delivery="normal")
    send(broker, 40, 2)
    documents = [json.loads(message.payload) for message in metrics.wait_for(2) if not message.retain]
    summary = second.stop()

    rates = [document["pipelines"]["p"]["messages_per_s"] * document["interval_s"] for document in documents]
    assert sum(rates) < 3
    assert summary["continued"]
    assert account(summary)["received"] == account(summary)["accepted"] == account(summary)["results"] == 42
    assert summary["latency"]["p"]["infer"]["count"] == 2
    assert (summary["store"]["kept"], summary["store"]["problem"]) == (0, "")


def test_with_delivery_in_memory_everything_is_of_this_run(broker: Broker, tmp_path: Path, lives: list[Daemon]) -> None:
    start(broker, tmp_path, lives, delivery="memory").stop()
    start(broker, tmp_path, lives, delivery="memory")
    send(broker, 0, 3)
    summary = lives[-1].stop()

    assert (summary["continued"], summary["store"], account(summary)["received"]) == (False, None, 3)
    assert not (tmp_path / "state" / "store.db").exists()
