from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.delivery.ledger import ALL, NO_PIPELINE, Imbalance, Ledger, render
from edge_runtime.records import Accepted, DeadLetter, Message, Queued, Result, Segment, Turn

V, A, B = "vibration", "press-1", "press-2"
MESSAGE = Message("plant/press-1/vib", b"", 0)


def result(stream: str) -> Result:
    return Result(1, "id", V, stream, "m@1.0.0", "ok", 0.9, {}, None, 0.0, 1.0, 8, (0, 1), 0, (), {})


def turn(pipeline: str = V, **fields: object) -> Turn:
    made = Turn(pipeline, [], 0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Event(NamedTuple):
    """One posting to the ledger: a method and its arguments."""

    method: str
    arguments: tuple[object, ...]

    def post(self, ledger: Ledger) -> None:
        getattr(ledger, self.method)(*self.arguments)


class Device:
    """A small daemon that only moves things: queues, unsettled turns, an outbox. It says what it does."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.events: list[Event] = []
        self.queues: Counter[tuple[str, str]] = Counter()
        self.turns: list[tuple[Turn, Counter[tuple[str, str]], Counter[tuple[str, str]]]] = []
        self.outbox: Counter[tuple[str, str]] = Counter()

    def post(self, method: str, *arguments: object) -> None:
        self.events.append(Event(method, arguments))

    def step(self) -> None:
        key = (self.rng.choice((V, "sound")), self.rng.choice((A, B)))
        often = (self.receive, self.take, self.confirm)
        seldom = (self.receive_unknown, self.overflow, self.settle, self.give_up, self.reject)
        self.rng.choice((*often, *often, *seldom))(key)

    def receive(self, key: tuple[str, str]) -> None:
        n = self.rng.randint(1, 3)
        self.queues[key] += n
        self.post("received", *key, n)

    def receive_unknown(self, key: tuple[str, str]) -> None:
        self.post("received", NO_PIPELINE, "-")
        self.post("dead_lettered", NO_PIPELINE, "-")

    def overflow(self, key: tuple[str, str]) -> None:
        if self.queues[key]:
            self.queues[key] -= 1
            self.post("dropped", *key, self.rng.choice(("queue_full", "expired")))

    def take(self, key: tuple[str, str]) -> None:
        taken, windows = Counter({key: self.queues.pop(key, 0)}), 0
        made = turn(key[0], messages=[Queued(key[1], [MESSAGE])] * taken[key])
        for _ in range(taken[key]):
            fate = self.rng.choice(("accepted", "accepted", "duplicate", "late", "dead"))
            if fate == "accepted":
                made.accepted.append(Accepted(key[1], "0", 0, [MESSAGE]))
                windows += self.rng.randint(0, 2)
            elif fate == "duplicate":
                made.duplicates[key[1]] = made.duplicates.get(key[1], 0) + 1
            elif fate == "late":
                made.dropped[key[1], "late"] = made.dropped.get((key[1], "late"), 0) + 1
                made.lost_before_us[key[1]] = made.lost_before_us.get(key[1], 0) - 1
            else:
                made.dead_letters.append(DeadLetter(key[1], "not_json", "", MESSAGE))
        if windows:
            self.post("windows_completed", *key, windows)
        if taken[key]:
            self.turns.append((made, taken, Counter({key: windows})))

    def settle(self, _: tuple[str, str]) -> None:
        if not self.turns:
            return
        made, _, windows = self.turns.pop(0)
        for (_, stream), n in windows.items():
            for _ in range(n):
                fate = self.rng.choice(("result", "result", "unchanged", "not_finite"))
                if fate == "result":
                    made.results.append(result(stream))
                elif fate == "unchanged":
                    made.unchanged[stream] = made.unchanged.get(stream, 0) + 1
                else:
                    made.window_drops[stream, fate] = made.window_drops.get((stream, fate), 0) + 1
        self.outbox.update((made.pipeline, r.stream) for r in made.results)
        self.post("settle", made)

    def give_up(self, _: tuple[str, str]) -> None:
        """At shutdown a turn's windows are dropped; its messages were taken all the same."""
        if self.turns:
            made, _, windows = self.turns.pop(0)
            for key, n in windows.items():
                if n:
                    self.post("window_dropped", *key, "shutdown", n)
            self.post("settle", made)

    def confirm(self, key: tuple[str, str]) -> None:
        if self.outbox[key]:
            self.outbox[key] -= 1
            self.post("confirmed", *key)

    def reject(self, key: tuple[str, str]) -> None:
        if self.outbox[key]:
            self.outbox[key] -= 1
            self.post("result_dropped", *key, "rejected")

    def gauges(self) -> tuple[Counter[tuple[str, str]], ...]:
        queued, in_flight = Counter(self.queues), Counter()
        for _, taken, windows in self.turns:
            queued += taken
            in_flight += windows
        return queued, in_flight, +self.outbox


def device_after(steps: int, seed: int) -> Device:
    device = Device(random.Random(seed))
    for _ in range(steps):
        device.step()
    return device


@given(steps=st.integers(0, 120), seed=st.integers(0, 2**32))
def test_whatever_happens_the_equations_hold(steps: int, seed: int) -> None:
    device, ledger = device_after(steps, seed), Ledger()
    for event in device.events:
        event.post(ledger)

    assert ledger.balance(*device.gauges()) == []
    assert render(ledger.totals(*device.gauges())).endswith("balanced")


@given(steps=st.integers(1, 120), seed=st.integers(0, 2**32), which=st.floats(0, 1, exclude_max=True), times=...)
def test_one_event_forgotten_or_posted_twice_is_found(steps: int, seed: int, which: float, times: bool) -> None:
    device, ledger = device_after(steps, seed), Ledger()
    spoiled = int(which * len(device.events)) if device.events else None
    for i, event in enumerate(device.events):
        for _ in range(2 * times if i == spoiled else 1):
            event.post(ledger)

    found = ledger.balance(*device.gauges())

    assert bool(found) == (spoiled is not None)
    if spoiled is not None:
        equations = {
            "received": {"messages"},
            "dropped": {"messages"},
            "dead_lettered": {"messages"},
            "windows_completed": {"windows"},
            "window_dropped": {"windows"},
            "confirmed": {"results"},
            "result_dropped": {"results"},
            "settle": {"messages", "windows", "results"},
        }[device.events[spoiled].method]
        assert {imbalance.equation for imbalance in found} <= equations


@given(steps=st.integers(0, 60), seed=st.integers(0, 2**32), gauge=st.integers(0, 2), error=st.sampled_from((-1, 1)))
def test_a_gauge_that_is_wrong_by_one_is_found(steps: int, seed: int, gauge: int, error: int) -> None:
    device, ledger = device_after(steps, seed), Ledger()
    for event in device.events:
        event.post(ledger)
    gauges = device.gauges()
    gauges[gauge][V, A] += error

    (found,) = ledger.balance(*gauges)

    assert (found.pipeline, found.stream) == (V, A)
    assert found.equation == ("messages", "windows", "results")[gauge]
    assert found.right - found.left == error


def test_a_turn_is_settled_stream_by_stream() -> None:
    ledger = Ledger()
    settled = turn(
        accepted=[Accepted(A, "0", 0, [MESSAGE]), Accepted(B, "0", 5, [MESSAGE] * 2), Accepted(A, "0", 1, [MESSAGE])],
        duplicates={A: 2},
        dropped={(A, "late"): 3, (B, "expired"): 1},
        dead_letters=[DeadLetter(B, "not_json", "", MESSAGE)],
        results=[result(A), result(A), result(B)],
        unchanged={A: 4},
        window_drops={(B, "not_finite"): 5},
    )
    ledger.settle(settled)

    a, b = ledger.snapshot({}, {}, {})
    assert (a.pipeline, a.stream, b.pipeline, b.stream) == (V, A, V, B)
    assert (a.accepted, a.duplicates, a.dropped, a.dead_lettered) == (2, 2, {"late": 3}, 0)
    assert (b.accepted, b.duplicates, b.dropped, b.dead_lettered) == (2, 0, {"expired": 1}, 1)
    assert (a.results, a.unchanged, a.windows_dropped) == (6, 4, {})
    assert (b.results, b.unchanged, b.windows_dropped) == (1, 0, {"not_finite": 5})


def test_a_turn_without_windows_or_messages_changes_nothing() -> None:
    ledger = Ledger()
    ledger.settle(turn())

    assert ledger.snapshot({}, {}, {}) == ()


def test_an_imbalance_names_the_stream_the_equation_and_both_sides() -> None:
    ledger = Ledger()
    ledger.received(V, A, 10)
    ledger.settle(turn(accepted=[Accepted(A, "0", 0, [MESSAGE] * 8)]))

    assert ledger.balance({(V, A): 1}, {}, {}) == [Imbalance(V, A, "messages", left=10, right=9)]


def test_errors_of_two_streams_do_not_cancel_in_the_totals() -> None:
    ledger = Ledger()
    ledger.received(V, A, 5)
    ledger.received(V, B, 5)
    ledger.settle(turn(accepted=[Accepted(A, "0", 0, [MESSAGE] * 4), Accepted(B, "0", 0, [MESSAGE] * 6)]))

    view = ledger.totals({}, {}, {})

    assert (view.overall.received, view.overall.accepted) == (10, 10)
    assert [(off.stream, off.left, off.right) for off in view.imbalances] == [(A, 5, 4), (B, 5, 6)]


def test_something_under_way_in_a_stream_never_heard_of_is_an_imbalance() -> None:
    assert Ledger().balance({}, {(V, "ghost"): 1}, {}) == [Imbalance(V, "ghost", "windows", left=0, right=1)]


def test_totals_add_up_streams_pipelines_and_gauges() -> None:
    ledger = Ledger()
    for stream in (A, B):
        ledger.received(V, stream, 3)
        ledger.dropped(V, stream, "queue_full")
    ledger.received("sound", A, 2)

    view = ledger.totals({(V, A): 2, (V, B): 2, ("sound", A): 2}, {}, {})

    sound, vibration = view.pipelines
    assert (sound.pipeline, sound.stream, sound.received, sound.queued) == ("sound", ALL, 2, 2)
    assert (vibration.received, vibration.dropped, vibration.queued) == (6, {"queue_full": 2}, 4)
    assert (view.overall.pipeline, view.overall.received, view.overall.queued) == (ALL, 8, 6)
    assert view.imbalances == ()


def test_a_gauge_is_of_one_moment_only() -> None:
    ledger = Ledger()
    ledger.received(V, A)
    assert ledger.balance({(V, A): 1}, {}, {}) == []

    assert ledger.balance({}, {}, {}) == [Imbalance(V, A, "messages", left=1, right=0)]


def test_a_snapshot_is_a_copy() -> None:
    ledger = Ledger()
    ledger.dropped(V, A, "expired")
    (before,) = ledger.snapshot({}, {}, {})
    ledger.dropped(V, A, "expired")
    ledger.received(V, A)
    before.dropped["expired"] = 99

    (after,) = ledger.snapshot({}, {}, {})
    assert (before.received, after.received, after.dropped) == (0, 1, {"expired": 2})


def test_what_producers_lost_stands_beside_the_equations() -> None:
    ledger = Ledger()
    ledger.settle(turn(lost_before_us={A: 8}, restarts={A: 1}))
    ledger.settle(turn(lost_before_us={A: -1}))

    view = ledger.totals({}, {}, {})
    assert (view.overall.lost_before_us, view.overall.restarts) == (7, 1)
    assert view.imbalances == ()


def test_the_text_has_three_lines_a_pipeline_and_the_verdict() -> None:
    ledger = Ledger()
    ledger.received(V, A, 1200)
    ledger.dropped(V, A, "queue_full", 5)
    ledger.windows_completed(V, A, 40)
    ledger.settle(
        turn(
            accepted=[Accepted(A, "0", 0, [MESSAGE] * 1190)],
            dropped={(A, "late"): 2},
            duplicates={A: 1},
            dead_letters=[DeadLetter(A, "not_json", "", MESSAGE)],
            results=[result(A)] * 30,
            unchanged={A: 9},
            lost_before_us={A: 3},
        )
    )
    ledger.confirmed(V, A, 28)
    ledger.result_dropped(V, A, "rejected")
    ledger.received(NO_PIPELINE, "-")
    ledger.dead_lettered(NO_PIPELINE, "-")

    text = render(ledger.totals({(V, A): 1}, {(V, A): 1}, {(V, A): 1}))

    assert text.splitlines() == [
        "-: messages received 1 = accepted 0 + duplicates 0 + dropped 0 + dead-lettered 1 + queued 0",
        (
            "vibration: messages received 1,200 = accepted 1,190 + duplicates 1 + dropped 7 (late 2, queue_full 5)"
            " + dead-lettered 1 + queued 1; lost before us 3"
        ),
        "vibration: windows completed 40 = results 39 + dropped 0 + in flight 1",
        "vibration: results 39 = confirmed 28 + waiting 1 + unchanged 9 + dropped 1 (rejected 1)",
        "balanced",
    ]


def test_events_stand_beside_the_equations() -> None:
    ledger = Ledger()
    segment = Segment(1, "e", V, A, "m@1", "worn", 0.0, 1.0, 0.9, 1.0, 2, (0, 1), ())
    ledger.settle(turn(events=[segment, segment]))
    ledger.event_dropped(V, A, "refused")
    view = ledger.totals({}, {}, {})

    assert view.imbalances == ()
    assert (view.overall.events, view.overall.events_dropped) == (2, {"refused": 1})
    assert render(view).splitlines()[2].endswith("; events 2, dropped 1 (refused 1)")


@pytest.mark.parametrize(("streams", "last"), [(1, "accounted for"), (25, "off: 15 more")])
def test_the_text_says_what_is_off_and_stays_short(streams: int, last: str) -> None:
    ledger = Ledger()
    for i in range(streams):
        ledger.received(V, f"press-{i:02}", 2)

    lines = render(ledger.totals({}, {}, {})).splitlines()

    assert lines[3] == "off: vibration press-00: 2 messages received, 0 accounted for"
    assert lines[-1].endswith(last)
    assert len(lines) <= 3 + 11
    assert "balanced" not in lines
