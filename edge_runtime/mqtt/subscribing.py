"""What the broker was asked to send us on this connection, and what it answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import Subscription
from edge_runtime.mqtt.transport import Counters

log = logging.getLogger(__name__)


class Subscribing:
    """One SUBSCRIBE a connection, behind one UNSUBSCRIBE until that has been answered.

    refused: filter to the reason; downgraded: filter to the QoS granted instead.
    """

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        settings: MqttSettings,
        counters: Counters,
        *,
        stale: Sequence[str],
        retained: bool,
    ) -> None:
        """stale, retained: as make_client has them. Raises ValueError for a subscription at QoS 2."""
        if any(qos not in (0, 1) for _, qos in subscriptions):
            raise ValueError("subscriptions are made at QoS 0 or 1")
        self.refused: dict[str, str] = {}
        self.downgraded: dict[str, int] = {}
        self._wanted, self._stale = list(subscriptions), list(stale)
        self._settings, self._counters, self._retained = settings, counters, retained
        self._mid: int | None = None
        self._stale_mid: int | None = None
        self._asked_ns = 0

    @property
    def answered(self) -> bool:
        return self._mid is None and self._stale_mid is None

    def ask(self, client: paho.Client, now_ns: int, *, session_present: bool) -> None:
        """Drop what is stale in a session the broker still holds (it forgot the rest itself), then subscribe."""
        self.refused, self.downgraded = {}, {}
        self._asked_ns = now_ns
        if not session_present:
            self._stale.clear()
        if self._stale:
            _, self._stale_mid = client.unsubscribe(self._stale)
        if self._wanted:
            self._mid = wire.subscribe(client, self._wanted, self._settings, retained=self._retained)

    def waited_ns(self, now_ns: int) -> int:
        """How long the answer has been waited for, 0 when it has come."""
        return 0 if self.answered else now_ns - self._asked_ns

    def give_up(self, client: paho.Client | None) -> None:
        """Subscribe no more, and tell the broker when there is one to be told."""
        if client is not None and self._wanted:
            client.unsubscribe([name for name, _ in self._wanted])
        self._wanted.clear()

    def lost(self) -> None:
        """No answer can come any more."""
        self._mid = self._stale_mid = None

    def on_subscribe(
        self, _client: paho.Client, _user: object, mid: int, codes: list[ReasonCode], _found: object
    ) -> None:
        """Called back by paho. A broker may refuse one filter and take the others."""
        if mid != self._mid:
            return
        self._mid = None
        for (name, qos), code in zip(self._wanted, codes, strict=False):
            granted = wire.granted(code)
            if granted is None:
                self.refused[name] = str(code)
                self._counters.filters_refused += 1
                log.warning("mqtt_subscription_refused", extra={"filter": name, "reason": str(code)})
            elif granted < qos:
                self.downgraded[name] = granted
                log.warning("mqtt_subscription_downgraded", extra={"filter": name, "qos": qos, "granted": granted})

    def on_unsubscribe(
        self, _client: paho.Client, _user: object, mid: int, codes: list[ReasonCode], _found: object
    ) -> None:
        """Called back by paho; MQTT 3.1.1 has no codes. What the broker will not drop is not asked again."""
        if mid != self._stale_mid:
            return
        self._stale_mid = None
        for name, code in zip(self._stale, codes, strict=False):
            if code.is_failure:
                log.warning("mqtt_unsubscription_refused", extra={"filter": name, "reason": str(code)})
        self._stale.clear()
