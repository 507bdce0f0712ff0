"""What became of every message that was to be sent: each token is confirmed exactly once. Knows no MQTT library."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from edge_runtime.records import Outgoing

log = logging.getLogger(__name__)

QUEUE_FULL = "outgoing queue full"
NOT_CONNECTED = "not connected"
EXPIRED = "expired while waiting"


class Handle(Protocol):
    """How the library tells that a message has left: written at QoS 0, answered by a PUBACK at QoS 1."""

    def is_published(self) -> bool: ...


class Entry:
    """One message on its way. token: None for the client's own (birth, status), which nobody asks about."""

    __slots__ = ("message", "queued_ns", "sent_ns", "token")

    def __init__(self, message: Outgoing, *, token: int | None, queued_ns: int) -> None:
        self.message = message
        self.token = token
        self.queued_ns = queued_ns
        self.sent_ns = 0


class SendQueue:
    """First in, first out; messages wait here, not in the library, until the window has room.

    max_waiting: messages that may wait; one more is refused, so that what waited longest still goes out first.
    max_unwritten: QoS 0 messages handed to the library but not yet written.
    """

    def __init__(self, *, max_waiting: int, max_unwritten: int, now_ns: Callable[[], int]) -> None:
        self._max_waiting = max_waiting
        self._max_unwritten = max_unwritten
        self._now_ns = now_ns
        self._tokens = itertools.count(1)
        self._urgent: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._unwritten: deque[tuple[Entry, Handle]] = deque()
        self._in_flight: dict[int, tuple[Entry, Handle]] = {}
        self._answers: dict[int, str] = {}
        self._settled: list[tuple[int, str]] = []
        self._closed = ""

    def __len__(self) -> int:
        """Messages whose fate is open."""
        return len(self._urgent) + len(self._waiting) + len(self._unwritten) + len(self._in_flight)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def all_urgent_sent(self) -> bool:
        return not self._urgent

    def oldest_ns(self) -> int | None:
        """When the message was sent that has waited longest for its answer on this connection; None when none has."""
        return min((entry.sent_ns for entry, _ in self._in_flight.values()), default=None)

    def add(self, message: Outgoing, *, connected: bool) -> int:
        """A new token. A message there is no room for is confirmed at once, with the reason."""
        token = next(self._tokens)
        entry = Entry(message, token=token, queued_ns=self._now_ns())
        if self._closed:
            self.settle(entry, self._closed)
        elif len(self._waiting) >= self._max_waiting:
            self.settle(entry, QUEUE_FULL if connected else NOT_CONNECTED)
        else:
            self._waiting.append(entry)
        return token

    def add_urgent(self, message: Outgoing) -> None:
        """A message of the client itself, for this connection only, ahead of all that waits."""
        self._urgent.append(Entry(message, token=None, queued_ns=self._now_ns()))

    def take(self, window: int) -> Entry | None:
        """The next message that may go out now, or None. window: QoS 1 messages allowed in flight."""
        while True:
            queue = self._urgent or self._waiting
            if not queue:
                return None
            if queue[0].message.qos == 0:
                full = len(self._unwritten) >= self._max_unwritten
            else:
                full = len(self._in_flight) >= window
            if full:
                return None
            entry = queue.popleft()
            if self.expiry_s(entry) != 0:
                return entry
            self.settle(entry, EXPIRED)

    def expiry_s(self, entry: Entry) -> int | None:
        """What is left of the message's expiry after its wait here, or None when it has none."""
        expiry_s = entry.message.message_expiry_s
        if expiry_s is None:
            return None
        return max(0, expiry_s - (self._now_ns() - entry.queued_ns) // 1_000_000_000)

    def put_back(self, entry: Entry) -> None:
        (self._urgent if entry.token is None else self._waiting).appendleft(entry)

    def handed_over(self, entry: Entry, mid: int, handle: Handle) -> None:
        """The library has it under a packet id."""
        entry.sent_ns = self._now_ns()
        if entry.message.qos == 0:
            self._unwritten.append((entry, handle))
        else:
            self._in_flight[mid] = (entry, handle)

    def answer(self, mid: int, reason: str) -> None:
        """The library reports on a packet id; collect finds out which message that was.

        An id may stand for a written QoS 0 message and for one in flight at once: a refusal can only be the latter's.
        """
        self._answers[mid] = self._answers.get(mid) or reason

    def collect(self) -> None:
        """Settle what has been written or answered since the last call."""
        while self._unwritten and self._unwritten[0][1].is_published():
            self.settle(self._unwritten.popleft()[0], "")
        if not self._answers:
            return
        for mid, reason in self._answers.items():
            entry, handle = self._in_flight.get(mid, (None, None))
            if entry is not None and handle is not None and handle.is_published():
                del self._in_flight[mid]
                self.settle(entry, reason)
        self._answers.clear()

    def settle(self, entry: Entry, reason: str) -> None:
        """Its fate is known. The client's own messages are only logged, when they fail."""
        if entry.token is not None:
            self._settled.append((entry.token, reason))
        elif reason:
            log.warning("mqtt_own_message_refused", extra={"topic": entry.message.topic, "reason": reason})

    def disconnected(self) -> None:
        """Unwritten messages never left: they go first next time. A new connection brings a birth of its own."""
        self.collect()
        self._urgent.clear()
        self._waiting.extendleft(entry for entry, _ in reversed(self._unwritten) if entry.token is not None)
        self._unwritten.clear()

    def resumed(self) -> None:
        """The library sends what is in flight again by itself."""
        for entry, _ in self._in_flight.values():
            entry.sent_ns = self._now_ns()

    def send_again(self) -> None:
        """The library has dropped what was in flight: it is sent anew, in the old order, before all that waits."""
        again = [entry for entry, _ in self._in_flight.values() if entry.token is not None]
        self._waiting.extendleft(reversed(again))
        self._in_flight.clear()

    def close(self, reason: str) -> None:
        """Nothing goes out any more: settle all that is open, and whatever may still be added."""
        self.collect()
        self._closed = reason
        self._urgent.clear()
        self._unwritten.extend(self._in_flight.values())
        self._waiting.extendleft(entry for entry, _ in reversed(self._unwritten) if entry.token is not None)
        for entry in self._waiting:
            self.settle(entry, reason)
        self._waiting.clear()
        self._unwritten.clear()
        self._in_flight.clear()

    def confirmed(self) -> list[tuple[int, str]]:
        settled, self._settled = self._settled, []
        return settled
