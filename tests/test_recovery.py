"""The process may end between any two calls: what follows is as if it never had."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from durable import PLAIN, Crash, Node, Plan, SessionBroker, Trap, swinging

from edge_runtime.delivery.store import StoreSettings
from edge_runtime.stream.decide import DecideSettings
from edge_runtime.stream.window import WindowSettings

NOTHING_BUT_VALUES = msgspec.structs.replace(PLAIN, time_field="")
Inputs = Sequence[tuple[str, bytes]]
BATCH = 3
TIMES = ("lat_ms", "t0", "t1", "start", "end", "peak_at", "since")
CHANGES = {"window": WindowSettings(samples=4, hop=3), "publish": "change", "decide": DecideSettings("moving", 0.5)}
NUMBERED = {
    "p": Plan(),
    "q": Plan(**CHANGES),
    "r": Plan(streaming=True, window=WindowSettings(samples=4, hop=4)),
}
UNNUMBERED = {"p": Plan(source=PLAIN), "q": Plan(source=PLAIN, **CHANGES)}
BARE = {"p": Plan(source=NOTHING_BUT_VALUES), "m": Plan(source=NOTHING_BUT_VALUES, delivery="memory")}
SAME = ("accepted", "windows", "results", "unchanged", "confirmed", "events", "lost_before_us", "dropped")
SCENES = {"numbered": NUMBERED, "unnumbered": UNNUMBERED, "bare": BARE}


def inputs_of(scene: str, count: int, streams: str = "ab") -> Inputs:
    """Of a bare scene many are equal, byte for byte."""
    found = swinging(count, streams=streams, numbered=scene == "numbered")
    if scene != "bare":
        return found
    return [(topic, json.dumps({"v": json.loads(payload)["v"]}).encode()) for topic, payload in found]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a folder: what is asked for here is what was written, not that a disk has it."""
    in_memory = Path("/dev/shm")
    with TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as name:
        yield Path(name)


class Lives:
    """One history of messages, in as many lives of the process as it takes."""

    def __init__(self, folder: Path, plans: dict[str, Plan], **options: object) -> None:
        """options: of the nodes."""
        self.broker, self.plans, self.lives, self.options = SessionBroker(), plans, 0, options
        folder.mkdir()
        self.folder, self.node = folder, None

    def go_through(
        self,
        inputs: Inputs,
        trap_of: Callable[[int], Trap],
        *,
        crash_after: Callable[[], int] | None = None,
        between: Callable[[Node], None] = lambda _: None,
    ) -> None:
        """trap_of: of the life of that number. crash_after: so many points after what came again was taken.

        between: done to the node between any two batches.
        """
        left = list(inputs)
        done = False
        while not done:
            self.lives += 1
            try:
                trap = trap_of(self.lives)
                self.node = Node(self.folder, self.broker, self.plans, trap=trap, **self.options)
                while left:
                    batch, left = left[:BATCH], left[BATCH:]
                    for topic, payload in batch:
                        self.broker.send(topic, payload)
                    between(self.node)
                    self.node.steps(2, s=0.01)
                    if crash_after and not (trap.at or any(lane.careful for lane in self.node.lanes.values())):
                        trap.at = trap.count + crash_after()
                trap.at = 0
                self.node.client.withhold_confirmations = False
                self.node.steps(3, s=1.1)
                done = True
            except Crash:
                self.folder = self.node.crash()

    def results(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._documents("/out/")

    def events(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._documents("/event/")

    def live(self) -> dict[str, list[str]]:
        """Ids by topic, in order, of what was published when it was made."""
        found: dict[str, list[str]] = {}
        for out in self.broker.published:
            if ("/out/" in out.topic or "/event/" in out.topic) and not (out.user or "/p/m/" in out.topic):
                found.setdefault(out.topic, []).append(json.loads(out.payload)["id"])
        return found

    def alarms(self) -> dict[str, list[dict[str, Any]]]:
        """What the retained state of each stream was in turn."""
        found: dict[str, list[dict[str, Any]]] = {}
        for out in self.broker.published:
            if out.retain and "/p/m/" not in out.topic:
                found.setdefault(out.topic, []).append(self._plain(json.loads(out.payload)))
        return {topic: [payload for payload, _ in groupby(payloads)] for topic, payloads in found.items()}

    def _documents(self, part: str) -> dict[tuple[str, str], dict[str, Any]]:
        """By topic and id, in the order in which they first came; the same each time one came."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for topic, body in self.broker.documents(part):
            if "/p/m/" not in topic:
                plain = self._plain(body)
                assert found.setdefault((topic, body["id"]), plain) == plain
        return found

    def _plain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Without the times, where they are not the sensor's, and what the stages took."""
        omitted = TIMES if self.plans is BARE else TIMES[:1]
        return {name: value for name, value in body.items() if name not in omitted}


def undisturbed(folder: Path, inputs: Inputs, plans: dict[str, Plan]) -> Lives:
    lives = Lives(folder, plans)
    lives.go_through(inputs, lambda _: Trap())
    assert lives.results()
    assert lives.events()
    return lives


def check(lives: Lives, wanted: Lives, inputs: Inputs) -> None:
    """Held against the undisturbed run."""
    assert lives.results() == wanted.results()
    assert lives.events() == wanted.events()
    for topic, ids in wanted.live().items():
        rest = iter(ids)
        assert all(one in rest for one in lives.live().get(topic, ())), topic
    for topic, states in wanted.alarms().items():
        rest = iter(states)
        assert all(state in rest for state in lives.alarms()[topic]), topic
        assert lives.alarms()[topic][-1] == states[-1]
    assert not lives.broker.documents("/dead")
    assert not lives.broker.unacknowledged
    durable = [name for name, plan in lives.plans.items() if plan.delivery != "memory"]
    for name in durable:
        found, calm = lives.node.account(name), wanted.node.account(name)
        assert found.received - found.duplicates == len(inputs)
        assert found.waiting == found.queued == found.in_flight == 0
        for field in SAME:
            assert getattr(found, field) == getattr(calm, field), (name, field)
    before = {name: lives.node.account(name) for name in durable}
    after = Node(lives.node.crash(), lives.broker, lives.plans)
    assert after.loop.account().imbalances == ()
    assert {name: after.account(name) for name in durable} == before
    assert not after.loop.outbox.kept_messages
    after.end()


@pytest.mark.parametrize("scene", SCENES)
def test_a_crash_between_any_two_calls_changes_nothing_but_duplicates(folder: Path, scene: str) -> None:
    inputs, plans = inputs_of(scene, 15, "a"), SCENES[scene]
    wanted = undisturbed(folder / "calm", inputs, plans)
    at, crashed = 0, True
    while crashed:
        at += 1
        lives = Lives(folder / str(at), plans)
        trap = Trap(at)
        lives.go_through(inputs, lambda life, trap=trap: trap if life == 1 else Trap())
        crashed = lives.lives > 1
        check(lives, wanted, inputs)
    assert at > 80


@pytest.mark.parametrize("seed", range(9))
def test_a_crash_while_what_came_again_is_taken_carefully_changes_nothing(folder: Path, seed: int) -> None:
    chance, scene = random.Random(seed), [*SCENES][seed % 3]
    inputs, plans = inputs_of(scene, 15), SCENES[scene]
    wanted = undisturbed(folder / "calm", inputs, plans)
    lives = Lives(folder / "lives", plans)
    at = {1: chance.randrange(1, 60), 2: chance.randrange(1, 60)}
    lives.go_through(inputs, lambda life: Trap(at.get(life, 0)))

    assert lives.lives == 3
    check(lives, wanted, inputs)


@pytest.mark.parametrize("wait_ms", [0, 25])
@pytest.mark.parametrize("seed", range(3))
def test_many_crashes_and_lost_connections_change_nothing_but_duplicates(
    folder: Path, seed: int, wait_ms: float
) -> None:
    """And answers that are late."""
    chance, scene = random.Random(seed), [*SCENES][seed % 3]
    inputs, plans = inputs_of(scene, 50), SCENES[scene]

    def between(node: Node) -> None:
        node.client.withhold_confirmations = chance.random() < 0.4
        if chance.random() < 0.2:
            node.client.lose()
            node.broker.connect(node.client)

    wanted = undisturbed(folder / "calm", inputs, plans)
    lives = Lives(folder / "lives", plans, store=StoreSettings(commit_wait_ms=wait_ms))
    lives.go_through(inputs, lambda _: Trap(), crash_after=lambda: chance.randrange(1, 100), between=between)

    assert lives.lives > 3
    check(lives, wanted, inputs)


@pytest.mark.parametrize("count", ["received", "windows", "results"])
def test_an_account_that_does_not_fit_what_lies_there_is_found_at_the_next_start(folder: Path, count: str) -> None:
    lives = Lives(folder / "x", {"p": Plan()})
    lives.go_through(inputs_of("numbered", 8), lambda _: Trap())
    account = lives.node.journal.settled.account("p", "a")
    setattr(account, count, getattr(account, count) + 1)
    lives.node.journal.counting("p", "a")
    lives.node.journal.commit(sync=False)
    after = Node(lives.node.crash(), lives.broker, lives.plans)

    equation = {"received": ["messages"], "windows": ["windows"], "results": ["windows", "results"]}[count]
    assert [off.equation for off in after.loop.account().imbalances] == equation
    after.store.close()
