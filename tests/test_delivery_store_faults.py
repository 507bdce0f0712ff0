"""The store on a disk that refuses: nothing put and not discarded is ever lost, and nothing else comes back."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty import ERRORS, UNIX_S, Clock, Disk, NewStore, filled, heal, stores

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import LOAD_PAUSES_S, RETRY_MAX_NS, RETRY_MIN_NS, Store, StoreSettings

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


def scenario(store: Store) -> dict[int, Record]:
    """A life with every call the store makes; what must be in it at the end."""
    store.load()
    records = {}

    def put(body: bytes) -> int:
        id_ = store.put(3, body)
        records[id_] = Record(id_, 3, body)
        return id_

    def discard(id_: int) -> None:
        del records[id_]
        store.discard(id_)

    first = [put(bytes([i]) * 300) for i in range(4)]
    store.commit(sync=False)
    discard(first[0])
    second = put(b"second")
    store.commit(sync=True)
    discard(second)
    third = [put(b"third"), put(b"third too")]
    store.commit(sync=False)
    discard(third[0])
    discard(first[2])
    assert store.read(first[1]) in (bytes([1]) * 300, None)
    store.commit(sync=True)
    return records


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "with time between"])
@pytest.mark.parametrize("late", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("error", ERRORS)
def test_whichever_call_fails_the_store_ends_with_exactly_what_was_put_and_not_discarded(
    path: Path, new_store: NewStore, error: str, *, late: bool, wait: bool
) -> None:
    for n in range(1, 200):
        folder = path.parent / str(n)
        disk = Disk(error, late=late)
        disk.refuse = n
        clock = Clock()

        def passing(clock: Clock = clock) -> int:
            clock.ns += RETRY_MAX_NS if wait else 0
            return clock.ns

        store = Store(folder / "store.db", StoreSettings(), now_ns=passing, unix_s=lambda: UNIX_S, connect=disk.connect)
        records = scenario(store)
        heal(store, disk, clock)
        assert store.problem == ""
        assert {id_: store.read(id_) for id_ in records} == {id_: record.body for id_, record in records.items()}
        store.close()
        again = new_store(at=folder / "store.db")
        assert again.load() == list(records.values())
        assert again.quarantined == ""
        again.close()
        if not disk.refused:
            break
    assert 20 < n < 199


@pytest.mark.parametrize("lasts", [False, True])
@pytest.mark.parametrize("error", ERRORS)
def test_whichever_call_of_a_start_fails_old_records_are_loaded_in_the_end_or_moved_aside_whole(
    path: Path, new_store: NewStore, error: str, *, lasts: bool
) -> None:
    old = filled(new_store())
    moved, pauses_s = 0, []

    def sleep(pause_s: float) -> None:
        pauses_s.append(pause_s)
        disk.down = lasts

    for n in range(1, 100):
        folder = path.parent / str(n)
        folder.mkdir()
        shutil.copy(path, folder / "store.db")
        disk, clock = Disk(error), Clock()
        disk.refuse = n
        options = {"now_ns": clock, "unix_s": lambda: UNIX_S, "sleep": sleep, "connect": disk.connect}
        store = Store(folder / "store.db", StoreSettings(), **options)
        loaded = store.load()
        disk.down = False
        assert loaded in ([], old)
        assert bool(loaded) is (store.problem == "")
        new = store.put(9, b"new")
        heal(store, disk, clock)
        store.close()
        if not loaded:
            moved += 1
            assert store.quarantined == str(folder / f"store.db.unread-{STAMP}")
            assert new_store(at=Path(store.quarantined)).load() == old
        assert new_store(at=folder / "store.db").load() == [*loaded, Record(new, 9, b"new")]
        if not disk.refused:
            break
    assert moved > 5 if lasts else not moved
    assert {*pauses_s} == ({*LOAD_PAUSES_S} if lasts else {LOAD_PAUSES_S[0]})
    assert n < 99


def test_a_store_that_refuses_says_so_and_goes_on_in_ram_until_it_recovers(
    new_store: NewStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk("database or disk is full")
    store = new_store(disk)
    store.load()
    disk.down = True
    waiting = store.put(1, b"waiting")
    with caplog.at_level(logging.INFO):
        assert not store.commit(sync=False)
        assert store.problem == f"the store cannot be written: database or disk is full; {MEMORY}"
        assert store.dirty
        assert store.read(waiting) == b"waiting"
        disk.down = False
        clock.wait()
        assert store.commit(sync=False)
    assert store.problem == ""
    assert not store.dirty
    assert store.read(waiting) == b"waiting"
    assert [record.message for record in caplog.records] == ["store_degraded", "store_recovered"]


def test_a_disk_that_refuses_is_tried_again_after_pauses_that_double_up_to_a_bound(
    new_store: NewStore, clock: Clock
) -> None:
    disk = Disk()
    store = new_store(disk)
    store.load()
    disk.down = True
    store.put(1, b"")
    tries: list[int] = []
    while len(tries) < 8:
        before = disk.calls
        assert not store.commit(sync=False)
        if disk.calls > before:
            tries.append(clock.ns)
        clock.ns += RETRY_MIN_NS // 5
    pauses = [round((b - a) / RETRY_MIN_NS, 1) for a, b in itertools.pairwise(tries)]

    assert pauses == [1, 2, 4, 8, 16, 20, 20]


def test_a_record_whose_commit_failed_only_in_its_answer_can_still_be_discarded(
    new_store: NewStore, clock: Clock
) -> None:
    disk = Disk(late=True)
    store = new_store(disk)
    store.load()
    gone = store.put(1, b"gone")
    disk.refuse = disk.calls + 4  # PRAGMA synchronous, BEGIN, INSERT, COMMIT
    assert not store.commit(sync=False)
    store.discard(gone)
    heal(store, disk, clock)
    store.close()

    assert new_store().load() == []


def test_a_full_store_takes_records_again_when_others_are_discarded(path: Path, clock: Clock) -> None:
    store = Store(path, StoreSettings(max_mb=1), now_ns=clock)
    store.load()
    ids: list[int] = []
    while not store.problem:
        ids += [store.put(1, os.urandom(60_000)) for _ in range(4)]
        store.commit(sync=False)
        assert len(ids) < 200
    assert "full" in store.problem
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 8 * 1024 * 1024
    for id_ in ids[:8]:
        store.discard(id_)
    clock.wait()
    assert store.commit(sync=False)
    store.close()
    again = Store(path, StoreSettings(max_mb=1))
    assert [record.id for record in again.load()] == ids[8:]
    again.close()


def mounted(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A tmpfs of that size, unmounted at the end; skips where mounting is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk", 1024)


def test_a_full_disk_is_survived_and_recovered_from(small_disk: Path, new_store: NewStore, clock: Clock) -> None:
    store = new_store(at=small_disk / "store.db")
    store.load()
    records = [Record(store.put(1, b"kept"), 1, b"kept")]
    assert store.commit(sync=True)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 * 1024 * 1024))
    body = bytes(3000)
    for _ in range(200):
        records.append(Record(store.put(1, body), 1, body))
        store.commit(sync=False)
    assert store.problem == f"the store cannot be written: database or disk is full; {MEMORY}"
    assert [store.read(record.id) for record in records] == [record.body for record in records]
    ballast.unlink()
    for record in records[50:]:
        store.discard(record.id)
    clock.wait()
    assert store.commit(sync=True)
    assert store.problem == ""
    store.close()

    assert new_store(at=small_disk / "store.db").load() == records[:50]


def test_a_full_disk_at_the_start_is_survived_and_recovered_from(
    small_disk: Path, new_store: NewStore, clock: Clock
) -> None:
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2 * 1024 * 1024))
    store = new_store(at=small_disk / "state" / "store.db")
    assert store.load() == []
    assert store.problem.endswith(MEMORY)
    kept = store.put(1, b"kept")
    assert not store.commit(sync=False)
    ballast.unlink()
    clock.wait()
    assert store.commit(sync=False)
    store.close()

    assert new_store(at=small_disk / "state" / "store.db").load() == [Record(kept, 1, b"kept")]


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True, capture_output=True, timeout=10)


def test_a_disk_that_is_read_only_at_the_start_keeps_its_old_records_aside(
    small_disk: Path, new_store: NewStore, clock: Clock
) -> None:
    at = small_disk / "store.db"
    old = filled(new_store(at=at), 5)
    remount(small_disk, "ro")
    store = new_store(at=at)
    assert store.load() == []
    assert store.problem.endswith(MEMORY)
    new = store.put(1, b"new")
    assert not store.commit(sync=False)
    assert store.read(new) == b"new"
    remount(small_disk, "rw")
    clock.wait()
    assert store.commit(sync=False)
    store.close()

    assert new_store(at=at).load() == [Record(new, 1, b"new")]
    assert store.quarantined == str(small_disk / f"store.db.unread-{STAMP}")
    assert new_store(at=Path(store.quarantined)).load() == old


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_survived(path: Path, new_store: NewStore) -> None:
    path.parent.chmod(0o500)
    store = new_store()
    assert store.load() == []
    assert store.problem.endswith(MEMORY)
    path.parent.chmod(0o700)


def test_a_path_that_is_a_folder_is_survived_until_it_is_one_no_more(
    path: Path, new_store: NewStore, clock: Clock
) -> None:
    path.mkdir()
    store = new_store()
    assert store.load() == []
    assert store.problem == f"the store cannot be written: Is a directory; {MEMORY}"
    kept = store.put(1, b"kept")
    assert not store.commit(sync=False)
    path.rmdir()
    clock.wait()
    assert store.commit(sync=False)
    store.close()

    assert new_store().load() == [Record(kept, 1, b"kept")]


def test_a_folder_that_is_a_file_is_survived(tmp_path: Path, new_store: NewStore) -> None:
    (tmp_path / "state").write_text("")
    store = new_store(at=tmp_path / "state" / "store.db")

    assert store.load() == []
    assert store.problem.endswith(MEMORY)
