from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.records import Message
from edge_runtime.stream.sequence import SequenceTracker

MEMORY = 64


def message(content: int, *, dup: bool = False, qos: int = 1) -> Message:
    return Message("t", content.to_bytes(8, "little"), 0, qos=qos, dup=dup)


def tracker() -> SequenceTracker:
    return SequenceTracker("s", "run", memory=MEMORY)


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

    assert (again.verdict, again.restarted, again.mark.epoch) == ("new", True, 1)
    assert subject.see(message(1), 1).restarted is False


def test_a_number_seen_before_with_other_content_begins_a_new_epoch() -> None:
    subject = tracker()
    for n in range(3):
        subject.see(message(n), n)

    again = subject.see(message(77), 0)

    assert (again.verdict, again.restarted) == ("new", True)
    assert len({again.key, tracker().see(message(0), 0).key}) == 2


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


def test_a_redelivery_older_than_all_memory_is_a_duplicate_never_a_restart() -> None:
    subject = tracker()
    verdicts(list(range(MEMORY * 3)), subject)

    assert subject.see(message(1, dup=True), 1).verdict == "duplicate"


def test_without_numbers_only_a_flagged_redelivery_is_a_duplicate_and_cancels_once() -> None:
    subject = tracker()
    seen = [subject.see(message(1, dup=dup), None).verdict for dup in (False, False, True, True, True)]

    assert seen == ["new", "new", "duplicate", "duplicate", "new"]


def test_without_numbers_messages_are_counted_and_keys_differ_between_runs() -> None:
    first, second = SequenceTracker("s", "a", memory=9), SequenceTracker("s", "b", memory=9)

    assert [first.see(message(9), None).number for _ in range(3)] == [0, 1, 2]
    assert second.see(message(9), None).key != SequenceTracker("s", "a", memory=9).see(message(9), None).key


def test_memory_of_redeliveries_is_bounded() -> None:
    subject = tracker()
    for n in range(3 * MEMORY):
        subject.see(message(n), None)

    assert len(subject._recent) == MEMORY
    assert subject.see(message(0, dup=True), None).verdict == "new"


@given(st.lists(st.integers(0, 40), max_size=60))
def test_every_number_of_a_window_is_taken_at_most_once(numbers: list[int]) -> None:
    """Within the bitmap and with equal contents nothing is new twice, unless the numbering began below its start."""
    subject = tracker()
    taken: dict[int, set[int]] = {}
    for n in numbers:
        sighting = subject.see(message(n), n)
        if sighting.verdict == "new":
            epoch = taken.setdefault(sighting.mark.epoch, set())
            assert n not in epoch
            epoch.add(n)
