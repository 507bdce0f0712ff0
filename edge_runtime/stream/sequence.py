"""Which messages of a stream are new: duplicates, late ones, losses before us, restarts of the producer.

A producer that numbers its messages makes this exact: the highest number seen and a bitmap of the ones below it.
Without numbers a message is counted, and only one that the broker flags as a redelivery (DUP) is compared, by
content: each remembered one cancels a single redelivery, so that genuine repeats count.
"""

from __future__ import annotations

import zlib
from array import array
from collections import Counter, deque
from typing import Literal

import msgspec

from edge_runtime.records import Message, SequenceMark

Verdict = Literal["new", "duplicate", "late"]


class Sighting(msgspec.Struct, frozen=True):
    """What a message is to its stream.

    number: the producer's, or our count. key: the message's identity. mark: what is seen after it.
    lost: messages missing right before it. restarted: the producer began to number anew with it.
    """

    verdict: Verdict
    number: int
    key: str
    mark: SequenceMark
    lost: int = 0
    restarted: bool = False


class SequenceTracker:
    """The numbering of one stream."""

    def __init__(self, stream: str, run_id: str, *, memory: int) -> None:
        """run_id: identifies this run of the process; part of the key of messages that carry no number.

        memory: messages remembered; at least as many as the broker may send again after a reconnect.
        """
        self._stream = stream
        self._run_id = run_id
        self._memory = memory
        self._mask = (1 << memory) - 1
        self._contents = array("L", bytes(array("L").itemsize * memory))
        self._recent: deque[int] = deque()
        self._recent_counts: Counter[int] = Counter()
        self.mark: SequenceMark | None = None

    def see(self, message: Message, seq: int | None) -> Sighting:
        """Judge one message and remember it."""
        return self._count(message) if seq is None else self._place(message, seq)

    def _count(self, message: Message) -> Sighting:
        number = self.mark.high + 1 if self.mark else 0
        mark = SequenceMark(number, 1, 0)
        if message.qos:
            content = zlib.crc32(message.payload)
            if message.dup and self._recent_counts[content]:
                self._recent_counts[content] -= 1
                return Sighting("duplicate", number, "", mark)
            self._remember(content)
        self.mark = mark
        return Sighting("new", number, f"{self._stream}|{self._run_id}|{number}", mark)

    def _remember(self, content: int) -> None:
        self._recent.append(content)
        self._recent_counts[content] += 1
        if len(self._recent) > self._memory:
            oldest = self._recent.popleft()
            self._recent_counts[oldest] -= 1
            if self._recent_counts[oldest] <= 0:
                del self._recent_counts[oldest]

    def _place(self, message: Message, seq: int) -> Sighting:
        content = zlib.crc32(message.payload)
        mark = self.mark
        if mark is None:
            return self._accept(SequenceMark(seq, 1, seq), content)
        behind = mark.high - seq
        if behind < 0:
            seen = (mark.seen << -behind | 1) & self._mask if -behind < self._memory else 1
            return self._accept(SequenceMark(seq, seen, mark.first, mark.epoch), content, lost=-behind - 1)
        known = behind < self._memory and seq >= mark.first
        if known and not mark.seen >> behind & 1:
            return Sighting("late", seq, "", mark)
        if message.dup or (known and self._contents[seq % self._memory] == content):
            return Sighting("duplicate", seq, "", mark)
        return self._accept(SequenceMark(seq, 1, seq, mark.epoch + 1), content, restarted=True)

    def _accept(self, mark: SequenceMark, content: int, *, lost: int = 0, restarted: bool = False) -> Sighting:
        self.mark = mark
        self._contents[mark.high % self._memory] = content
        key = f"{self._stream}|{mark.epoch}|{mark.high}"
        return Sighting("new", mark.high, key, mark, lost, restarted)
