"""The process may end between any two calls: what follows is as if it never had."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
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


class Lives:
    """One history of messages, in as many lives of the process as it takes."""

    def __init__(self, folder: Path, plans: dict[str, Plan]) -> None:
        self.broker, self.plans, self.lives = SessionBroker(), plans, 0
        folder.mkdir()
        self.folder, self.node = folder, None

    def go_through(self, inputs: Inputs, trap_of: Callable[[int], Trap]) -> None:
        """trap_of: of the life of that number."""
        left = list(inputs)
        while True:
            self.lives += 1
            try:
                self.node = Node(self.folder, self.broker, self.plans, trap=trap_of(self.lives))
                while left:
                    batch, left = left[:BATCH], left[BATCH:]
                    for topic, payload in batch:
                        self.broker.send(topic, payload)
                    self.node.steps(2, s=0.01)
                self.node.steps(3, s=1.1)
                return
            except Crash:
                self.folder = self.node.crash()

    def results(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._documents("/out/")

    def events(self) -> dict[tuple[str, str], dict[str, Any]]:
        return self._documents("/event/")

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
    assert list(lives.events()) == list(wanted.events())
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
def test_a_crash_between_any_two_calls_changes_nothing_but_duplicates(tmp_path: Path, plans: dict[str, Plan]) -> None:
    inputs = swinging(12, streams="a", numbered=plans is NUMBERED)
    wanted = undisturbed(tmp_path / "calm", inputs, plans)
    assert wanted.results()
    assert wanted.events()
    at, crashed = 0, True
    while crashed:
        at += 1
        lives = Lives(tmp_path / str(at), plans)
        trap = Trap(at)
        lives.go_through(inputs, lambda life, trap=trap: trap if life == 1 else Trap())
        crashed = lives.lives > 1
        check(lives, wanted, inputs)
    assert at > 100


@pytest.mark.parametrize("seed", range(8))
def test_many_crashes_at_random_change_nothing_but_duplicates(tmp_path: Path, seed: int) -> None:
    chance, numbered = random.Random(seed), seed % 2 == 0
    plans = NUMBERED if numbered else UNNUMBERED
    inputs = swinging(25, numbered=numbered)
    wanted = undisturbed(tmp_path / "calm", inputs, plans)
    lives = Lives(tmp_path / "lives", plans)
    lives.go_through(inputs, lambda life: Trap(chance.randrange(40, 160) if life < 12 else 0))

    assert lives.lives == 12
    check(lives, wanted, inputs)
