from __future__ import annotations

from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.records import Message, Rows
from edge_runtime.stream.bursts import Burst
from edge_runtime.stream.sequence import SequenceTracker

MEMORY = 64


def message(content: int, *, dup: bool = False, qos: int = 1, mid: int = 0) -> Message:
    return Message("t", content.to_bytes(8, "little"), 0, qos=qos, dup=dup, mid=mid)


def tracker() -> SequenceTracker:
    return SequenceTracker("run", memory=MEMORY)


def verdicts(numbers: list[int], subject: SequenceTracker | None = None) -> list[str]:
    subject = subject or tracker()
    return [subject.see(message(n), n).verdict for n in numbers]


def test_a_number_seen_before_with_the_same_content_is_a_duplicate() -> None:
    assert verdicts([5, 6, 6, 5, 7]) == ["new", "new", "duplicate", "duplicate", "new"]


def test_a_skipped_number_is_counted_as_lost_and_late_when_it_comes_after_all() -> None:
    subject = tracker()
    subject.see(message(1), 1)

    assert subject.see(message(4), 4).lost == 2
    assert subject.see(message(3), 3).verdict == "late"
    assert subject.see(message(5), 5).lost == 0


def test_a_producer_that_starts_over_begins_a_new_epoch() -> None:
    subject = tracker()
    for n in (1000, 1001):
        subject.see(message(n), n)

    again = subject.see(message(0), 0)

    assert (again.verdict, again.restarted, subject.restarts) == ("new", True, 1)
    assert subject.see(message(1), 1).restarted is False


def test_a_number_seen_before_with_other_content_begins_a_new_epoch() -> None:
    subject = tracker()
    for n in range(3):
        subject.see(message(n), n)

    before = subject.epoch

    again = subject.see(message(77), 0)

    assert (again.verdict, again.restarted) == ("new", True)
    assert (before, subject.epoch, subject.number) == ("0", "1", 0)


def test_numbers_older_than_the_bitmap_begin_a_new_epoch() -> None:
    subject = tracker()
    verdicts(list(range(MEMORY + 10)), subject)

    assert subject.see(message(5), 5).restarted


def test_a_redelivered_backlog_is_all_duplicates_and_no_restart() -> None:
    subject = tracker()
    verdicts(list(range(50)), subject)

    again = [subject.see(message(n, dup=True), n) for n in range(50)]
    assert {sighting.verdict for sighting in again} == {"duplicate"}
    assert subject.see(message(50), 50).lost == 0


def test_a_redelivery_that_was_never_taken_begins_an_epoch_like_any_message() -> None:
    """What was taken longer ago than all memory can no longer come again."""
    for taken in (3 * MEMORY, 5):
        subject = tracker()
        verdicts(list(range(taken)), subject)

        again = [subject.see(message(100 + n, dup=True), n) for n in (1, 2, 3)]
        assert [(one.verdict, one.restarted) for one in again] == [("new", True), ("new", False), ("new", False)]


def test_redeliveries_from_both_sides_of_a_restart_are_duplicates() -> None:
    subject = tracker()
    verdicts([40, 41, 42, 43], subject)
    for n in (0, 1):
        subject.see(message(500 + n), n)

    sent = [(42, 42), (43, 43), (0, 500), (1, 501)]
    assert [subject.see(message(content, dup=True), n).verdict for n, content in sent] == ["duplicate"] * 4
    assert subject.see(message(43), 43).lost == 41


@pytest.mark.parametrize("together", [True, False])
def test_a_redelivery_from_before_a_restart_is_known_even_where_its_number_is_the_next_one(together: bool) -> None:
    subject = tracker()
    verdicts([2, 3], subject)
    for n in (0, 1):
        subject.see(message(500 + n), n)
    again = [message(content, dup=True) for content in (2, 3, 502)]

    if together:
        assert subject.following(Burst("s", again[:2], Rows(np.zeros((2, 1), np.float32), [2, 3]))) == 0
    assert [subject.see(one, n).verdict for n, one in zip((2, 3, 2), again, strict=True)] == [
        "duplicate",
        "duplicate",
        "new",
    ]
    assert (subject.number, subject.epoch) == (2, "1")


def test_redeliveries_from_any_of_several_epochs_are_duplicates() -> None:
    subject = tracker()
    sent = [(n, 100 * epoch + n) for epoch, numbers in enumerate([(30, 31, 35), (0, 1), (0, 1, 2)]) for n in numbers]
    for n, content in sent:
        subject.see(message(content), n)

    assert [subject.see(message(content, dup=True), n).verdict for n, content in sent] == ["duplicate"] * len(sent)
    assert (subject.restarts, subject.number) == (2, 2)


def test_of_epochs_that_are_over_as_much_is_remembered_as_can_come_again() -> None:
    subject = tracker()
    for epoch in range(3 * MEMORY):
        for n in (7, 20):
            subject.see(message(1000 * epoch + n), n)

    contents = [crc32(message(1000 * epoch + 20).payload) for epoch in range(3 * MEMORY)]
    known = [subject._past.knows(20, content) for content in contents]
    assert known == [False] * (5 * MEMORY // 2 - 1) + [True] * (MEMORY // 2) + [False]


@pytest.mark.parametrize("number", [None, 4])
def test_only_what_was_given_up_and_is_flagged_comes_again(number: int | None) -> None:
    subject = tracker()
    subject.see(message(1, mid=1), number)
    known = subject.give_up(message(2, mid=2))

    assert len(known) == 1
    assert subject.gave_up(message(2, mid=2, dup=True))
    for other in (message(2, mid=2), message(2, mid=3, dup=True), message(3, mid=2, dup=True)):
        assert not subject.gave_up(other)
    assert subject.give_up(message(5, qos=0)) == ()
    assert not subject.gave_up(message(5, qos=0, dup=True))
    for n in range(MEMORY):
        subject.give_up(message(n, mid=7))
    assert not subject.gave_up(message(2, mid=2, dup=True))


def test_without_numbers_only_a_flagged_redelivery_is_a_duplicate_as_often_as_it_comes() -> None:
    subject = tracker()
    sent = [(1, False), (2, False), (1, True), (2, True), (1, True), (3, True), (4, True), (4, True)]
    seen = [subject.see(message(1, mid=mid, dup=dup), None).verdict for mid, dup in sent]

    assert seen == ["new", "new", "duplicate", "duplicate", "duplicate", "new", "new", "duplicate"]
    assert subject.see(message(2, mid=4, dup=True), None).verdict == "new"


def test_without_numbers_messages_are_counted_and_keys_differ_between_runs() -> None:
    keys = []
    for run in "ab":
        subject = SequenceTracker(run, memory=9)
        for _ in range(3):
            subject.see(message(9), None)
            keys.append((subject.epoch, subject.number))

    assert keys == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]


@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 80)), min_size=1, max_size=12),
    numbered=st.booleans(),
    qos=st.integers(0, 1),
)
def test_messages_that_follow_are_remembered_together_as_one_after_the_other(steps, numbered, qos) -> None:
    one, many, at = tracker(), tracker(), 0
    for skipped, n in steps:
        at += skipped
        numbers = list(range(at, at + n))
        messages = [message(i, qos=qos, mid=i % 7) for i in numbers]
        rows = Rows(np.zeros((n, 1), np.float32), numbers if numbered else None)
        taken = Burst("s", messages, rows)
        if not (skipped and numbered) and many.number >= 0:
            assert many.following(taken) == n
        begin = 0 if many.following(taken) else 1
        for i in range(begin):
            many.see(messages[i], numbers[i] if numbered else None)
        rest = taken.part(begin, n)
        assert many.following(rest) == n - begin
        found, contents = many.take(rest) if n > begin else (range(0), [])
        remembered = []
        for i, subject in enumerate(messages):
            one.see(subject, numbers[i] if numbered else None)
            remembered += one.contents(subject) if i >= begin else ()
        assert contents == remembered
        assert (many.number, many.epoch, many.first) == (one.number, one.epoch, one.first)
        assert (many.missing, many.numbered) == (one.missing, one.numbered)
        assert list(found) == list(range(one.number - len(found) + 1, one.number + 1))
        assert (many._contents, many._recent.all) == (one._contents, one._recent.all)
        assert many._recent._counts == one._recent._counts
        at += n


def test_a_burst_follows_up_to_the_first_message_that_does_not() -> None:
    def following(seqs: list[int] | None, dup: int | None = None) -> int:
        subject = tracker()
        subject.see(message(5), 5)
        messages = [message(i, dup=i == dup) for i in range(4)]
        return subject.following(Burst("s", messages, Rows(np.zeros((4, 1), np.float32), seqs)))

    assert [following(seqs) for seqs in ([6, 7, 8, 9], [6, 7, 9, 10], [6, 6, 7, 8], [7, 8, 9, 10])] == [4, 2, 1, 0]
    assert [following(None, dup) for dup in (None, 2, 0)] == [4, 2, 0]


def test_a_content_is_known_while_one_message_that_has_it_is_remembered() -> None:
    subject = SequenceTracker("run", memory=2)
    for content in (1, 1, 2):
        subject.see(message(content), None)

    assert subject.see(message(1, dup=True), None).verdict == "duplicate"
    subject.see(message(3), None)
    assert subject.see(message(1, dup=True), None).verdict == "new"


def test_missing_numbers_are_runs_and_forgotten_when_they_are_too_old_to_come() -> None:
    subject = tracker()
    verdicts([1, 4, 5, 9], subject)

    assert subject.missing == ((2, 2), (6, 3))
    verdicts(list(range(10, MEMORY + 8)), subject)
    assert subject.missing == ((6, 3),)
    assert verdicts([3], subject) == ["new"], "older than all memory: the producer began anew"
    assert (subject.missing, subject.first, subject.epoch) == ((), 3, "1")


def test_memory_of_redeliveries_is_bounded() -> None:
    subject = tracker()
    for n in range(3 * MEMORY):
        subject.see(message(n), None)

    assert len(subject._recent.all) == MEMORY
    assert subject.see(message(0, dup=True), None).verdict == "new"


@given(st.lists(st.integers(0, 40), max_size=60))
def test_every_number_of_a_window_is_taken_at_most_once(numbers: list[int]) -> None:
    """Within the bitmap and with equal contents nothing is new twice, unless the numbering began below its start."""
    subject = tracker()
    taken: dict[int, set[int]] = {}
    for n in numbers:
        sighting = subject.see(message(n), n)
        if sighting.verdict == "new":
            epoch = taken.setdefault(subject.restarts, set())
            assert n not in epoch
            epoch.add(n)
