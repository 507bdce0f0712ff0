"""Fixtures shared by all tests: a real broker, started and ended by the test that asks for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, find_mosquitto

StartBroker = Callable[..., Broker]


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[StartBroker]:
    """Makes brokers (broker.Broker says with which options) that the test starts itself; ends those it started."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    made: list[Broker] = []
    numbers = itertools.count(1)

    def make(**options: Any) -> Broker:
        broker = Broker(tmp_path / f"broker{next(numbers)}", **options)
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.close()


@pytest.fixture
def start_broker(new_broker: StartBroker) -> StartBroker:
    """Starts brokers with the options of broker.Broker."""

    def start(**options: Any) -> Broker:
        broker = new_broker(**options)
        broker.start()
        return broker

    return start


@pytest.fixture
def broker(start_broker: StartBroker) -> Broker:
    """One plain broker: anonymous, no TLS, TCP_NODELAY."""
    return start_broker()
