"""The process may end between any two calls: what follows is as if it never had."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from durable import PLAIN, SOURCE, Crash, Node, Plan, SessionBroker, Trap, row, swinging

from edge_runtime.stream.decide import DecideSettings
from edge_runtime.stream.window import WindowSettings

Inputs = Sequence[tuple[str, bytes]]
BATCH = 3
NUMBERED = {
    "p": Plan(),
    "q": Plan(window=WindowSettings(samples=4, hop=3), publish="change", decide=DecideSettings("moving", 0.5)),
    "r": Plan(streaming=True, window=WindowSettings(samples=4, hop=4)),
}
UNNUMBERED = {
    "p": Plan(source=PLAIN),
    "q": Plan(source=PLAIN, window=WindowSettings(samples=4, hop=3), publish="change"),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a folder: what is asked for here is what was written, not that a disk has it."""
    in_memory = Path("/dev/shm")
    with TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as name:
        yield Path(name)


class Lives:
    """One history of messages, in as many lives of the process as it takes."""

    def __init__(self, folder: Path, plans: dict[str, Plan]) -> None:
        self.broker, self.plans, self.lives = SessionBroker(), plans, 0
        folder.mkdir()
        self.folder, self.node = folder, None

    def go_through(
        self, inputs: Inputs, trap_of: Callable[[int], Trap], *, crash_after: Callable[[], int] | None = None
    ) -> None:
        """trap_of: of the life of that number. crash_after: so many points after what came again was taken."""
        left = list(inputs)
        while True:
            self.lives += 1
            try:
                trap = trap_of(self.lives)
                self.node = Node(self.folder, self.broker, self.plans, trap=trap)
                while left:
                    batch, left = left[:BATCH], left[BATCH:]
                    for topic, payload in batch:
                        self.broker.send(topic, payload)
                    self.node.steps(2, s=0.01)
                    if crash_after and not (trap.at or any(lane.careful for lane in self.node.lanes.values())):
                        trap.at = trap.count + crash_after()
                trap.at = 0
                self.node.steps(3, s=1.1)
                return
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
            if ("/out/" in out.topic or "/event/" in out.topic) and not out.user:
                found.setdefault(out.topic, []).append(json.loads(out.payload)["id"])
        return found

    def alarms(self) -> dict[str, list[bytes]]:
        """What the retained state of each stream was in turn."""
        found: dict[str, list[bytes]] = {}
        for out in self.broker.published:
            if out.retain:
                found.setdefault(out.topic, []).append(out.payload)
        return {topic: [payload for payload, _ in groupby(payloads)] for topic, payloads in found.items()}

    def _documents(self, part: str) -> dict[tuple[str, str], dict[str, Any]]:
        """By topic and id, in the order in which they first came; the same each time one came."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for topic, body in self.broker.documents(part):
            body.pop("lat_ms", None)
            assert found.setdefault((topic, body["id"]), body) == body
        return found


def undisturbed(folder: Path, inputs: Inputs, plans: dict[str, Plan]) -> Lives:
    lives = Lives(folder, plans)
    lives.go_through(inputs, lambda _: Trap())
    return lives


def check(lives: Lives, wanted: Lives, inputs: Inputs) -> None:
    """Held against the undisturbed run."""
    assert lives.results() == wanted.results()
    assert lives.events() == wanted.events()
    for topic, ids in wanted.live().items():
        rest = iter(ids)
        assert all(one in rest for one in lives.live().get(topic, ())), topic
    assert not lives.broker.documents("/dead")
    for topic, states in wanted.alarms().items():
        rest = iter(states)
        assert all(state in rest for state in lives.alarms()[topic]), topic
        assert lives.alarms()[topic][-1] == states[-1]
    assert not lives.broker.unacknowledged
    for name in lives.plans:
        found, calm = lives.node.account(name), wanted.node.account(name)
        assert found.received - found.duplicates == len(inputs)
        assert found.waiting == found.queued == found.in_flight == 0
        for field in ("accepted", "windows", "results", "unchanged", "confirmed", "events", "lost_before_us", "dropped"):
            assert getattr(found, field) == getattr(calm, field), (name, field)
    check_once_more(lives)


def check_once_more(lives: Lives) -> None:
    """What lies in the store says the same as the process that wrote it."""
    before = {name: lives.node.account(name) for name in lives.plans}
    node = Node(lives.node.crash(), lives.broker, lives.plans)
    assert node.loop.account().imbalances == ()
    assert {name: node.account(name) for name in lives.plans} == before
    assert not node.loop.outbox.kept_messages
    node.end()


@pytest.mark.parametrize("plans", [NUMBERED, UNNUMBERED], ids=["numbered", "unnumbered"])
def test_a_crash_between_any_two_calls_changes_nothing_but_duplicates(folder: Path, plans: dict[str, Plan]) -> None:
    inputs = swinging(15, streams="a", numbered=plans is NUMBERED)
    wanted = undisturbed(folder / "calm", inputs, plans)
    assert wanted.results()
    assert wanted.events()
    at, crashed = 0, True
    while crashed:
        at += 1
        lives = Lives(folder / str(at), plans)
        trap = Trap(at)
        lives.go_through(inputs, lambda life, trap=trap: trap if life == 1 else Trap())
        crashed = lives.lives > 1
        check(lives, wanted, inputs)
    assert at > 100


@pytest.mark.parametrize("seed", range(16))
def test_a_crash_while_what_came_again_is_taken_carefully_changes_nothing(folder: Path, seed: int) -> None:
    chance, plans = random.Random(seed), (NUMBERED, UNNUMBERED)[seed % 2]
    inputs = swinging(8, numbered=plans is NUMBERED)
    wanted = undisturbed(folder / "calm", inputs, plans)
    lives = Lives(folder / "lives", plans)
    at = {1: chance.randrange(1, 60), 2: chance.randrange(1, 80)}
    lives.go_through(inputs, lambda life: Trap(at.get(life, 0)))

    assert lives.lives == 3
    check(lives, wanted, inputs)


@pytest.mark.parametrize("seed", range(6))
def test_many_crashes_at_random_change_nothing_but_duplicates(folder: Path, seed: int) -> None:
    chance, plans = random.Random(seed), (NUMBERED, UNNUMBERED)[seed % 2]
    inputs = swinging(60, numbered=plans is NUMBERED)
    wanted = undisturbed(folder / "calm", inputs, plans)
    lives = Lives(folder / "lives", plans)
    lives.go_through(inputs, lambda _: Trap(), crash_after=lambda: chance.randrange(1, 120))

    assert lives.lives > 5
    check(lives, wanted, inputs)
