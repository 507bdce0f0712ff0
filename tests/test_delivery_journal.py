"""What is kept of turns that were settled, for how long, and what it is good for at the next start."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from durable import BASIS, PLAIN, STORE, Node, Plan, row, swinging

from edge_runtime.delivery.journal import INPUT, LATEST, NODE, NOTE, PARCEL, SEEN, Basis, Journal
from edge_runtime.delivery.journal import Node as Run
from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.records import Message, Properties, Queued
from edge_runtime.stream.window import WindowSettings

OTHER_WINDOWS, OTHER_MODEL = Basis("other", BASIS.model), Basis(BASIS.windows, "other")
RUNNING = Plan(streaming=True, window=WindowSettings(samples=4, hop=4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    return tmp_path / "x"


def take(node: Node, n: int, *, first: int = 0, stream: str = "a", moving: float = 0.0, numbered: bool = True) -> None:
    """Samples of one message each, one turn."""
    for i in range(first, first + n):
        node.broker.send(f"in/{stream}", row(i, moving, numbered=numbered))
    node.steps(2)


def again(node: Node, plans: dict[str, Plan] | None = None, *, clean: bool = False) -> Node:
    return Node(node.end() if clean else node.crash(), node.broker, plans or node.plans, clock=node.clock)


def results(node: Node, part: str = "/out/") -> list[tuple[int, int]]:
    """The message numbers of each result, the first time it came."""
    return [tuple(body["seq"]) for body in once(node, part)]


def once(node: Node, part: str = "/out/") -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for _, body in node.broker.documents(part):
        found.setdefault(body["id"], body)
    return list(found.values())


# Inputs.


@pytest.mark.parametrize("window", [(4, 2), (4, 4), (5, 3), (3, 7), (6, 1)], ids=str)
@pytest.mark.parametrize("bridged", [0, 5])
def test_inputs_are_kept_for_the_windows_to_come_and_not_longer(
    tmp_path: Path, window: tuple[int, int], bridged: int
) -> None:
    plans = {"p": Plan(window=WindowSettings(samples=window[0], hop=window[1], max_gap_samples=bridged))}
    calm, node, chance, n = (
        Node(_made(tmp_path / "calm"), plans=plans),
        Node(_made(tmp_path / "x"), plans=plans),
        random.Random(1),
        0,
    )
    for _ in range(40):
        for _ in range(chance.randint(1, 3)):
            payload = json.dumps({"n": n, "at": n, "v": [[1.0, n]] * chance.choice([1, 1, 2, 5])}).encode()
            calm.broker.send("in/a", payload)
            node.broker.send("in/a", payload)
            n += 1
        n += chance.choice([0, 0, 0, 1, 2, 9])
        calm.steps(1)
        node.steps(1)
        mark = node.lanes["p"].pipeline._intake.streams["a"].mark.window
        places = list(node.journal._inputs.get(("p", "a"), []))
        for place, following in zip(places, [*places[1:], None], strict=False):
            over = place.end if following is None else following.begin
            assert (place.resets, over > mark.needed) == (mark.resets, True)
        assert node.records()[INPUT] == len(places)
        node = again(node)

    assert _by_id(node) == _by_id(calm)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _by_id(node: Node) -> dict[str, dict[str, object]]:
    found = {body["id"]: {**body, "lat_ms": None} for _, body in node.broker.documents("/out/")}
    assert found
    return found


def test_what_is_kept_does_not_grow_with_the_turns(folder: Path) -> None:
    node, chance, most = Node(folder, plans={"p": Plan(), "r": RUNNING}), random.Random(2), 0
    begun = dict.fromkeys("abcdefgh", 0)
    for turn in range(600):
        for stream in chance.sample("abcdefgh", chance.randint(1, 4)):
            node.broker.send(f"in/{stream}", row(begun[stream], chance.random()))
            begun[stream] += 1
        node.steps(1, s=0.3)
        if turn % 50 == 49:
            found = node.records()
            assert found[LATEST] <= 32
            assert found[INPUT] <= 2 * 8 * 4
            assert found[SEEN] <= 2 * 8 * ((64 + 128) // 32 + 1)
            assert found[NODE] == 1
            assert found[PARCEL] <= 4
            most = max(most, found.total())
    assert most > 40


# Messages that were accepted.


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize(("streams", "count"), [("ab", 300), ("abcdefgh", 256), ("abcdefgh", 301), ("aaaaaaab", 300)])
def test_as_many_messages_as_a_broker_may_send_again_are_remembered(
    folder: Path, numbered: bool, streams: str, count: int
) -> None:
    plans = {"p": Plan(source=Plan().source if numbered else PLAIN)}
    node = Node(folder, plans=plans, memory=40)
    numbers: Counter[str] = Counter()
    sent = []
    for n in range(count):
        stream = streams[n % len(streams)]
        sent.append((f"in/{stream}", row(numbers[stream], 0.0, numbered=numbered), True))
        node.broker.send(*sent[-1][:2])
        node.steps(1)
        numbers[stream] += 1
    node.broker.unacknowledged = dict(enumerate(sent[-40:], count - 39))
    after = Node(node.crash(), node.broker, plans, memory=40)
    after.steps(3)

    assert (after.account().accepted, after.account().duplicates) == (count, 40)
    assert after.journal.before == Run()


# Holes.


@pytest.mark.parametrize("lives", [1, 2, 3])
def test_messages_given_up_in_line_leave_one_hole_over_any_number_of_starts(folder: Path, lives: int) -> None:
    window = WindowSettings(samples=4, hop=4, max_gap_samples=1)
    plans = {"p": Plan(source=PLAIN, window=window, queue=QueueSettings(max=1))}
    node = Node(folder, plans=plans)
    take(node, 1, numbered=False)
    node.broker.send("in/a", row(1, 0.0, numbered=False))
    node.broker.send("in/a", row(2, 0.0, numbered=False))
    node.steps(1)
    assert node.account().dropped == {"queue_full": 1}
    for life in range(lives):
        node = again(node)
        take(node, 1, first=3 + life, numbered=False)
    take(node, 1, first=9, numbered=False)
    take(node, 1, first=10, numbered=False)

    (result, *_) = [body for _, body in node.broker.documents("/out/")]
    assert result["missing"] == 1


def test_a_hole_that_nobody_was_told_of_is_remembered(folder: Path) -> None:
    window = WindowSettings(samples=4, hop=4, max_gap_samples=1)
    plans = {"p": Plan(source=PLAIN, window=window, queue=QueueSettings(max=1))}
    node = Node(folder, plans=plans)
    take(node, 1, numbered=False)
    node.journal.dropped("p", "a", "queue_full")
    node.journal.commit(sync=False)
    for life in range(3):
        node = again(node)
        node.clock.advance(1.0)
        take(node, 1, first=1 + life, numbered=False)

    (result,) = {body["id"]: body for _, body in node.broker.documents("/out/")}.values()
    assert (result["missing"], result["seq"]) == (1, [0, 2])


# Another configuration.


def test_with_other_windows_streams_begin_anew_and_what_was_seen_stays(folder: Path) -> None:
    node = Node(folder)
    take(node, 3)
    node.broker.unacknowledged = {3: ("in/a", row(2, 0.0), True)}
    plans = {"p": Plan(basis=OTHER_WINDOWS, window=WindowSettings(samples=3, hop=3))}
    after = again(node, plans)
    after.steps(2)
    assert after.account().duplicates == 1
    take(after, 3, first=3)
    assert results(after) == [(3, 5)]
    third = again(after)
    take(third, 3, first=6)
    assert results(third) == [(3, 5), (6, 8)]
    assert third.account().lost_before_us == 0


def test_a_stream_that_was_silent_under_other_windows_begins_anew_all_the_same(folder: Path) -> None:
    node = Node(folder)
    take(node, 3)
    node = again(node, {"p": Plan(basis=OTHER_WINDOWS)})
    take(node, 1, stream="b")
    node = again(node)
    take(node, 5, first=3)

    assert results(node) == [(3, 6)]


@pytest.mark.parametrize("touched", [True, False])
def test_the_state_of_another_model_is_dropped_for_good(folder: Path, touched: bool) -> None:
    node = Node(folder, plans={"p": RUNNING})
    take(node, 4, moving=1.0)
    other = {"p": Plan(**{**_fields(RUNNING), "basis": OTHER_MODEL})}
    node = again(node, other)
    if touched:
        take(node, 1, first=4)
    node = again(node, other)
    take(node, 4 - touched, first=4 + touched)
    scores = [body["scores"]["moving"] for body in once(node)]

    assert scores == [0.5, 0.0]


def test_windows_go_on_with_another_model(folder: Path) -> None:
    node = Node(folder, plans={"p": RUNNING})
    take(node, 2)
    node = again(node, {"p": Plan(**{**_fields(RUNNING), "basis": OTHER_MODEL})})
    take(node, 2, first=2)

    assert results(node) == [(0, 3)]


@pytest.mark.parametrize("to", [None, Plan(delivery="memory")], ids=["gone", "memory"])
def test_results_of_a_pipeline_that_is_not_kept_any_more_still_go_out(folder: Path, to: Plan | None) -> None:
    plans = {"p": Plan(), "q": Plan()}
    node = Node(folder, plans=plans)
    node.client.connected = False
    take(node, 4)
    node.client.connected = True
    left = {"q": plans["q"]} | ({"p": to} if to else {})
    node = again(node, left)
    assert node.account("p").waiting == 1
    assert set(node.journal.settled.accounts()) == {("p", "a"), ("q", "a")}
    node.steps(4, s=1.0)
    assert node.account("p").confirmed == 1
    assert results(node) == [(0, 3), (0, 3)]

    node = again(node, left)
    assert {one.pipeline for one in node.loop.account().pipelines} == {"q"}
    node.steps(2, s=1.0)
    assert set(again(node, left).journal.settled.accounts()) == {("q", "a")}


def _fields(plan: Plan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


# Notes, and the run itself.


def notes(folder: Path) -> Journal:
    store = Store(folder / STORE, StoreSettings())
    journal = Journal(store, memory=8, bases={})
    journal.restore(store.load())
    return journal


def test_a_message_that_was_noted_twice_is_not_tried_again_and_no_other_suffers(folder: Path) -> None:
    poison, other = Message("in/a", b"1", 0, qos=1, dup=True), Message("in/a", b"2", 0, qos=1, dup=True)
    for _ in range(2):
        journal = notes(folder)
        assert journal.examine("p", poison)
        assert journal.examine("p", other)
        journal.survived("p", other)
        journal.commit(sync=False)
        journal.store.close()
    journal = notes(folder)
    assert (journal.examine("p", poison), journal.examine("p", other), journal.examine("q", poison)) == (
        False, True, True,
    )  # fmt: skip
    journal.store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_note_goes_away_when_its_message_does_not_come_again(folder: Path, clean: bool) -> None:
    node = Node(folder)
    node.journal.examine("p", Message("in/a", row(7, 0.0), 0, qos=1, dup=True))
    node.journal.commit(sync=False)
    assert node.records()[NOTE] == 1
    node = again(node, clean=clean)
    take(node, 4)
    node.steps(3, s=1.0)

    assert node.records()[NOTE] == 0
    assert not node.lanes["p"].careful


def test_the_end_of_a_run_and_the_sessions_it_had_are_remembered(folder: Path) -> None:
    node, sessions = Node(folder), {"n@mqtt://b": ("in/+/v", "in/#")}
    assert (node.journal.before, node.lanes["p"].careful) == (None, False)
    node.journal.write_node(Run(clean=False, sessions=sessions))
    node = again(node, clean=True)
    assert (node.journal.before, node.lanes["p"].careful) == (Run(clean=True, sessions=sessions), False)
    assert node.journal.node == Run(clean=False, sessions=sessions)
    node = again(node)
    assert (node.journal.before.clean, node.lanes["p"].careful) == (False, True)
    node.steps(1, s=1.0)
    assert node.records()[NODE] == 1


def test_alarms_are_shown_again_after_a_restart(folder: Path) -> None:
    node = Node(folder)
    for topic, payload in swinging(12):
        node.broker.send(topic, payload)
        node.steps(1)
    shown = node.broker.retained()
    node.broker.published.clear()
    node = again(node)

    assert len(shown) == 2
    assert node.broker.retained() == shown


def test_streams_that_fell_silent_are_forgotten_when_there_are_more_than_may_be_open(folder: Path) -> None:
    node = Node(folder)
    for life in range(4):
        for k in range(8):
            take(node, 5, stream=f"m{life}x{k}")
        node.steps(2, s=1.0)
        assert node.records()[INPUT] <= 2 * 8 * 3
        node = again(node, clean=True)

    account = node.account()
    assert (account.received, account.windows, account.confirmed) == (4 * 8 * 5, 4 * 8, 4 * 8)
    assert node.loop.account().imbalances == ()
    assert set(node.lanes["p"].pipeline._intake.streams) == {f"m3x{k}" for k in range(8)}
    assert set(node.journal.settled.accounts()) == {("p", "*"), *[("p", f"m3x{k}") for k in range(8)]}


def test_what_is_forgotten_does_not_come_back_from_a_record_that_others_need(folder: Path) -> None:
    node = Node(folder)
    for stream in ("o0", "o1", "o2", "o3", "k0", "k1", "k2", "k3"):
        node.broker.send(f"in/{stream}", row(0, 0.0))
    node.steps(2, s=1.1)
    node = again(node, clean=True)
    for stream in ("n0", "n1", "n2", "n3"):
        take(node, 1, stream=stream)
    found = []
    for _ in range(3):
        node = again(node, clean=True)
        accounts = {stream: node.journal.settled.account("p", stream) for _, stream in node.journal.settled.accounts()}
        found.append((node.account().received, accounts["*"].received, len(accounts)))

    assert found == [(12, 4, 9)] * 3


def test_a_silent_stream_whose_results_wait_is_not_forgotten(folder: Path) -> None:
    node = Node(folder)
    node.client.connected = False
    take(node, 4, stream="old")
    for k in range(7):
        take(node, 4, stream=f"x{k}")
    node = again(node, clean=True)
    node.client.connected = False
    take(node, 1, stream="new")
    for expected in (True, False):
        node = again(node, clean=True)
        assert (("p", "old") in node.journal.settled.accounts()) == expected
        node.steps(3, s=1.0)
    assert node.account().confirmed == 8


@pytest.mark.parametrize("expired", [False, True])
def test_what_a_turn_took_tells_of_all_that_gave_way_before_it(folder: Path, expired: bool) -> None:
    node = Node(folder, plans={"p": Plan(source=PLAIN, window=WindowSettings(samples=4, hop=1))})
    kept_for = Properties(message_expiry_s=1) if expired else Properties()
    messages = [Message("in/a", row(n, 0.0, numbered=False), 0, qos=1, mid=n, properties=kept_for) for n in range(300)]
    node.clock.advance(1.0)
    turn = node.lanes["p"].pipeline.ingest([Queued("a", messages, given_up=3)])

    assert sum(run.given_up for run in turn.messages) == 3
    assert [run.given_up for run in turn.left_over] == ([] if expired else [0])
    assert turn.marks["a"].given_up == (303 if expired else 0)
