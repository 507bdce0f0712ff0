from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.delivery.acks import Acknowledgements
from edge_runtime.records import Message


def message(mid: int, *, epoch: int = 1, qos: int = 1) -> Message:
    return Message("t", b"", 0, qos=qos, mid=mid, epoch=epoch)


def arrive(acks: Acknowledgements, messages: list[Message], *, parts: int = 1) -> None:
    acks.arrived(messages)
    for _ in range(parts):
        acks.taken(messages)


def test_an_id_waits_for_every_pipeline_and_for_all_earlier_ids() -> None:
    acks = Acknowledgements()
    arrive(acks, [message(1)], parts=2)
    arrive(acks, [message(2)])
    acks.settled([message(2), message(1)])
    assert acks.ready() == []

    acks.settled([message(1)])
    assert acks.ready() == [1, 2]
    assert acks.ready() == []


def test_a_message_nobody_takes_is_ready_at_once() -> None:
    acks = Acknowledgements()
    arrive(acks, [message(7)], parts=0)

    assert acks.ready() == [7]


def test_a_new_connection_forgets_the_ids_of_the_old_one() -> None:
    acks = Acknowledgements()
    arrive(acks, [message(1, epoch=1)])
    arrive(acks, [message(1, epoch=2)])
    acks.settled([message(1, epoch=1)])
    assert acks.ready() == []

    acks.settled([message(1, epoch=2)])
    assert (acks.epoch, acks.ready()) == (2, [1])


def test_qos_0_needs_no_acknowledgement() -> None:
    acks = Acknowledgements()
    arrive(acks, [message(0, qos=0), message(3), message(0, qos=0)])
    acks.settled([message(0, qos=0)])
    assert acks.ready() == []

    acks.settled([message(3)])
    assert acks.ready() == [3]


def test_a_packet_id_is_used_again_after_its_acknowledgement() -> None:
    acks = Acknowledgements()
    for _ in range(2):
        arrive(acks, [message(3)])
        assert acks.ready() == []
        acks.settled([message(3)])
        assert acks.ready() == [3]


def test_an_id_that_comes_twice_is_acknowledged_once_when_both_are_settled() -> None:
    acks = Acknowledgements()
    arrive(acks, [message(5), message(6), message(5)])
    acks.settled([message(5), message(6)])
    assert acks.ready() == []

    acks.settled([message(5)])
    assert acks.ready() == [5, 6]


@given(st.permutations(range(1, 9)))
def test_whatever_the_order_of_settling_ids_are_acknowledged_in_order_of_arrival(order: list[int]) -> None:
    acks, sent = Acknowledgements(), []
    arrive(acks, [message(mid) for mid in range(1, 9)])
    for mid in order:
        acks.settled([message(mid)])
        sent += acks.ready()

    assert sent == list(range(1, 9))
