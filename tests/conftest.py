"""Fixtures shared by all tests: brokers, real and scripted, and clients of them; each test ends what it started."""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, find_mosquitto
from scripted import Scripted

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.client import make_client as new_client
from edge_runtime.mqtt.settings import MqttSettings
from export import families
from export.arm64 import counter
from export.arm64.userland import MissingError, Userland, userland

StartBroker = Callable[..., Broker]


def pytest_configure() -> None:
    """Children are stopped by SIGINT, which what a script starts in its background ignores, and all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that runs inside a test sets up the logging of the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _without_emulators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing runs no emulated processor, which takes seconds, but for tests that ask for `emulators`."""
    if "emulators" not in request.fixturenames:
        monkeypatch.setattr(families, "EMULATORS", {})


@pytest.fixture
def emulators() -> None:
    """Packing measures what a user's packing measures."""


@pytest.fixture
def where() -> Userland:
    """An arm64 userland in which instructions can be counted."""
    if reason := counter.problem():
        pytest.skip(reason)
    try:
        return userland("bookworm", progress=print)
    except MissingError as error:
        pytest.skip(str(error))


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


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A broker for MQTT 5 that says exactly what the test tells it to."""
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def kind() -> str:
    """Who moves the messages of the clients that are made; a test file that wants both parametrizes it."""
    return "auto"


@pytest.fixture
def make_client(kind: str) -> Iterator[Callable[..., MqttClient]]:
    """Makes clients with quick reconnects from a url, started but not polled yet, and stops them."""
    made: list[MqttClient] = []

    def make(url: str, *, settings: dict[str, Any] | None = None, **options: Any) -> MqttClient:
        quick = {"client": kind, "reconnect_min_s": 0.02, "reconnect_max_s": 0.1}
        known = MqttSettings(url=url, **{**quick, **(settings or {})})
        made.append(new_client(known, **{"client_id": "client", **options}))
        made[-1].start()
        return made[-1]

    yield make
    for client in made:
        client.stop(0.5)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """The (event, reason) pairs that the MQTT room has logged so far."""
    caplog.set_level(logging.INFO, logger="edge_runtime.mqtt")
    return lambda: [(record.getMessage(), getattr(record, "reason", "")) for record in caplog.records]
