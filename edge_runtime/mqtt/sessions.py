"""The sessions that brokers hold for this node, over its restarts: which filters are stale, which sessions are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.probe import ask
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import Subscription

log = logging.getLogger(__name__)


class KnownSessions:
    """Sessions by name, "client id@url", each with the filters the broker has been asked for.

    A session that no connection of this run has would be filled until it expires, so it is ended, on the same broker,
    by a connection of its own on a thread of its own. One that could not be ended is left to the next start.
    """

    def __init__(self, settings: MqttSettings, client_id: str, known: Mapping[str, tuple[str, ...]]) -> None:
        """client_id: of the first connection. known: what `note` last gave to the run before."""
        self._settings, self._known = settings, dict(known)
        self._first = self._name(client_id)
        self._same_node = self._first in known
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._ended: list[str] = []
        self._begun = False

    def want(self, client_id: str, subscriptions: Iterable[Subscription]) -> str:
        """A connection of this run; the name of its session."""
        name = self._name(client_id)
        self._wanted[name] = tuple(topic_filter for topic_filter, _ in subscriptions)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def stale(self, name: str) -> list[str]:
        """Filters of a wanted session that the run before has asked for, and this one does not want."""
        return [topic_filter for topic_filter in self._known.get(name, ()) if topic_filter not in self._wanted[name]]

    def note(self, subscribed: Collection[str]) -> dict[str, tuple[str, ...]]:
        """What to remember for the next run. subscribed: names whose (un)subscriptions the broker has answered."""
        self._known |= {name: self._wanted[name] for name in subscribed}
        if self._first in subscribed and not self._begun:
            self._begun = True
            self._end_the_rest()
        for name in self._ended.copy():
            self._known.pop(name, None)
        return self._known.copy()

    def _end_the_rest(self) -> None:
        rest = [name for name in self._known.keys() - self._wanted.keys() if name.endswith(self._name(""))]
        if not self._same_node:
            # Of a node.id before; perhaps this is a copy of a device that runs on under it.
            self._ended += rest
        elif rest:
            threading.Thread(target=self._end, args=(sorted(rest),), name="mqtt-sessions", daemon=True).start()

    def _end(self, names: list[str]) -> None:
        for name in names:
            client_id = name.removesuffix(self._name(""))
            try:
                problem = ask(self._settings, client_id=client_id).problem
            except ConfigError as error:
                problem = str(error)
            if problem:
                log.warning("mqtt_session_left_behind", extra={"client_id": client_id, "reason": problem})
            else:
                log.info("mqtt_session_ended", extra={"client_id": client_id})
                self._ended.append(name)

    def _name(self, client_id: str) -> str:
        return f"{client_id}@{self._settings.url}"
