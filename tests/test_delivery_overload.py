from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.delivery.overload import InputQueue, QueueSettings
from edge_runtime.records import Message, Queued


def queued(stream: str, n: int = 0) -> Queued:
    return Queued(stream, [Message(f"t/{stream}", b"%d" % n, 0)])


def told(runs: list[Queued]) -> list[tuple[str, list[int]]]:
    return [(run.stream, [int(message.payload) for message in run.messages]) for run in runs]


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

    assert told(subject.take(3)) == [("noisy", [0, 1]), ("quiet", [0])]
    assert told(subject.take(3)) == [("noisy", [2, 3, 4])]


def test_more_streams_than_may_be_taken_are_served_one_after_the_other() -> None:
    subject = queue()
    for n in range(3):
        subject.offer([queued(stream, n) for stream in "abc"])

    taken = [told(subject.take(2)) for _ in range(4)]
    assert taken == [
        [("a", [0]), ("b", [0])],
        [("c", [0]), ("a", [1])],
        [("b", [1]), ("c", [1])],
        [("a", [2]), ("b", [2])],
    ]


def test_the_oldest_of_a_full_stream_gives_way_and_other_streams_keep_theirs() -> None:
    subject = queue(max=2)
    gave_way = [q for stream in "ab" for n in range(3) for q in subject.offer([queued(stream, n)])]

    assert [(stream, message.payload) for stream, message in gave_way] == [("a", b"0"), ("b", b"0")]
    assert subject.depths() == {"a": 2, "b": 2}


def test_latest_only_keeps_one() -> None:
    subject = queue(when_full="latest_only")
    assert subject.offer([queued("a", 1)]) == []
    assert [message.payload for _, message in subject.offer([queued("a", 2)])] == [b"1"]
    assert len(subject) == 1


def test_only_so_many_streams_are_ever_admitted() -> None:
    subject = queue(max_streams=2)

    assert [subject.admits(stream) for stream in "abcab"] == [True, True, False, True, True]


def test_payload_bytes_are_bounded_over_all_streams() -> None:
    subject = queue(max_bytes=5)
    for n in (10, 11):
        assert subject.offer([queued("a", n)]) == []

    assert [message.payload for _, message in subject.offer([queued("b", 12)])] == [b"12"]
    assert [message.payload for _, message in subject.offer([queued("a", 13)])] == [b"10"]


def test_the_next_message_of_a_stream_says_how_many_gave_way_before_it() -> None:
    subject = queue(max=2)
    for n in range(5):
        subject.offer([queued("a", n)])
    subject.offer([queued("b", 0)])

    taken = subject.take(10)
    assert [(run.stream, len(run.messages), run.given_up) for run in taken] == [("a", 2, 3), ("b", 1, 0)]


def test_what_is_put_back_is_next_in_its_stream() -> None:
    subject = queue()
    for n in range(4):
        subject.offer([queued("a", n), queued("b", n)])
    (a, b) = subject.take(6)
    subject.put_back([Queued("b", b.messages[1:], 7)])

    assert told([a]) == [("a", [0, 1, 2])]
    assert (len(subject), subject.oldest_ns()) == (4, 0)
    taken = subject.take(5)
    assert (told(taken), taken[0].given_up) == ([("b", [1, 2, 3]), ("a", [3])], 7)


def test_what_was_put_back_comes_before_other_streams() -> None:
    subject = queue()
    subject.offer([queued(stream, n) for n in range(3) for stream in "abc"])
    a, b, c = subject.take(9)
    subject.offer([queued("a", 3)])
    subject.put_back([c, Queued("b", b.messages[1:])])

    assert told([a]) == [("a", [0, 1, 2])]
    assert told(subject.take(2)) == [("c", [0]), ("b", [1])]
    assert told(subject.take(9)) == [("a", [3]), ("c", [1, 2]), ("b", [2])]


def test_a_take_of_all_has_one_run_a_stream_and_leaves_what_was_offered_as_it_was() -> None:
    subject, first = queue(), queued("a", 0)
    subject.offer([first, queued("b", 0)])
    subject.offer([queued("a", 1)])

    assert told(subject.take(9)) == [("a", [0, 1]), ("b", [0])]
    assert told([first]) == [("a", [0])]


@given(st.lists(st.one_of(st.sampled_from("abc"), st.integers(0, 5)), max_size=200))
def test_what_goes_in_comes_out_or_gives_way_and_each_stream_keeps_its_order(steps: list) -> None:
    """A letter offers a message of that stream, a number takes so many."""
    subject, offered, left = queue(max=4), 0, []
    for step in steps:
        if isinstance(step, str):
            left += subject.offer([queued(step, offered)])
            offered += 1
        else:
            taken = [(run.stream, message) for run in subject.take(step) for message in run.messages]
            assert len(taken) <= step
            left += taken
        assert len(subject) == sum(subject.depths().values()) == offered - len(left)
    left += [(run.stream, message) for run in subject.take(offered + 1) for message in run.messages]

    assert sorted(int(message.payload) for _, message in left) == list(range(offered))
    for stream in "abc":
        numbers = [int(message.payload) for found, message in left if found == stream]
        assert numbers == sorted(numbers)


def test_nothing_gives_way_in_a_queue_that_blocks() -> None:
    subject = queue(when_full="block", max=2, max_bytes=1)
    offered = [queued(stream, n) for n in range(10) for stream in "ab"]

    assert not subject.full
    assert [given for one in offered for given in subject.offer([one])] == []
    assert subject.full
    taken = subject.take(5)
    assert sum(len(run.messages) for run in taken) == 5
    subject.put_back(taken[:1])
    assert subject.offer([queued("a", 10)]) == []
    assert sum(len(run.messages) for run in subject.take(100)) == len(offered) + 1 - len(taken[1].messages)
    assert not subject.full


def test_only_a_queue_that_blocks_is_ever_full() -> None:
    subject = queue(max=2)
    for n in range(9):
        subject.offer([queued("a", n), queued("b", n)])

    assert (len(subject), subject.full) == (4, False)


@given(
    waiting=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 40), min_size=1),
    limits=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    when_full=st.sampled_from(["drop_oldest", "block"]),
)
def test_while_streams_wait_none_of_them_gets_more_than_one_message_ahead_of_another(
    waiting: dict[str, int], limits: list[int], when_full: str
) -> None:
    subject = InputQueue(QueueSettings(max=50, when_full=when_full), max_streams=5)
    left, got = dict(waiting), dict.fromkeys(waiting, 0)
    for stream, count in waiting.items():
        assert subject.admits(stream)
        subject.offer([Queued(stream, [Message("t", b"", 0)] * count)])
    for limit in limits:
        taken = subject.take(limit)
        assert sum(len(run.messages) for run in taken) == min(limit, sum(left.values()))
        for run in taken:
            got[run.stream] += len(run.messages)
            left[run.stream] -= len(run.messages)
        for hungry in (stream for stream, count in left.items() if count):
            assert max(got.values()) <= got[hungry] + 1


@given(st.lists(st.tuples(st.sampled_from(["noisy", "noisy", "noisy", "a", "b"]), st.integers(1, 20)), max_size=60))
def test_a_noisy_stream_costs_the_others_neither_messages_nor_their_turn(bursts: list[tuple[str, int]]) -> None:
    """Whatever comes, a stream that keeps to its bound loses nothing, and whoever waits is in the next take."""
    subject = queue(max=8)
    for stream, count in bursts:
        gave_way = subject.offer([Queued(stream, [Message("t", b"", 0)] * count)])
        assert {found for found, _ in gave_way} <= {stream}
        waited = {found for found, depth in subject.depths().items() if depth}
        assert {run.stream for run in subject.take(6)} == waited
        assert all(depth <= 8 for depth in subject.depths().values())
