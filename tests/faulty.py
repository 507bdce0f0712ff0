"""A disk that fails on demand: real SQLite behind a connection that counts its calls and refuses some."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import RETRY_MAX_NS, Store, StoreSettings

UNIX_S = 1_790_000_000.0
ERRORS = ("disk I/O error", "database or disk is full", "attempt to write a readonly database")

NewStore = Callable[..., Store]


class Disk:
    """What the connections made by `connect` do.

    refuse: the number, from 1, of the call that fails; down: every call does. late: the call fails after it was done,
    as when the disk lost only the answer. calls: how many there were.
    """

    def __init__(self, error: str = ERRORS[0], *, late: bool = False) -> None:
        self.error = error
        self.late = late
        self.refuse = 0
        self.down = False
        self.calls = 0
        self.refused = 0

    def connect(self, path: Path, **options: Any) -> sqlite3.Connection:
        self.count()
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                return disk.answer(super().execute, sql, *parameters)

            def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
                return disk.answer(super().executemany, sql, rows)

        return sqlite3.connect(path, factory=Connection, **options)

    def answer(self, call: Any, *arguments: Any) -> Any:
        if not self.late:
            self.count()
        cursor = call(*arguments)
        if self.late:
            try:
                self.count()
            except sqlite3.OperationalError:
                cursor.close()
                raise
        return cursor

    def count(self) -> None:
        self.calls += 1
        if self.down or self.calls == self.refuse:
            self.refused += 1
            raise sqlite3.OperationalError(self.error)


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def wait(self) -> None:
        self.ns += RETRY_MAX_NS


def filled(store: Store, n: int = 40) -> list[Record]:
    """A new store's records, committed and closed."""
    store.load()
    bodies = [bytes([i]) * (i * 40) for i in range(n)]
    records = [Record(store.put(i % 5, body), i % 5, body) for i, body in enumerate(bodies)]
    assert store.commit(sync=True)
    store.close()
    return records


def heal(store: Store, disk: Disk, clock: Clock) -> None:
    disk.down, disk.refuse = False, 0
    clock.wait()
    assert store.commit(sync=False)


@contextmanager
def stores(path: Path, clock: Clock) -> Iterator[NewStore]:
    """Makes stores, not loaded, and closes them; on the path where no other is given."""
    made: list[Store] = []

    def make(disk: Disk | None = None, *, at: Path = path) -> Store:
        connect = disk.connect if disk else sqlite3.connect
        made.append(Store(at, StoreSettings(), now_ns=clock, unix_s=lambda: UNIX_S, connect=connect))
        return made[-1]

    yield make
    for store in made:
        store.close()
