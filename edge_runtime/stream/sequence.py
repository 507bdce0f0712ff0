"""Which messages of a stream are new: duplicates, late ones, losses before us, restarts of the producer.

A producer that numbers its messages makes this exact: the highest number seen and those missing below it. What is
flagged as a redelivery (DUP) and is not remembered was never taken: as much is remembered as can come again. Without
numbers a message is counted, and only one so flagged is compared, by content and
packet id, which a redelivery keeps (MQTT 5.0, section 4.4), so that genuine repeats count.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from edge_runtime.marks import Seen, StreamMark
from edge_runtime.records import Message
from edge_runtime.stream.bursts import Burst

Verdict = Literal["new", "duplicate", "late"]
NEVER = -1
UNKNOWN = 0
"""In the place of a content that is not remembered."""


class Sighting(msgspec.Struct, frozen=True, gc=False):
    """What a message is to its stream.

    lost: messages missing right before it. restarted: the producer began to number anew with it.
    """

    verdict: Verdict
    lost: int = 0
    restarted: bool = False


NEXT = Sighting("new")
"""The message that had to come: what nearly every one is."""
DUPLICATE = Sighting("duplicate")
LATE = Sighting("late")


class _Epoch(NamedTuple):
    """The numbers of an epoch that are remembered, and the contents of each, by its remainder."""

    numbers: range
    contents: array[int]


class SequenceTracker:
    """The numbering of one stream.

    number: of the newest message, the producer's or our count. epoch: whose numbers they are: "0", "1", ... with
    every restart of the producer, or the run that counts. Both together are a message's key within the stream.
    first, restarts: as StreamMark has them.
    """

    def __init__(self, run_id: str, *, memory: int) -> None:
        """run_id: identifies this run of the process; part of the key of messages that carry no number.

        memory: messages remembered; at least as many as the broker may send again after a reconnect.
        """
        self._run_id = run_id
        self._memory = memory
        self._contents = array("L", bytes(array("L").itemsize * memory))
        self._recent: deque[int] = deque()
        self._recent_counts: dict[int, int] = {}
        self.number, self.epoch = NEVER, ""
        self.first = self.restarts = 0
        self._next = NEVER
        self._missing: tuple[tuple[int, int], ...] = ()
        self._past = _Epoch(range(0), self._contents)

    def see(self, message: Message, seq: int | None) -> Sighting:
        """Judge one message and remember it."""
        if seq is None:
            return self._count(message)
        if seq != self._next or message.dup:
            return self._place(message, seq)
        self.number, self._next = seq, seq + 1
        self._contents[seq % self._memory] = crc32(message.payload)
        return NEXT

    def following(self, burst: Burst) -> int:
        """How many of the first messages of a burst are each simply the next."""
        seqs = burst.rows.seqs
        if seqs is None:
            return _first_again(burst)
        wanted = range(self._next, self._next + len(seqs))
        n = len(seqs)
        if seqs != list(wanted):
            n = next(i for i, (seq, next_seq) in enumerate(zip(seqs, wanted, strict=True)) if seq != next_seq)
        return min(n, _first_again(burst)) if self._past.numbers else n

    def take(self, burst: Burst) -> tuple[range, list[int]]:
        """Remember messages that follow, as `see` does one after the other; their numbers and contents."""
        messages, seqs = burst.messages, burst.rows.seqs
        if seqs is None:
            contents = [message.mid << 32 | crc32(message.payload) for message in messages if message.qos]
            for content in contents:
                self._remember(content)
            self._counted(len(messages))
        else:
            contents = [crc32(message.payload) for message in messages]
            self._remember_contents(seqs[0], contents)
            self.number, self._next = seqs[-1], seqs[-1] + 1
        return range(self.number - len(messages) + 1, self.number + 1), contents

    def contents(self, message: Message) -> tuple[int, ...]:
        """What the newest message, which is that one, is known by when it comes again."""
        if self.numbered:
            return (self._contents[self.number % self._memory],)
        return (self._recent[-1],) if message.qos else ()

    @property
    def numbered(self) -> bool:
        """Whether the producer gives the numbers."""
        return self._next != NEVER

    @property
    def missing(self) -> tuple[tuple[int, int], ...]:
        """Numbers that were skipped and are not too old to be told from others, as StreamMark has them."""
        if self._missing:
            oldest = self.number - self._memory
            self._missing = tuple([(at, n) for at, n in self._missing if at + n - 1 > oldest])
        return self._missing

    def _remember_contents(self, seq: int, contents: Sequence[int]) -> None:
        """Of consecutive messages from that number on."""
        begin = seq % self._memory
        end = begin + len(contents)
        if end <= self._memory:
            self._contents[begin:end] = array("L", contents)
        else:
            for number, content in enumerate(contents, seq):
                self._contents[number % self._memory] = content

    def restore(self, mark: StreamMark, seen: Sequence[Seen]) -> None:
        """Take up where another run of the process ended. seen: oldest first."""
        for run in seen:
            if run.epoch != self.epoch:
                self._begin(run.first)
            self.epoch, self.number = run.epoch, run.first + len(run.contents) - 1
            if mark.numbered:
                self._remember_contents(run.first, run.contents)
            else:
                for content in run.contents:
                    self._remember(content)
        self.number, self.epoch, self._next = mark.number, mark.epoch, mark.number + 1 if mark.numbered else NEVER
        self.first, self._missing, self.restarts = mark.first, mark.missing, mark.restarts
        if mark.epoch and not mark.numbered:
            self._run_id = mark.epoch

    def _count(self, message: Message) -> Sighting:
        if message.qos:
            content = message.mid << 32 | crc32(message.payload)
            if message.dup and content in self._recent_counts:
                return DUPLICATE
            self._remember(content)
        self._counted(1)
        return NEXT

    def _counted(self, n: int) -> None:
        self.number += n
        self.epoch = self._run_id
        self._next = NEVER

    def _remember(self, content: int) -> None:
        recent, counts = self._recent, self._recent_counts
        recent.append(content)
        counts[content] = counts.get(content, 0) + 1
        if len(recent) > self._memory:
            oldest = recent.popleft()
            left = counts.pop(oldest) - 1
            if left:
                counts[oldest] = left

    def _place(self, message: Message, seq: int) -> Sighting:
        """Judge a number that did not have to come next."""
        content, number = crc32(message.payload), self.number
        if number == NEVER:
            self.first = seq
            return self._accept(seq, content, NEXT)
        if message.dup and seq in self._past.numbers and self._past.contents[seq % self._memory] == content:
            return DUPLICATE
        behind = number - seq
        if behind < 0:
            lost = -behind - 1
            if lost:
                self._missing = (*self.missing, (number + 1, lost))
            return self._accept(seq, content, Sighting("new", lost) if lost else NEXT)
        known = behind < self._memory and seq >= self.first
        if known and any(at <= seq < at + n for at, n in self._missing):
            return LATE
        if known and self._contents[seq % self._memory] in (content, UNKNOWN if message.dup else content):
            return DUPLICATE
        self._begin(seq)
        self.restarts += 1
        return self._accept(seq, content, Sighting("new", restarted=True))

    def _begin(self, seq: int) -> None:
        """Let an epoch begin with that number."""
        numbers = range(max(self.first, self.number - self._memory + 1), self.number + 1)
        self._past = _Epoch(numbers, self._contents[:])
        self.first, self._missing = seq, ()

    def _accept(self, seq: int, content: int, sighting: Sighting) -> Sighting:
        self.number, self.epoch, self._next = seq, str(self.restarts), seq + 1
        self._contents[seq % self._memory] = content
        return sighting


def _first_again(burst: Burst) -> int:
    """How many messages stand before the first one that is flagged as a redelivery."""
    return next((i for i, message in enumerate(burst.messages) if message.dup), len(burst.messages))
