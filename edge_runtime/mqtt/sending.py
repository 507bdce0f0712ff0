"""What became of every message that was to be sent: each token is confirmed exactly once. Knows no MQTT library."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat

import msgspec

from edge_runtime.mqtt.transport import EXPIRED, NOT_CONNECTED, QUEUE_FULL, Confirmed
from edge_runtime.records import Outgoing

log = logging.getLogger(__name__)


class Entry(msgspec.Struct, gc=False):
    """One message on its way. token: 0 for the client's own (birth, status), which nobody asks about.

    sent_ns: of a message of QoS 1 in flight, when it was last handed over. ahead: messages of QoS 0 that were handed
    over with it, right before it; their tokens end before its own.
    """

    token: int
    message: Outgoing
    queued_ns: int
    sent_ns: int = 0
    ahead: Sequence[Outgoing] = ()

    def tokens(self) -> range:
        return range(self.token - len(self.ahead), self.token + 1)

    def apart(self) -> list[Entry]:
        """One entry for each message."""
        messages = (*self.ahead, self.message)
        return [Entry(token, message, self.queued_ns) for token, message in zip(self.tokens(), messages, strict=True)]


class SendQueue:
    """First in, first out; messages wait here, not behind the socket, until there is room for them.

    in_flight: messages of QoS 1 without their answer, by packet id, oldest first. unwritten: messages of QoS 0 that
    were handed over and have not left. again: packet ids in flight that are still to go out on this connection.
    written: every message up to this token has left, or is settled otherwise.
    """

    def __init__(self, *, max_waiting: int, now_ns: Callable[[], int]) -> None:
        """max_waiting: one more is refused, so that what waited longest still goes out first."""
        self.in_flight: dict[int, Entry] = {}
        self.unwritten: deque[Entry] = deque()
        self.again: deque[int] = deque()
        self.written = self.last_token = 0
        self._max_waiting = max_waiting
        self._now_ns = now_ns
        self._urgent: deque[Entry] = deque()
        self._waiting: deque[Entry] = deque()
        self._confirmed = Confirmed([], [])
        self._closed = ""

    def __len__(self) -> int:
        """Messages whose fate is open."""
        unwritten = sum(len(entry.ahead) + 1 for entry in self.unwritten)
        return len(self._urgent) + len(self._waiting) + unwritten + len(self.in_flight)

    @property
    def waits(self) -> bool:
        return bool(self._waiting or self._urgent or self.again)

    @property
    def all_urgent_sent(self) -> bool:
        return not self._urgent

    def oldest_ns(self) -> int | None:
        """When the message was sent that has waited longest for its answer on this connection; None when none has."""
        unsent = set(self.again)
        return min((entry.sent_ns for mid, entry in self.in_flight.items() if mid not in unsent), default=None)

    def pass_by(self, message: Outgoing) -> Entry | None:
        """A message that may go out at once, past the queue, as nothing waits in it; else None."""
        if self.waits or message.message_expiry_s is not None:
            return None
        self.last_token = token = self.last_token + 1
        return Entry(token, message, 0)

    def pass_unwritten(self, messages: Sequence[Outgoing]) -> Entry:
        """Messages of QoS 0 without an expiry were handed over past the queue, as nothing waits in it."""
        self.last_token = token = self.last_token + len(messages)
        entry = Entry(token, messages[-1], 0, 0, messages[:-1])
        self.unwritten.append(entry)
        return entry

    def pass_in_flight(self, messages: Sequence[Outgoing], mids: Sequence[int], sent_ns: int) -> Entry:
        """The same of QoS 1, with a packet id each; the last one's entry."""
        first = self.last_token + 1
        self.last_token += len(messages)
        tokens = range(first, self.last_token + 1)
        self.in_flight.update(zip(mids, map(Entry, tokens, messages, repeat(0), repeat(sent_ns)), strict=True))
        return self.in_flight[mids[-1]]

    def sent(self, mid: int, entry: Entry, sent_ns: int) -> None:
        """A message of QoS 1 was handed over, for the first time or again."""
        entry.sent_ns = sent_ns
        self.in_flight[mid] = entry

    def under_way(self) -> list[Entry]:
        """The messages that were handed over on this connection and may not have arrived."""
        unsent = set(self.again)
        in_flight = [entry for mid, entry in self.in_flight.items() if mid not in unsent]
        return in_flight + [alone for entry in self.unwritten for alone in entry.apart()]

    def add(self, message: Outgoing, *, connected: bool) -> int:
        """A new token. A message there is no room for is confirmed at once, with the reason.

        Raises ValueError for a message of QoS 2.
        """
        if message.qos not in (0, 1):
            raise ValueError(f"{message.topic}: messages are published at QoS 0 or 1, not {message.qos}")
        self.last_token = token = self.last_token + 1
        entry = Entry(token, message, self._now_ns())
        if self._closed:
            self.fail(entry, self._closed)
            self.written = token
        elif len(self._waiting) >= self._max_waiting:
            self.fail(entry, QUEUE_FULL if connected else NOT_CONNECTED)
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
            self.fail(entry, EXPIRED)
        return None

    def expiry_s(self, entry: Entry) -> int | None:
        """What is left of the message's expiry after its wait here, or None when it has none."""
        expiry_s = entry.message.message_expiry_s
        if expiry_s is None:
            return None
        return max(0, expiry_s - (self._now_ns() - entry.queued_ns) // 1_000_000_000)

    def put_back(self, entry: Entry) -> None:
        (self._waiting if entry.token else self._urgent).appendleft(entry)

    def left(self) -> None:
        """The first of the unwritten entries was written."""
        entry = self.unwritten.popleft()
        self._deliver([entry])
        self.reached(entry)

    def _deliver(self, entries: Iterable[Entry]) -> None:
        delivered = self._confirmed.delivered
        for entry in entries:
            if entry.ahead:
                delivered.extend(entry.tokens())
            elif entry.token:
                delivered.append(entry.token)

    def part(self) -> list[Entry]:
        """Take the first of the unwritten entries apart."""
        entries = self.unwritten.popleft().apart()
        self.unwritten.extendleft(reversed(entries))
        return entries

    def reached(self, entry: Entry) -> None:
        """A message was written, and so were all before it."""
        self.written = max(self.written, entry.token)

    def all_left(self) -> None:
        """Everything that was handed over was written, at QoS 1 too."""
        if self.unwritten:
            self._deliver(self.unwritten)
            self.unwritten.clear()
        up_to = self._waiting[0].token - 1 if self._waiting else self.last_token
        self.written = max(self.written, up_to)

    def answered(self, answers: Iterable[tuple[int, str]]) -> None:
        """The broker has answered messages in flight: (packet id, why it refused). A second answer to one is none."""
        for mid, reason in answers:
            entry = self.in_flight.pop(mid, None)
            if entry is None:
                continue
            if reason:
                self.fail(entry, reason)
            elif entry.token:
                self._confirmed.delivered.append(entry.token)
            if entry.token > self.written:
                self.reached(entry)

    def fail(self, entry: Entry, reason: str) -> None:
        """It will not be delivered. The client's own messages are only logged."""
        if entry.token:
            self._confirmed.failed.append((entry.token, reason))
        else:
            log.warning("mqtt_own_message_refused", extra={"topic": entry.message.topic, "reason": reason})

    def disconnected(self) -> None:
        """Unwritten messages never left: they go first next time. A new connection brings a birth of its own."""
        self._urgent.clear()
        self.again.clear()
        self._put_first([alone for entry in self.unwritten for alone in entry.apart()])
        self.unwritten.clear()

    def all_sent_again(self) -> None:
        """All that is in flight was handed over on a new connection, too."""
        now_ns = self._now_ns()
        for mid, entry in self.in_flight.items():
            self.sent(mid, entry, now_ns)

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
            self.fail(entry, reason)
        self._waiting.clear()
        self.written = self.last_token

    def confirmed(self) -> Confirmed:
        confirmed, self._confirmed = self._confirmed, Confirmed([], [])
        return confirmed

    def _put_first(self, entries: Iterable[Entry]) -> None:
        self._waiting.extendleft(reversed([entry for entry in entries if entry.token]))
