"""What became of every message that was to be sent: each token is confirmed exactly once. Knows no MQTT library."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from edge_runtime.records import Outgoing

log = logging.getLogger(__name__)

QUEUE_FULL = "outgoing queue full"
NOT_CONNECTED = "not connected"
EXPIRED = "expired while waiting"


class Entry(msgspec.Struct, gc=False):
    """One message on its way. token: 0 for the client's own (birth, status), which nobody asks about.

    sent_ns: of a message of QoS 1 in flight, when it was handed over on this connection.
    """

    token: int
    message: Outgoing
    queued_ns: int
    sent_ns: int = 0


class SendQueue:
    """First in, first out; messages wait here, not behind the socket, until there is room for them.

    in_flight: messages of QoS 1 without their answer, by packet id, oldest first. unwritten: messages of QoS 0 that
    were handed over and have not left. written: every message up to this token has left, or is settled otherwise.
    """

    def __init__(self, *, max_waiting: int, now_ns: Callable[[], int]) -> None:
        """max_waiting: one more is refused, so that what waited longest still goes out first."""
        self.in_flight: dict[int, Entry] = {}
        self.unwritten: deque[Entry] = deque()
        self.written = 0
        self._max_waiting = max_waiting
        self._now_ns = now_ns
        self._last_token = 0
        self._urgent: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._settled: list[tuple[int, str]] = []
        self._closed = ""

    def __len__(self) -> int:
        """Messages whose fate is open."""
        return len(self._urgent) + len(self._waiting) + len(self.unwritten) + len(self.in_flight)

    @property
    def waits(self) -> bool:
        return bool(self._waiting or self._urgent)

    @property
    def all_urgent_sent(self) -> bool:
        return not self._urgent

    def oldest_ns(self) -> int | None:
        """When the message was sent that has waited longest for its answer on this connection; None when none has."""
        return min((entry.sent_ns for entry in self.in_flight.values()), default=None)

    def pass_by(self, message: Outgoing) -> Entry | None:
        """A message that may go out at once, past the queue, as nothing waits in it; else None."""
        if self._waiting or self._urgent or message.message_expiry_s is not None:
            return None
        self._last_token = token = self._last_token + 1
        return Entry(token, message, 0)

    def add(self, message: Outgoing, *, connected: bool) -> int:
        """A new token. A message there is no room for is confirmed at once, with the reason."""
        self._last_token = token = self._last_token + 1
        entry = Entry(token, message, self._now_ns())
        if self._closed:
            self.settle(entry, self._closed)
            self.written = token
        elif len(self._waiting) >= self._max_waiting:
            self.settle(entry, QUEUE_FULL if connected else NOT_CONNECTED)
        else:
            self._waiting.append(entry)
        return token

    def add_urgent(self, message: Outgoing) -> None:
        """A message of the client itself, for this connection only, ahead of all that waits."""
        self._urgent.append(Entry(0, message, self._now_ns()))

    def take(self, window: int) -> Entry | None:
        """The next message that may go out now, or None. window: QoS 1 messages allowed in flight."""
        while queue := self._urgent or self._waiting:
            if queue[0].message.qos and len(self.in_flight) >= window:
                return None
            entry = queue.popleft()
            if self.expiry_s(entry) != 0:
                return entry
            self.settle(entry, EXPIRED)
        return None

    def expiry_s(self, entry: Entry) -> int | None:
        """What is left of the message's expiry after its wait here, or None when it has none."""
        expiry_s = entry.message.message_expiry_s
        if expiry_s is None:
            return None
        return max(0, expiry_s - (self._now_ns() - entry.queued_ns) // 1_000_000_000)

    def put_back(self, entry: Entry) -> None:
        (self._waiting if entry.token else self._urgent).appendleft(entry)

    def left(self, count: int) -> None:
        """The first so many of the unwritten messages were written."""
        for _ in range(count):
            entry = self.unwritten.popleft()
            self.settle(entry, "")
            self.reached(entry)

    def reached(self, entry: Entry) -> None:
        """A message was written, and so were all before it."""
        self.written = max(self.written, entry.token)

    def all_left(self) -> None:
        """Everything that was handed over was written, at QoS 1 too."""
        if self.unwritten:
            self._settled += [(entry.token, "") for entry in self.unwritten if entry.token]
            self.unwritten.clear()
        up_to = self._waiting[0].token - 1 if self._waiting else self._last_token
        self.written = max(self.written, up_to)

    def answered(self, mid: int, reason: str) -> None:
        """The broker has answered a message in flight; a second answer to it is none."""
        entry = self.in_flight.pop(mid, None)
        if entry is not None:
            self.settle(entry, reason)
            self.reached(entry)

    def settle(self, entry: Entry, reason: str) -> None:
        """Its fate is known. The client's own messages are only logged, when they fail."""
        if entry.token:
            self._settled.append((entry.token, reason))
        elif reason:
            log.warning("mqtt_own_message_refused", extra={"topic": entry.message.topic, "reason": reason})

    def disconnected(self) -> None:
        """Unwritten messages never left: they go first next time. A new connection brings a birth of its own."""
        self._urgent.clear()
        self._put_first(self.unwritten)
        self.unwritten.clear()

    def resumed(self) -> None:
        """What is in flight is sent again on a new connection."""
        now_ns = self._now_ns()
        for entry in self.in_flight.values():
            entry.sent_ns = now_ns

    def send_anew(self) -> None:
        """What is in flight is sent as if never before, in the old order, before all that waits."""
        self._put_first(self.in_flight.values())
        self.in_flight.clear()

    def close(self, reason: str) -> None:
        """Nothing goes out any more: settle all that is open, and whatever may still be added."""
        self._closed = reason
        self.disconnected()
        self.send_anew()
        for entry in self._waiting:
            self.settle(entry, reason)
        self._waiting.clear()
        self.written = self._last_token

    def confirmed(self) -> list[tuple[int, str]]:
        settled, self._settled = self._settled, []
        return settled

    def _put_first(self, entries: Iterable[Entry]) -> None:
        self._waiting.extendleft(reversed([entry for entry in entries if entry.token]))
