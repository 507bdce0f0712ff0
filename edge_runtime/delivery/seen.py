"""Where the store has what is remembered of messages against redelivery, per stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from edge_runtime.delivery.store import Store
from edge_runtime.marks import Seen

DISCARDED_TOGETHER = 128
"""Messages more than have to be remembered, before the oldest are deleted together: that writes a page each time."""

Key = tuple[str, str]


class _Records:
    """Of one stream: (record, messages in it), the oldest first, and messages in all."""

    def __init__(self) -> None:
        self.records: deque[tuple[int, int]] = deque()
        self.messages = 0


class SeenRecords:
    """Keeps the records of the last messages of every (pipeline, stream), and lets go of older ones."""

    def __init__(self, store: Store, *, memory: int) -> None:
        """memory: messages of a stream that have to be remembered."""
        self._store, self._memory = store, memory
        self._streams: dict[Key, _Records] = {}

    def add(self, key: Key, record: int, seen: Sequence[Seen]) -> None:
        """A record of messages that followed each other."""
        of_stream = self._streams.setdefault(key, _Records())
        n = sum([len(one.contents) for one in seen])
        of_stream.records.append((record, n))
        of_stream.messages += n
        if of_stream.messages >= self._memory + DISCARDED_TOGETHER:
            while of_stream.messages - of_stream.records[0][1] >= self._memory:
                oldest, its_n = of_stream.records.popleft()
                of_stream.messages -= its_n
                self._store.discard(oldest)

    def forget(self, key: Key) -> None:
        for record, _ in self._streams.pop(key, _Records()).records:
            self._store.discard(record)
