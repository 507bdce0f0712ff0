"""A daemon that was away for a moment, and finds in one read what the broker has sent meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker import Broker, Probe
from daemon import Daemon, account, payload, subscribed, write_config

pytestmark = pytest.mark.broker

WINDOWS = 1_000
WAITING = 128


@pytest.fixture(params=["lane", "callbacks"])
def daemon(request: pytest.FixtureRequest, broker: Broker, tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(
        write_config(
            tmp_path, broker.url, mqtt=f'client = "{request.param}"', pipeline=f"queue = {{ max = {WAITING} }}"
        )
    )
    made.wait_connected()
    subscribed(broker, tmp_path)
    yield made
    made.close()


def received(probe: Probe, count: int) -> None:
    assert len(probe.wait_for(count)) == count


def test_many_more_messages_than_may_wait_are_all_served_when_they_come_in_one_read(
    daemon: Daemon, broker: Broker
) -> None:
    """Each of them waits in the socket, not in the queue, until there is room for it."""
    echo, out = broker.probe("in/+/v"), broker.probe("edge/v1/n1/p/p/out/#")
    daemon.process.send_signal(signal.SIGSTOP)
    for n in range(WINDOWS):
        echo.publish("in/a/v", payload(n, [[1, 0]] * 4), qos=0)
    received(echo, WINDOWS)
    daemon.process.send_signal(signal.SIGCONT)
    received(out, WINDOWS)

    summary = daemon.stop()
    assert (account(summary)["received"], account(summary)["dropped"]) == (WINDOWS, {})
    assert (account(summary)["confirmed"], summary["balanced"]) == (WINDOWS, True)
