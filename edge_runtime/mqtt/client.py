"""An MQTT session by paho's callbacks, driven by hand from the one network thread."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal

from paho.mqtt import client as paho
from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.properties import Properties as Found
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.backoff import Backoff
from edge_runtime.mqtt.link import Link
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.mqtt.settings import MqttSettings, parse_url
from edge_runtime.mqtt.topics import Subscription
from edge_runtime.mqtt.transport import Counters
from edge_runtime.records import Message, Outgoing

log = logging.getLogger(__name__)

MAX_MESSAGES = 64
HOUSEKEEPING_NS = 500_000_000
RETRY_SOON = {"Unspecified error", "Server unavailable", "Server busy", "Quota exceeded", "Connection rate exceeded"}

Phase = Literal["new", "waiting", "dialing", "handshake", "connected", "stopped"]

_epochs = itertools.count(1)


class CallbackClient:
    """One connection; transport.Client says what its methods promise."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        client_id: str,
        subscriptions: Sequence[Subscription] = (),
        presence: Presence | None = None,
        birth: Callable[[], list[Outgoing]] = list,
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """presence: of the node, on one of its connections only; sets the last will and says "stopped" at the end.

        birth: what to publish at every connect, before anything else. uniform: in [0, 1), the back-off's jitter.
        Raises ConfigError for files that cannot be used, ValueError for a subscription at QoS 2.
        """
        if any(qos not in (0, 1) for _, qos in subscriptions):
            raise ValueError("subscriptions are made at QoS 0 or 1")
        self.counters = Counters()
        self.refused_filters: dict[str, str] = {}
        self.downgraded_filters: dict[str, int] = {}
        self.limits: wire.Limits | None = None
        self._settings = settings
        self._subscriptions = list(subscriptions)
        self._presence = presence
        self._birth = birth
        self._now_ns = now_ns
        self._unix_s = unix_s
        self._backoff = Backoff(
            minimum_s=settings.reconnect_min_s,
            maximum_s=settings.reconnect_max_s,
            stable_after_s=settings.stable_after_s,
            random=uniform,
        )
        self._queue = SendQueue(max_waiting=settings.max_outgoing, max_unwritten=settings.max_inflight, now_ns=now_ns)
        self._endpoint = parse_url(settings.url)
        self._facts = {"host": self._endpoint.host, "port": self._endpoint.port, "client_id": client_id}
        self._link = Link(settings, client_id, now_ns=now_ns)
        self._paho = self._link.paho
        self._listen()
        self._phase: Phase = "new"
        self._reason = "not started"
        self._reported = ""
        self._due_ns = self._housekeeping_ns = self._greeted_ns = 0
        self._epoch = 0
        self._window = settings.max_inflight
        self._packet_limit = settings.maximum_packet_bytes
        self._welcome: ConnectFlags | None = None
        self._refusal = self._farewell = ""
        self._subscribe_mid: int | None = None
        self._read_ns = 0
        self._messages: list[Message] = []

    @property
    def connected(self) -> bool:
        return self._phase == "connected"

    @property
    def subscribed(self) -> bool:
        return self._phase == "connected" and self._subscribe_mid is None

    @property
    def reason(self) -> str:
        return self._reason

    def start(self) -> None:
        self._phase = "waiting"
        self._due_ns = self._now_ns()
        self._advance()

    def fileno(self) -> int:
        return self._link.fileno()

    def wants_write(self) -> bool:
        return self._link.wants_write()

    def poll(self, timeout_s: float) -> list[Message]:
        self._advance()
        if timeout_s > 0:
            self._link.wait(min(timeout_s, self._idle_s(timeout_s)))
            self._advance()
        if self._phase in ("handshake", "connected"):
            self._exchange()
        messages, self._messages = self._messages, []
        return messages

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        if self._phase == "connected" and epoch == self._epoch:
            for mid in mids:
                if mid:
                    self._paho.ack(mid, 1)

    def unsubscribe(self) -> None:
        """Nothing new is to come; what the broker holds for us already still does."""
        if self.connected and self._subscriptions:
            self._paho.unsubscribe([name for name, _ in self._subscriptions])
        self._subscriptions.clear()

    def publish(self, message: Outgoing) -> int:
        if message.qos not in (0, 1):
            raise ValueError(f"{message.topic}: messages are published at QoS 0 or 1, not {message.qos}")
        token = self._queue.add(message, connected=self.connected)
        self._pump()
        return token

    def confirmed(self) -> list[tuple[int, str]]:
        return self._queue.confirmed()

    def flush(self) -> None:
        deadline_ns = self._now_ns() + round(self._settings.flush_timeout_s * 1e9)
        while self._phase == "connected" and self._link.open:
            self._link.write()
            self._queue.collect()
            handed_over = self._pump()
            left_ns = deadline_ns - self._now_ns()
            if left_ns <= 0 or not (handed_over or self.wants_write()):
                return
            self._link.wait_writable(left_ns / 1e9)

    def stop(self, timeout_s: float) -> None:
        deadline_ns = self._now_ns() + round(timeout_s * 1e9)
        self._link.abandon()
        if self._phase in ("handshake", "connected"):
            if self._say_stopped((self._now_ns() + deadline_ns) // 2):
                self._link.hang_up(deadline_ns)
            else:
                log.warning("mqtt_stopped_unsaid", extra=self._facts)
                self._link.cut()
        self._phase = "stopped"
        self._reason = "stopped"
        self._messages.clear()
        self._queue.close("stopped")
        log.info("mqtt_stopped", extra=self._facts)

    def _say_stopped(self, deadline_ns: int) -> bool:
        """Publish "stopped", wait for it and all that was to be sent before to be answered; whether it was sent.

        When it could not be, for want of room in the window, the will has to say that the node is gone.
        """
        self._exchange()
        if self._presence is not None and self._phase == "connected":
            self._queue.add_urgent(self._presence.message("stopped", since_unix_s=self._unix_s()))
            self._exchange()
        while self._phase == "connected" and len(self._queue) and self._now_ns() < deadline_ns:
            self._messages.clear()
            self._link.wait(self._idle_s((deadline_ns - self._now_ns()) / 1e9))
            self._exchange()
        return self._queue.all_urgent_sent

    # Connecting: waiting -> dialing -> handshake -> connected, and back to waiting from any of them.

    def _idle_s(self, timeout_s: float) -> float:
        """How long there is nothing to do by itself, timeout_s at most."""
        if self._phase in ("waiting", "handshake"):
            return min(timeout_s, (self._due_ns - self._now_ns()) / 1e9)
        if self._phase == "connected":
            return min(timeout_s, (self._housekeeping_ns - self._now_ns()) / 1e9)
        return timeout_s

    def _advance(self) -> None:
        """Take the next step towards a connection when it is due."""
        if self._phase == "waiting" and self._now_ns() >= self._due_ns:
            if self._presence is not None:
                will = self._presence.message("offline", since_unix_s=self._unix_s())
                wire.set_will(self._paho, will, self._settings)
            self._refusal = self._farewell = ""
            self._link.dial()
            self._phase = "dialing"
        elif self._phase == "dialing":
            try:
                if self._link.dialed():
                    self._phase = "handshake"
                    self._due_ns = self._now_ns() + round(self._settings.connect_timeout_s * 1e9)
            except OSError as error:
                self._failed(wire.error_text(error))

    def _greet(self, session_present: bool) -> None:
        """The broker has accepted us: subscribe, announce the node, send what waits."""
        self._phase = "connected"
        self._reason = self._reported = ""
        self._greeted_ns = self._now_ns()
        self._backoff.connected(self._greeted_ns)
        if self.counters.connects and not session_present:
            self.counters.sessions_lost += 1
        self.counters.connects += 1
        log.info("mqtt_connected", extra={**self._facts, "epoch": self._epoch, "session_present": session_present})
        self.refused_filters, self.downgraded_filters = {}, {}
        if self._subscriptions:
            self._subscribe_mid = wire.subscribe(self._paho, self._subscriptions, self._settings)
        for message in self._birth():
            self._queue.add_urgent(message)
        self._pump()

    def _failed(self, reason: str) -> None:
        """An attempt came to nothing, or a connection broke: wait, and say so when that is news."""
        now_ns = self._now_ns()
        hopeless = bool(self._refusal) and self._refusal not in RETRY_SOON
        self._due_ns = now_ns + round(self._backoff.failed(now_ns, longest=hopeless) * 1e9)
        if self._phase == "connected":
            self.counters.disconnects += 1
            event = "mqtt_lost"
        elif self._refusal:
            self.counters.refused += 1
            event = "mqtt_refused"
        else:
            self.counters.failures += 1
            event = "mqtt_unreachable"
        self._phase = "waiting"
        self._reason = reason
        self._subscribe_mid = None
        self._welcome = None
        self._queue.disconnected()
        self._report(event, reason)

    def _report(self, event: str, reason: str) -> None:
        """One line when the state changes; further failed attempts are counted, not logged."""
        news = reason if event == "mqtt_refused" else "down"
        if news != self._reported:
            self._reported = news
            log.warning(event, extra={**self._facts, "reason": reason})

    def _why_closed(self) -> str:
        if self._refusal:
            return self._refusal
        if self._farewell:
            return self._farewell
        reason = self._link.error or "connection closed by the broker"
        if self._phase == "connected":
            return reason
        wants = " with a client certificate" if self._endpoint.tls and not self._settings.cert else ""
        return f"{reason} before it answered CONNECT (does it expect MQTT {self._settings.protocol}{wants}?)"

    # Traffic.

    def _exchange(self) -> None:
        """Write, read until nothing is left or enough came, keep the connection alive."""
        self._link.write()
        while len(self._messages) < MAX_MESSAGES and self._link.readable():
            self._read_ns = self._now_ns()
            self._link.read()
            if self._welcome is not None:
                flags, self._welcome = self._welcome, None
                self._greet(flags.session_present)
            self._queue.collect()
        self._keep_alive()
        self._pump()
        self._link.write()
        self._queue.collect()
        if not self._link.open:
            self._failed(self._why_closed())

    def _keep_alive(self) -> None:
        now_ns = self._now_ns()
        if now_ns >= self._housekeeping_ns:
            self._housekeeping_ns = now_ns + HOUSEKEEPING_NS
            self._paho.loop_misc()
            self._expect_answers(now_ns)
        if self._phase == "handshake" and now_ns >= self._due_ns:
            self._farewell = f"no answer to CONNECT within {self._settings.connect_timeout_s:g} s"
            self._link.cut()

    def _expect_answers(self, now_ns: int) -> None:
        """Break a connection on which an answer is overdue: what was asked is only sent again on a new one.

        An overloaded mosquitto 2.0 drops any packet to a client whose queue is full, PUBACK and SUBACK included.
        """
        limit_s = self._settings.ack_timeout_s
        since_ns = self._queue.oldest_ns()
        if since_ns is not None and now_ns - since_ns > limit_s * 1e9:
            self._farewell = f"no answer to a message within {limit_s:g} s"
        elif self._subscribe_mid is not None and now_ns - self._greeted_ns > limit_s * 1e9:
            self._farewell = f"no answer to the subscription within {limit_s:g} s"
        else:
            return
        self._link.cut()

    def _pump(self) -> bool:
        """Hand paho what the window has room for; whether that was anything."""
        handed_over = False
        while self._phase == "connected" and self._link.open:
            entry = self._queue.take(self._window)
            if entry is None:
                break
            try:
                size = wire.packet_bytes(entry.message)
                if size > self._packet_limit:
                    self._queue.settle(entry, f"packet too large: {size} bytes, {self._packet_limit} allowed")
                    continue
                # With this set, paho makes a reason and properties for every message it writes, QoS 0 too.
                self._paho.on_publish = self._on_publish if entry.message.qos or self._queue.in_flight else None
                sent = wire.publish(self._paho, entry.message, self._queue.expiry_s(entry), self._settings)
            except ValueError as error:
                self._queue.settle(entry, f"not a topic to publish to: {error}")
                continue
            if sent.rc == paho.MQTT_ERR_QUEUE_SIZE:
                self._queue.put_back(entry)
                break
            self._queue.handed_over(entry, sent.mid, sent)
            handed_over = True
        return handed_over

    # paho calls back, inside poll, flush and stop.

    def _listen(self) -> None:
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_subscribe = self._on_subscribe
        self._paho.on_message = self._on_message

    def _on_connect(
        self, client: paho.Client, _user: object, flags: ConnectFlags, code: ReasonCode, found: Found | None
    ) -> None:
        """The rest follows in _greet, when paho has finished with the packet.

        paho sends again what was in flight, with the old ids, which is right for a session the broker still holds, as
        long as its window has room; otherwise those messages go out anew.
        """
        if code.is_failure:
            self._refusal = str(code)
            return
        self._epoch = next(_epochs)
        self.limits = wire.limits(found, self._settings)
        self._window = min(self.limits.receive_maximum, self._settings.max_inflight)
        self._packet_limit = min(self.limits.maximum_packet_bytes, self._settings.maximum_packet_bytes)
        if not flags.session_present or self._queue.in_flight > self._window:
            client.drop_out_messages()
            self._queue.send_again()
        self._queue.resumed()
        self._welcome = flags

    def _on_disconnect(
        self, _client: paho.Client, _user: object, flags: DisconnectFlags, code: ReasonCode, _found: object
    ) -> None:
        """May come twice for one connection; only notes what is known about the reason."""
        self._farewell = self._farewell or wire.farewell(flags, code, self._settings.keepalive_s)

    def _on_subscribe(
        self, _client: paho.Client, _user: object, mid: int, codes: list[ReasonCode], _found: object
    ) -> None:
        if mid != self._subscribe_mid:
            return
        self._subscribe_mid = None
        for (name, qos), code in zip(self._subscriptions, codes, strict=False):
            granted = wire.granted(code)
            if granted is None:
                self.refused_filters[name] = str(code)
                self.counters.filters_refused += 1
                log.warning("mqtt_subscription_refused", extra={"filter": name, "reason": str(code)})
            elif granted < qos:
                self.downgraded_filters[name] = granted
                log.warning("mqtt_subscription_downgraded", extra={"filter": name, "qos": qos, "granted": granted})

    def _on_publish(self, _client: paho.Client, _user: object, mid: int, code: ReasonCode, _found: object) -> None:
        self._queue.answer(mid, str(code) if code.is_failure else "")

    def _on_message(self, _client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        self._messages.append(wire.to_message(message, received_ns=self._read_ns, epoch=self._epoch))
