"""The store over any life: puts, discards, commits, faults and crashes in any order, against a dict."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from faulty import ERRORS, Clock, Disk, heal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_runtime.delivery.database import Record
from edge_runtime.delivery.store import Store, StoreSettings

MEMORY = "delivery as with `memory`"
UNIX_S = 1_790_000_000.0
STAMP = "20260921T141320Z"


class AnyLife(RuleBasedStateMachine):
    """The store against a dict, over faults and crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
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
        self.start()
        assert self.loaded == self.kept
        self.store.close()
        shutil.rmtree(self.folder)


AnyLife.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_any_life_of_the_store_ends_with_what_was_put_and_not_discarded = AnyLife.TestCase
