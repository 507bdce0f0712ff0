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
CLOSED_IN_A_ROW = 3


class Outcomes:
    """facts: of the connection, for log lines. refusal: what the broker answered CONNECT with, if it was a no.

    problem: what other than the line or the broker ends connections, for the operator; "" once one has lasted.
    lost_at: as transport.Client has it.
    """

    def __init__(
        self, settings: MqttSettings, client_id: str, counters: Counters, *, had_session: bool, keeps_session: bool
    ) -> None:
        """had_session, keeps_session: as make_client has them."""
        self._endpoint = parse_url(settings.url)
        self.facts = {"host": self._endpoint.host, "port": self._endpoint.port, "client_id": client_id}
        self.refusal = self.problem = ""
        self._settings, self._counters = settings, counters
        self._had_session, self._keeps_session = had_session, keeps_session
        self._farewell = self._reported = ""
        self._said = self._closed = self.lost_at = 0
        self._unexplained = False
        self._named_by = "mqtt.client_id" if settings.client_id else "node.id"

    def begin(self) -> None:
        """Another attempt is made."""
        self.refusal = self._farewell = ""
        self._said, self._unexplained = 0, False

    @property
    def hopeless(self) -> bool:
        """Whether trying again soon is pointless: the broker does not want us."""
        return bool(self.refusal) and self.refusal not in RETRY_SOON

    @property
    def too_large(self) -> bool:
        """Whether the broker ended the connection because of a packet's size."""
        return self._said == wire.TOO_LARGE_CODE

    def why(self, link: Link, *, connected: bool) -> str:
        """Why a link is closed."""
        known = self.refusal or link.problem or self._farewell
        if known:
            return known
        reason = link.errors.text or "connection closed by the broker"
        if connected:
            self._unexplained = True
            return reason
        wants = " with a client certificate" if self._endpoint.tls and not self._settings.cert else ""
        return f"{reason} before it answered CONNECT (does it expect MQTT {self._settings.protocol}{wants}?)"

    def connected(self, *, session_present: bool, epoch: int, traffic: str) -> None:
        self._reported = ""
        facts = {"epoch": epoch, "session_present": session_present, "traffic": traffic}
        log.info("mqtt_connected", extra={**self.facts, **facts})
        if self._had_session and not session_present:
            self._counters.sessions_lost += 1
            self.lost_at = epoch
            log.warning("mqtt_session_lost", extra={**self.facts, "first_connect": not self._counters.connects})
        self._had_session = self._keeps_session
        self._counters.connects += 1

    def ended(self, reason: str, *, connected: bool, lasted: bool, wait_s: float) -> None:
        """One line when the state changes; further failed attempts are counted, not logged.

        lasted: the connection had. wait_s: until the next attempt.
        """
        self._judge(lasted=lasted)
        if connected:
            self._counters.disconnects += 1
            event = "mqtt_session_taken_over" if self._said == wire.TAKEN_OVER else "mqtt_lost"
        elif self.refusal:
            self._counters.refused += 1
            event = "mqtt_refused"
        else:
            self._counters.failures += 1
            event = "mqtt_unreachable"
        news = reason if event == "mqtt_refused" else "down"
        if news != self._reported:
            self._reported = news
            log.warning(event, extra={**self.facts, "reason": reason, "wait_s": round(wait_s, 3)})

    def _judge(self, *, lasted: bool) -> None:
        """Whether another client has our client id: MQTT 5 says so, MQTT 3.1.1 only closes the connection."""
        if lasted:
            self.problem, self._closed = "", 0
        self._closed = self._closed + 1 if self._unexplained else 0
        rival, remedy = f"another client uses the client id {self.facts['client_id']!r}", "give each node its own"
        if self._said == wire.TAKEN_OVER:
            self._counters.taken_over += 1
            self.problem = f"{rival}; {remedy} {self._named_by}"
        elif self._closed >= CLOSED_IN_A_ROW and not self.problem:
            self.problem = (
                f"the broker closed {self._closed} connections in a row: perhaps {rival} ({remedy} {self._named_by}), "
                "or a message is larger than it takes (mqtt.maximum_packet_bytes)"
            )

    def on_disconnect(
        self, _client: paho.Client, _user: object, flags: DisconnectFlags, code: ReasonCode, _found: object
    ) -> None:
        """Called back by paho, perhaps twice for one connection; only notes what is known about the reason."""
        if flags.is_disconnect_packet_from_server:
            self._said = self._said or code.value
        self._farewell = self._farewell or wire.farewell(flags, code, self._settings.keepalive_s)
