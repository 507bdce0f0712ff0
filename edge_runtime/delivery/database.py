"""The store's file: opened and tuned, checked, moved aside when it is not sound.

It raises what sqlite3 and the system raise. As SQLite has it, DatabaseError itself, none of its subclasses, says that
the file is corrupt or somebody else's; OperationalError is about the disk or a lock.
"""

from __future__ import annotations

import logging
import sqlite3
import struct
import zlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

Connect = Callable[..., sqlite3.Connection]

APPLICATION_ID = 0x45645354
FORMAT_VERSION = 1
SCHEMA = "CREATE TABLE records (place INTEGER PRIMARY KEY, sealed BLOB NOT NULL)"
FACTS = struct.Struct("<QII")
CHECKSUM_BYTES = 4
FRAME_BYTES = CHECKSUM_BYTES + FACTS.size
FINEST_BYTES = 32
HEADER_BYTES = 100
FILE_FORMATS = (b"\x01\x01", b"\x02\x02")
SCHEMA_FORMATS = (b"\x00\x00\x00\x00", b"\x00\x00\x00\x04")
SUFFIXES = ("-wal", "-shm", "-journal", "")
LOCK_WAIT_S = 1.0
MIB = 1024 * 1024


class Tuning(NamedTuple):
    """How SQLite is to use the disk; page_bytes is that of a new file, an old one keeps its own.

    checkpoint_bytes: of the write-ahead log, after which it is copied into the database; also what is left of it then.
    """

    max_bytes: int
    page_bytes: int
    checkpoint_bytes: int = 4 * MIB
    cache_bytes: int = 2 * MIB


class Record(NamedTuple):
    """One record of the store; kind is the caller's."""

    id: int
    kind: int
    body: bytes


def sealed(record: Record) -> bytes:
    """A record as it is stored: the checksum of all the rest, id, kind and size of the body, the body, padding.

    There are eight lengths between a power of two and the next, so that another one often fits its place exactly.
    """
    size = FRAME_BYTES + len(record.body)
    step = max(FINEST_BYTES, 1 << size.bit_length() - 4)
    rest = FACTS.pack(record.id, record.kind, len(record.body)) + record.body + bytes(-size % step)
    return zlib.crc32(rest).to_bytes(CHECKSUM_BYTES, "little") + rest


def unsealed(stored: object) -> Record:
    """The record; raises DatabaseError when it is not as it was sealed."""
    if isinstance(stored, bytes) and len(stored) >= FRAME_BYTES:
        rest = memoryview(stored)[CHECKSUM_BYTES:]
        if int.from_bytes(stored[:CHECKSUM_BYTES], "little") == zlib.crc32(rest):
            id_, kind, size = FACTS.unpack_from(rest)
            return Record(id_, kind, stored[FRAME_BYTES : FRAME_BYTES + size])
    raise sqlite3.DatabaseError("the checksum of a record is wrong")


def check_header(path: Path) -> None:
    """Look at what SQLite does not report: it deletes a log without a database, and takes some flips for a refusal.

    Not while this process has the file open, as closing it here gives up SQLite's lock. Raises OSError; DatabaseError
    when the file is damaged.
    """
    log = beside(path, "-wal")
    header = b""
    if path.exists():
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    if not header and log.exists() and log.stat().st_size:
        raise sqlite3.DatabaseError("there is a log and no database")
    if header and (header[18:20] not in FILE_FORMATS or header[44:48] not in SCHEMA_FORMATS):
        raise sqlite3.DatabaseError("the header of the file is damaged")


def connected(path: Path, connect: Connect) -> sqlite3.Connection:
    """A connection to the file, which is made, with its folder, where there is none.

    Raises OSError or OperationalError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)


def set_up(connection: sqlite3.Connection, tuning: Tuning) -> None:
    """Hold the file alone, from now on, and see that it is a store, or make it one.

    Raises OperationalError; DatabaseError when it is corrupt or somebody else's.
    """
    connection.text_factory = bytes
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    schema = connection.execute("SELECT sql FROM sqlite_master").fetchall()
    marks = _number(connection, "application_id"), _number(connection, "user_version")
    if not schema and marks == (0, 0):
        _create(connection, tuning.page_bytes)
    elif schema != [(SCHEMA.encode(),)] or marks != (APPLICATION_ID, FORMAT_VERSION):
        raise sqlite3.DatabaseError(f"not a store of format {FORMAT_VERSION}")
    connection.execute("PRAGMA journal_mode = WAL")
    page_bytes = _number(connection, "page_size")
    connection.execute(f"PRAGMA wal_autocheckpoint = {tuning.checkpoint_bytes // page_bytes}")
    connection.execute(f"PRAGMA journal_size_limit = {tuning.checkpoint_bytes}")
    connection.execute(f"PRAGMA cache_size = {-tuning.cache_bytes // 1024}")
    connection.execute(f"PRAGMA max_page_count = {tuning.max_bytes // page_bytes}")


def _create(connection: sqlite3.Connection, page_bytes: int) -> None:
    connection.execute(f"PRAGMA page_size = {page_bytes}")
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(SCHEMA)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
    connection.execute("COMMIT")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


class Found(NamedTuple):
    """What is in a file: where each record is, by id, as (place, length), and the records that nobody took."""

    places: dict[int, tuple[int, int]]
    records: list[Record]


def nobody(_record: Record) -> bool:
    return False


def read_all(connection: sqlite3.Connection, taken: Callable[[Record], bool]) -> Found:
    """Every record, in no order. taken: whether what is wanted of one was taken, so that it need not be kept.

    Raises OperationalError; DatabaseError when anything is damaged.
    """
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != b"ok":
        raise sqlite3.DatabaseError(verdict.decode(errors="replace"))
    found = Found({}, [])
    for place, stored in connection.execute("SELECT place, sealed FROM records"):
        record = unsealed(stored)
        found.places[record.id] = place, len(stored)
        if not taken(record):
            found.records.append(record)
    return found


def close(connection: sqlite3.Connection) -> None:
    """Close it whatever state it is in; what was not committed is rolled back when it is next opened."""
    try:
        connection.close()
    except sqlite3.Error as error:
        log.warning("store_not_closed", extra={"error": str(error)})


def set_aside(path: Path, why: str, unix_s: float) -> Path:
    """Rename the database with its log, together, to PATH.WHY-YYYYmmddTHHMMSSZ; a number is added where that exists.

    Raises OSError.
    """
    stamp = datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.{why}-{stamp}")
    number = 0
    while any(beside(target, suffix).exists() for suffix in SUFFIXES):
        number += 1
        target = path.with_name(f"{path.name}.{why}-{stamp}.{number}")
    for suffix in SUFFIXES:
        if beside(path, suffix).exists():
            beside(path, suffix).rename(beside(target, suffix))
    return target


def beside(path: Path, suffix: str) -> Path:
    """The file that SQLite keeps next to the database under its name and this suffix."""
    return path.with_name(path.name + suffix)
