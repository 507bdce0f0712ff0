"""When results leave and when the broker has them is timed by their tokens, whatever becomes of some of them."""

from __future__ import annotations

import pytest
from turns import MS, turn

from edge_runtime.monitor.departures import Departures
from edge_runtime.monitor.latency import Stage
from edge_runtime.records import Turn


class Notes:
    """Writes down what it is told, in ms."""

    def __init__(self) -> None:
        self.left: list[tuple[list[int], int]] = []
        self.answered: list[int] = []

    def record_all(self, stage: Stage, durations_ns: list[int]) -> None:
        assert stage == "puback"
        self.answered += [ns // MS for ns in durations_ns]

    def record_turn(self, turn: Turn) -> None: ...

    def written(self, turn: Turn, written_ns: int) -> None:
        self.left.append(([received // MS for received in turn.emitted_ns], written_ns // MS))


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def departures(notes: Notes) -> Departures:
    return Departures({"vibration": notes, "heat": notes})


def test_a_turn_has_left_when_its_last_result_has(departures: Departures, notes: Notes) -> None:
    departures.handed_over(turn(received_ms=[1, 2], decided_ms=3), 2, answered=True)
    departures.handed_over(turn(received_ms=[4], decided_ms=5), 3, answered=True)
    departures.written(1, 10 * MS)
    assert notes.left == []

    departures.written(3, 12 * MS)
    departures.written(3, 99 * MS)
    assert notes.left == [([1, 2], 12), ([4], 12)]


def test_an_answer_is_timed_from_when_its_own_message_left(departures: Departures, notes: Notes) -> None:
    departures.handed_over(turn(received_ms=[1, 2], decided_ms=3), 2, answered=True)
    departures.written(1, 10 * MS)
    departures.written(2, 15 * MS)
    departures.delivered([2, 1, 7], ["vibration", "vibration", ""], 20 * MS)
    departures.delivered([1], ["vibration"], 30 * MS)

    assert notes.answered == [5, 10]


def test_an_answer_to_what_was_not_seen_to_leave_is_not_timed(departures: Departures, notes: Notes) -> None:
    departures.handed_over(turn(received_ms=[1], decided_ms=3), 1, answered=True)
    departures.delivered([1], ["vibration"], 20 * MS)
    departures.written(1, 30 * MS)

    assert notes.answered == []
    assert notes.left == [([1], 30)]


def test_what_gets_no_answer_is_only_timed_until_it_left(departures: Departures, notes: Notes) -> None:
    departures.handed_over(turn(received_ms=[1], decided_ms=3), 1, answered=False)
    departures.written(1, 10 * MS)
    departures.delivered([1], ["vibration"], 20 * MS)

    assert (notes.left, notes.answered) == ([([1], 10)], [])


def test_a_turn_whose_last_result_has_failed_is_not_timed(departures: Departures, notes: Notes) -> None:
    departures.handed_over(turn(received_ms=[1, 2], decided_ms=3), 2, answered=True)
    departures.handed_over(turn(received_ms=[4], decided_ms=5), 3, answered=True)
    departures.failed(2)
    departures.forget(lambda token: token == 3)
    departures.written(3, 10 * MS)
    departures.delivered([1, 2, 3], ["vibration"] * 3, 12 * MS)

    assert notes.left == [([4], 10)]
    assert notes.answered == [2, 2]
