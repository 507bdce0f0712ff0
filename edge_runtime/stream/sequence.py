"""Which messages of a stream are new: duplicates, late ones, losses before us, restarts of the producer.

A producer that numbers its messages makes this exact: the highest number seen and a bitmap of the ones below it.
Without numbers a message is counted, and only one that the broker flags as a redelivery (DUP) is compared, by
content: each remembered one cancels a single redelivery, so that genuine repeats count.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Literal
from zlib import crc32

import msgspec

from edge_runtime.records import Message, SequenceMark
from edge_runtime.stream.bursts import Burst

Verdict = Literal["new", "duplicate", "late"]
NEVER = -1


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


class SequenceTracker:
    """The numbering of one stream.

    number: of the newest message, the producer's or our count. epoch: whose numbers they are: "0", "1", ... with
    every restart of the producer, or the run that counts. Both together are a message's key within the stream.
    """

    def __init__(self, run_id: str, *, memory: int) -> None:
        """run_id: identifies this run of the process; part of the key of messages that carry no number.

        memory: messages remembered; at least as many as the broker may send again after a reconnect.
        """
        self._run_id = run_id
        self._memory = memory
        self._mask = (1 << memory) - 1
        self._contents = array("L", bytes(array("L").itemsize * memory))
        self._recent: deque[int] = deque()
        self._recent_counts: dict[int, int] = {}
        self.number, self.epoch = NEVER, ""
        self._next = NEVER
        self._folded = SequenceMark(NEVER, 0, 0)

    def see(self, message: Message, seq: int | None) -> Sighting:
        """Judge one message and remember it."""
        if seq is None:
            return self._count(message)
        if seq != self._next:
            return self._place(message, seq)
        self.number, self._next = seq, seq + 1
        self._contents[seq % self._memory] = crc32(message.payload)
        return NEXT

    def following(self, burst: Burst) -> int:
        """How many of the first messages of a burst are each simply the next."""
        seqs = burst.rows.seqs
        if seqs is None:
            return next((i for i, message in enumerate(burst.messages) if message.dup), len(burst.messages))
        wanted = range(self._next, self._next + len(seqs))
        if seqs == list(wanted):
            return len(seqs)
        return next(i for i, (seq, next_seq) in enumerate(zip(seqs, wanted, strict=True)) if seq != next_seq)

    def take(self, burst: Burst) -> range:
        """Remember messages that follow, as `see` does one after the other; their numbers."""
        messages, seqs = burst.messages, burst.rows.seqs
        if seqs is None:
            for content in [crc32(message.payload) for message in messages if message.qos]:
                self._remember(content)
            self._counted(len(messages))
        else:
            self._remember_contents(seqs[0], [crc32(message.payload) for message in messages])
            self.number, self._next = seqs[-1], seqs[-1] + 1
        return range(self.number - len(messages) + 1, self.number + 1)

    def _remember_contents(self, seq: int, contents: list[int]) -> None:
        """Of consecutive messages from that number on."""
        begin = seq % self._memory
        end = begin + len(contents)
        if end <= self._memory:
            self._contents[begin:end] = array("L", contents)
        else:
            for number, content in enumerate(contents, seq):
                self._contents[number % self._memory] = content

    @property
    def mark(self) -> SequenceMark:
        """What is seen so far."""
        folded = self._folded
        if folded.high < self.number:
            seen, mask = folded.seen, self._mask
            if seen != mask:
                run = min(self.number - folded.high, self._memory)
                seen = (seen << run | (1 << run) - 1) & mask
            self._folded = folded = SequenceMark(self.number, seen, folded.first, folded.epoch)
        return folded

    def _count(self, message: Message) -> Sighting:
        if message.qos:
            content = crc32(message.payload)
            if message.dup and self._recent_counts.get(content, 0) > 0:
                self._recent_counts[content] -= 1
                return DUPLICATE
            self._remember(content)
        self._counted(1)
        return NEXT

    def _counted(self, n: int) -> None:
        self.number += n
        self.epoch = self._run_id
        self._next = NEVER
        self._folded = SequenceMark(self.number, 1, 0)

    def _remember(self, content: int) -> None:
        recent, counts = self._recent, self._recent_counts
        recent.append(content)
        counts[content] = counts.get(content, 0) + 1
        if len(recent) > self._memory:
            oldest = recent.popleft()
            left = counts.pop(oldest, 0) - 1
            if left > 0:
                counts[oldest] = left

    def _place(self, message: Message, seq: int) -> Sighting:
        """Judge a number that did not have to come next."""
        content = crc32(message.payload)
        mark = self.mark
        behind = mark.high - seq
        if mark.high == NEVER:
            return self._accept(SequenceMark(seq, 1, seq), content, NEXT)
        if behind < 0:
            seen = (mark.seen << -behind | 1) & self._mask if -behind < self._memory else 1
            return self._accept(SequenceMark(seq, seen, mark.first, mark.epoch), content, Sighting("new", -behind - 1))
        known = behind < self._memory and seq >= mark.first
        if known and not mark.seen >> behind & 1:
            return LATE
        if message.dup or (known and self._contents[seq % self._memory] == content):
            return DUPLICATE
        return self._accept(SequenceMark(seq, 1, seq, mark.epoch + 1), content, Sighting("new", restarted=True))

    def _accept(self, mark: SequenceMark, content: int, sighting: Sighting) -> Sighting:
        self._folded = mark
        self.number, self.epoch, self._next = mark.high, str(mark.epoch), mark.high + 1
        self._contents[mark.high % self._memory] = content
        return sighting
