"""What waits, undecoded, for a pipeline, and what gives way when input outruns the device."""

from __future__ import annotations

from collections import deque
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
    """The waiting messages of one pipeline, a bounded queue per stream, served in turn."""

    def __init__(self, settings: QueueSettings, *, max_streams: int) -> None:
        self._max = 1 if settings.when_full == "latest_only" else settings.max
        self._max_bytes = settings.max_bytes
        self._max_streams = max_streams
        self._streams: dict[str, _Waiting] = {}
        self._serving: dict[str, _Waiting] = {}
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def depths(self) -> Mapping[str, int]:
        """Waiting messages per stream."""
        return {stream: len(waiting.messages) for stream, waiting in self._serving.items()}

    def admits(self, stream: str) -> bool:
        """Whether it is one of the first max_streams that were seen; all that is kept per stream relies on it."""
        if stream not in self._streams:
            if len(self._streams) >= self._max_streams:
                return False
            self._streams[stream] = _Waiting()
        return True

    def offer(self, queued: Queued) -> list[Queued]:
        """Put a message of an admitted stream in line; the messages that had to give way, which may include it."""
        waiting = self._streams[queued.stream]
        self._append(queued, waiting)
        gave_way = []
        while waiting.messages and (len(waiting.messages) > self._max or self._bytes > self._max_bytes):
            oldest = self._pop(queued.stream, waiting)
            waiting.given_up += 1 + oldest.given_up
            gave_way.append(oldest)
        return gave_way

    def take(self, limit: int) -> list[Queued]:
        """At most limit messages, one of each stream in turn, each stream in its own order."""
        taken: list[Queued] = []
        while self._serving and len(taken) < limit:
            stream, waiting = next(iter(self._serving.items()))
            queued = self._pop(stream, waiting)
            if stream in self._serving:
                self._serving[stream] = self._serving.pop(stream)
            if waiting.given_up:
                queued = msgspec.structs.replace(queued, given_up=queued.given_up + waiting.given_up)
                waiting.given_up = 0
            taken.append(queued)
        return taken

    def put_back(self, messages: Sequence[Queued]) -> None:
        """The last messages of a `take`, unused: they are the next of their streams again."""
        for queued in reversed(messages):
            self._append(queued, self._streams[queued.stream], left=True)

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
