"""The store on a healthy disk: what was committed is there at the next start, and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.errors import ConfigError, EdgeRuntimeError, StoreBusyError
from edge_runtime.settings import decode, read_toml

OpenStore = Callable[..., Store]

CHILD = """
import json, sys, random
from pathlib import Path
from edge_runtime.delivery.store import Store, StoreSettings
store = Store(Path(sys.argv[1]), StoreSettings())
random = random.Random(int(sys.argv[2]))
live = [record.id for record in store.load()]
print(json.dumps(live), flush=True)
while True:
    put = [store.put(1, random.randbytes(random.randrange(900))) for _ in range(random.randrange(4))]
    gone = [live.pop(random.randrange(len(live))) for _ in range(random.randrange(4)) if live]
    for id in gone:
        store.discard(id)
    print(json.dumps(["begin", put, gone]), flush=True)
    assert store.commit(sync=bool(random.randrange(2)))
    live += put
    print(json.dumps(["done", put, gone]), flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[OpenStore]:
    made: list[Store] = []

    def make(**options: object) -> Store:
        made.append(Store(path, StoreSettings(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    store = open_store()
    assert store.load() == []
    return store


def test_what_was_committed_is_loaded_oldest_first(store: Store, open_store: OpenStore) -> None:
    first, second = store.put(1, b"first"), store.put(2, b"")
    assert store.dirty
    assert store.commit(sync=False)
    assert not store.dirty
    third = store.put(255, b"\x00third")
    assert store.commit(sync=True)
    store.close()

    assert open_store().load() == [Record(first, 1, b"first"), Record(second, 2, b""), Record(third, 255, b"\x00third")]


def test_what_was_not_committed_is_gone_after_a_crash(store: Store, open_store: OpenStore) -> None:
    kept = store.put(1, b"kept")
    assert store.commit(sync=False)
    store.put(1, b"lost")
    store.discard(kept)
    store.close()

    assert [record.body for record in open_store().load()] == [b"kept"]


def test_a_discarded_record_is_gone_with_the_next_commit(store: Store, open_store: OpenStore) -> None:
    gone, kept = store.put(1, b"gone"), store.put(1, b"kept")
    assert store.commit(sync=False)
    store.discard(gone)
    assert store.has_discards
    assert store.dirty
    assert store.read(gone) is None
    assert store.commit(sync=False)
    assert not store.has_discards
    store.close()

    assert open_store().load() == [Record(kept, 1, b"kept")]


def test_a_record_put_and_discarded_before_a_commit_never_touches_the_disk(store: Store) -> None:
    store.discard(store.put(1, b"x" * 100))

    assert not store.dirty
    assert not store.has_discards


def test_a_record_that_is_discarded_again_takes_no_other_with_it(store: Store, open_store: OpenStore) -> None:
    gone = store.put(1, b"gone")
    assert store.commit(sync=False)
    store.discard(gone)
    kept = store.put(1, b"kept")
    store.discard(gone)
    assert store.commit(sync=False)
    store.discard(gone)
    assert not store.dirty
    store.close()

    assert open_store().load() == [Record(kept, 1, b"kept")]


def test_a_record_takes_the_place_of_a_discarded_one_of_its_length(store: Store, path: Path) -> None:
    first = [store.put(1, bytes(600)) for _ in range(50)]
    assert store.commit(sync=False)
    for id_ in first:
        store.put(2, bytes(590))
        store.discard(id_)
    assert store.commit(sync=False)
    store.close()
    plain = sqlite3.connect(path)
    places = [place for (place,) in plain.execute("SELECT place FROM records")]
    plain.close()

    assert places == list(range(1, 51))


def test_a_body_is_read_from_ram_until_the_commit_and_from_disk_after_it(store: Store) -> None:
    id_ = store.put(7, b"body")
    assert store.read(id_) == b"body"
    assert store.commit(sync=False)

    assert store.read(id_) == b"body"
    assert store.read(id_ + 1) is None


def test_ids_ascend_and_go_on_after_the_largest_one_in_the_file(store: Store, open_store: OpenStore) -> None:
    ids = [store.put(1, b"") for _ in range(3)]
    assert ids == sorted(set(ids))
    assert store.commit(sync=False)
    store.close()
    again = open_store()
    again.load()

    assert again.put(1, b"") > ids[-1]


def test_ids_do_not_come_again_within_a_run_when_everything_was_discarded(store: Store) -> None:
    first = store.put(1, b"")
    assert store.commit(sync=False)
    store.discard(first)
    assert store.commit(sync=False)

    assert store.put(1, b"") > first


def test_a_commit_of_nothing_succeeds_and_writes_nothing(store: Store, path: Path) -> None:
    before = {file: file.stat() for file in path.parent.iterdir()}

    assert store.commit(sync=True)
    assert {file: file.stat() for file in path.parent.iterdir()} == before


def test_a_commit_with_sync_waits_for_the_disk_and_one_without_does_not(path: Path) -> None:
    statements: list[str] = []

    def connect(path: Path, **options: object) -> sqlite3.Connection:
        connection = sqlite3.connect(path, **options)  # type: ignore[call-overload]
        connection.set_trace_callback(statements.append)
        return connection

    store = Store(path, StoreSettings(), connect=connect)
    store.load()
    levels = []
    for sync in (False, False, True, True, False):
        statements.clear()
        store.put(1, b"")
        assert store.commit(sync=sync)
        levels.append([statement for statement in statements if "synchronous" in statement])
    store.close()

    normal, full = ["PRAGMA synchronous = NORMAL"], ["PRAGMA synchronous = FULL"]
    assert levels == [normal, [], full, [], normal]


def test_a_store_that_is_held_by_another_process_is_an_error_that_names_it(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, path, "1"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            with pytest.raises(StoreBusyError, match=f"{path}: another process holds it") as caught:
                Store(path, StoreSettings()).load()
        finally:
            child.kill()
    assert isinstance(caught.value, EdgeRuntimeError)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("seed", range(4))
def test_everything_whose_commit_returned_is_there_after_kill_9(path: Path, seed: int) -> None:
    sure: set[int] = set()
    for run in range(3):
        begun = [[], []]
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, path, str(10 * seed + run)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert set(json.loads(child.stdout.readline())) >= sure
            for _ in range(random.Random(100 * seed + run).randrange(50, 400)):
                word, put, gone = json.loads(child.stdout.readline())
                begun = [put, gone] if word == "begin" else [[], []]
                sure = (sure | set(put)) - set(gone) if word == "done" else sure
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                if not line.endswith(b"\n"):
                    break
                word, put, gone = json.loads(line)
                begun = [put, gone] if word == "begin" else [[], []]
                sure = (sure | set(put)) - set(gone) if word == "done" else sure
        store = Store(path, StoreSettings())
        found = {record.id for record in store.load()}
        store.close()
        assert store.quarantined == ""
        assert found in (sure, (sure | set(begun[0])) - set(begun[1]))
        sure = found


def test_a_file_of_another_page_size_is_used_as_it_is(path: Path, open_store: OpenStore, store: Store) -> None:
    kept = store.put(1, b"x" * 5000)
    assert store.commit(sync=False)
    store.close()
    plain = sqlite3.connect(path)
    plain.execute("PRAGMA journal_mode = DELETE")
    plain.execute("PRAGMA page_size = 8192")
    plain.execute("VACUUM")
    plain.close()
    again = open_store()

    assert again.load() == [Record(kept, 1, b"x" * 5000)]
    assert again.quarantined == ""


def test_the_disk_it_takes_does_not_grow_with_what_passes_through(store: Store, path: Path) -> None:
    last = store.put(1, b"")
    for i in range(6000):
        last, before = store.put(1, bytes(i % 3000)), last
        assert store.commit(sync=False)
        store.discard(before)
        assert sum(file.stat().st_size for file in path.parent.iterdir()) < 5 * 1024 * 1024


def test_a_hundred_thousand_records_are_loaded_and_every_one_is_checked(store: Store, open_store: OpenStore) -> None:
    body = os.urandom(500)
    for _ in range(100_000):
        store.put(1, body)
    assert store.commit(sync=False)
    store.close()
    records = open_store().load()

    assert len(records) == 100_000
    assert {record.body for record in records} == {body}


def test_settings_of_the_store_are_checked_where_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('profile = "sd-card"\nmax_mb = 64\n')
    settings = decode(read_toml(tmp_path / "a.toml"), StoreSettings, path="a.toml")

    assert settings.wait_ms == 100.0
    assert StoreSettings().wait_ms == 0.0
    assert StoreSettings(profile="sd-card", commit_wait_ms=5.0).wait_ms == 5.0
    for wrong in ({"max_mb": 0}, {"profile": "ssd"}, {"max_rows": 1}, {"retry_min_s": 90.0}, {"replay_per_s": 0.0}):
        with pytest.raises(ConfigError):
            decode(wrong, StoreSettings, path="a.toml")
