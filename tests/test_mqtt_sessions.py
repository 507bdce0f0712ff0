"""The sessions of earlier runs: ended where no connection has them any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from broker import Broker, hold_port, until
from driving import drive

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.sessions import KnownSessions
from edge_runtime.mqtt.settings import MqttSettings

MakeClient = Callable[..., MqttClient]
Events = Callable[[], list[tuple[str, str]]]

IN = ("in/#",)


def known(url: str, before: dict[str, tuple[str, ...]], **settings: str) -> KnownSessions:
    """A run whose only connection wants "new", under "n@url"."""
    sessions = KnownSessions(MqttSettings(url=url, **settings), "n", before)
    assert sessions.want("n", [("new", 1)]) == f"n@{url}"
    return sessions


def test_what_the_run_before_asked_for_and_this_one_does_not_is_stale() -> None:
    sessions = known("mqtt://b", {"n@mqtt://b": ("old", "new", "older")})

    assert sessions.stale("n@mqtt://b") == ["old", "older"]
    assert sessions.note([]) == {"n@mqtt://b": ("old", "new", "older")}
    assert sessions.note(["n@mqtt://b"]) == {"n@mqtt://b": ("new",)}


def test_a_session_nobody_had_is_not_known_before_it_is_subscribed() -> None:
    sessions = known("mqtt://b", {})

    assert "n@mqtt://b" not in sessions
    assert (sessions.stale("n@mqtt://b"), sessions.note([])) == ([], {})
    assert sessions.note(["n@mqtt://b"]) == {"n@mqtt://b": ("new",)}


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_no_connection_has_any_more_is_ended_and_forgotten(
    make_client: MakeClient, broker: Broker, events: Events, protocol: str
) -> None:
    url, options = broker.url, {"settings": {"protocol": protocol}, "client_id": "n-block-p"}
    left = make_client(url, subscriptions=[("in/#", 1)], **options)
    drive(left, lambda: left.subscribed)
    left.stop(1.0)
    broker.probe().publish("in/a", b"for nobody")
    elsewhere = {"n-block-p@mqtt://elsewhere": IN}
    sessions = known(url, {f"n@{url}": IN, f"n-block-p@{url}": IN, **elsewhere}, protocol=protocol)

    assert set(sessions.note([])) == {f"n@{url}", f"n-block-p@{url}", *elsewhere}
    until(lambda: sessions.note([f"n@{url}"]) == {f"n@{url}": ("new",), **elsewhere}, what="it is forgotten")
    assert ("mqtt_session_ended", "") in events()
    again = make_client(url, had_session=True, **options)
    drive(again, lambda: again.subscribed)
    assert again.counters.sessions_lost == 1


def test_a_session_that_cannot_be_ended_is_told_once_and_left_to_the_next_start(events: Events) -> None:
    with hold_port() as holder:
        url = f"mqtt://127.0.0.1:{holder.getsockname()[1]}"
        before = {f"n@{url}": IN, f"n-2@{url}": IN}
        sessions = known(url, before)
        sessions.note([f"n@{url}"])
        until(lambda: bool(said(events)), what="it is told")
        kept = sessions.note([f"n@{url}"])

    assert kept == {f"n@{url}": ("new",), f"n-2@{url}": IN}
    assert said(events) == ["Connection refused"]


def test_a_password_file_that_is_gone_is_a_reason_too(events: Events, tmp_path: Path) -> None:
    url = "mqtt://127.0.0.1:1"
    gone = str(tmp_path / "gone")
    sessions = known(url, {f"n@{url}": IN, f"n-2@{url}": IN}, username="n", password_file=gone)
    sessions.note([f"n@{url}"])
    until(lambda: bool(said(events)), what="it is told")

    assert gone in said(events)[0]


def said(events: Events) -> list[str]:
    return [reason for event, reason in events() if event == "mqtt_session_left_behind"]


@pytest.mark.broker
def test_the_session_of_the_device_this_one_was_copied_from_is_left_alone(
    make_client: MakeClient, broker: Broker, events: Events
) -> None:
    url = broker.url
    original = make_client(url, client_id="n-2")
    drive(original, lambda: original.subscribed)
    sessions = known(url, {f"n-2@{url}": IN})

    assert sessions.note([f"n@{url}"]) == {f"n@{url}": ("new",)}
    assert known(url, sessions.note([])).note([f"n@{url}"]) == {f"n@{url}": ("new",)}
    original.poll(0.1)
    assert original.connected
    assert "mqtt_session_ended" not in [event for event, _ in events()]
