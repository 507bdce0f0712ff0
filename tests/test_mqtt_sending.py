from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.mqtt.callbacks import Handed
from edge_runtime.mqtt.sending import Entry, SendQueue
from edge_runtime.records import Outgoing


class Sent:
    """Stands for paho's MQTTMessageInfo."""

    def __init__(self) -> None:
        self.published = False

    def is_published(self) -> bool:
        return self.published


def taken(send_queue: SendQueue, *, qos: int) -> Entry:
    """A message that was queued and may go out."""
    send_queue.add(Outgoing("a", b"", qos=qos), connected=True)
    entry = send_queue.take(9)
    assert entry is not None
    return entry


def test_an_id_shared_by_a_written_message_and_one_in_flight_confirms_the_right_one() -> None:
    """QoS 0 messages have numbers of paho's too, and they wrap: both may carry the same id at once."""
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    handed = Handed(send_queue)
    slow, quick = Sent(), Sent()
    first, second = taken(send_queue, qos=1), taken(send_queue, qos=0)
    handed.add(first, slow, mid=7, size=10, now_ns=0)
    handed.add(second, quick, mid=7, size=10, now_ns=0)

    quick.published = True
    handed.answer(7, "")
    handed.collect()
    assert send_queue.confirmed() == ([second.token], [])

    slow.published = True
    handed.answer(7, "Quota exceeded")
    handed.collect()
    assert send_queue.confirmed() == ([], [(first.token, "Quota exceeded")])


def test_a_refusal_is_not_forgotten_when_a_message_with_the_same_id_is_written_right_after_it() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    handed = Handed(send_queue)
    refused, written = Sent(), Sent()
    handed.add(taken(send_queue, qos=1), refused, mid=7, size=10, now_ns=0)
    handed.add(taken(send_queue, qos=0), written, mid=7, size=10, now_ns=0)

    refused.published = written.published = True
    handed.answer(7, "Quota exceeded")
    handed.answer(7, "")
    handed.collect()

    assert send_queue.confirmed() == ([2], [(1, "Quota exceeded")])


def test_bytes_count_as_unwritten_from_the_handing_over_to_the_write() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    handed = Handed(send_queue)
    first, second = Sent(), Sent()
    handed.add(taken(send_queue, qos=0), first, mid=1, size=10, now_ns=0)
    handed.add(taken(send_queue, qos=0), second, mid=2, size=30, now_ns=0)
    first.published = True
    handed.collect()
    assert handed.unwritten_bytes == 30

    handed.forget(in_flight=False)
    send_queue.disconnected()
    assert handed.unwritten_bytes == 0
    again = send_queue.take(9)
    assert again is not None
    assert again.token == 2


def test_a_message_passes_by_only_an_empty_queue() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    passing = send_queue.pass_by(Outgoing("a", b""))
    assert passing is not None
    assert passing.token == 1
    assert send_queue.pass_by(Outgoing("a", b"", message_expiry_s=9)) is None

    assert send_queue.add(Outgoing("a", b""), connected=True) == 2
    assert send_queue.pass_by(Outgoing("a", b"")) is None
    assert send_queue.take(9) is not None
    send_queue.add_urgent(Outgoing("a", b""))
    assert send_queue.pass_by(Outgoing("a", b"")) is None
    assert send_queue.take(9) is not None
    send_queue.again.append(7)
    assert send_queue.pass_by(Outgoing("a", b"")) is None


def test_written_is_the_token_before_the_first_that_waits() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    for _ in range(4):
        send_queue.add(Outgoing("a", b"", qos=1), connected=True)
    for mid in (1, 2):
        entry = send_queue.take(9)
        assert entry is not None
        send_queue.in_flight[mid] = entry
    assert send_queue.written == 0

    send_queue.all_left()
    assert send_queue.written == 2
    send_queue.send_anew()
    send_queue.all_left()
    assert send_queue.written == 2
    send_queue.close("stopped")
    assert send_queue.written == 4
    assert send_queue.add(Outgoing("a", b""), connected=False) == send_queue.written == 5


def test_the_oldest_message_in_flight_counts_from_when_it_was_sent_on_this_connection() -> None:
    now = [5]
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: now[0])
    assert send_queue.oldest_ns() is None
    for mid in (1, 2):
        send_queue.sent(mid, taken(send_queue, qos=1), 10 * mid)
    assert send_queue.oldest_ns() == 10

    now[0] = 100
    send_queue.all_sent_again()
    assert send_queue.oldest_ns() == 100
    send_queue.again.append(2)
    send_queue.answered([(1, "")])
    assert send_queue.oldest_ns() is None


def test_an_answer_tells_that_its_message_was_written() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    send_queue.pass_in_flight([Outgoing("a", b"", 1)] * 3, [7, 8, 9], 0)
    send_queue.answered([(8, "")])
    assert send_queue.written == 2
    send_queue.answered([(7, "")])
    assert send_queue.written == 2


def test_the_fate_of_each_message_of_a_group_is_open() -> None:
    send_queue = SendQueue(max_waiting=9, now_ns=lambda: 0)
    send_queue.pass_unwritten([Outgoing("a", b"")] * 3)
    send_queue.pass_in_flight([Outgoing("a", b"", 1)] * 2, [7, 8], 0)

    assert len(send_queue) == 5


class Play:
    """A queue, and the connections its messages go over; each method is a step."""

    def __init__(self) -> None:
        self.queue = SendQueue(max_waiting=5, now_ns=lambda: 0)
        self.tokens: list[int] = []
        self._mid = 0

    def add(self) -> None:
        self.tokens.append(self.queue.add(Outgoing("t", b"", qos=len(self.tokens) % 2), connected=True))

    def pass_by(self) -> None:
        entry = self.queue.pass_by(Outgoing("t", b"", qos=len(self.tokens) % 2))
        if entry is not None:
            self.tokens.append(entry.token)
            self._hand_over(entry)

    def pass_together(self) -> None:
        if not self.queue.waits:
            entry = self.queue.pass_unwritten([Outgoing("t", b"")] * 3)
            self.tokens += entry.tokens()

    def fly_together(self) -> None:
        if not self.queue.waits:
            entry = self.queue.pass_in_flight([Outgoing("t", b"", 1)] * 3, range(self._mid + 1, self._mid + 4), 0)
            self._mid += 3
            self.tokens += range(entry.token - 2, entry.token + 1)

    def tell_apart(self) -> None:
        if self.queue.unwritten:
            entries = self.queue.part()
            assert [*self.queue.unwritten][: len(entries)] == entries

    def own(self) -> None:
        self.queue.add_urgent(Outgoing("t", b"", qos=1))

    def take(self) -> None:
        entry = self.queue.take(3)
        if entry is not None:
            self._hand_over(entry)

    def _hand_over(self, entry: Entry) -> None:
        self._mid += 1
        if entry.message.qos:
            self.queue.in_flight[self._mid] = entry
        else:
            self.queue.unwritten.append(entry)

    def write_some(self) -> None:
        for _ in range(len(self.queue.unwritten) // 2):
            self.queue.left()

    def write_all(self) -> None:
        self.queue.all_left()

    def answer(self) -> None:
        self.queue.answered([(mid, "") for mid in [*self.queue.in_flight, 0][:2]])

    def refuse(self) -> None:
        self.queue.answered([(next(iter(self.queue.in_flight), 0), "refused")])

    def lose(self) -> None:
        self.queue.disconnected()

    def begin_anew(self) -> None:
        self.queue.disconnected()
        self.queue.send_anew()

    def _confirmed(self) -> list[int]:
        delivered, failed = self.queue.confirmed()
        return delivered + [token for token, _ in failed]


STEPS = [name for name, step in vars(Play).items() if callable(step) and not name.startswith("_")]


@settings(deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=60))
def test_whatever_happens_every_token_is_confirmed_exactly_once(steps: list[str]) -> None:
    play = Play()
    known: list[int] = []
    for step in steps:
        getattr(play, step)()
        known += play._confirmed()
        assert len(known) == len(set(known))
        assert play.queue.written <= len(play.tokens)
    play.queue.close("stopped")
    known += play._confirmed()

    assert sorted(known) == play.tokens == list(range(1, len(play.tokens) + 1))
    assert len(play.queue) == 0
    assert play.queue.written == len(play.tokens)
