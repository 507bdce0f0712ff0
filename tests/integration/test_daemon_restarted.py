"""What a user sees of a daemon that was ended and started again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, until
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
        first.process.wait(60)
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


def restart(
    broker: Broker, folder: Path, lives: list[Daemon], *, topic: str = "in/+machine/v", queue: str = ""
) -> Daemon:
    """Run with this source and queue instead; the broker has answered one subscription each time."""
    if lives:
        lives[-1].stop()
    config = write_config(folder, broker.url, pipeline=queue)
    config.write_text(config.read_text().replace("in/+machine/v", topic))
    lives.append(Daemon(config))
    lives[-1].wait_connected()
    subscribed(broker, folder, filters=len(lives))
    return lives[-1]


def unsubscribed(broker: Broker, times: int) -> None:
    until(lambda: broker.log.count("Sending UNSUBACK to edge-runtime-n1") == times, what="UNSUBACK")


def pipelines(summary: dict[str, Any]) -> set[str]:
    """Of the ledger: "-" has what no pipeline wanted."""
    return {found["pipeline"] for found in summary["ledger"]["pipelines"]}


def test_nothing_comes_from_the_topic_that_was_configured_before(
    broker: Broker, tmp_path: Path, lives: list[Daemon]
) -> None:
    restart(broker, tmp_path, lives)
    send(broker, 0, 1)
    restart(broker, tmp_path, lives, topic="in2/+machine/v")
    unsubscribed(broker, 1)
    probe = broker.probe("edge/v1/n1/p/p/out/#")
    for topic in ("in/a/v", "in2/a/v"):
        probe.publish(topic, payload(1, ROWS))
    probe.wait_for(1)
    summary = lives[-1].stop()

    assert pipelines(summary) == {"p"}
    assert account(summary)["received"] == 2


def test_no_message_comes_twice_when_a_pipeline_gets_a_connection_of_its_own_and_loses_it_again(
    broker: Broker, tmp_path: Path, lives: list[Daemon]
) -> None:
    restart(broker, tmp_path, lives)
    send(broker, 0, 3)
    restart(broker, tmp_path, lives, queue='queue = { when_full = "block", max = 10 }')
    unsubscribed(broker, 1)
    send(broker, 3, 3)
    restart(broker, tmp_path, lives)
    until(lambda: bool(lives[-1].events("mqtt_session_ended")), what="the session is ended")
    send(broker, 6, 3)
    summary = lives[-1].stop()

    assert pipelines(summary) == {"p"}
    assert account(summary)["received"] == account(summary)["results"] == 9
    assert not lives[-1].events("mqtt_session_lost")
