"""How attempts to connect, and connections, end: why, in words for the operator; counted, and logged when news."""

from __future__ import annotations

import logging

from paho.mqtt import client as paho
from paho.mqtt.client import DisconnectFlags
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.link import Link
from edge_runtime.mqtt.settings import MqttSettings, parse_url
from edge_runtime.mqtt.transport import Counters

log = logging.getLogger(__name__)

RETRY_SOON = {"Unspecified error", "Server unavailable", "Server busy", "Quota exceeded", "Connection rate exceeded"}


class Outcomes:
    """facts: of the connection, for log lines. refusal: what the broker answered CONNECT with, if it was a no."""

    def __init__(self, settings: MqttSettings, client_id: str, counters: Counters) -> None:
        self._endpoint = parse_url(settings.url)
        self.facts = {"host": self._endpoint.host, "port": self._endpoint.port, "client_id": client_id}
        self.refusal = ""
        self._settings, self._counters = settings, counters
        self._farewell = self._reported = ""

    def begin(self) -> None:
        """Another attempt is made."""
        self.refusal = self._farewell = ""

    @property
    def hopeless(self) -> bool:
        """Whether trying again soon is pointless: the broker does not want us."""
        return bool(self.refusal) and self.refusal not in RETRY_SOON

    def why(self, link: Link, *, connected: bool) -> str:
        """Why a link is closed."""
        known = self.refusal or link.problem or self._farewell
        if known:
            return known
        reason = link.errors.text or "connection closed by the broker"
        if connected:
            return reason
        wants = " with a client certificate" if self._endpoint.tls and not self._settings.cert else ""
        return f"{reason} before it answered CONNECT (does it expect MQTT {self._settings.protocol}{wants}?)"

    def connected(self, *, session_present: bool, epoch: int, traffic: str) -> None:
        self._reported = ""
        if self._counters.connects and not session_present:
            self._counters.sessions_lost += 1
        self._counters.connects += 1
        facts = {"epoch": epoch, "session_present": session_present, "traffic": traffic}
        log.info("mqtt_connected", extra={**self.facts, **facts})

    def ended(self, reason: str, *, connected: bool) -> None:
        """One line when the state changes; further failed attempts are counted, not logged."""
        if connected:
            self._counters.disconnects += 1
            event = "mqtt_lost"
        elif self.refusal:
            self._counters.refused += 1
            event = "mqtt_refused"
        else:
            self._counters.failures += 1
            event = "mqtt_unreachable"
        news = reason if event == "mqtt_refused" else "down"
        if news != self._reported:
            self._reported = news
            log.warning(event, extra={**self.facts, "reason": reason})

    def on_disconnect(
        self, _client: paho.Client, _user: object, flags: DisconnectFlags, code: ReasonCode, _found: object
    ) -> None:
        """Called back by paho, perhaps twice for one connection; only notes what is known about the reason."""
        self._farewell = self._farewell or wire.farewell(flags, code, self._settings.keepalive_s)
