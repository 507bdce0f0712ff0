"""Messages by paho's own callbacks, driven by hand: what works wherever paho does, over websockets too."""

from __future__ import annotations

import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.link import Link
from edge_runtime.mqtt.sending import Entry, SendQueue
from edge_runtime.mqtt.settings import MqttSettings, parse_url
from edge_runtime.mqtt.transport import MAX_MESSAGES, UNPUBLISHABLE, Counters, Kind
from edge_runtime.records import Message, Outgoing


class Handle(Protocol):
    """How paho tells that a message has left: written at QoS 0, answered by a PUBACK at QoS 1."""

    def is_published(self) -> bool: ...


class Handed:
    """What paho has been handed, until it is through with it.

    unwritten_bytes: of the messages of QoS 0 among it.
    """

    def __init__(self, queue: SendQueue) -> None:
        self.unwritten_bytes = 0
        self._queue = queue
        self._unwritten: deque[tuple[Handle, int]] = deque()
        self._in_flight: dict[int, Handle] = {}
        self._answers: dict[int, str] = {}

    def add(self, entry: Entry, handle: Handle, *, mid: int, size: int, now_ns: int) -> None:
        if entry.message.qos:
            self._queue.sent(mid, entry, now_ns)
            self._in_flight[mid] = handle
        else:
            self._queue.unwritten.append(entry)
            self._unwritten.append((handle, size))
            self.unwritten_bytes += size

    def answer(self, mid: int, reason: str) -> None:
        """Of a packet id paho reports on; collect finds out which message that was.

        An id may stand for a written QoS 0 message and for one in flight at once: a refusal can only be the latter's.
        """
        self._answers[mid] = self._answers.get(mid) or reason

    def collect(self) -> None:
        """Settle what has been written or answered since the last call."""
        while self._unwritten and self._unwritten[0][0].is_published():
            self.unwritten_bytes -= self._unwritten.popleft()[1]
            self._queue.left()
        for mid, reason in self._answers.items():
            handle = self._in_flight.get(mid)
            if handle is not None and handle.is_published():
                del self._in_flight[mid]
                self._queue.answered([(mid, reason)])
        self._answers.clear()

    def forget(self, *, in_flight: bool) -> None:
        """What paho gives up: what is unwritten when a connection ends, and what is in flight when it is told to."""
        self._unwritten.clear()
        self.unwritten_bytes = 0
        if in_flight:
            self._in_flight.clear()


class CallbackTraffic:
    """traffic.Traffic says what its methods promise. One paho client serves all connections, one after the other."""

    kind: Kind = "callbacks"

    def __init__(
        self,
        settings: MqttSettings,
        account: wire.Account,
        *,
        link: Link,
        queue: SendQueue,
        counters: Counters,
        now_ns: Callable[[], int],
    ) -> None:
        self.more = False
        self._settings, self._counters = settings, counters
        self._link, self._queue, self._now_ns = link, queue, now_ns
        make = WebsocketClient if parse_url(settings.url).path else paho.Client
        self._paho = wire.new_client(settings, account, link.errors, make=make)
        self._paho.on_message = self._on_message
        self._paho.on_socket_register_write = _on_register_write
        self._handed = Handed(queue)
        self._poller = select.poll()
        self._quick_ack: Callable[[], None]
        self._messages: list[Message] = []
        self._epoch = self._read_ns = 0
        self._window = self._packet_limit = 0

    def new_paho(self) -> paho.Client:
        return self._paho

    def opened(self, epoch: int) -> None:
        self._epoch = epoch
        self._poller = select.poll()
        self._poller.register(self._link.fileno(), select.POLLIN)
        self._quick_ack = wire.quick_ack(self._link.line)

    def accepted(self, limits: wire.Limits, *, session_present: bool) -> None:
        """After on_connect, paho by itself sends again what was in flight, with the old ids.

        That is right for a session the broker still holds, as long as its window has room and it takes them all;
        otherwise those messages go out anew.
        """
        self._window, self._packet_limit = wire.allowed(limits, self._settings)
        in_flight = self._queue.in_flight
        largest = max((wire.packet_bytes(entry.message) for entry in in_flight.values()), default=0)
        if not session_present or len(in_flight) > self._window or largest > self._packet_limit:
            self._paho.drop_out_messages()
            self._handed.forget(in_flight=True)
            self._queue.send_anew()
        self._queue.all_sent_again()

    def lost(self) -> None:
        self.more = False
        self._handed.collect()
        self._handed.forget(in_flight=False)
        self._queue.disconnected()

    def read(self, now_ns: int) -> list[Message]:
        """Read packet by packet until nothing is left or enough came."""
        self._read_ns = now_ns
        while (readable := self._readable()) and len(self._messages) < MAX_MESSAGES:
            self._paho.loop_read()
            if self._link.open:
                self._quick_ack()
            self._handed.collect()
            self._read_ns = self._now_ns()
        self.more = readable
        messages, self._messages = self._messages, []
        return messages

    def rest(self) -> list[Message]:
        return []

    def keep_alive(self) -> None:
        self._paho.loop_misc()

    def wants_write(self) -> bool:
        return self._link.open and self._paho.want_write()

    def write(self) -> None:
        if self.wants_write():
            self._paho.loop_write()
            self._handed.collect()
        if self._link.open and not self._paho.want_write():
            self._queue.all_left()

    def acknowledge(self, mids: Sequence[int]) -> None:
        for mid in mids:
            if mid:
                self._paho.ack(mid, 1)

    def publish(self, message: Outgoing) -> int:
        token = self._queue.add(message, connected=True)
        self.pump()
        return token

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        for message in messages:
            self.publish(message)
        return self._queue.last_token

    def pump(self) -> None:
        """Hand paho what the window and the bytes that wait have room for."""
        while self._link.open and self._handed.unwritten_bytes < self._settings.max_unwritten_bytes:
            entry = self._queue.take(self._window)
            if entry is None:
                return
            size = wire.packet_bytes(entry.message)
            if size > self._packet_limit:
                self._queue.fail(entry, wire.too_large(size, self._packet_limit))
                continue
            try:
                # With this set, paho makes a reason and properties for every message it writes, QoS 0 too.
                self._paho.on_publish = self._on_publish if entry.message.qos or self._queue.in_flight else None
                sent = wire.publish(self._paho, entry.message, self._queue.expiry_s(entry), self._settings)
            except ValueError as error:
                self._queue.fail(entry, f"{UNPUBLISHABLE}: {error}")
                continue
            if sent.rc == paho.MQTT_ERR_QUEUE_SIZE:
                self._queue.put_back(entry)
                return
            self._handed.add(entry, sent, mid=sent.mid, size=size, now_ns=self._now_ns())

    def flush(self) -> None:
        deadline_ns = self._now_ns() + round(self._settings.flush_timeout_s * 1e9)
        while self._link.open:
            self.write()
            self.pump()
            left_ns = deadline_ns - self._now_ns()
            if left_ns <= 0 or not self.wants_write():
                return
            self._link.wait_writable(left_ns / 1e9)

    def _readable(self) -> bool:
        """Whether a read would find something: in the kernel, or inside the TLS layer, where select cannot see it."""
        sock = self._paho.socket() if self._link.open else None
        if sock is None:
            return False
        pending = getattr(sock, "pending", None)
        return (pending is not None and pending() > 0) or bool(self._poller.poll(0))

    # paho calls back, inside read and write.

    def _on_publish(self, _client: paho.Client, _user: object, mid: int, code: ReasonCode, _found: object) -> None:
        self._handed.answer(mid, wire.refusal(code.value))
        self._counters.no_subscribers += code == wire.NO_SUBSCRIBERS

    def _on_message(self, client: paho.Client, _user: object, message: paho.MQTTMessage) -> None:
        self._messages.append(wire.taken(client, message, received_ns=self._read_ns, epoch=self._epoch))


def _on_register_write(_client: paho.Client, _userdata: object, _sock: object) -> None:
    """With this set, paho leaves all writing to loop_write: nothing is sent from inside publish or ack."""


class WebsocketClient(paho.Client):
    """A paho client for websockets, with two flaws of paho's own mended.

    Its websocket tells by 0 that a packet was written in part, at which paho would lose the rest. And it leaves the
    socket open when the server does not agree to websockets.
    """

    _made: socket.socket | None = None

    def _create_socket(self) -> Any:  # noqa: ANN401  paho has no public name for what it returns
        try:
            sock: Any = super()._create_socket()
        except OSError:
            if self._made is not None:
                self._made.close()
            raise
        send = sock.send

        def send_whole(packet: bytes) -> int:
            count = int(send(packet))
            if not count:
                raise BlockingIOError
            return count

        sock.send = send_whole
        return sock

    def _create_socket_connection(self) -> socket.socket:
        self._made = super()._create_socket_connection()
        return self._made

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        wrapped = super()._ssl_wrap_socket(tcp_sock)
        self._made = wrapped
        return wrapped
