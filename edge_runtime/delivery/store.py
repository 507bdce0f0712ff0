"""A log of records on disk, each kept until nothing needs it any more; the disk may fail, the store never does.

A record put waits in RAM until a transaction with it was committed, so nothing is lost while the disk refuses.
Where it can, it takes the place of a discarded one of its length: a page is then rewritten where else several would be.
Ids ascend from the largest one in the file. A record can only name records put before it, so no record in the file
names an id that is given again; nothing else outlives the process.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_runtime.delivery.database import (
    MIB,
    Connect,
    Found,
    Record,
    Tuning,
    check_header,
    close,
    connected,
    nobody,
    read_all,
    sealed,
    set_aside,
    set_up,
    unsealed,
)
from edge_runtime.errors import StoreBusyError

log = logging.getLogger(__name__)

DELETE = "DELETE FROM records WHERE place = ?"
WRITE = "INSERT INTO records VALUES (?, ?) ON CONFLICT (place) DO UPDATE SET sealed = excluded.sealed"
LENGTH_BITS = 32
DISK_PER_MB = 4
COMMIT_WAIT_MS = {"default": 0.0, "sd-card": 100.0}
BUDGET_MB_PER_DAY = {"default": 0.0, "sd-card": 2000.0}
PAGE_BYTES = {"default": 1024, "sd-card": 512}
LOCKED = "database is locked"
LOAD_PAUSES_S = (0.1, 0.3, 0.6, 1.0)
RETRY_MIN_NS, RETRY_MAX_NS = 500_000_000, 10_000_000_000

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may wait on disk, and what it may cost. Raises ValueError for settings that contradict each other.

    profile: sd-card writes less at once and less often, for more work; the pages of a file stay as they were made.
    commit_wait_ms: how long a finished turn may wait to share a transaction; by default 0, for sd-card 100.
    max_mb, max_results, max_age_s: of the results that wait to be sent, 0 s for any age; the file may take four times
    max_mb. when_full: whether the oldest results give way or messages are no longer acknowledged. replay_per_s:
    results a second of a backlog. budget_mb_per_day: what may be written to the disk before it is said, 0 for any
    amount; by default that, for sd-card 2000. retry_min_s, retry_max_s: pause before a result that the broker refused
    is sent again.
    """

    profile: Literal["default", "sd-card"] = "default"
    commit_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=10_000)] | None = None
    max_mb: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 128
    max_results: Count = 200_000
    max_age_s: NotNegative = 0.0
    when_full: Literal["block", "drop_oldest"] = "block"
    replay_per_s: Positive = 500.0
    budget_mb_per_day: NotNegative | None = None
    retry_min_s: Positive = 0.5
    retry_max_s: Positive = 60.0

    def __post_init__(self) -> None:
        if self.retry_min_s > self.retry_max_s:
            raise ValueError("retry_min_s must not exceed retry_max_s")

    @property
    def wait_ms(self) -> float:
        """commit_wait_ms, or what the profile has for it."""
        if self.commit_wait_ms is not None:
            return self.commit_wait_ms
        return COMMIT_WAIT_MS[self.profile]

    @property
    def budget_mb(self) -> float:
        """budget_mb_per_day, or what the profile has for it."""
        return BUDGET_MB_PER_DAY[self.profile] if self.budget_mb_per_day is None else self.budget_mb_per_day


class Store:
    """The records of one file, held alone. Used by one thread at a time.

    problem: "" or, while what is put stays in RAM, one sentence that says why. quarantined: where an unsound file was
    moved to, "" when none was.
    """

    def __init__(
        self,
        path: Path,
        settings: StoreSettings,
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        connect: Connect = sqlite3.connect,
    ) -> None:
        self.problem = ""
        self.quarantined = ""
        self._path = path
        self._tuning = Tuning(settings.max_mb * DISK_PER_MB * MIB, PAGE_BYTES[settings.profile])
        self._now_ns, self._unix_s, self._sleep, self._connect = now_ns, unix_s, sleep, connect
        self._connection: sqlite3.Connection | None = None
        self._loaded = False
        self._corrupt, self._inode = False, 0
        self._sync: bool | None = None
        self._forget()
        self._failures = 0
        self._retry_ns = 0

    def _forget(self) -> None:
        """No records. places: of each id that may be on the disk, with its length in one number; free: by length."""
        self._puts: dict[int, bytes] = {}
        self._places: dict[int, int] = {}
        self._free: dict[int, list[int]] = {}
        self._next_id = self._next_place = 1

    def load(self, *, taken: Callable[[Record], bool] = nobody) -> list[Record]:
        """Open the file and read every record in it, oldest first; once, before anything else.

        taken: called with each, in no order; those for which it is true are not among what is returned.

        An unsound file is moved aside, and the records are none. So they are while the disk refuses, for two seconds
        of tries if there is a file: one that then turns out to hold some is moved aside too. Raises StoreBusyError.
        """
        for pause_s in (*LOAD_PAUSES_S, None):
            try:
                self._connection, found = self._sound(taken)
                break
            except (sqlite3.DatabaseError, OSError) as error:
                if str(error) == LOCKED:
                    raise StoreBusyError(str(self._path)) from error
                if pause_s is None or not self._path.exists():
                    self._refused(error)
                    return []
                self._sleep(pause_s)
        self._loaded = True
        if found.places:
            self._places = {id_: place << LENGTH_BITS | length for id_, (place, length) in found.places.items()}
            self._next_id = max(found.places) + 1
            self._next_place = max(place for place, _ in found.places.values()) + 1
        return sorted(found.records)

    def put(self, kind: int, body: bytes) -> int:
        """Remember a record until it is committed; its id."""
        id_ = self._next_id
        self._next_id += 1
        self._puts[id_] = sealed(Record(id_, kind, body))
        return id_

    def discard(self, id_: int) -> None:
        """Let go of a record; from the disk with the next commit."""
        self._puts.pop(id_, None)
        if id_ in self._places:
            place, length = divmod(self._places.pop(id_), 1 << LENGTH_BITS)
            self._free.setdefault(length, []).append(place)

    def read(self, id_: int) -> bytes | None:
        """The body of a record; None when it was discarded, is damaged or cannot be read now."""
        if id_ in self._puts:
            return unsealed(self._puts[id_]).body
        if id_ not in self._places or self._connection is None:
            return None
        place = self._places[id_] >> LENGTH_BITS
        try:
            row = self._connection.execute("SELECT sealed FROM records WHERE place = ?", (place,)).fetchone()
            return unsealed(row[0]).body if row else None
        except sqlite3.OperationalError:  # the next commit will say so
            return None
        except sqlite3.DatabaseError as error:
            self._refused(error)
            return None

    def holds(self, id_: int) -> bool:
        """Whether a record that cannot be read now may be read later: it is on a disk that only refuses."""
        return id_ in self._places and not self._corrupt

    @property
    def dirty(self) -> bool:
        """Whether anything waits for a commit."""
        return bool(self._puts or self._free)

    @property
    def has_discards(self) -> bool:
        """Whether records wait to be deleted from the disk."""
        return bool(self._free)

    def commit(self, *, sync: bool) -> bool:
        """Write everything that waits, in one transaction; sync: it survives a power cut, else only a crash.

        False when the disk refused, or did so a moment ago: everything goes on waiting.
        """
        if not self.dirty:
            return True
        if self.problem and (self._corrupt or self._now_ns() < self._retry_ns):
            return False
        try:
            self._write(sync=sync)
        except (sqlite3.DatabaseError, OSError) as error:
            self._refused(error)
            return False
        self._puts.clear()
        self._free.clear()
        if self.problem:
            log.warning("store_recovered", extra={"path": str(self._path), "problem": self.problem})
            self.problem, self._failures = "", 0
        return True

    def reject(self, reason: str) -> None:
        """What was loaded makes no sense: the file is moved aside, and a new one begun with the next commit."""
        self.close()
        self._forget()
        self._loaded = False
        try:
            self._set_aside("corrupt", reason)
        except OSError as error:
            self._refused(error)

    def review(self) -> None:
        """See that the file is still there: one that was removed takes what is written with it, and lets others in."""
        if self._connection is not None and self._inode and _inode(self._path) != self._inode and not self._corrupt:
            self._refused(sqlite3.DatabaseError("the file was removed or replaced while it was in use"))

    def close(self) -> None:
        """Give the file up; what was not committed is lost."""
        if self._connection is not None:
            close(self._connection)
            self._connection = None

    def _write(self, *, sync: bool) -> None:
        if self._failures:  # which rolls back, and leaves nothing that a failed fsync may have lost
            self.close()
        connection = self._connection or self._reopened()
        if sync is not self._sync:
            connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._sync = sync
        rows = [(self._place(id_, len(stored)), stored) for id_, stored in self._puts.items()]
        connection.execute("BEGIN IMMEDIATE")
        if self._free:  # first: the pages they leave are used again
            connection.executemany(DELETE, [(place,) for places in self._free.values() for place in places])
        if rows:
            connection.executemany(WRITE, rows)
        connection.execute("COMMIT")

    def _place(self, id_: int, length: int) -> int:
        """Where a record is written: where an earlier try may have left it, else over a discarded one, else behind."""
        if id_ in self._places:
            return self._places[id_] >> LENGTH_BITS
        free = self._free.get(length)
        if free:
            place = free.pop()
            if not free:
                del self._free[length]
        else:
            place = self._next_place
            self._next_place += 1
        self._places[id_] = place << LENGTH_BITS | length
        return place

    def _reopened(self) -> sqlite3.Connection:
        """The file opened again; one that was never read is moved aside when it holds records."""
        if self._loaded:
            connection, _ = self._opened(None)
        else:
            connection, found = self._sound(nobody)
            if found.places:
                try:
                    self._set_aside("unread", "its records could not be read at the start")
                finally:
                    close(connection)
                connection, _ = self._sound(nobody)
        self._connection, self._sync, self._loaded = connection, None, True
        return connection

    def _sound(self, taken: Callable[[Record], bool]) -> tuple[sqlite3.Connection, Found]:
        """The file, or a new one in place of an unsound one, and what is in it."""
        try:
            return self._opened(taken)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
        return self._opened(taken)

    def _opened(self, taken: Callable[[Record], bool] | None) -> tuple[sqlite3.Connection, Found]:
        """The file and what is in it, unless taken is None. An unsound file is moved aside before it is said."""
        connection: sqlite3.Connection | None = None
        try:
            check_header(self._path)
            connection = connected(self._path, self._connect)
            set_up(connection, self._tuning)
            self._inode = _inode(self._path)
            return connection, read_all(connection, taken) if taken else Found({}, [])
        except (sqlite3.DatabaseError, OSError) as error:
            try:
                if taken and type(error) is sqlite3.DatabaseError:  # before it is closed, which deletes its log
                    self._set_aside("corrupt", str(error))
            finally:
                if connection is not None:
                    close(connection)
            raise

    def _set_aside(self, why: str, reason: str) -> None:
        self.quarantined = str(set_aside(self._path, why, self._unix_s()))
        log.error("store_quarantined", extra={"path": str(self._path), "to": self.quarantined, "reason": reason})

    def _refused(self, error: Exception) -> None:
        """Go on in RAM, and wait before the next try; until then the connection is good for reading."""
        self._corrupt = type(error) is sqlite3.DatabaseError
        if not self._corrupt and not isinstance(error, sqlite3.OperationalError | OSError):
            raise error
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        if not self.problem:
            log.error("store_degraded", extra={"path": str(self._path), "error": text})
        self.problem = _problem(text, corrupt=self._corrupt)
        self._retry_ns = self._now_ns() + min(RETRY_MIN_NS << min(self._failures, 10), RETRY_MAX_NS)
        self._failures += 1


def _inode(path: Path) -> int:
    """0 where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _problem(error: str, *, corrupt: bool) -> str:
    if corrupt:
        return f"the store is corrupt: {error}; delivery as with `memory` until a restart, which moves it aside"
    return f"the store cannot be written: {error}; delivery as with `memory`"
