"""What the client, which keeps the connection, asks of whoever moves the messages over it, and who that is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from paho.mqtt import client as paho

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.callbacks import CallbackTraffic
from edge_runtime.mqtt.lane import LaneTraffic
from edge_runtime.mqtt.lane_socket import hook_problem
from edge_runtime.mqtt.link import Link, Writer
from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.mqtt.settings import MqttSettings, parse_url
from edge_runtime.mqtt.transport import Counters, Kind
from edge_runtime.mqtt.wire import Limits, read_account
from edge_runtime.records import Message, Outgoing

log = logging.getLogger(__name__)


class Traffic(Writer, Protocol):
    """Messages and acknowledgements over one link: by paho's callbacks, or past paho.

    The client says what happens to the link, and calls nothing but new_paho while it is not open.
    more: as in transport.Client.
    """

    kind: Kind
    more: bool

    def new_paho(self) -> paho.Client:
        """For the next attempt to connect."""

    def opened(self, epoch: int) -> None:
        """The link is open; CONNECT is the first that is written."""

    def accepted(self, limits: Limits, *, session_present: bool) -> None:
        """The broker has accepted us; called from inside paho's on_connect."""

    def lost(self) -> None:
        """The link is closed."""

    def read(self, now_ns: int) -> list[Message]:
        """Take what the socket holds, MAX_MESSAGES at a time, and let paho handle what is paho's."""

    def rest(self) -> list[Message]:
        """What was read and not handed out yet; asked for when the link is closed."""

    def keep_alive(self) -> None:
        """Let paho ping the broker, and find out that it is gone."""

    def acknowledge(self, mids: Sequence[int]) -> None: ...

    def publish(self, message: Outgoing) -> int:
        """Hand the message over, or queue it where there is no room for it now; its token."""

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        """The same with several, in order; the last one's token."""

    def pump(self) -> None:
        """Hand over what waits, as far as there is room."""

    def flush(self) -> None:
        """As in transport.Client."""


def make_traffic(
    settings: MqttSettings,
    client_id: str,
    *,
    link: Link,
    queue: SendQueue,
    counters: Counters,
    now_ns: Callable[[], int],
) -> Traffic:
    """As the settings' client says. Raises ConfigError for files that cannot be used, or a lane that cannot."""
    account = read_account(settings, client_id)
    if _kind(settings) == "lane":
        return LaneTraffic(settings, account, link=link, queue=queue, counters=counters)
    return CallbackTraffic(settings, account, link=link, queue=queue, counters=counters, now_ns=now_ns)


def _kind(settings: MqttSettings) -> Kind:
    """Who moves the messages. Raises ConfigError when the settings ask for the lane and paho does not allow it."""
    if settings.client == "callbacks":
        return "callbacks"
    problem = _lane_problem(websockets=bool(parse_url(settings.url).path))
    if problem and settings.client == "lane":
        raise ConfigError("mqtt", "client", f"the lane cannot be used: {problem}")
    return "callbacks" if problem else "lane"


@lru_cache
def _lane_problem(*, websockets: bool) -> str:
    """Why the lane cannot be used, or ""; found out, and said, once a process."""
    problem = "it does not work over websockets" if websockets else hook_problem()
    if problem:
        log.warning("mqtt_lane_unavailable", extra={"reason": problem})
    return problem
