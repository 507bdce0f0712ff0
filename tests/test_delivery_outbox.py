"""Results that are kept until the broker has them: refused, left behind, too many, too old."""

from __future__ import annotations

from pathlib import Path

import pytest
from boxes import NOT_AUTHORIZED, TOO_LARGE, Box

from edge_runtime.delivery.outbox import PARCEL_MESSAGES
from edge_runtime.delivery.store import StoreSettings


@pytest.fixture
def box(tmp_path: Path) -> Box:
    folder = tmp_path / "x"
    folder.mkdir()
    return Box(folder)


def made(tmp_path: Path, **options: object) -> Box:
    folder = tmp_path / "y"
    folder.mkdir()
    return Box(folder, StoreSettings(**{"replay_per_s": 1e6, **options}))


def test_a_parcel_goes_when_the_fate_of_all_that_is_in_it_is_known(box: Box) -> None:
    box.send("1", "2", "3")
    first, *rest = list(box.client._unconfirmed)
    box.answer([first])
    box.wait(1.0)
    assert (box.on_disk(), box.waiting, box.outbox.kept_messages) == (1, 2, 3)

    box.answer(rest)
    box.wait(1.0)
    assert (box.on_disk(), box.waiting, box.outbox.kept_messages, box.outbox.kept_bytes) == (0, 0, 0, 0)
    assert box.sent() == ["1", "2", "3"]


def test_of_a_parcel_partly_confirmed_everything_goes_again_after_a_crash(box: Box) -> None:
    box.send(*map(str, range(20)))
    box.answer(list(box.client._unconfirmed)[:18])
    box.wait(0.0)
    after = box.again()
    assert after.waiting == 20 - PARCEL_MESSAGES
    after.wait(1.0)
    after.answer()
    after.wait(1.0)

    assert after.sent() == ["*16", "*17", "*18", "*19"]
    assert after.journal.settled.account("p", "a").confirmed == 20
    assert (after.waiting, after.on_disk()) == (0, 0)


@pytest.mark.parametrize(
    "reason", [NOT_AUTHORIZED, "Quota exceeded", "stopped", "not connected", "outgoing queue full"]
)
def test_what_is_refused_for_now_is_kept_and_tried_again(box: Box, reason: str) -> None:
    box.send("1", "2")
    box.answer(refuse=reason)
    assert (box.waiting, box.dropped(), box.letters) == (2, {}, [])
    box.wait(0.49)
    assert box.sent() == ["1", "2"]

    box.wait(0.02)
    box.answer()
    assert box.sent() == ["*1", "*2"]
    assert (box.waiting, box.ledger.account("p", "a").confirmed) == (0, 2)


def test_what_is_kept_back_is_a_problem_until_it_is_delivered(box: Box) -> None:
    box.send("1", "2")
    assert box.outbox.problem == ""
    box.answer(refuse=NOT_AUTHORIZED)
    assert box.outbox.problem == f"p: results cannot be delivered: {NOT_AUTHORIZED}; 2 are kept and sent again"

    box.wait(60.0)
    assert box.outbox.problem != ""
    box.answer()
    assert box.outbox.problem == ""


@pytest.mark.parametrize(("when_full", "then"), [("block", "no more are made"), ("drop_oldest", "the oldest give way")])
def test_a_full_store_is_a_problem(tmp_path: Path, when_full: str, then: str) -> None:
    box = made(tmp_path, max_results=2, when_full=when_full)
    box.send("1")
    assert box.outbox.problem == ""
    box.send("2")

    assert box.outbox.problem == f"the store is full: 2 results, {box.outbox.kept_bytes / 1e6:.3g} MB; {then}"


def test_the_pause_doubles_up_to_its_bound_with_all_of_it_but_the_least_by_chance(box: Box) -> None:
    pauses = []
    for jitter in (0.0, *[1.0] * 9):
        box.jitter = jitter
        if not pauses:
            box.send("1")
        box.answer(refuse=NOT_AUTHORIZED)
        begin_ns = box.clock.monotonic_ns
        while not box.client._unconfirmed:
            box.wait(0.25)
        pauses.append((box.clock.monotonic_ns - begin_ns) / 1e9)

    assert pauses == [0.5, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0]


def test_what_can_never_be_sent_is_dead_lettered_and_the_others_of_its_parcel_go_on(box: Box) -> None:
    box.send("1", "2", "3")
    _, second, _ = list(box.client._unconfirmed)
    box.answer([second], refuse=TOO_LARGE)
    box.answer()
    box.wait(1.0)

    assert box.letters == [("p", "a", b"2", TOO_LARGE)]
    assert box.dropped() == {"packet too large": 1}
    assert (box.ledger.account("p", "a").confirmed, box.waiting, box.on_disk()) == (2, 0, 0)
    settled = box.journal.settled.account("p", "a")
    assert (settled.confirmed, settled.results_dropped) == (2, {"packet too large": 1})


def test_a_dead_letter_that_cannot_be_sent_makes_no_dead_letter(box: Box) -> None:
    box.send("1", kind="dead", stream="")
    box.answer(refuse=TOO_LARGE)
    box.wait(1.0)

    assert (box.letters, box.on_disk(), box.waiting) == ([], 0, 0)


def test_events_and_dead_letters_are_kept_like_results_and_are_not_counted_as_such(box: Box) -> None:
    box.client.connected = False
    box.send("event", kind="event")
    box.send("letter", kind="dead", stream="")
    assert (box.waiting, box.outbox.kept_messages) == (0, 2)
    after = box.again()
    after.wait(1.0)
    after.answer()
    after.wait(1.0)

    assert after.sent() == ["*event", "*letter"]
    assert after.ledger.account("p", "a").confirmed == 0
    assert after.on_disk() == 0


def test_an_event_that_is_given_up_is_counted_as_that(box: Box) -> None:
    box.send("event", kind="event")
    box.answer(refuse=TOO_LARGE)

    assert box.ledger.account("p", "a").events_dropped == {"packet too large": 1}
    assert box.dropped() == {}


def test_results_that_are_not_durable_are_dropped_whatever_the_reason(box: Box) -> None:
    box.send("1", "2", durable=False)
    box.answer(refuse=NOT_AUTHORIZED)

    assert (box.dropped(), box.waiting, box.outbox.kept_messages) == ({"Not authorized": 2}, 0, 0)


def test_live_results_go_before_the_backlog_which_is_marked_and_goes_at_its_own_rate(tmp_path: Path) -> None:
    box = made(tmp_path, replay_per_s=2.0)
    box.wait(0.0)
    box.client.connected = False
    for name in range(40):
        box.send(f"old{name}")
    box.client.connected = True
    box.send("new")
    box.wait(0.0)
    assert box.sent() == ["new", "*old0", "*old1"]

    box.wait(1.0)
    assert box.sent() == ["*old2", "*old3"]
    box.wait(100.0)
    assert box.sent() == [f"*old{name}" for name in range(4, 20)]
    box.wait(0.25)
    assert box.sent() == []


def test_the_backlog_does_not_outrun_what_may_wait_for_an_answer(tmp_path: Path) -> None:
    box = made(tmp_path)
    box.outbox._max_waiting = 3
    box.client.connected = False
    for name in "123456":
        box.send(name)
    box.client.connected = True
    box.wait(1.0)

    assert box.sent() == ["*1", "*2", "*3"]
    box.answer()
    box.wait(1.0)
    assert box.sent() == ["*4", "*5", "*6"]


@pytest.mark.parametrize("bound", [{"max_results": 3}, {"max_mb": 1}], ids=["results", "bytes"])
def test_turns_are_held_back_when_as_much_is_kept_as_may_be(tmp_path: Path, bound: dict[str, int]) -> None:
    box = made(tmp_path, **bound)
    box.client.connected = False
    for _ in range(3):
        assert box.outbox.has_room(durable=True)
        box.send("x" * 400_000)

    assert box.outbox.full
    assert (box.outbox.has_room(durable=True), box.outbox.has_room(durable=False)) == (False, True)
    box.client.connected = True
    box.wait(1.0)
    box.answer()
    assert box.outbox.has_room(durable=True)


def test_the_oldest_of_the_backlog_gives_way_and_what_is_under_way_does_not(tmp_path: Path) -> None:
    box = made(tmp_path, when_full="drop_oldest", max_results=4)
    box.send("under way")
    box.client.connected = False
    for name in "1234":
        box.send(name)
    assert box.dropped() == {"outbox_full": 2}
    assert (box.waiting, box.outbox.has_room(durable=True)) == (3, True)
    after = box.again()
    after.wait(1.0)

    assert after.sent() == ["*under way", "*3", "*4"]


def test_what_the_broker_refuses_for_now_gives_way_too(tmp_path: Path) -> None:
    box = made(tmp_path, when_full="drop_oldest", max_results=4)
    for name in range(10):
        box.send(str(name))
        box.answer(refuse=NOT_AUTHORIZED)

    assert box.outbox.kept_messages <= 4
    assert box.waiting == box.outbox.kept_messages
    assert box.dropped() == {"outbox_full": 10 - box.waiting}


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_too_old_is_given_up(tmp_path: Path, refused: bool) -> None:
    box = made(tmp_path, max_age_s=10, retry_min_s=1000, retry_max_s=1000)
    box.client.connected = refused
    box.send("1", "2")
    if refused:
        box.answer(refuse=NOT_AUTHORIZED)
    box.wait(9.0)
    assert (box.waiting, box.dropped()) == (2, {})

    box.wait(2.0)
    assert (box.waiting, box.dropped(), box.on_disk()) == (0, {"expired": 2}, 0)


def test_age_is_counted_over_a_restart(tmp_path: Path) -> None:
    box = made(tmp_path, max_age_s=10)
    box.client.connected = False
    box.send("1")
    box.clock.advance(11.0)
    after = box.again()
    after.wait(0.0)

    assert (after.waiting, after.dropped(), after.sent()) == (0, {"expired": 1}, [])


def test_a_record_that_is_damaged_is_given_up_and_the_others_go_on(box: Box) -> None:
    box.client.connected = False
    for name in "123":
        box.send(name)
    read, broken = box.store.read, box.outbox._backlog[1].record
    box.store.read = lambda id_: None if id_ == broken else read(id_)
    box.store.holds = lambda _: False
    box.client.connected = True
    box.wait(1.0)

    assert box.sent() == ["*1", "*3"]
    assert box.dropped() == {"unreadable": 1}
    assert box.waiting == 2
