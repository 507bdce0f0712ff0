"""What waits, undecoded, for a pipeline, and what gives way when input outruns the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from edge_runtime.records import Queued


class QueueSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much may wait per stream, in messages, and what gives way.

    drop_oldest: the message that waited longest. latest_only: everything older than the newest one.
    max_age_s: a message older than this when its turn comes is dropped undecoded; 0 = never.
    """

    max: Annotated[int, msgspec.Meta(ge=1)] = 256
    when_full: Literal["drop_oldest", "latest_only"] = "drop_oldest"
    max_age_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class InputQueue:
    """The waiting messages of one pipeline, a bounded queue per stream, served in turn."""

    def __init__(self, settings: QueueSettings, *, max_streams: int) -> None:
        self._max = 1 if settings.when_full == "latest_only" else settings.max
        self._max_streams = max_streams
        self._known: set[str] = set()
        self._streams: dict[str, deque[Queued]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def depths(self) -> Mapping[str, int]:
        """Waiting messages per stream."""
        return {stream: len(waiting) for stream, waiting in self._streams.items()}

    def admits(self, stream: str) -> bool:
        """Whether it is one of the first max_streams that were seen; all that is kept per stream relies on it."""
        if stream not in self._known:
            if len(self._known) >= self._max_streams:
                return False
            self._known.add(stream)
        return True

    def offer(self, queued: Queued) -> Queued | None:
        """Put a message of an admitted stream in line; the message that had to give way, if any."""
        waiting = self._streams.get(queued.stream)
        if waiting is None:
            waiting = self._streams[queued.stream] = deque()
        waiting.append(queued)
        if len(waiting) > self._max:
            return waiting.popleft()
        self._waiting += 1
        return None

    def take(self, limit: int) -> list[Queued]:
        """At most limit messages, one of each stream in turn, each stream in its own order."""
        taken: list[Queued] = []
        while self._streams and len(taken) < limit:
            for stream in list(self._streams)[: limit - len(taken)]:
                waiting = self._streams.pop(stream)
                taken.append(waiting.popleft())
                if waiting:
                    self._streams[stream] = waiting
        self._waiting -= len(taken)
        return taken
