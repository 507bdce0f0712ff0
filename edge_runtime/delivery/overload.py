"""What waits, undecoded, for a pipeline, and what gives way when input outruns the device."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from edge_runtime.records import Message, Queued


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may wait, and what gives way.

    max: messages per stream. max_bytes: payloads of the whole pipeline. drop_oldest: of the stream whose message
    finds no room, the one that waited longest. latest_only: everything older than its newest. block: nothing; the
    pipeline has a connection of its own, on which the broker sends no more than max messages, of all streams, before
    some are acknowledged (MQTT 5), or that is not read beyond them (3.1.1). max_bytes is no bound then: that is max
    messages of mqtt.maximum_packet_bytes each.
    max_age_s: a message older than this when its turn comes is dropped undecoded; 0 = never.
    """

    max: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 * 1024 * 1024
    when_full: Literal["drop_oldest", "latest_only", "block"] = "drop_oldest"
    max_age_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def blocks(self) -> bool:
        return self.when_full == "block"


class _Waiting:
    """One stream's messages. given_up: messages of it that had to give way right before the first one."""

    __slots__ = ("given_up", "messages")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.given_up = 0


class InputQueue:
    """The waiting messages of one pipeline, a bounded queue per stream, served in turn; one that blocks takes whatever
    it is given, and tells when that is enough.

    As long as no bound can be met they lie in one list, in order of arrival; they are dealt out to their streams only
    when some must give way or wait for others.
    """

    def __init__(self, settings: QueueSettings, *, max_streams: int) -> None:
        self._latest_only = settings.when_full == "latest_only"
        self._max = 1 if self._latest_only else settings.max
        self._max_bytes = settings.max_bytes
        self.blocks, self._blocks_at = settings.blocks, sys.maxsize
        if settings.blocks:
            self._max, self._max_bytes, self._blocks_at = sys.maxsize, sys.maxsize, settings.max
        self.max_streams = max_streams
        self._arrived: list[Queued] = []
        self._streams: dict[str, _Waiting] = {}
        self._serving: dict[str, _Waiting] = {}
        self._owing: set[str] = set()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        """Messages that wait."""
        return self._count

    @property
    def full(self) -> bool:
        """Whether it blocks and has no room: nothing more should be read from the broker."""
        return self._count >= self._blocks_at

    def depths(self) -> Mapping[str, int]:
        """Waiting messages per stream."""
        depths = Counter({stream: len(waiting.messages) for stream, waiting in self._serving.items()})
        for queued in self._arrived:
            depths[queued.stream] += len(queued.messages)
        return depths

    def oldest_ns(self) -> int | None:
        """When the message was received that has waited longest; None when none waits."""
        heads = [waiting.messages[0] for waiting in self._serving.values()]
        heads += [queued.messages[0] for queued in self._arrived[:1]]
        return min((message.received_ns for message in heads), default=None)

    def admits(self, stream: str) -> bool:
        """Whether it is one of the first max_streams that were seen; all that is kept per stream relies on it."""
        if stream not in self._streams:
            if len(self._streams) >= self.max_streams:
                return False
            self._streams[stream] = _Waiting()
        return True

    def offer(self, batch: list[Queued], *, room: int = 0) -> list[tuple[str, Message]]:
        """Put messages of admitted streams in line; (stream, message) of what had to give way, perhaps some of them.

        room: for so many of a stream, if that is more than there is otherwise; not where only the latest counts.
        """
        most = self._max if self._latest_only else max(self._max, room)
        count, size = self._count, self._bytes
        for queued in batch:
            count += len(queued.messages)
            size += _size(queued.messages)
        if count <= most and size <= self._max_bytes and not (self._serving or self._owing):
            self._arrived += batch
            self._count, self._bytes = count, size
            return []
        self._deal_out()
        return [
            (queued.stream, gave_way)
            for queued in batch
            for message in queued.messages
            for gave_way in self._squeeze_in(queued.stream, message, most)
        ]

    def take(self, limit: int) -> list[Queued]:
        """At most limit messages, one run a stream; when that is not all, equal shares of the streams."""
        if self._count <= limit and not self._serving:
            taken, self._arrived = self._arrived, []
            self._count = self._bytes = 0
            return taken if len(taken) == 1 else _merged(taken)
        self._deal_out()
        runs: dict[str, Queued] = {}
        while self._serving and limit:
            share = max(1, limit // len(self._serving))
            for stream in [*self._serving][:limit]:
                run = self._take_from(stream, share)
                limit -= len(run.messages)
                if stream in runs:
                    runs[stream].messages.extend(run.messages)
                else:
                    runs[stream] = run
        return list(runs.values())

    def _take_from(self, stream: str, share: int) -> Queued:
        """The stream's next messages; it is the last to be served again."""
        waiting = self._serving.pop(stream)
        messages = [waiting.messages.popleft() for _ in range(min(share, len(waiting.messages)))]
        if waiting.messages:
            self._serving[stream] = waiting
        given_up, waiting.given_up = waiting.given_up, 0
        self._owing.discard(stream)
        self._count -= len(messages)
        self._bytes -= _size(messages)
        return Queued(stream, messages, given_up)

    def put_back(self, left_over: Sequence[Queued]) -> None:
        """What a `take` gave that could not be used, one run a stream: the first in the next one, in this order."""
        for queued in left_over:
            waiting = self._streams[queued.stream]
            waiting.messages.extendleft(reversed(queued.messages))
            if queued.given_up:
                waiting.given_up += queued.given_up
                self._owing.add(queued.stream)
            self._count += len(queued.messages)
            self._bytes += _size(queued.messages)
        first = {queued.stream: self._streams[queued.stream] for queued in left_over}
        self._serving = first | {stream: waiting for stream, waiting in self._serving.items() if stream not in first}

    def _deal_out(self) -> None:
        """From the one list to the queue of each stream."""
        arrived, self._arrived = self._arrived, []
        for queued in arrived:
            waiting = self._streams[queued.stream]
            waiting.messages += queued.messages
            self._serving[queued.stream] = waiting

    def _squeeze_in(self, stream: str, message: Message, most: int) -> list[Message]:
        waiting = self._streams[stream]
        waiting.messages.append(message)
        self._serving[stream] = waiting
        self._count += 1
        self._bytes += len(message.payload)
        gave_way = []
        while waiting.messages and (len(waiting.messages) > most or self._bytes > self._max_bytes):
            gave_way.append(self._pop(stream, waiting))
            waiting.given_up += 1
            self._owing.add(stream)
        return gave_way

    def _pop(self, stream: str, waiting: _Waiting) -> Message:
        message = waiting.messages.popleft()
        if not waiting.messages:
            del self._serving[stream]
        self._count -= 1
        self._bytes -= len(message.payload)
        return message


def _merged(runs: list[Queued]) -> list[Queued]:
    """One run a stream, none of which has seen anything give way."""
    streams: dict[str, list[Message]] = {}
    for run in runs:
        streams[run.stream] = [*streams.get(run.stream, ()), *run.messages]  # a run may be another pipeline's as well
    return [Queued(stream, messages) for stream, messages in streams.items()]


def _size(messages: Iterable[Message]) -> int:
    return sum([len(message.payload) for message in messages])
