"""The store and a damaged file: what is loaded is as it was put, or the file is moved aside whole."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import Clock, Disk, NewStore, filled, stores

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import Store, StoreSettings

MEMORY = "delivery as with `memory`"
STAMP = "20260921T141320Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_store(path: Path, clock: Clock) -> Iterator[NewStore]:
    """Makes stores on the path, not loaded, and closes them."""
    with stores(path, clock) as make:
        yield make


def in_quarantine(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if "-20" in file.name)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite_with_garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(20_000))


def overwrite_with_text(path: Path) -> None:
    path.write_text("this is not a database\n" * 100)


def flip_in_a_body(path: Path) -> None:
    flip(path, path.read_bytes().index(bytes([39]) * 40) + 20)


def flip_in_a_page_header(path: Path) -> None:
    flip(path, path.read_bytes().index(b"\x0d", 1024))


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def leave_out_a_row(path: Path) -> None:
    """One less in the count of cells that a page's header has: every record that is left is whole."""
    content = bytearray(path.read_bytes())
    page_bytes = int.from_bytes(content[16:18], "big")
    count = content.index(bytes([2]) * 80) // page_bytes * page_bytes + 4
    assert content[count] > 1
    content[count] -= 1
    path.write_bytes(content)


def make_a_foreign_database(path: Path) -> None:
    path.unlink()
    foreign(path, "CREATE TABLE somebody (elses INTEGER)")


def make_a_newer_format(path: Path) -> None:
    foreign(path, "PRAGMA user_version = 99")


def make_another_application(path: Path) -> None:
    foreign(path, "PRAGMA application_id = 99")


def make_another_schema(path: Path) -> None:
    foreign(path, "CREATE TABLE more (id INTEGER)")


def foreign(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [
        cut_in_half, overwrite_with_garbage, overwrite_with_text, flip_in_a_body, flip_in_a_page_header,
        leave_out_a_row, make_a_foreign_database, make_a_newer_format, make_another_application,
        make_another_schema,
    ],
)  # fmt: skip
def test_an_unsound_store_is_moved_aside_and_a_clean_one_started(
    path: Path, new_store: NewStore, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    filled(new_store())
    damage(path)
    damaged = path.read_bytes()
    store = new_store()

    assert store.load() == []
    assert store.problem == ""
    assert store.quarantined == str(path.parent / f"store.db.corrupt-{STAMP}")
    assert Path(store.quarantined).read_bytes() == damaged
    assert [record.message for record in caplog.records] == ["store_quarantined"]
    new = store.put(1, b"new")
    assert store.commit(sync=False)
    store.close()
    assert new_store().load() == [Record(new, 1, b"new")]


def test_stores_moved_aside_in_one_second_get_numbers_and_keep_their_logs(path: Path, new_store: NewStore) -> None:
    for _ in range(3):
        overwrite_with_garbage(path)
        path.with_name("store.db-wal").write_bytes(b"its log")
        store = new_store()
        assert store.load() == []
        store.close()

    names = [f"store.db.corrupt-{STAMP}{number}" for number in ("", ".1", ".2")]
    assert in_quarantine(path.parent) == sorted([*names, *(f"{name}-wal" for name in names)])


def test_whichever_byte_is_flipped_records_are_loaded_as_they_were_or_moved_aside(tmp_path: Path) -> None:
    made = Store(tmp_path / "store.db", StoreSettings())
    old = filled(made, 12)
    whole = (tmp_path / "store.db").read_bytes()
    rnd = random.Random(1)
    moved = 0
    for n, at in enumerate([*range(100), *rnd.sample(range(100, len(whole)), 200)]):
        path = tmp_path / str(n) / "store.db"
        path.parent.mkdir()
        path.write_bytes(whole)
        flip(path, at, 1 << rnd.randrange(8))
        store = Store(path, StoreSettings())
        loaded = store.load()
        assert store.problem == "", at
        assert [record[1:] for record in loaded] == ([] if store.quarantined else [record[1:] for record in old]), at
        assert store.put(1, b"") not in {record.id for record in loaded}
        assert store.commit(sync=False), at
        moved += bool(store.quarantined)
        store.close()
    assert moved > 20


@pytest.mark.parametrize("left", [b"", None], ids=["empty", "missing"])
def test_a_log_without_its_database_is_moved_aside_not_deleted(
    path: Path, new_store: NewStore, left: bytes | None
) -> None:
    store = new_store()
    store.load()
    store.put(1, b"in the log only")
    assert store.commit(sync=False)
    copy = path.parent / "copy" / "store.db"
    copy.parent.mkdir()
    log = shutil.copy(f"{path}-wal", f"{copy}-wal")
    written = Path(log).read_bytes()
    if left is not None:
        copy.write_bytes(left)
    again = new_store(at=copy)

    assert again.load() == []
    assert again.problem == ""
    assert Path(f"{again.quarantined}-wal").read_bytes() == written


@pytest.mark.parametrize("left", [0.0, 0.3, 0.7, 0.99])
def test_a_shortened_log_gives_an_older_store_and_never_a_wrong_one(
    path: Path, new_store: NewStore, left: float
) -> None:
    store = new_store()
    store.load()
    states: list[list[int]] = [[]]
    ids: list[int] = []
    for i in range(30):
        ids.append(store.put(1, bytes([i]) * 100 * i))
        if i % 3 == 2:
            store.discard(ids.pop(0))
        assert store.commit(sync=False)
        states.append(list(ids))
    copy = path.parent / "copy" / "store.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    log = copy.with_name("store.db-wal")
    os.truncate(log, int(log.stat().st_size * left))
    again = new_store(at=copy)

    assert [record.id for record in again.load()] in states
    assert again.quarantined == ""


def flip_in_the_oldest_body(path: Path) -> str:
    flip(path, path.read_bytes().index(b"oldest") + 2)
    return "the checksum of a record is wrong"


def flip_in_the_oldest_page(path: Path) -> str:
    content = path.read_bytes()
    page_bytes = int.from_bytes(content[16:18], "big")
    flip(path, content.index(b"oldest") // page_bytes * page_bytes, 0xFF)
    return "database disk image is malformed"


@pytest.mark.parametrize("damage", [flip_in_the_oldest_body, flip_in_the_oldest_page])
def test_damage_met_while_running_is_said_and_moved_aside_at_the_next_start(
    path: Path, new_store: NewStore, clock: Clock, damage: Callable[[Path], str]
) -> None:
    store = new_store()
    store.load()
    ids = [store.put(1, b"oldest" + bytes(10))]
    ids += [store.put(1, bytes(60_000)) for _ in range(60)]
    assert store.commit(sync=False)
    store.close()
    disk = Disk()
    store = new_store(disk)
    assert len(store.load()) == len(ids)
    error = damage(path)
    waiting = store.put(1, b"waiting")
    for id_ in ids:
        store.read(id_)
    store.discard(ids[0])
    store.commit(sync=False)
    clock.wait()
    assert store.problem == f"the store is corrupt: {error}; {MEMORY} until a restart, which moves it aside"
    calls = disk.calls
    assert not store.commit(sync=False)
    assert disk.calls == calls
    assert store.read(waiting) == b"waiting"
    store.close()
    again = new_store()
    assert again.load() == []
    assert again.quarantined == str(path.parent / f"store.db.corrupt-{STAMP}")


def test_records_that_make_no_sense_to_the_caller_are_moved_aside(path: Path, new_store: NewStore) -> None:
    old = filled(new_store())
    store = new_store()
    assert store.load() == old
    store.reject("a record of this version was expected")
    assert store.quarantined == str(path.parent / f"store.db.corrupt-{STAMP}")
    new = store.put(1, b"new")
    assert store.commit(sync=False)
    store.close()

    assert new_store().load() == [Record(new, 1, b"new")]
    assert new_store(at=Path(store.quarantined)).load() == old


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_while_it_was_in_use_is_a_problem(
    path: Path, new_store: NewStore, *, replaced: bool
) -> None:
    store = new_store()
    store.load()
    store.put(1, b"kept")
    assert store.commit(sync=False)
    store.review()
    assert store.problem == ""
    path.unlink()
    if replaced:
        path.write_bytes(b"")
    store.review()

    assert "removed or replaced while it was in use" in store.problem
    store.put(1, b"waiting")
    assert not store.commit(sync=False)
