from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.mqtt.sending import SendQueue
from edge_runtime.records import Outgoing


class Sent:
    """Stands for paho's MQTTMessageInfo."""

    def __init__(self) -> None:
        self.published = False

    def is_published(self) -> bool:
        return self.published


def test_an_id_shared_by_a_written_message_and_one_in_flight_confirms_the_right_one() -> None:
    """paho numbers QoS 0 messages too, and its numbers wrap: both may carry the same id at once."""
    send_queue = SendQueue(max_waiting=9, max_unwritten=9, now_ns=lambda: 0)
    slow, quick = Sent(), Sent()
    first = send_queue.add(Outgoing("a", b"", qos=1), connected=True)
    second = send_queue.add(Outgoing("b", b"", qos=0), connected=True)
    for handle in (slow, quick):
        entry = send_queue.take(9)
        assert entry is not None
        send_queue.handed_over(entry, 7, handle)

    quick.published = True
    send_queue.answer(7, "")
    send_queue.collect()
    assert send_queue.confirmed() == [(second, "")]

    slow.published = True
    send_queue.answer(7, "Quota exceeded")
    send_queue.collect()
    assert send_queue.confirmed() == [(first, "Quota exceeded")]


def test_a_refusal_is_not_forgotten_when_a_message_with_the_same_id_is_written_right_after_it() -> None:
    send_queue = SendQueue(max_waiting=9, max_unwritten=9, now_ns=lambda: 0)
    refused, written = Sent(), Sent()
    for qos, handle in ((1, refused), (0, written)):
        send_queue.add(Outgoing("a", b"", qos=qos), connected=True)
        entry = send_queue.take(9)
        assert entry is not None
        send_queue.handed_over(entry, 7, handle)

    refused.published = written.published = True
    send_queue.answer(7, "Quota exceeded")
    send_queue.answer(7, "")
    send_queue.collect()

    assert sorted(send_queue.confirmed()) == [(1, "Quota exceeded"), (2, "")]


def test_the_oldest_message_in_flight_counts_from_when_it_was_sent_on_this_connection() -> None:
    now = [5]
    send_queue = SendQueue(max_waiting=9, max_unwritten=9, now_ns=lambda: now[0])
    assert send_queue.oldest_ns() is None
    for mid in (1, 2):
        send_queue.add(Outgoing("a", b"", qos=1), connected=True)
        entry = send_queue.take(9)
        assert entry is not None
        now[0] = 10 * mid
        send_queue.handed_over(entry, mid, Sent())
    assert send_queue.oldest_ns() == 10

    now[0] = 100
    send_queue.resumed()
    assert send_queue.oldest_ns() == 100


@settings(deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["add0", "add1", "own", "take", "write", "ack", "fail", "lose", "again", "collect"]),
        max_size=60,
    )
)
def test_whatever_happens_every_token_is_confirmed_exactly_once(steps: list[str]) -> None:
    send_queue = SendQueue(max_waiting=5, max_unwritten=2, now_ns=lambda: 0)
    tokens: list[int] = []
    known: list[int] = []
    with_library: list[tuple[int, int, Sent]] = []
    mid = 0
    for step in steps:
        if step in ("add0", "add1"):
            tokens.append(send_queue.add(Outgoing("t", b"", qos=int(step[-1])), connected=True))
        elif step == "own":
            send_queue.add_urgent(Outgoing("t", b"", qos=1))
        elif step == "take":
            entry = send_queue.take(3)
            if entry is not None:
                mid += 1
                with_library.append((mid, entry.message.qos, Sent()))
                send_queue.handed_over(entry, mid, with_library[-1][2])
        elif step in ("write", "ack", "fail"):
            qos = 0 if step == "write" else 1
            found = next((item for item in with_library if item[1] == qos), None)
            if found is not None:
                with_library.remove(found)
                found[2].published = True
                send_queue.answer(found[0], "refused" if step == "fail" else "")
        elif step == "lose":
            send_queue.disconnected()
            with_library = [item for item in with_library if item[1] == 1]
        elif step == "again":
            send_queue.collect()
            send_queue.disconnected()
            send_queue.send_again()
            with_library = []
        else:
            send_queue.collect()
        known += [token for token, _ in send_queue.confirmed()]
        assert len(known) == len(set(known))
    send_queue.close("stopped")
    known += [token for token, _ in send_queue.confirmed()]

    assert sorted(known) == sorted(tokens)
    assert len(send_queue) == 0
