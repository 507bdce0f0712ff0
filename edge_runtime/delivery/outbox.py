"""Results on their way to the broker: handed over, confirmed, or kept and sent again; and events and dead letters.

What is durable lies in parcels, one record of the store each, which goes when the fate of all that is in it is known.
Live results go first. What could not be sent when it was made is the backlog: sent at a bounded rate, marked as
replayed. What the broker refuses for now is tried again, ever more rarely.
"""

from __future__ import annotations

import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from edge_runtime.delivery.journal import PARCEL, Journal
from edge_runtime.delivery.ledger import Ledger, tally
from edge_runtime.delivery.parcels import Kind, Parcel, messages_of, packed, whole
from edge_runtime.delivery.store import StoreSettings
from edge_runtime.records import Outgoing

log = logging.getLogger(__name__)

PARCEL_MESSAGES = 16
"""At most so many in one parcel: after a crash those already confirmed of one that is not over go again."""
REASON_CHARACTERS = 60
MAX_DOUBLINGS = 32
UNREADABLE = "unreadable"
MB = 1_000_000
NS = 1e9

Stream = tuple[str, str]
NOT_A_RESULT: Stream = ("", "")


class Publisher(Protocol):
    """The client that sends; transport.Client says what these promise."""

    @property
    def connected(self) -> bool: ...

    def publish_all(self, messages: Sequence[Outgoing]) -> int: ...


Entry = tuple[Parcel, int]


class _Handed(NamedTuple):
    """Messages of one pipeline that were handed over together, the last one under that token."""

    pipeline: str
    kind: Kind
    streams: Sequence[str]
    entries: list[Entry]
    last: int


class Outbox:
    """Owner of every result that is settled and not yet confirmed; and of events and dead letters likewise."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        ledger: Ledger,
        journal: Journal | None,
        settings: StoreSettings,
        max_waiting: int,
        is_permanent: Callable[[str], bool],
        on_refused: Callable[[str, str, Outgoing, str], None],
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """journal: None when nothing is durable. max_waiting: results that may wait for their confirmation.

        is_permanent: whether a reason for which a message was refused will not pass. on_refused: told of (pipeline,
        stream, message, reason) for such a message. uniform: in [0, 1), the back-off's jitter.
        """
        self._publisher, self._ledger, self._journal = publisher, ledger, journal
        self._settings, self._max_waiting = settings, max_waiting
        self._is_permanent, self._on_refused = is_permanent, on_refused
        self._now_ns, self._unix_s, self._uniform = now_ns, unix_s, uniform
        self._waiting: dict[int, Stream] = {}
        self._entries: dict[int, Entry] = {}
        self._handed: list[_Handed] = []
        self._backlog: deque[Parcel] = deque()
        self._refused: list[tuple[int, int, Parcel]] = []
        self._unwanted: dict[Parcel, str] = {}
        self._shelved: Counter[Stream] = Counter()
        self._allowance, self._allowed_ns = settings.replay_per_s, now_ns()
        self.kept_bytes = self.kept_messages = self.replayed = 0

    @property
    def full(self) -> bool:
        """Whether as much is kept as may be."""
        settings = self._settings
        return self.kept_bytes >= settings.max_mb * MB or self.kept_messages >= settings.max_results

    def has_room(self, *, durable: bool) -> bool:
        """Whether a turn may begin, whose results will have to lie here."""
        if durable:
            return self._settings.when_full == "drop_oldest" or not self.full
        return len(self._waiting) < self._max_waiting

    @property
    def unsafe(self) -> bool:
        """Whether the broker has still to answer for something that is kept nowhere else, or will soon do so."""
        if self._publisher.connected:
            return bool(self._waiting or self._entries or self._handed)
        unkept = any(not parcel.record for parcel, _ in self._entries.values())
        return bool(self._handed) or unkept or bool(self._waiting.keys() - self._entries.keys())

    @property
    def problem(self) -> str:
        """Why results that are kept cannot be delivered, or no more can be kept; "" while all is well."""
        if self.full:
            then = "no more are made" if self._settings.when_full == "block" else "the oldest give way"
            return f"the store is full: {self.kept_messages:,} results, {self.kept_bytes / MB:.3g} MB; {then}"
        parcel = next(iter(self._unwanted), None)
        if parcel is None:
            return ""
        n, reason = sum(one.open for one in self._unwanted), self._unwanted[parcel]
        return f"{parcel.pipeline}: results cannot be delivered: {reason}; {n:,} are kept and sent again"

    def is_waiting(self, token: int) -> bool:
        return token in self._waiting

    def waiting(self) -> Counter[Stream]:
        """Results not yet confirmed, per (pipeline, stream)."""
        return Counter(self._waiting.values()) + self._shelved

    # From a settled turn to the broker.

    def pack(
        self, pipeline: str, kind: Kind, streams: Sequence[str], messages: Sequence[Outgoing], *, durable: bool
    ) -> list[Parcel]:
        """Parcels of messages of one kind, QoS and content type; durable: kept with the next commit.

        What is not durable needs none, but for events, whose fate is known by nothing else.
        """
        parcels: list[Parcel] = []
        if not durable and kind != "event":
            return parcels
        for i in range(0, len(messages), PARCEL_MESSAGES):
            parcel = Parcel(pipeline, kind, streams[i : i + PARCEL_MESSAGES], made_ns=self._now_ns())
            if durable and self._journal is not None:
                body = packed(parcel, messages[i : i + PARCEL_MESSAGES], unix_s=self._unix_s())
                self._keep(parcel, self._journal.store.put(PARCEL, body), len(body))
            parcels.append(parcel)
        if self.full and self._settings.when_full == "drop_oldest":
            self._make_room()
        return parcels

    def hand_over(
        self, pipeline: str, kind: Kind, streams: Sequence[str], messages: Sequence[Outgoing], parcels: Sequence[Parcel]
    ) -> int:
        """Send messages, at least one; the token of the last. 0: they are kept, and go when there is room for them.

        That is, a connection, and not too many that wait for their confirmation.
        """
        room = self._publisher.connected and len(self._waiting) + len(messages) <= self._max_waiting
        if parcels and parcels[0].record and not room:
            for parcel in parcels:
                self._shelve(parcel, whole(len(parcel.streams)))
                self._backlog.append(parcel)
            return 0
        last = self._publisher.publish_all(messages)
        entries = [(parcel, i) for parcel in parcels for i in range(len(parcel.streams))]
        self._handed.append(_Handed(pipeline, kind, streams, entries, last))
        return last

    def register(self) -> None:
        """Remember what was handed over; apart, so that nobody has to wait for it."""
        if not self._handed:
            return
        handed, self._handed = self._handed, []
        for pipeline, kind, streams, entries, last in handed:
            first = last - len(streams) + 1
            if kind == "result":
                for token, stream in enumerate(streams, first):
                    self._waiting[token] = pipeline, stream
            self._entries.update(zip(range(first, last + 1), entries, strict=False))

    def replay(self) -> None:
        """Send of the backlog what is due, no more of it a second than is allowed."""
        if not (self._backlog or self._refused) or not self._publisher.connected:
            return
        now_ns, rate = self._now_ns(), self._settings.replay_per_s
        self._allowance = min(max(rate, PARCEL_MESSAGES), self._allowance + (now_ns - self._allowed_ns) / NS * rate)
        self._allowed_ns = now_ns
        while self._refused and self._refused[0][0] <= now_ns:
            self._backlog.appendleft(heapq.heappop(self._refused)[2])
        while self._backlog and self._allowance >= 1 and len(self._waiting) < self._max_waiting:
            self._send_again(self._backlog.popleft())
            self.register()

    def _send_again(self, parcel: Parcel) -> None:
        todo = self._unshelve(parcel)
        messages = self._read(parcel)
        if messages is None:
            for i in todo:
                if self._journal is not None and self._journal.store.holds(parcel.record):
                    self._try_later(parcel, i, UNREADABLE)
                else:
                    self._give_up(parcel, i, UNREADABLE)
            return
        last = self._publisher.publish_all([messages[i] for i in todo])
        streams = [parcel.streams[i] for i in todo]
        self._handed.append(_Handed(parcel.pipeline, parcel.kind, streams, [(parcel, i) for i in todo], last))
        self.replayed += len(todo)
        self._allowance -= len(todo)

    # What became of it.

    def delivered(self, tokens: Sequence[int]) -> list[str]:
        """The broker has them; the pipeline of each, "" where it is no result."""
        waiting, entries = self._waiting, self._entries
        found = [waiting.pop(token, NOT_A_RESULT) for token in tokens]
        for stream, n in tally(found).items():
            if stream is not NOT_A_RESULT:
                self._ledger.confirmed(*stream, n)
        if entries:
            for token in tokens:
                entry = entries.pop(token, None)
                if entry is not None:
                    self._is_over(entry[0])
        return [pipeline for pipeline, _ in found]

    def failed(self, token: int, reason: str) -> None:
        """The broker does not have it, or the client could not send it."""
        stream, entry = self._waiting.pop(token, None), self._entries.pop(token, None)
        if stream is None and entry is None:
            return
        if entry is None:
            if stream is not None:
                self._ledger.result_dropped(*stream, _short(reason))
        elif not entry[0].record:
            self._give_up(*entry, _short(reason))
        elif self._is_permanent(reason):
            self._dead_letter(*entry, reason)
        else:
            self._try_later(*entry, reason)

    def review(self) -> None:
        """See that the store is still there, and give up what is older than it may be."""
        if self._journal is not None:
            self._journal.store.review()
        if not self._settings.max_age_s:
            return
        oldest_ns = self._now_ns() - int(self._settings.max_age_s * NS)
        while self._backlog and self._backlog[0].made_ns < oldest_ns:
            self._give_up_all(self._backlog.popleft(), "expired")
        expired = [one for one in self._refused if one[2].made_ns < oldest_ns]
        if expired:
            self._refused = [one for one in self._refused if one[2].made_ns >= oldest_ns]
            heapq.heapify(self._refused)
            for _, _, parcel in expired:
                self._give_up_all(parcel, "expired")

    def restore(self, parcels: Iterable[Parcel]) -> None:
        """Take up what the run before has left: it is the backlog."""
        for parcel in parcels:
            self._keep(parcel, parcel.record, parcel.size)
            self._shelve(parcel, whole(len(parcel.streams)))
            self._backlog.append(parcel)

    def _try_later(self, parcel: Parcel, i: int, reason: str) -> None:
        """With exponential back-off and full jitter; what else of the parcel is refused until then goes with it."""
        on_shelf = bool(parcel.todo)
        self._shelve(parcel, [i])
        if not on_shelf:
            settings, parcel.refused = self._settings, parcel.refused + 1
            longest_s = min(settings.retry_max_s, settings.retry_min_s * 2.0 ** min(parcel.refused, MAX_DOUBLINGS))
            if not self._unwanted:
                log.warning("results_refused", extra={"pipeline": parcel.pipeline, "reason": reason})
            self._unwanted[parcel] = reason
            delay_s = settings.retry_min_s + self._uniform() * (longest_s - settings.retry_min_s)
            heapq.heappush(self._refused, (self._now_ns() + int(delay_s * NS), parcel.record, parcel))

    def _dead_letter(self, parcel: Parcel, i: int, reason: str) -> None:
        messages = self._read(parcel)
        if messages is not None and parcel.kind != "dead":
            self._on_refused(parcel.pipeline, parcel.streams[i], messages[i], reason)
        self._give_up(parcel, i, _short(reason))

    def _give_up(self, parcel: Parcel, i: int, reason: str) -> None:
        _post_drop(self._ledger, parcel, i, reason)
        parcel.dropped = (*parcel.dropped, (i, reason))
        self._is_over(parcel)

    def _give_up_all(self, parcel: Parcel, reason: str) -> None:
        for i in self._unshelve(parcel):
            self._give_up(parcel, i, reason)

    def _make_room(self) -> None:
        """Of what is not under way, the oldest gives way; of what was refused, that whose time comes first."""
        while self.full and (self._backlog or self._refused):
            parcel = self._backlog.popleft() if self._backlog else heapq.heappop(self._refused)[2]
            self._give_up_all(parcel, "outbox_full")

    def _is_over(self, parcel: Parcel) -> None:
        """The fate of one more of its messages is known; of all: it is posted and goes with the next commit."""
        parcel.open -= 1
        if not parcel.open:
            self._unwanted.pop(parcel, None)
        if parcel.open or not parcel.record or self._journal is None:
            return
        if parcel.kind == "result":
            confirmed = tally(parcel.streams)
            for i, _ in parcel.dropped:
                confirmed[parcel.streams[i]] -= 1
            for stream, n in confirmed.items():
                self._journal.counting(parcel.pipeline, stream).confirmed(parcel.pipeline, stream, n)
        for i, reason in parcel.dropped:
            _post_drop(self._journal.counting(parcel.pipeline, parcel.streams[i]), parcel, i, reason)
        self._journal.store.discard(parcel.record)
        self.kept_bytes -= parcel.size
        self.kept_messages -= len(parcel.streams)

    def _keep(self, parcel: Parcel, record: int, size: int) -> None:
        parcel.record, parcel.size = record, size
        self.kept_bytes += size
        self.kept_messages += len(parcel.streams)

    def _read(self, parcel: Parcel) -> list[Outgoing] | None:
        body = None if self._journal is None else self._journal.store.read(parcel.record)
        return None if body is None else messages_of(body)

    def _shelve(self, parcel: Parcel, indices: Sequence[int]) -> None:
        parcel.todo = (*parcel.todo, *indices) if parcel.todo else indices
        if parcel.kind == "result":
            self._shelved.update((parcel.pipeline, parcel.streams[i]) for i in indices)

    def _unshelve(self, parcel: Parcel) -> list[int]:
        todo, parcel.todo = sorted(parcel.todo), ()
        if parcel.kind == "result":
            self._shelved.subtract((parcel.pipeline, parcel.streams[i]) for i in todo)
            self._shelved += Counter()  # without those at zero
        return todo


def _post_drop(ledger: Ledger, parcel: Parcel, i: int, reason: str) -> None:
    if parcel.kind == "result":
        ledger.result_dropped(parcel.pipeline, parcel.streams[i], reason)
    elif parcel.kind == "event":
        ledger.event_dropped(parcel.pipeline, parcel.streams[i], reason)


def _short(reason: str) -> str:
    return reason.partition(":")[0][:REASON_CHARACTERS]
