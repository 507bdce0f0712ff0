"""What only the newest word counts of, several to a record: few large ones cost a disk less than many small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edge_runtime.delivery.store import Store

ROWS_A_RECORD, RECORD_BYTES = 32, 4096
"""A record is kept for the one row that still counts; a larger row has one of its own."""

Row = tuple[int, str, str]
"""What is spoken of: its sort, pipeline and stream."""
_encode = msgspec.msgpack.Encoder().encode


class Latest:
    """Records of several rows each; one goes when newer ones have all its rows."""

    def __init__(self, store: Store, kind: int) -> None:
        self._store, self._kind = store, kind
        self._places: dict[Row, int] = {}
        self._keys: dict[int, int] = {}

    def put(self, rows: Mapping[Row, object]) -> None:
        """What is true of these from now on."""
        part: dict[Row, msgspec.Raw] = {}
        size = 0
        for key, value in rows.items():
            row = _encode((*key, value))
            if part and (len(part) == ROWS_A_RECORD or size + len(row) > RECORD_BYTES):
                self._put(part)
                part, size = {}, 0
            part[key] = msgspec.Raw(row)
            size += len(row)
        if part:
            self._put(part)

    def _put(self, part: Mapping[Row, msgspec.Raw]) -> None:
        self.place(self._store.put(self._kind, _encode(list(part.values()))), list(part))

    def place(self, record: int, keys: Sequence[Row]) -> None:
        """A record has these rows."""
        self._keys[record] = len(keys)
        for key in keys:
            self.drop(key)
            self._places[key] = record

    def record(self, key: Row) -> int:
        """The one that has the row, 0 for none; the higher, the newer."""
        return self._places.get(key, 0)

    def drop(self, key: Row) -> None:
        """Nothing is to be said of it any more."""
        record = self._places.pop(key, 0)
        if record:
            self._keys[record] -= 1
            if not self._keys[record]:
                del self._keys[record]
                self._store.discard(record)
