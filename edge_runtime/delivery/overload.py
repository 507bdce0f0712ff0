"""What waits, undecoded, for a pipeline, and what gives way when input outruns the device."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from edge_runtime.records import Queued


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may wait, and what gives way.

    max: messages per stream. max_bytes: payloads of the whole pipeline. drop_oldest: of the stream whose message
    finds no room, the one that waited longest. latest_only: everything older than its newest.
    max_age_s: a message older than this when its turn comes is dropped undecoded; 0 = never.
    """

    max: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 * 1024 * 1024
    when_full: Literal["drop_oldest", "latest_only"] = "drop_oldest"
    max_age_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class _Waiting:
    """The queue of one stream. given_up: messages that gave way since the last one was taken."""

    def __init__(self) -> None:
        self.messages: deque[Queued] = deque()
        self.given_up = 0


class InputQueue:
    """The waiting messages of one pipeline, a bounded queue per stream, served in turn.

    As long as no bound can be met they lie in one list, in order of arrival, and a `take` of all of them is the list
    itself; they are dealt out to their streams only when some must give way or wait for others.
    """

    def __init__(self, settings: QueueSettings, *, max_streams: int) -> None:
        self._max = 1 if settings.when_full == "latest_only" else settings.max
        self._max_bytes = settings.max_bytes
        self._max_streams = max_streams
        self._arrived: list[Queued] = []
        self._streams: dict[str, _Waiting] = {}
        self._serving: dict[str, _Waiting] = {}
        self._owing: set[str] = set()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def depths(self) -> Mapping[str, int]:
        """Waiting messages per stream."""
        depths = Counter(queued.stream for queued in self._arrived)
        depths.update({stream: len(waiting.messages) for stream, waiting in self._serving.items()})
        return depths

    def oldest_ns(self) -> int | None:
        """When the message was received that has waited longest; None when none waits."""
        heads = [waiting.messages[0] for waiting in self._serving.values()]
        return min((queued.message.received_ns for queued in heads + self._arrived[:1]), default=None)

    def admits(self, stream: str) -> bool:
        """Whether it is one of the first max_streams that were seen; all that is kept per stream relies on it."""
        if stream not in self._streams:
            if len(self._streams) >= self._max_streams:
                return False
            self._streams[stream] = _Waiting()
        return True

    def offer(self, batch: list[Queued]) -> list[Queued]:
        """Put messages of admitted streams in line; those that had to give way, which may be some of them."""
        count = self._count + len(batch)
        size = self._bytes + sum([len(queued.message.payload) for queued in batch])
        if count <= self._max and size <= self._max_bytes and not (self._serving or self._owing):
            self._arrived += batch
            self._count, self._bytes = count, size
            return []
        self._deal_out()
        return [gave_way for queued in batch for gave_way in self._squeeze_in(queued)]

    def take(self, limit: int) -> list[Queued]:
        """At most limit messages, each stream in its own order; when that is not all, one of each stream in turn."""
        if self._count <= limit and not self._serving:
            taken, self._arrived = self._arrived, []
            self._count = self._bytes = 0
            return taken
        self._deal_out()
        taken = []
        while self._serving and len(taken) < limit:
            stream, waiting = next(iter(self._serving.items()))
            queued = self._pop(stream, waiting)
            if stream in self._serving:
                self._serving[stream] = self._serving.pop(stream)
            if waiting.given_up:
                queued = msgspec.structs.replace(queued, given_up=queued.given_up + waiting.given_up)
                waiting.given_up = 0
                self._owing.discard(stream)
            taken.append(queued)
        return taken

    def put_back(self, messages: Sequence[Queued]) -> None:
        """The last messages of a `take`, unused: they are the next of their streams again."""
        for queued in reversed(messages):
            self._append(queued, self._streams[queued.stream], left=True)

    def _deal_out(self) -> None:
        """From the one list to the queue of each stream."""
        arrived, self._arrived = self._arrived, []
        for queued in arrived:
            waiting = self._streams[queued.stream]
            waiting.messages.append(queued)
            self._serving[queued.stream] = waiting

    def _squeeze_in(self, queued: Queued) -> list[Queued]:
        waiting = self._streams[queued.stream]
        self._append(queued, waiting)
        gave_way = []
        while waiting.messages and (len(waiting.messages) > self._max or self._bytes > self._max_bytes):
            oldest = self._pop(queued.stream, waiting)
            waiting.given_up += 1 + oldest.given_up
            self._owing.add(queued.stream)
            gave_way.append(oldest)
        return gave_way

    def _append(self, queued: Queued, waiting: _Waiting, *, left: bool = False) -> None:
        (waiting.messages.appendleft if left else waiting.messages.append)(queued)
        self._serving[queued.stream] = waiting
        self._count += 1
        self._bytes += len(queued.message.payload)

    def _pop(self, stream: str, waiting: _Waiting) -> Queued:
        queued = waiting.messages.popleft()
        if not waiting.messages:
            del self._serving[stream]
        self._count -= 1
        self._bytes -= len(queued.message.payload)
        return queued
