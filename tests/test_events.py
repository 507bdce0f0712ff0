"""What is published at once when something happens to the node: each once, and as docs/results.md has it."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import jsonschema
import pytest

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.events import NodeEvents
from edge_runtime.lanes import Connection
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.topics import Routes, Tree
from edge_runtime.records import Outgoing
from edge_runtime.testing import ManualClock, MemoryClient

DOCS = Path(__file__).resolve().parents[1] / "docs"
SECTION = (DOCS / "results.md").read_text().partition("\n## Node event\n")[2].partition("\n## ")[0]
TOLD = re.findall(r"(?:^- |, )`(\w+)`(?: \(((?:`\w+`(?:, )?)+)\))?", SECTION, flags=re.MULTILINE)
FACTS = {event: set(re.findall(r"\w+", facts)) for event, facts in TOLD}


class Scene:
    """A node with one connection and a store whose disk may fill up."""

    def __init__(self, path: Path) -> None:
        self.sent: list[Outgoing] = []
        self.client, self.clock = MemoryClient(), ManualClock()
        self.disk_full = False
        scene = self

        class Disk(sqlite3.Connection):
            def executemany(self, sql, rows):
                if scene.disk_full:
                    raise sqlite3.OperationalError("database or disk is full")
                return super().executemany(sql, rows)

        self.store = Store(
            path,
            StoreSettings(),
            now_ns=lambda: self.clock.monotonic_ns,
            connect=lambda *args, **options: sqlite3.connect(*args, factory=Disk, **options),
        )
        self.store.load()
        self.events = NodeEvents(
            Publications(Tree("edge/v1", "n"), result_qos={}, dead_letters=DeadLetterSettings(), boot_id="b"),
            self.sent.append,
            connections=[Connection(self.client, Routes([]), session="n@mqtt://b")],
            store=self.store,
            unix_s=lambda: 12.5,
            problem=lambda: self.kept_back,
        )
        self.kept_back = ""

    def put(self, *, disk_full: bool) -> None:
        """Into the store, after longer than it waits for its disk."""
        self.clock.advance(60)
        self.disk_full = disk_full
        self.store.put(0, b"x")
        self.store.commit(sync=False)

    def told(self) -> list[dict]:
        """What is new, looking twice: each is told once."""
        before = len(self.sent)
        self.events.look()
        self.events.look()
        found = [json.loads(outgoing.payload) for outgoing in self.sent[before:]]
        check = jsonschema.Draft202012Validator(json.loads((DOCS / "schemas" / "node-event.schema.json").read_text()))
        for event in found:
            check.validate(event)
            assert set(event) - {"v", "event", "at", "boot_id"} == FACTS[event["event"]]
        return [{key: event[key] for key in event if key not in ("v", "at", "boot_id")} for event in found]


@pytest.fixture
def scene(tmp_path: Path):
    made = Scene(tmp_path / "store.db")
    yield made
    made.store.close()


def test_nothing_is_told_of_a_node_to_which_nothing_happens(scene: Scene) -> None:
    scene.put(disk_full=False)

    assert scene.told() == []


def test_a_lost_session_and_one_taken_over_are_told_each_time(scene: Scene) -> None:
    scene.client.counters.sessions_lost = 1
    first = scene.told()
    scene.client.counters.sessions_lost, scene.client.counters.taken_over = 3, 1
    second = scene.told()

    assert first == [{"event": "session_lost", "session": "n@mqtt://b", "times": 1}]
    assert second == [
        {"event": "session_lost", "session": "n@mqtt://b", "times": 3},
        {"event": "session_taken_over", "session": "n@mqtt://b", "times": 1},
    ]
    assert {(out.topic, out.qos, out.retain) for out in scene.sent} == {("edge/v1/n/events", 1, False)}


def test_a_problem_of_a_connection_is_told_when_it_is_new(scene: Scene) -> None:
    found = []
    for problem in ("another client", "another client", "", "another client", "too large"):
        scene.client.problem = problem
        found.append([event["problem"] for event in scene.told()])

    assert found == [["another client"], [], [], ["another client"], ["too large"]]


def test_a_store_that_cannot_be_written_is_told_and_that_it_can_again(scene: Scene) -> None:
    found = []
    for disk_full in (True, True, False, False):
        scene.put(disk_full=disk_full)
        found.append(scene.told())

    problem = "the store cannot be written: database or disk is full; delivery as with `memory`"
    assert found == [[{"event": "store_degraded", "problem": problem}], [], [{"event": "store_recovered"}], []]


def test_results_that_are_kept_back_are_told_when_that_begins(scene: Scene) -> None:
    found = []
    for problem in ("p: 1 is kept", "p: 2 are kept", "", "the store is full"):
        scene.kept_back = problem
        found.append([(event["event"], event["problem"]) for event in scene.told()])

    assert found == [[("results_kept_back", "p: 1 is kept")], [], [], [("results_kept_back", "the store is full")]]


def test_a_store_that_was_moved_aside_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database at all" * 100)
    scene = Scene(tmp_path / "store.db")
    found = scene.told()
    scene.store.close()

    assert found == [{"event": "store_quarantined", "moved_to": scene.store.quarantined}]
    assert Path(found[0]["moved_to"]).read_bytes().startswith(b"no database")


def test_counts_that_do_not_add_up_are_told_once_for_each_equation(scene: Scene) -> None:
    ledger = Ledger()
    ledger.received("p", "s", 3)
    ledger.confirmed("p", "s", 1)
    for _ in range(2):
        scene.events.review(ledger.totals({}, {}, {}))

    assert [json.loads(out.payload)["found"] for out in scene.sent] == [
        "p s: 3 messages received, 0 accounted for",
        "p s: 0 results made, 1 accounted for",
    ]
    assert {json.loads(out.payload)["event"] for out in scene.sent} == {"ledger_imbalance"}
    assert {*json.loads(scene.sent[0].payload)} >= FACTS["ledger_imbalance"]
