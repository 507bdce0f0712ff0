"""The store on a disk that fails: nothing put and not discarded is ever lost, and nothing else comes back."""

from __future__ import annotations

import itertools
import logging
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty import ERRORS, Disk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import RETRY_MAX_NS, RETRY_MIN_NS, Store, StoreSettings

MEMORY = "delivery as with `memory`"
UNIX_S = 1_790_000_000.0
STAMP = "20260921T141320Z"


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def wait(self) -> None:
        self.ns += RETRY_MAX_NS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_store(path: Path, clock: Clock) -> Iterator[Callable[..., Store]]:
    """Makes stores on the path, not loaded, and closes them."""
    made: list[Store] = []

    def make(disk: Disk | None = None, *, at: Path = path) -> Store:
        connect = disk.connect if disk else sqlite3.connect
        made.append(Store(at, StoreSettings(), now_ns=clock, unix_s=lambda: UNIX_S, connect=connect))
        return made[-1]

    yield make
    for store in made:
        store.close()


NewStore = Callable[..., Store]


def filled(store: Store, n: int = 40) -> list[Record]:
    """A new store's records, committed and closed."""
    store.load()
    bodies = [bytes([i]) * (i * 40) for i in range(n)]
    records = [Record(store.put(i % 5, body), i % 5, body) for i, body in enumerate(bodies)]
    assert store.commit(sync=True)
    store.close()
    return records


def in_quarantine(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if "-20" in file.name)


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


def heal(store: Store, disk: Disk, clock: Clock) -> None:
    disk.down, disk.refuse = False, 0
    clock.wait()
    assert store.commit(sync=False)


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


@pytest.mark.parametrize("error", ERRORS)
def test_whichever_call_of_a_start_fails_old_records_are_loaded_or_moved_aside_whole(
    path: Path, new_store: NewStore, error: str
) -> None:
    old = filled(new_store())
    moved = 0
    for n in range(1, 100):
        folder = path.parent / str(n)
        folder.mkdir()
        shutil.copy(path, folder / "store.db")
        disk, clock = Disk(error), Clock()
        disk.refuse = n
        store = Store(folder / "store.db", StoreSettings(), now_ns=clock, unix_s=lambda: UNIX_S, connect=disk.connect)
        loaded = store.load()
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
    assert moved > 5
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
        make_a_foreign_database, make_a_newer_format, make_another_application, make_another_schema,
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


class AnyLife(RuleBasedStateMachine):
    """The store against a dict, over faults and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.path.realpath(os.environ.get("TMPDIR", "/tmp"))) / f"store-{os.getpid()}-{id(self)}"
        self.runs = 0
        self.clock = Clock()
        self.kept: dict[int, Record] = {}
        self.committed: dict[int, Record] = {}
        self.unsure = False
        self.start()

    def start(self) -> None:
        self.disk = Disk()
        self.store = Store(
            self.folder / str(self.runs) / "store.db", StoreSettings(), now_ns=self.clock, connect=self.disk.connect
        )
        self.loaded = {record.id: record for record in self.store.load()}

    @rule(kind=st.integers(0, 9), size=st.integers(0, 3000))
    def put(self, kind: int, size: int) -> None:
        body = random.Random(size).randbytes(size)
        id_ = self.store.put(kind, body)
        assert id_ not in self.kept
        assert id_ > max(self.kept, default=0)
        self.kept[id_] = Record(id_, kind, body)

    @precondition(lambda self: self.kept)
    @rule(choice=st.randoms(use_true_random=False))
    def discard(self, choice: random.Random) -> None:
        id_ = choice.choice(sorted(self.kept))
        del self.kept[id_]
        self.store.discard(id_)

    @rule(sync=st.booleans())
    def commit(self, sync: bool) -> None:
        if self.store.commit(sync=sync):
            self.committed, self.unsure = dict(self.kept), False
        else:
            self.unsure = True

    @rule(error=st.sampled_from(ERRORS), late=st.booleans(), after=st.integers(1, 6))
    def break_a_call(self, error: str, late: bool, after: int) -> None:
        self.disk.error, self.disk.late, self.disk.refuse = error, late, self.disk.calls + after

    @rule()
    def break_the_disk(self) -> None:
        self.disk.down = True

    @rule()
    def heal_and_commit(self) -> None:
        heal(self.store, self.disk, self.clock)
        self.committed, self.unsure = dict(self.kept), False

    @rule()
    def wait(self) -> None:
        self.clock.wait()

    @rule()
    def crash(self) -> None:
        before = self.folder / str(self.runs)
        self.runs += 1
        if before.exists():
            shutil.copytree(before, self.folder / str(self.runs))
        self.store.close()
        old = {**self.committed, **self.kept} if self.unsure else self.committed
        sure = [id_ for id_ in self.committed if id_ in self.kept] if self.unsure else list(self.committed)
        self.start()
        assert self.loaded == {id_: old[id_] for id_ in self.loaded}
        assert set(sure) <= set(self.loaded)
        self.kept, self.committed, self.unsure = dict(self.loaded), dict(self.loaded), False

    @invariant()
    def reads_are_right(self) -> None:
        for id_ in list(self.kept)[-3:]:
            body = self.store.read(id_)
            failing = self.store.problem or self.disk.down or self.disk.refuse
            assert body == self.kept[id_].body or (body is None and failing)

    def teardown(self) -> None:
        heal(self.store, self.disk, self.clock)
        self.store.close()
        self.runs += 0
        self.start()
        assert self.loaded == self.kept
        self.store.close()
        shutil.rmtree(self.folder)


AnyLife.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_any_life_of_the_store_ends_with_what_was_put_and_not_discarded = AnyLife.TestCase
