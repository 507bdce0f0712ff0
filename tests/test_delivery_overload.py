from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.records import Message, Queued


def queued(stream: str, n: int = 0) -> Queued:
    return Queued(stream, Message(f"t/{stream}", b"%d" % n, 0))


def queue(max_streams: int = 10, **settings: object) -> InputQueue:
    made = InputQueue(QueueSettings(**settings), max_streams=max_streams)
    for stream in ("a", "b", "c", "noisy", "quiet")[:max_streams]:
        assert made.admits(stream)
    return made


def test_streams_are_served_in_turn_so_that_a_noisy_one_cannot_starve_the_rest() -> None:
    subject = queue()
    for n in range(50):
        subject.offer([queued("noisy", n)])
    subject.offer([queued("quiet")])

    assert [q.stream for q in subject.take(3)] == ["noisy", "quiet", "noisy"]
    assert [int(q.message.payload) for q in subject.take(3)] == [2, 3, 4]


def test_the_oldest_of_a_full_stream_gives_way_and_other_streams_keep_theirs() -> None:
    subject = queue(max=2)
    gave_way = [q for stream in "ab" for n in range(3) for q in subject.offer([queued(stream, n)])]

    assert [(q.stream, q.message.payload) for q in gave_way] == [("a", b"0"), ("b", b"0")]
    assert subject.depths() == {"a": 2, "b": 2}


def test_latest_only_keeps_one() -> None:
    subject = queue(when_full="latest_only")
    assert subject.offer([queued("a", 1)]) == []
    assert [q.message.payload for q in subject.offer([queued("a", 2)])] == [b"1"]
    assert len(subject) == 1


def test_only_so_many_streams_are_ever_admitted() -> None:
    subject = queue(max_streams=2)

    assert [subject.admits(stream) for stream in "abcab"] == [True, True, False, True, True]


def test_payload_bytes_are_bounded_over_all_streams() -> None:
    subject = queue(max_bytes=5)
    for n in (10, 11):
        assert subject.offer([queued("a", n)]) == []

    assert [q.message.payload for q in subject.offer([queued("b", 12)])] == [b"12"]
    assert [q.message.payload for q in subject.offer([queued("a", 13)])] == [b"10"]


def test_the_next_message_of_a_stream_says_how_many_gave_way_before_it() -> None:
    subject = queue(max=2)
    for n in range(5):
        subject.offer([queued("a", n)])
    subject.offer([queued("b", 0)])

    taken = subject.take(10)
    assert [(q.stream, q.given_up) for q in taken] == [("a", 3), ("b", 0), ("a", 0)]


def test_what_is_put_back_is_next_in_its_stream() -> None:
    subject = queue()
    for n in range(4):
        subject.offer([queued("a", n)])
    taken = subject.take(3)
    subject.put_back(taken[1:])

    assert len(subject) == 3
    assert [int(q.message.payload) for q in subject.take(5)] == [1, 2, 3]


@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, 5)), max_size=200))
def test_what_goes_in_comes_out_or_gives_way_and_each_stream_keeps_its_order(steps: list) -> None:
    """A letter offers a message of that stream, a number takes so many."""
    subject, offered, left = queue(max=4), 0, []
    for step in steps:
        if isinstance(step, str):
            left += subject.offer([queued(step, offered)])
            offered += 1
        else:
            taken = subject.take(step)
            assert len(taken) <= step
            left += taken
        assert len(subject) == sum(subject.depths().values()) == offered - len(left)
    left += subject.take(offered + 1)

    assert sorted(int(q.message.payload) for q in left) == list(range(offered))
    for stream in "abc":
        numbers = [int(q.message.payload) for q in left if q.stream == stream]
        assert numbers == sorted(numbers)
