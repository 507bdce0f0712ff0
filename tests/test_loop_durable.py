"""The turn loop with a store: what is committed before what, and what happens when it cannot be."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from durable import PLAIN, SOURCE, Crash, Node, Plan, row, swinging

from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.delivery.store import StoreSettings
from edge_runtime.stream.decode import SourceSettings
from edge_runtime.stream.window import WindowSettings

S = 1_000_000_000
MEMORY = Plan(delivery="memory")
BOTH = {"p": Plan(), "m": MEMORY}


class DiskFull:
    """A disk that may be full: nothing can be done on it then; or gone: it cannot be read."""

    def __init__(self) -> None:
        self.full = self.gone = False

    def connect(self, path: Path, **options: object) -> sqlite3.Connection:
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, *parameters):
                if disk.full or (disk.gone and sql.startswith("SELECT")):
                    raise sqlite3.OperationalError("database or disk is full")
                return super().execute(sql, *parameters)

        return sqlite3.connect(path, factory=Connection, **options)


def sends(node: Node, n: int, *, first: int = 0, moving: float = 0.0, topic: str = "in/a") -> None:
    for i in range(first, first + n):
        node.broker.send(topic, row(i, moving))


@pytest.fixture
def calls() -> list[str]:
    return []


def ids(node: Node, part: str = "/p/p/out/") -> list[str]:
    return [body["id"] for _, body in node.broker.documents(part)]


def test_acknowledgements_follow_the_commit_and_results_follow_them(tmp_path: Path, calls: list[str]) -> None:
    node = Node(tmp_path, trap=calls.append)
    sends(node, 4)
    node.steps(1)

    assert [call for call in calls if call.startswith("before")] == [
        "before ingest", "before predict", "before emit", "before commit", "before acknowledge", "before publish_all",
        "before publish_all",
    ]  # fmt: skip
    assert calls.index("after commit") < calls.index("before acknowledge")
    assert node.broker.acknowledged == [1, 2, 3, 4]
    assert len(ids(node)) == 1


@pytest.mark.parametrize(
    ("queue", "topics", "unused"),
    [
        (QueueSettings(max=2), ["in/a"] * 5, {"queue_full": 3}),
        (QueueSettings(), [f"in/{stream}" for stream in "abcdefghij"], {}),
        (QueueSettings(), ["elsewhere"] * 2, {}),
    ],
    ids=["queue_full", "too_many_streams", "unknown_topic"],
)
def test_messages_without_a_turn_are_acknowledged_after_the_commit_too(
    tmp_path: Path, calls: list[str], queue: QueueSettings, topics: list[str], unused: dict[str, int]
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    node = Node(folder, plans={"p": Plan(queue=queue)}, trap=calls.append)
    for n, topic in enumerate(topics):
        node.broker.send(topic, row(n, 0.0))
    node.steps(1)

    assert calls.index("after commit") < calls.index("before acknowledge")
    assert node.broker.acknowledged == list(range(1, len(topics) + 1))
    found = {one.pipeline: one for one in node.loop.account().pipelines}
    after = Node(node.crash(), node.broker, node.plans)
    assert {one.pipeline: one for one in after.loop.account().pipelines} == found
    assert sum(one.received for one in found.values()) == len(topics)
    if "p" in found:
        assert found["p"].dropped == unused


def test_turns_that_end_within_commit_wait_ms_share_a_transaction(tmp_path: Path, calls: list[str]) -> None:
    node = Node(tmp_path, store=StoreSettings(commit_wait_ms=100), trap=calls.append)
    for n in range(10):
        sends(node, 1, first=n)
        node.steps(1, s=0.01)
    assert "before commit" not in calls
    assert node.broker.acknowledged == []
    assert (node.account().queued, node.account().in_flight) == (10, 4)

    node.steps(1)
    assert calls.count("before commit") == 1
    assert node.broker.acknowledged == list(range(1, 11))
    assert len(ids(node)) == 4


def test_the_turns_that_wait_for_a_commit_are_bounded(tmp_path: Path, calls: list[str]) -> None:
    node = Node(tmp_path, store=StoreSettings(commit_wait_ms=1e6), trap=calls.append)
    for n in range(64):
        sends(node, 1, first=n)
        node.steps(1)

    assert calls.count("before commit") == 1
    assert len(node.broker.acknowledged) == 64


def test_a_confirmed_result_is_deleted_within_a_second(tmp_path: Path) -> None:
    node = Node(tmp_path)
    sends(node, 4)
    node.steps(1)
    lies = node.records()
    node.steps(5, s=0.25)

    assert (lies[1], node.records()[1]) == (1, 0)


def test_draining_commits_at_once_whatever_may_wait(tmp_path: Path) -> None:
    node = Node(tmp_path, store=StoreSettings(commit_wait_ms=1e6))
    sends(node, 4)
    node.steps(1)
    assert node.broker.acknowledged == []

    assert node.loop.drain(node.clock.monotonic_ns + S)
    assert node.broker.acknowledged == [1, 2, 3, 4]
    assert node.account().confirmed == 1


def test_draining_without_a_connection_keeps_the_results_and_ends_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.client.connected = False
    sends(node, 8)
    node.steps(1)

    assert node.loop.drain(node.clock.monotonic_ns + 1)
    assert (node.account().waiting, ids(node)) == (3, [])
    after = Node(node.end(), node.broker, node.plans)
    assert after.account().waiting == 3
    after.steps(3, s=1.0)
    assert after.account().confirmed == 3
    assert len(ids(after)) == 3


def test_draining_leaves_with_the_broker_what_there_is_no_room_for(tmp_path: Path) -> None:
    node = Node(tmp_path, store=StoreSettings(max_results=2))
    node.client.connected = False
    for n in range(6):
        sends(node, 4, first=4 * n)
        node.steps(1)
    assert (node.account().waiting, node.account().queued) == (3, 16)

    assert node.loop.drain(node.clock.monotonic_ns + 1)
    assert len(node.broker.unacknowledged) == 16


def test_draining_without_a_connection_waits_for_results_that_are_kept_nowhere(tmp_path: Path) -> None:
    node = Node(tmp_path, plans=BOTH)
    node.client.withhold_confirmations = True
    sends(node, 4)
    node.steps(1)
    node.client.connected = False

    deadline_ns = node.clock.monotonic_ns
    assert not node.loop.drain(deadline_ns)
    node.client.withhold_confirmations = False
    assert node.loop.drain(deadline_ns + S)


def test_draining_leaves_a_backlog_for_the_next_run(tmp_path: Path) -> None:
    node = Node(tmp_path, store=StoreSettings(commit_wait_ms=100, replay_per_s=1000))
    node.client.connected = False
    sends(node, 60)
    node.steps(2, s=1.0)
    sends(node, 4, first=60)
    node.steps(1)
    node.client.connected = True

    assert node.loop.drain(node.clock.monotonic_ns + 1)
    assert not any(out.user for out in node.broker.published)
    assert (node.account().waiting, node.account().confirmed) == (29, 2)
    after = Node(node.end(), node.broker, node.plans)
    after.steps(40, s=1.0)
    assert after.account().confirmed == 31


def test_results_of_memory_and_durable_pipelines_in_one_step_are_all_accounted_for(tmp_path: Path) -> None:
    node = Node(tmp_path, plans=BOTH)
    sends(node, 4)
    node.steps(2)

    assert (node.account("p").confirmed, node.account("m").confirmed) == (1, 1)
    assert (node.account("p").waiting, node.account("m").waiting) == (0, 0)
    assert node.broker.acknowledged == [1, 2, 3, 4]
    assert {"publish", "e2e"} <= set(node.lanes["m"].recorder.summary())


def test_a_result_of_a_memory_pipeline_that_fails_at_once_is_dropped_and_the_durable_one_kept(tmp_path: Path) -> None:
    node = Node(tmp_path, plans=BOTH)
    node.client.connected, node.client.refuse_with = False, "not connected"
    sends(node, 4)
    node.steps(2)

    assert (node.account("m").waiting, node.account("m").results_dropped) == (0, {"not connected": 1})
    assert (node.account("p").waiting, node.account("p").results_dropped) == (1, {})


def test_a_message_of_both_is_acknowledged_when_the_durable_one_is_committed(tmp_path: Path) -> None:
    node = Node(tmp_path, plans=BOTH, store=StoreSettings(commit_wait_ms=100))
    sends(node, 4)
    node.steps(1, s=0.2)
    assert len(ids(node, "/p/m/out/")) == 1
    assert node.broker.acknowledged == []

    node.steps(1)
    assert node.broker.acknowledged == [1, 2, 3, 4]


def test_with_workers_the_results_are_the_same_and_nothing_is_acknowledged_before_the_commit(tmp_path: Path) -> None:
    found = []
    for worker in (False, True):
        folder = tmp_path / str(worker)
        folder.mkdir()
        calls: list[str] = []
        node = Node(folder, plans={"p": Plan(), "q": Plan(publish="change")}, worker=worker, trap=calls.append)
        for topic, payload in swinging(30):
            node.broker.send(topic, payload)
            node.loop.step(0.0)
        node.until(lambda node=node: len(node.broker.acknowledged) == 60)
        assert calls.index("after commit") < calls.index("before acknowledge")
        node.end()
        found.append(sorted(ids(node, "/out/")))
    assert found[0] == found[1]


def test_with_a_full_disk_results_go_on_and_it_is_all_written_when_there_is_room(tmp_path: Path) -> None:
    disk = DiskFull()
    node = Node(tmp_path, connect=disk.connect)
    disk.full = True
    sends(node, 8)
    node.steps(2, s=0.1)
    assert "disk is full" in node.store.problem
    assert len(node.broker.acknowledged) == 8
    assert (len(ids(node)), node.account().confirmed) == (3, 3)
    assert node.loop.drain(node.clock.monotonic_ns + S)

    disk.full = False
    sends(node, 4, first=8)
    node.steps(3, s=20.0)
    assert node.store.problem == ""
    after = Node(node.crash(), node.broker, node.plans)
    assert after.account() == node.account()
    assert (after.account().received, after.account().confirmed) == (12, 5)


def test_a_backlog_outlives_a_disk_that_refuses_for_a_while(tmp_path: Path) -> None:
    disk = DiskFull()
    node = Node(tmp_path, connect=disk.connect)
    node.client.connected = False
    sends(node, 8)
    node.steps(1)
    disk.full = disk.gone = True
    node.client.connected = True
    node.steps(3, s=1.0)
    assert (node.account().waiting, node.account().results_dropped) == (3, {})

    disk.full = disk.gone = False
    node.steps(12, s=20.0)
    assert (node.account().confirmed, node.account().waiting, node.account().results_dropped) == (3, 0, {})


@pytest.mark.parametrize(("tiers", "synced"), [("normal", False), ("full", True), ("normal full memory", True)])
def test_a_commit_is_synced_when_one_of_its_turns_has_to_survive_a_power_cut(
    tmp_path: Path, tiers: str, synced: bool
) -> None:
    node = Node(tmp_path, plans={f"p{i}": Plan(delivery=tier) for i, tier in enumerate(tiers.split())})
    commit, found = node.store.commit, []
    node.store.commit = lambda *, sync: found.append(sync) or commit(sync=sync)
    sends(node, 4)
    node.steps(1)

    assert found == [synced]


def test_a_turn_that_has_to_survive_a_power_cut_is_synced_whoever_commits_it(tmp_path: Path) -> None:
    node = Node(tmp_path, plans={"f": Plan(delivery="full"), "p": Plan()})
    sends(node, 2)
    node.loop.step(0.0)
    node.broker.unacknowledged = {1: ("in/a", row(0, 0.0), True), 2: ("in/a", row(1, 0.0), True)}
    after = Node(node.crash(), node.broker, node.plans)
    commit, synced, settled = after.store.commit, [], []

    def noted(*, sync: bool) -> bool:
        synced.append(sync)
        settled.append(len(after.loop._uncommitted))
        return commit(sync=sync)

    after.store.commit = noted
    after.loop.step(0.0)
    assert [sync for sync, n in zip(synced, settled, strict=True) if n] == [True] * sum(map(bool, settled))
    assert any(settled)


def _folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "x").mkdir()
    return folder


def killed_before_it_acknowledges(node: Node, payloads: list[bytes]) -> Node:
    """The next life of a node that is killed after the commit of these."""

    def end(*_: object) -> None:
        raise Crash

    node.client.acknowledge = end
    for payload in payloads:
        node.broker.send("in/a", payload)
    with pytest.raises(Crash):
        node.loop.step(0.0)
    assert len(node.broker.unacknowledged) == len(payloads)
    return Node(node.crash(), node.broker, node.plans)


def spans(node: Node) -> list[tuple[float, float]]:
    return [(body["t0"] - 1.7e9, body["t1"] - 1.7e9) for _, body in node.broker.documents("/out/")]


@pytest.mark.parametrize("source", [SOURCE, PLAIN], ids=["numbered", "counted"])
def test_a_broken_message_that_comes_again_is_dead_lettered_once_and_leaves_one_hole(
    tmp_path: Path, source: SourceSettings
) -> None:
    plan = Plan(source=source, window=WindowSettings(samples=4, hop=4))
    rows = [row(n, 0.0, numbered=source is SOURCE) for n in range(9)]
    node = killed_before_it_acknowledges(Node(_folder(tmp_path), plans={"p": plan}), [rows[0], b"{", *rows[1:3]])
    node.steps(3)
    for payload in rows[3:]:
        node.broker.send("in/a", payload)
    node.steps(3, s=1.0)

    account = node.account()
    assert (account.accepted, account.duplicates, account.dead_lettered) == (9, 4, 1)
    if source is PLAIN:  # a number tells that the broken message was none of the stream's
        assert spans(node) == [(1.0, 4.0), (5.0, 8.0)]


@pytest.mark.parametrize("source", [SOURCE, PLAIN], ids=["numbered", "counted"])
def test_what_gave_way_in_line_and_comes_again_is_not_taken_behind_what_came_after_it(
    tmp_path: Path, source: SourceSettings
) -> None:
    plan = Plan(source=source, window=WindowSettings(samples=4, hop=4), queue=QueueSettings(max=6))
    rows = [row(n, 0.0, numbered=source is SOURCE) for n in range(12)]
    node = killed_before_it_acknowledges(Node(_folder(tmp_path), plans={"p": plan}), rows[:10])
    node.steps(12)
    for payload in rows[10:]:
        node.broker.send("in/a", payload)
    node.steps(3, s=1.0)

    account = node.account()
    assert (account.accepted, account.duplicates, account.dropped, account.restarts) == (8, 10, {"queue_full": 4}, 0)
    assert spans(node) == [(4.0, 7.0), (8.0, 11.0)]
