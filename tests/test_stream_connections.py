"""What lies between two messages of a stream that came in on different connections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import RATE_HZ, SOURCES, UNIX_S, Case, Journal, S, now_ns

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Message, Queued
from edge_runtime.stream.window import WindowSettings

NUMBERED, TIMED, COUNTED = SOURCES[1:4]
FOUR = WindowSettings(samples=4, hop=4)
PAUSE_S = 2.0
TOGETHER = [pytest.param(True, id="together"), pytest.param(False, id="one by one")]
Told = list[tuple[tuple[int, int], int, bool, bool, list[list[float]]]]


class Feed:
    """A pipeline, and the sensor of its one stream, which sends 100 samples a second. epoch: of the connection."""

    def __init__(self, window: WindowSettings, *, source: Any = COUNTED, rate_hz: float | None = RATE_HZ) -> None:
        self.case = Case(source, window, rate_hz, 0, False, True, "window", 256)
        self.journal, self.ledger = Journal(self.case), Ledger()
        self.pipeline = self.case.pipeline(self.ledger, run=0)
        self.at_s, self.epoch, self.number, self.restarts = 960.0, 1, 0, 0

    def send(self, n: int, *, together: bool = True, **fields: Any) -> Told:
        """Send n messages as one burst, or each in a turn of its own.

        Returns (numbers of the first and the last message, missing, gap, fresh, values) of each window they complete.
        """
        messages = [self._message(**{"qos": 1, **fields}) for _ in range(n)]
        return self.take(messages, together=together)

    def take(self, messages: Sequence[Message], *, together: bool = True) -> Told:
        found: Told = []
        for part in [messages] if together else [[one] for one in messages]:
            turn = self.pipeline.process([Queued("a", list(part))])
            self.ledger.settle(turn)
            self.journal.settle(turn)
            found += [((w.first_seq, w.last_seq), w.missing, w.gap, w.fresh, w.values.tolist()) for w in turn.windows]
        return found

    def _message(self, **fields: Any) -> Message:
        n, self.number = self.number, self.number + 1
        body = {"n": n, "t": UNIX_S - 1000 + self.at_s, "v": [n / 100, 0]}
        self.at_s += 1 / RATE_HZ
        mid = n + 1 if fields["qos"] else 0
        return Message("t", json.dumps(body).encode(), self._now_ns(), mid=mid, epoch=self.epoch, **fields)

    def _now_ns(self) -> int:
        """By the clock of this run of the process."""
        return int(self.at_s * S) + now_ns(self.restarts) - now_ns(0)

    def reconnect(self, *, lost: bool = False) -> None:
        self.epoch += 1
        if lost:
            self.pipeline.session_lost(self.epoch)

    def restart(self, *, lost: bool = False) -> None:
        self.restarts += 1
        self.pipeline = self.case.pipeline(self.ledger, run=self.restarts)
        assert self.pipeline.restore(self.journal.remembered(), same_windows=True, same_model=True) == 0
        self.epoch = 0
        self.reconnect(lost=lost)

    @property
    def lost_before_us(self) -> int:
        return self.ledger.snapshot({}, {}, {})[0].lost_before_us


def numbers(told: Told) -> list[tuple[int, int]]:
    return [window[0] for window in told]


@pytest.mark.parametrize("together", TOGETHER)
def test_a_pause_across_a_reconnect_is_no_gap_where_the_broker_kept_the_messages(together: bool) -> None:
    feed = Feed(FOUR)
    feed.send(2)
    feed.reconnect()
    feed.at_s += PAUSE_S

    assert numbers(feed.send(6, together=together)) == [(0, 3), (4, 7)]
    feed.at_s += PAUSE_S
    assert numbers(feed.send(2) + feed.send(4, together=together)) == [(8, 11)]


@pytest.mark.parametrize("together", TOGETHER)
def test_a_pause_within_a_connection_is_a_gap_as_ever(together: bool) -> None:
    feed = Feed(FOUR)
    feed.reconnect()
    feed.send(2)
    feed.at_s += PAUSE_S

    assert numbers(feed.send(6, together=together)) == [(2, 5)]


@pytest.mark.parametrize("together", TOGETHER)
@settings(deadline=None)
@given(
    parts=st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["same turn", "next turn", "repeat"])), max_size=12),
    window=st.builds(
        WindowSettings,
        samples=st.integers(1, 6),
        hop=st.integers(1, 7),
        max_gap_samples=st.sampled_from([0, 3]),
        on_gap=st.sampled_from(["reset", "hold", "mark"]),
    ),
)
def test_reconnects_leave_no_trace_where_the_broker_kept_the_messages(
    parts: list[tuple[int, str]], window: WindowSettings, together: bool
) -> None:
    whole, parted = Feed(window), Feed(window)
    told: Told = []
    waiting: list[Message] = []
    for n, then in parts:
        waiting += [parted._message(qos=1) for _ in range(n)]
        if then != "same turn":
            told += parted.take(waiting, together=together)
        parted.reconnect()
        parted.at_s += PAUSE_S
        if then == "repeat":
            again = {"dup": True, "epoch": parted.epoch, "received_ns": parted._now_ns()}
            told += parted.take([msgspec.structs.replace(one, **again) for one in waiting[-2:]])
        waiting = waiting if then == "same turn" else []
    told += parted.take(waiting, together=together) if waiting else []

    assert told == whole.send(sum(n for n, _ in parts), together=False)


@pytest.mark.parametrize("together", TOGETHER)
@pytest.mark.parametrize("rate_hz", [None, RATE_HZ])
def test_a_lost_session_leaves_a_hole_however_short_the_pause(rate_hz: float | None, together: bool) -> None:
    feed = Feed(FOUR, rate_hz=rate_hz)
    feed.send(2)
    feed.reconnect(lost=True)

    assert numbers(feed.send(4, together=together)) == [(2, 5)]
    assert numbers(feed.send(4, together=together)) == [(6, 9)]
    assert feed.lost_before_us == 0


def test_the_hole_of_a_lost_session_is_as_long_as_the_pause() -> None:
    found = []
    for pause_s in (0.0, PAUSE_S):
        feed = Feed(msgspec.structs.replace(FOUR, max_gap_samples=3))
        feed.send(2)
        feed.reconnect(lost=True)
        feed.at_s += pause_s
        found.append([window[:4] for window in feed.send(4)])

    assert found == [[((0, 2), 1, False, True)], [((2, 5), 0, False, True)]]


def test_a_window_across_a_lost_session_says_so_where_gaps_are_marked() -> None:
    feed = Feed(msgspec.structs.replace(FOUR, on_gap="mark"))
    feed.send(2)
    feed.reconnect(lost=True)

    assert [window[:4] for window in feed.send(6)] == [((0, 3), 0, True, True), ((4, 7), 0, False, False)]


def test_a_session_that_was_lost_while_a_stream_was_silent_leaves_its_hole_once() -> None:
    feed = Feed(FOUR)
    feed.send(2)
    feed.reconnect(lost=True)
    feed.reconnect()
    assert numbers(feed.send(6)) == [(2, 5)]

    feed.reconnect()
    assert numbers(feed.send(2)) == [(6, 9)]


def test_a_lost_session_does_not_touch_the_messages_before_it_that_still_wait() -> None:
    feed = Feed(FOUR)
    feed.send(1)
    feed.reconnect()
    waiting = [feed._message(qos=1) for _ in range(5)]
    for _ in range(2):
        feed.reconnect(lost=True)
        waiting += [feed._message(qos=1) for _ in range(5)]

    assert numbers(feed.take(waiting)) == [(0, 3), (6, 9), (11, 14)]


@pytest.mark.parametrize("again", ["duplicate", "undecodable"])
def test_what_is_not_taken_in_does_not_use_up_the_change_of_connection(again: str) -> None:
    for lost in (False, True):
        feed = Feed(FOUR)
        waiting = [feed._message(qos=1) for _ in range(2)]
        feed.take(waiting)
        feed.reconnect(lost=lost)
        feed.at_s += PAUSE_S
        payload = {"undecodable": b"{", "duplicate": waiting[-1].payload}[again]
        odd = msgspec.structs.replace(waiting[-1], dup=True, epoch=feed.epoch, payload=payload)
        feed.take([odd])

        hole = lost or again == "undecodable"
        assert numbers(feed.send(4)) == ([(2, 5)] if hole else [(0, 3)])


@pytest.mark.parametrize("together", TOGETHER)
def test_at_qos_0_a_pause_counts_across_a_reconnect(together: bool) -> None:
    for pause_s, wanted in ((0.0, (0, 3)), (PAUSE_S, (2, 5))):
        feed = Feed(FOUR)
        feed.send(2, qos=0)
        feed.reconnect()
        feed.at_s += pause_s
        assert numbers(feed.send(4, qos=0, together=together)) == [wanted]


@pytest.mark.parametrize(
    ("qos", "lost", "wanted"), [(1, False, [(0, 3), (4, 7)]), (1, True, [(2, 5)]), (0, False, [(2, 5)])]
)
@pytest.mark.parametrize("together", TOGETHER)
def test_after_a_restart_a_stream_is_whole_only_where_the_broker_kept_its_messages(
    qos: int, lost: bool, wanted: list[tuple[int, int]], together: bool
) -> None:
    feed = Feed(FOUR)
    feed.send(2, qos=qos)
    feed.restart(lost=lost)

    assert numbers(feed.send(6, qos=qos, together=together)) == wanted
    assert feed.lost_before_us == 0


@pytest.mark.parametrize("source", [NUMBERED, TIMED])
@pytest.mark.parametrize("qos", [0, 1])
def test_streams_with_numbers_or_sensor_times_know_themselves_what_is_missing(source: Any, qos: int) -> None:
    feed = Feed(FOUR, source=source)
    feed.send(2, qos=qos)
    feed.reconnect(lost=True)
    assert numbers(feed.send(3, qos=qos)) == [(0, 3)]
    feed.restart(lost=True)
    assert numbers(feed.send(3, qos=qos)) == [(4, 7)]

    feed.number += 5
    feed.at_s += 5 / RATE_HZ
    feed.reconnect(lost=True)
    assert len(feed.send(4, qos=qos)) == 1
    assert feed.lost_before_us == (5 if source is NUMBERED else 0)


def test_sensor_times_without_a_rate_do_not_tell_what_is_missing() -> None:
    feed = Feed(FOUR, source=TIMED, rate_hz=None)
    feed.send(2)
    feed.reconnect(lost=True)

    assert numbers(feed.send(4)) == [(2, 5)]
