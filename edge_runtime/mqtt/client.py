"""The life of an MQTT connection: dial, greet, keep alive, notice its end, begin again; messages are its traffic's."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from paho.mqtt import client as paho
from paho.mqtt.client import ConnectFlags
from paho.mqtt.properties import Properties as Found
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.backoff import Backoff
from edge_runtime.mqtt.link import Link
from edge_runtime.mqtt.outcomes import Outcomes
from edge_runtime.mqtt.oversize import Oversize
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.subscribing import Subscribing
from edge_runtime.mqtt.topics import Subscription
from edge_runtime.mqtt.traffic import Traffic, make_traffic
from edge_runtime.mqtt.transport import STOPPED, Confirmed, Counters
from edge_runtime.records import Message, Outgoing

log = logging.getLogger(__name__)

HOUSEKEEPING_NS = 500_000_000
NEVER_NS = 1 << 62

Phase = Literal["new", "waiting", "dialing", "handshake", "connected", "stopped"]
LINKED = ("connected", "handshake")

_epochs = itertools.count(1)


class MqttClient:
    """One connection; transport.Client says what its methods promise."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        link: Link,
        queue: SendQueue,
        traffic: Traffic,
        outcomes: Outcomes,
        backoff: Backoff,
        counters: Counters,
        subscriptions: Sequence[Subscription],
        stale: Sequence[str],
        retained: bool,
        presence: Presence | None,
        birth: Callable[[], list[Outgoing]],
        now_ns: Callable[[], int],
        unix_s: Callable[[], float],
    ) -> None:
        """make_client says what they are. Raises ValueError for a subscription at QoS 2."""
        self.kind = traffic.kind
        self.counters, self.held = counters, False
        self.limits: wire.Limits | None = None
        self._settings = settings
        self._subscribing = Subscribing(subscriptions, settings, self.counters, stale=stale, retained=retained)
        self._link, self._queue, self._traffic, self._backoff = link, queue, traffic, backoff
        self._presence, self._birth = presence, birth
        self._now_ns, self._unix_s = now_ns, unix_s
        self._outcomes, self._oversize = outcomes, Oversize()
        self._phase: Phase = "new"
        self._reason = "not started"
        self._due_ns = NEVER_NS
        self._read_ns = self._epoch = 0
        self._welcome: ConnectFlags | None = None

    @property
    def connected(self) -> bool:
        return self._phase == "connected"

    @property
    def subscribed(self) -> bool:
        return self._phase == "connected" and self._subscribing.answered

    @property
    def lost_at(self) -> int:
        return self._outcomes.lost_at

    @property
    def refused_filters(self) -> dict[str, str]:
        return self._subscribing.refused

    @property
    def downgraded_filters(self) -> dict[str, int]:
        """Filter to the QoS the broker granted, where it is less than was asked for."""
        return self._subscribing.downgraded

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def problem(self) -> str:
        return "" if self._backoff.lasted(self._now_ns()) else self._outcomes.problem

    @property
    def more(self) -> bool:
        return self._traffic.more

    @property
    def written(self) -> int:
        return self._queue.written

    def start(self) -> None:
        self._phase, self._due_ns = "waiting", self._now_ns()
        self._advance()

    def fileno(self) -> int:
        return self._link.fileno()

    def wants_write(self) -> bool:
        return self._phase in LINKED and self._traffic.wants_write()

    def poll(self, timeout_s: float) -> list[Message]:
        if self._phase not in LINKED:
            self._advance()
        if timeout_s > 0 and not self.more:
            self._link.wait(self._idle_s(timeout_s), writing=self.wants_write())
            self._advance()
        return self._exchange() if self._phase in LINKED else []

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None:
        if epoch == self._epoch and self._phase == "connected":
            self._traffic.acknowledge(mids)

    def unsubscribe(self) -> None:
        """Nothing new is to come; what the broker holds for us already still does."""
        self._subscribing.give_up(self._link.client if self.connected else None)

    def publish(self, message: Outgoing) -> int:
        if self._phase == "connected":
            return self._traffic.publish(message)
        return self._queue.add(message, connected=False)

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        if self._phase == "connected":
            return self._traffic.publish_all(messages)
        for message in messages:
            self._queue.add(message, connected=False)
        return self._queue.last_token

    def confirmed(self) -> Confirmed:
        return self._queue.confirmed()

    def flush(self) -> None:
        if self._phase == "connected":
            self._traffic.flush()

    def stop(self, timeout_s: float) -> None:
        deadline_ns = self._now_ns() + round(timeout_s * 1e9)
        self.held = False
        self._link.abandon()
        if self._phase in LINKED:
            if self._say_stopped((self._now_ns() + deadline_ns) // 2):
                self._link.hang_up(self._traffic, deadline_ns)
            else:
                log.warning("mqtt_stopped_unsaid", extra=self._outcomes.facts)
                self._link.cut()
            self._traffic.lost()
        self._phase, self._reason = "stopped", STOPPED
        self._queue.close(STOPPED)
        log.info("mqtt_stopped", extra=self._outcomes.facts)

    def _say_stopped(self, deadline_ns: int) -> bool:
        """Publish "stopped", wait for it and all that was to be sent before to be answered; whether it was sent.

        Messages that still come are let go. When "stopped" could not be sent, for want of room in the window, the will
        has to say that the node is gone.
        """
        self._exchange()
        if self._presence is not None and self._phase == "connected":
            self._queue.add_urgent(self._presence.message("stopped", since_unix_s=self._unix_s()))
            self._exchange()
        while self._phase == "connected" and len(self._queue) and self._now_ns() < deadline_ns:
            left_s = (deadline_ns - self._now_ns()) / 1e9
            self._link.wait(0.0 if self.more else self._idle_s(left_s), writing=self.wants_write())
            self._exchange()
        return self._queue.all_urgent_sent

    # Connecting: waiting -> dialing -> handshake -> connected, and back to waiting from any of them.

    def _idle_s(self, timeout_s: float) -> float:
        """How long there is nothing to do by itself, timeout_s at most."""
        return min(timeout_s, (self._due_ns - self._now_ns()) / 1e9)

    def _advance(self) -> None:
        """Take the next step towards a connection when it is due."""
        if self._phase == "waiting" and self._now_ns() >= self._due_ns:
            client = self._traffic.new_paho()
            client.on_connect = self._on_connect
            client.on_disconnect = self._outcomes.on_disconnect
            client.on_subscribe = self._subscribing.on_subscribe
            client.on_unsubscribe = self._subscribing.on_unsubscribe
            if self._presence is not None:
                will = self._presence.message("offline", since_unix_s=self._unix_s())
                wire.set_will(client, will, self._settings)
            self._outcomes.begin()
            self._link.dial(client)
            self._phase, self._due_ns = "dialing", NEVER_NS
        elif self._phase == "dialing":
            try:
                if self._link.dialed():
                    self._open()
            except OSError as error:
                self._failed(wire.error_text(error))

    def _open(self) -> None:
        self._epoch = next(_epochs)
        self._traffic.opened(self._epoch)
        self._phase = "handshake"
        self._due_ns = self._now_ns() + round(self._settings.connect_timeout_s * 1e9)

    def _greet(self, session_present: bool, now_ns: int) -> None:
        """The broker has accepted us: subscribe, announce the node, send what waits."""
        self._phase = "connected"
        self._reason = ""
        self._due_ns = now_ns
        self._backoff.connected(now_ns)
        self._outcomes.connected(session_present=session_present, epoch=self._epoch, traffic=self.kind)
        self._subscribing.ask(self._link.client, now_ns, session_present=session_present)
        for message in self._birth():
            self._queue.add_urgent(message)
        self._traffic.pump()
        self._traffic.write()

    def _failed(self, reason: str) -> None:
        """An attempt came to nothing, or a connection broke: wait before the next."""
        now_ns = self._now_ns()
        lasted = self._backoff.lasted(now_ns)
        wait_s = self._backoff.failed(now_ns, longest=self._outcomes.hopeless)
        self._due_ns = now_ns + round(wait_s * 1e9)
        self._outcomes.ended(reason, connected=self.connected, lasted=lasted, wait_s=wait_s)
        if lasted:
            self._oversize.forget()
        if self._outcomes.too_large:
            self._oversize.refused(self._queue.under_way())
        if self._phase in LINKED:
            self._traffic.lost()
        self._phase, self._reason = "waiting", reason
        self._subscribing.lost()
        self._welcome = None

    # Connected.

    def _exchange(self) -> list[Message]:
        """Write what was left, read, do what is due, hand over what there is room for now."""
        traffic = self._traffic
        if traffic.wants_write():
            traffic.write()
        now_ns = self._now_ns()
        messages: list[Message] = []
        if not (self.held and self._has_read_lately(now_ns)):
            self._read_ns = now_ns
            messages = traffic.read(now_ns)
        if self._welcome is not None:
            flags, self._welcome = self._welcome, None
            self._greet(flags.session_present, now_ns)
        if now_ns >= self._due_ns:
            self._do_what_is_due(now_ns)
        if not self._link.open:
            messages += traffic.rest()
            self._failed(self._outcomes.why(self._link, connected=self.connected))
        elif self._queue.waits and self._phase == "connected":
            traffic.pump()
        return messages

    def _has_read_lately(self, now_ns: int) -> bool:
        """Whether a client that is held need not read now: all it asked is answered, and its last read not long ago."""
        return self.subscribed and now_ns - self._read_ns < self._settings.keepalive_s * 500_000_000

    def _do_what_is_due(self, now_ns: int) -> None:
        if self._phase == "handshake":
            self._link.cut(f"no answer to CONNECT within {self._settings.connect_timeout_s:g} s")
            return
        self._due_ns = now_ns + HOUSEKEEPING_NS
        self._traffic.keep_alive()
        overdue = self._overdue(now_ns)
        if overdue:
            self._link.cut(overdue)

    def _overdue(self, now_ns: int) -> str:
        """Which answer is overdue: what was asked is only sent again on a new connection.

        An overloaded mosquitto 2.0 drops any packet to a client whose queue is full, PUBACK and SUBACK included.
        """
        limit_s = self._settings.ack_timeout_s
        since_ns = self._queue.oldest_ns()
        if since_ns is not None and now_ns - since_ns > limit_s * 1e9:
            return f"no answer to a message within {limit_s:g} s"
        if self._subscribing.waited_ns(now_ns) > limit_s * 1e9:
            return f"no answer to the subscription within {limit_s:g} s"
        return ""

    def _on_connect(
        self, _client: paho.Client, _user: object, flags: ConnectFlags, code: ReasonCode, found: Found | None
    ) -> None:
        """Called back by paho; the rest follows in _greet, when paho has finished with the packet."""
        if code.is_failure:
            self._outcomes.refusal = str(code)
            return
        self.limits = wire.limits(found, self._settings)
        largest = min(self.limits.maximum_packet_bytes, self._oversize.limit)
        limits = msgspec.structs.replace(self.limits, maximum_packet_bytes=largest)
        self._traffic.accepted(limits, session_present=flags.session_present)
        self._welcome = flags


def make_client(
    settings: MqttSettings,
    *,
    client_id: str,
    subscriptions: Sequence[Subscription] = (),
    receive_maximum: int | None = None,
    had_session: bool = False,
    keeps_session: bool = True,
    stale: Sequence[str] = (),
    retained: bool = False,
    presence: Presence | None = None,
    birth: Callable[[], list[Outgoing]] = list,
    now_ns: Callable[[], int] = time.monotonic_ns,
    unix_s: Callable[[], float] = time.time,
    uniform: Callable[[], float] = random.random,
) -> MqttClient:
    """A client that carries messages as the settings' client says.

    receive_maximum: QoS 1 messages the broker may have unacknowledged with us, where not the settings' own; MQTT 3.1.1
    cannot tell it. had_session: an earlier process had a session under this client id, which the broker should hold.
    keeps_session: this one is to outlive its connections; else it is no loss when the broker knows it no more.
    stale: filters it subscribed to that are wanted no more: the broker is asked to drop them, until it has answered.
    retained: the broker is to send what it has retained, too; on MQTT 3.1.1 it always does.
    presence: of the node, on one of its connections only; sets the last will and says "stopped" at the end.
    birth: what to publish at every connect, before anything else. uniform: in [0, 1), the back-off's jitter.
    Raises ConfigError for files that cannot be used, ValueError for a subscription at QoS 2.
    """
    if receive_maximum is not None:
        settings = msgspec.structs.replace(settings, receive_maximum=receive_maximum)
    link, queue, counters = Link(now_ns=now_ns), SendQueue(max_waiting=settings.max_outgoing, now_ns=now_ns), Counters()
    backoff = Backoff(
        minimum_s=settings.reconnect_min_s,
        maximum_s=settings.reconnect_max_s,
        stable_after_s=settings.stable_after_s,
        random=uniform,
    )
    return MqttClient(
        settings,
        link=link,
        queue=queue,
        traffic=make_traffic(settings, client_id, link=link, queue=queue, counters=counters, now_ns=now_ns),
        outcomes=Outcomes(settings, client_id, counters, had_session=had_session, keeps_session=keeps_session),
        backoff=backoff,
        counters=counters,
        subscriptions=subscriptions,
        stale=stale,
        retained=retained,
        presence=presence,
        birth=birth,
        now_ns=now_ns,
        unix_s=unix_s,
    )
