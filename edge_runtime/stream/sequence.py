"""Which messages of a stream are new: duplicates, late ones, losses before us, restarts of the producer.

A producer that numbers its messages makes this exact: the highest number seen and those missing below it. What is
flagged as a redelivery (DUP) and is not remembered was never taken: as much is remembered as can come again. Without
numbers a message is counted, and only one so flagged is compared, by content and
packet id, which a redelivery keeps (MQTT 5.0, section 4.4), so that genuine repeats count. So is, with numbers or
without, what was given up undecoded.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Literal
from zlib import crc32

import msgspec

from edge_runtime.marks import GIVEN_UP, Seen, StreamMark
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


class _Last:
    """What the last messages of a kind are known by, the newest at the end; the same may be there more than once."""

    __slots__ = ("_counts", "_most", "all")

    def __init__(self, most: int) -> None:
        self._most = most
        self.all: deque[int] = deque()
        self._counts: dict[int, int] = {}

    def __contains__(self, content: int) -> bool:
        return content in self._counts

    def add(self, content: int) -> None:
        counts = self._counts
        self.all.append(content)
        counts[content] = counts.get(content, 0) + 1
        if len(self.all) > self._most:
            oldest = self.all.popleft()
            left = counts.pop(oldest) - 1
            if left:
                counts[oldest] = left


class _Past:
    """The numbers of epochs that are over, and their contents: of as many of the newest as make up what is remembered.

    Runs of consecutive numbers: the first, the contents, and how many of them were seen.
    """

    def __init__(self, most: int) -> None:
        self._most, self._messages = most, 0
        self._runs: list[tuple[int, array[int], int]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def knows(self, seq: int, content: int) -> bool:
        return any(
            first <= seq < first + len(contents) and contents[seq - first] == content
            for first, contents, _ in self._runs
        )

    def add(self, first: int, contents: array[int], messages: int) -> None:
        self._messages += messages
        if self._runs and first == self._runs[-1][0] + len(self._runs[-1][1]):
            first, before, messages_before = self._runs.pop()
            contents, messages = before + contents, messages_before + messages
        self._runs.append((first, contents, messages))
        while self._messages - self._runs[0][2] >= self._most:
            self._messages -= self._runs.pop(0)[2]


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
        self._recent, self._given_up, self._past = _Last(memory), _Last(memory), _Past(memory)
        self.number, self.epoch = NEVER, ""
        self.first = self.restarts = 0
        self._next = NEVER
        self._missing: tuple[tuple[int, int], ...] = ()

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
        return min(n, _first_again(burst)) if self._past else n

    def take(self, burst: Burst) -> tuple[range, list[int]]:
        """Remember messages that follow, as `see` does one after the other; their numbers and contents."""
        messages, seqs = burst.messages, burst.rows.seqs
        if seqs is None:
            contents = [_with_id(message) for message in messages if message.qos]
            for content in contents:
                self._recent.add(content)
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
        return (self._recent.all[-1],) if message.qos else ()

    def give_up(self, message: Message) -> tuple[int, ...]:
        """Remember one that is not taken in; what it is known by when it comes again."""
        if not message.qos:
            return ()
        self._given_up.add(content := _with_id(message))
        return (content,)

    def gave_up(self, message: Message) -> bool:
        """Whether it is one that was given up and comes again."""
        return message.dup and _with_id(message) in self._given_up

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
            if run.epoch == GIVEN_UP or not mark.numbered:
                last = self._given_up if run.epoch == GIVEN_UP else self._recent
                for content in run.contents:
                    last.add(content)
            elif run.epoch == mark.epoch:
                self._remember_contents(run.first, run.contents)
            else:
                self._past.add(run.first, array("L", run.contents), len(run.contents))
        self.number, self.epoch, self._next = mark.number, mark.epoch, mark.number + 1 if mark.numbered else NEVER
        self.first, self._missing, self.restarts = mark.first, mark.missing, mark.restarts
        if mark.epoch and not mark.numbered:
            self._run_id = mark.epoch

    def _count(self, message: Message) -> Sighting:
        if message.qos:
            content = _with_id(message)
            if message.dup and content in self._recent:
                return DUPLICATE
            self._recent.add(content)
        self._counted(1)
        return NEXT

    def _counted(self, n: int) -> None:
        self.number += n
        self.epoch = self._run_id
        self._next = NEVER

    def _place(self, message: Message, seq: int) -> Sighting:
        """Judge a number that did not have to come next."""
        content, number = crc32(message.payload), self.number
        if number == NEVER:
            self.first = seq
            return self._accept(seq, content, NEXT)
        if message.dup and self._past.knows(seq, content):
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
        contents = array("L", [self._contents[number % self._memory] for number in numbers])
        missing = sum([at + n - max(at, numbers.start) for at, n in self.missing])
        self._past.add(numbers.start, contents, len(numbers) - missing)
        self.first, self._missing = seq, ()

    def _accept(self, seq: int, content: int, sighting: Sighting) -> Sighting:
        self.number, self.epoch, self._next = seq, str(self.restarts), seq + 1
        self._contents[seq % self._memory] = content
        return sighting


def _with_id(message: Message) -> int:
    """What a message without a number is known by."""
    return message.mid << 32 | crc32(message.payload)


def _first_again(burst: Burst) -> int:
    """How many messages stand before the first one that is flagged as a redelivery."""
    return next((i for i, message in enumerate(burst.messages) if message.dup), len(burst.messages))
