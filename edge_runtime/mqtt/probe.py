"""Ask a broker, under a client id of our own, whether it would serve us, and within which limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import Subscription
from edge_runtime.mqtt.wire import Limits

POLL_S = 0.05
STOP_S = 1.0


class Answer(msgspec.Struct, frozen=True):
    """problem: why we could not subscribe, "" when the broker answered. limits: None without a connection.

    refused: filter to the reason. downgraded: filter to the QoS granted instead of the one asked for.
    """

    problem: str
    limits: Limits | None = None
    refused: dict[str, str] = {}
    downgraded: dict[str, int] = {}


def ask(settings: MqttSettings, *, client_id: str, subscriptions: Sequence[Subscription] = ()) -> Answer:
    """Connect and subscribe, once, and leave nothing behind: the session ends with the connection.

    An attempt that fails is not repeated. Raises ConfigError for files that cannot be used.
    """
    ending = msgspec.structs.replace(settings, session_expiry_s=0)
    return _attempt(ending, client_id, subscriptions)


def granted_expiry_s(settings: MqttSettings, *, client_id: str) -> int | None:
    """How long the broker would keep a session of ours, seconds; None when it did not answer.

    It only says so to who asks for it, so a session is opened and then given back by a second connection.
    """
    answer = _attempt(settings, client_id, ())
    _attempt(msgspec.structs.replace(settings, session_expiry_s=0), client_id, ())
    return answer.limits.session_expiry_s if answer.limits else None


def _attempt(
    settings: MqttSettings,
    client_id: str,
    subscriptions: Sequence[Subscription],
    *,
    now_s: Callable[[], float] = time.monotonic,
) -> Answer:
    client = make_client(settings, client_id=client_id, subscriptions=subscriptions)
    deadline_s = now_s() + 3 * settings.connect_timeout_s  # name and TCP, TLS, CONNACK or SUBACK
    client.start()
    ended = client.counters
    while not (client.subscribed or ended.refused or ended.failures or ended.disconnects) and now_s() < deadline_s:
        client.poll(POLL_S)
    waiting = "no answer to SUBSCRIBE" if client.connected else "no answer"
    problem = "" if client.subscribed else client.reason or waiting
    client.stop(STOP_S)
    return Answer(problem, client.limits, dict(client.refused_filters), dict(client.downgraded_filters))
