"""Records of which only the newest counts, each of several streams: few large ones cost a disk less than many small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edge_runtime.delivery.store import Store

STREAMS_A_RECORD = 16

Key = tuple[str, str]
_encode = msgspec.msgpack.Encoder().encode


class Latest:
    """Records that speak of several keys each; one goes when newer ones speak of all its keys."""

    def __init__(self, store: Store, kind: int) -> None:
        self._store, self._kind = store, kind
        self._places: dict[Key, int] = {}
        self._keys: dict[int, int] = {}

    def put(self, rows: Mapping[Key, object]) -> None:
        """What is true of these keys from now on."""
        items = list(rows.items())
        for i in range(0, len(items), STREAMS_A_RECORD):
            part = items[i : i + STREAMS_A_RECORD]
            self.place(self._store.put(self._kind, _encode([row for _, row in part])), [key for key, _ in part])

    def place(self, record: int, keys: Sequence[Key]) -> None:
        """A record speaks of these keys from now on."""
        self._keys[record] = len(keys)
        for key in keys:
            self.drop(key)
            self._places[key] = record

    def record(self, key: Key) -> int:
        """That speaks of the key; the later, the newer."""
        return self._places.get(key, 0)

    def drop(self, key: Key) -> None:
        record = self._places.pop(key, 0)
        if record:
            self._keys[record] -= 1
            if not self._keys[record]:
                del self._keys[record]
                self._store.discard(record)
