"""Both ways of taking messages in give the same: one after the other, and by columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count, product
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import means_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from turns import columns

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Floats, Message, Properties, Queued, Rows, Turn
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.intake import MOST_APART, TOGETHER_FROM
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.rows import make_rows_decoder
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, ModelOfMeans

NUMBERED = SourceSettings(topic="t", path="v", seq_field="n")
COUNTED = SourceSettings(topic="t", path="v")
TIMED = SourceSettings(topic="t", path="v", seq_field="n", time_field="t")
NOT_A_NUMBER = 9.0
S = 1_000_000_000


class Model(ModelOfMeans):
    def predict(self, inputs: Floats) -> Floats:
        means = super().predict(inputs)
        return np.where(means == NOT_A_NUMBER, np.float32(np.nan), means)


class Bench:
    """A pipeline of two channels that takes messages together, or does not."""

    def __init__(self, source: SourceSettings, *, together: bool, rate_hz: float | None = None, **options: Any) -> None:
        window = options.pop("window", WindowSettings(samples=4, hop=2))
        self.clock, self.ledger = ManualClock(monotonic_ns=1000 * S), Ledger()
        self.asked: list[int] = []
        self.pipeline = Pipeline(
            "p",
            spec=means_manifest(length=window.samples, hop=window.hop, rate_hz=rate_hz).input,
            window=window,
            decode=make_decoder(source, 2),
            decode_rows=self._counted(make_rows_decoder(source, 2)) if together else None,
            predictor=Model(),
            decider=Decider(DecideSettings(alarm_on="moving", score=0.6, release=0.4), labels=("still", "moving")),
            ledger=self.ledger,
            run_id="run",
            clock=self.clock.clock(),
            keep=True,
            **options,
        )

    def _counted(
        self, decode: Callable[[Sequence[Message]], Rows | None]
    ) -> Callable[[Sequence[Message]], Rows | None]:
        def counted(messages: Sequence[Message]) -> Rows | None:
            self.asked.append(len(messages))
            return decode(messages)

        return counted

    def run(self, messages: Sequence[Queued]) -> Turn:
        turn = self.pipeline.process(messages)
        self.ledger.settle(turn)
        return turn


def message(body: object, stream: str = "a", *, at_s: float = 1000.0, given_up: int = 0, **fields: Any) -> Queued:
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Queued(stream, [Message("t", payload, int(at_s * S), **fields)], given_up)


def sample(n: int, moving: float = 0.0, stream: str = "a", **fields: Any) -> Queued:
    still = moving if moving == NOT_A_NUMBER else 1 - moving
    return message({"n": n, "t": 1000.0 + n / 10, "v": [still, moving]}, stream, **fields)


def of_stream(turn: Turn, stream: str) -> dict[str, object]:
    """Everything a turn holds of one stream, but for what it cost."""
    windows = [msgspec.structs.asdict(w) | {"values": w.values.tolist()} for w in turn.windows if w.stream == stream]
    results = [msgspec.structs.asdict(r) | {"lat_ms": 0} for r in turn.results if r.stream == stream]
    return {
        "windows": windows,
        "results": results,
        "accepted": [
            (one.epoch, number, message, content)
            for one in turn.accepted
            if one.stream == stream
            for number, (message, content) in enumerate(zip(one.messages, one.contents, strict=True), one.first)
        ],
        "dead": [letter.message for letter in turn.dead_letters if letter.stream == stream],
        "changes": [change for change in turn.state_changes if change.stream == stream],
        "events": [event for event in turn.events if event.stream == stream],
        "counts": [
            {key: n for key, n in counts.items() if key == stream or key[0] == stream}
            for counts in (turn.duplicates, turn.dropped, turn.window_drops, turn.unchanged)
        ],
        "states": [found.get(stream) for found in (turn.marks, turn.alarms, turn.segments)],
        "kept": [
            (one.resets, one.begin + i, number, message)
            for one in turn.kept
            if one.stream == stream
            for i, (number, message) in enumerate(zip(count(one.first), one.messages, strict=False))
        ],
    }


def told(turn: Turn) -> list[object]:
    taken = [[m for run in turn.messages if run.stream == stream for m in run.messages] for stream in "ab"]
    return [taken, *(of_stream(turn, stream) for stream in "ab")]


ODD = ["lost", "repeated", "late", "restarted", "dup", "expired", "given up", "paused"]
APART = ["bad", "several", "retained"]
STEP = st.tuples(
    st.sampled_from(["usual"] * 80 + ODD * 3 + APART),
    st.sampled_from("aab"),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, NOT_A_NUMBER]),
)


def played(steps: list[tuple[str, str, float]]) -> list[Queued]:
    """What two sensors send, with all that may go wrong on the way. Messages arrive 0.1 s after another."""
    numbers, paused_s, found = {"a": 5, "b": 0}, 0.0, list[Queued]()
    for i, (odd, stream, moving) in enumerate(steps):
        n = numbers[stream] + {"lost": 2, "late": -2, "repeated": -1}.get(odd, 0)
        n = 0 if odd == "restarted" else max(n, 0)
        numbers[stream] = max(numbers[stream], n + 1) if odd in ("late", "repeated") else n + 1
        paused_s += 7.0 * (odd == "paused")
        at_s = 900.0 if odd == "expired" else 990.0 + i / 10 + paused_s
        fields = {"dup": odd == "dup", "retain": odd == "retained", "qos": 1, "given_up": 2 * (odd == "given up")}
        if odd == "bad":
            found.append(message(b"{", stream, at_s=at_s, **fields))
        elif odd == "several":
            found.append(message({"n": n, "t": 1000 + n / 10, "v": [[1, 0], [0, 1]]}, stream, at_s=at_s, **fields))
        else:
            found.append(sample(n, moving, stream, at_s=at_s, **fields))
    expired_first = [one for one in found if one.messages[0].received_ns < 950 * S]
    return expired_first + [one for one in found if one.messages[0].received_ns >= 950 * S]


def in_runs(messages: Sequence[Queued]) -> list[Queued]:
    """One run a stream, as the queue hands them out: only before its first message may others have given way."""
    found: dict[str, Queued] = {}
    for one in messages:
        if one.stream in found:
            found[one.stream].messages.extend(one.messages)
        else:
            found[one.stream] = Queued(one.stream, [*one.messages], one.given_up)
    return list(found.values())


@settings(deadline=None, max_examples=150)
@given(
    steps=st.lists(STEP, min_size=30, max_size=60),
    cuts=st.lists(st.sampled_from([1, 4, 8, 20]), min_size=60, max_size=60),
    source=st.sampled_from([NUMBERED, COUNTED, TIMED]),
    window=st.builds(
        WindowSettings,
        samples=st.sampled_from([1, 2, 4]),
        hop=st.sampled_from([1, 2, 4, 6]),
        max_gap_samples=st.sampled_from([0, 0, 2]),
        on_gap=st.sampled_from(["reset", "hold", "mark"]),
    ),
    rate_hz=st.sampled_from([None, 10.0]),
    publish=st.sampled_from(["window", "change"]),
)
def test_streams_see_the_same_together_as_one_after_the_other(steps, cuts, source, **options) -> None:
    options |= {"max_age_ns": 60 * S, "memory": 16}
    together, each = (Bench(source, together=together, **options) for together in (True, False))
    messages = played(steps)

    for n in cuts:
        runs, messages = in_runs(messages[:n]), messages[n:]
        assert told(together.run(runs)) == told(each.run(runs))
        assert together.ledger.snapshot({}, {}, {}) == each.ledger.snapshot({}, {}, {})


def test_a_burst_of_samples_is_decoded_at_once_and_a_single_message_by_itself() -> None:
    bench = Bench(NUMBERED, together=True)

    bench.run([sample(n) for n in range(TOGETHER_FROM)])
    bench.run([sample(TOGETHER_FROM)])
    (result,) = bench.run([sample(TOGETHER_FROM + 1)]).results

    assert bench.asked == [TOGETHER_FROM]
    assert result.seq == (2, TOGETHER_FROM + 1)


def test_a_burst_with_a_gap_is_still_decoded_at_once() -> None:
    bench = Bench(NUMBERED, together=True)
    turn = bench.run([sample(n) for n in (0, 1, 2, 3, 7, 8, 9, 10)])

    assert [result.seq for result in turn.results] == [(0, 3), (7, 10)]
    assert bench.asked == [8]
    assert bench.ledger.snapshot({}, {}, {})[0].lost_before_us == 3


def test_what_gave_way_before_a_run_leaves_its_hole_there() -> None:
    for together in (True, False):
        bench = Bench(COUNTED, together=together, window=WindowSettings(samples=4, hop=4))
        bench.run(in_runs([sample(0), sample(1), sample(2)]))
        turn = bench.run(in_runs([sample(3, given_up=1), sample(4), sample(5), sample(6)]))
        assert [result.seq for result in turn.results] == [(3, 6)]


def test_what_cannot_be_taken_together_is_tried_ever_more_rarely() -> None:
    bench = Bench(NUMBERED, together=True)
    several = {"v": [[1, 0], [0, 1]]}
    turns = 200
    for i in range(turns):
        bench.run([message(several | {"n": n}) for n in range(8 * i, 8 * i + 8)])

    assert len(bench.asked) <= 4 + turns // MOST_APART
    for i in range(8 * turns, 8 * turns + 8 * (MOST_APART + 2), 8):
        bench.run([sample(n) for n in range(i, i + 8)])
    before = len(bench.asked)
    bench.run([sample(n) for n in range(9000, 9008)])
    assert len(bench.asked) == before + 1


def test_messages_too_many_for_a_turn_are_never_taken_together() -> None:
    bench = Bench(NUMBERED, together=True, window=WindowSettings(samples=1, hop=1), max_windows=5)
    turn = bench.pipeline.ingest(in_runs([sample(n) for n in range(9)] + [sample(0, stream="b")]))

    assert (turn.messages, len(turn.windows), bench.asked) == (in_runs([sample(n) for n in range(5)]), 5, [])
    assert turn.left_over == [sample(0, stream="b"), *in_runs([sample(n) for n in range(5, 9)])]
    assert bench.pipeline._intake.streams["a"].sequence.number == 4


def test_a_turn_that_fills_up_between_two_streams_leaves_the_others_in_their_order() -> None:
    bench = Bench(NUMBERED, together=True, window=WindowSettings(samples=1, hop=1), max_windows=3)
    runs = in_runs([sample(0), sample(0, stream="b"), sample(1), sample(1, stream="b"), sample(0, stream="c")])
    turn = bench.pipeline.ingest(runs)

    assert turn.messages == in_runs([sample(0), sample(1), sample(0, stream="b")])
    assert turn.left_over == [sample(0, stream="c"), sample(1, stream="b")]
    held = WindowSettings(samples=8, hop=1, on_gap="hold")
    careful = Bench(NUMBERED, together=True, window=held, max_windows=32)
    careful.run([sample(n) for n in range(5)])
    careful.run([sample(n) for n in range(5, 9)])
    assert careful.asked == [4]


def test_a_hole_before_messages_that_are_too_old_is_known_as_ours() -> None:
    for together, usable in product((True, False), (0, 4)):
        bench = Bench(NUMBERED, together=together, max_age_ns=60 * S)
        bench.run(in_runs([sample(n) for n in (0, 1, 2)]))
        bench.run(in_runs([sample(6, given_up=3, at_s=900.0), *(sample(n) for n in range(7, 7 + usable))]))
        bench.run(in_runs([sample(n) for n in range(7 + usable, 12)]))

        (account,) = bench.ledger.snapshot({}, {}, {})
        assert (account.lost_before_us, account.dropped) == (0, {"expired": 1})


def expiring(n: int, *, at_s: float = 997.0, expiry_s: int | None = 3, **fields: Any) -> Queued:
    """It is 1,000 s."""
    return sample(n, at_s=at_s, properties=Properties(message_expiry_s=expiry_s), **fields)


def test_a_message_that_waits_here_for_as_long_as_it_is_good_is_dropped_undecoded() -> None:
    for together, qos in product((True, False), (0, 1)):
        bench = Bench(NUMBERED, together=together)
        turn = bench.run(in_runs([expiring(n, expiry_s=s, qos=qos) for n, s in enumerate((3, 4, None, 4, 4))]))

        assert turn.dropped == {("a", "expired"): 1}
        assert [result.seq for result in turn.results] == [(1, 4)]


def test_a_message_that_expires_before_older_ones_leaves_its_hole_where_it_was() -> None:
    for together in (True, False):
        bench = Bench(COUNTED, together=together, window=WindowSettings(samples=4, hop=4))
        messages = [expiring(n, expiry_s=3 if n == 3 else 9) for n in range(8)]
        turn = bench.run(in_runs(messages))
        assert (turn.messages, turn.left_over) == (in_runs(messages[:3]), in_runs(messages[3:]))

        turn = bench.run(turn.left_over)
        assert (turn.dropped, [result.seq for result in turn.results]) == ({("a", "expired"): 1}, [(3, 6)])


def test_what_is_left_of_a_stream_for_a_full_turn_and_an_expired_message_is_one_run() -> None:
    bench = Bench(NUMBERED, together=False, window=WindowSettings(samples=1, hop=1), max_windows=1)
    messages = [expiring(n, expiry_s=3 if n in (0, 3) else 9) for n in range(5)]
    turn = bench.run([*in_runs(messages), expiring(0, expiry_s=9, stream="b"), expiring(0, stream="c")])

    assert turn.messages == [messages[0], expiring(0, stream="c"), messages[1]]
    assert turn.left_over == [expiring(0, expiry_s=9, stream="b"), *in_runs(messages[2:])]


def test_what_a_turn_shares_is_divided_among_its_messages_and_windows() -> None:
    bench = Bench(NUMBERED, together=True, window=WindowSettings(samples=1, hop=1))
    bench.run([sample(0)])
    decode, cut = bench.pipeline._intake._decode_rows, bench.ledger.windows_completed

    def slow_decode(messages: Sequence[Message]) -> Rows | None:
        bench.clock.advance(0.008)
        return decode(messages)

    def slow_cut(*counted: Any) -> None:
        bench.clock.advance(0.004)
        cut(*counted)

    bench.pipeline._intake._decode_rows, bench.ledger.windows_completed = slow_decode, slow_cut
    turn = bench.run(in_runs([sample(n, at_s=999.0) for n in range(1, 5)]))

    found = columns(turn)
    assert [found[stage] for stage in ("queue", "decode", "window")] == [[S] * 4, [2_000_000] * 4, [1_000_000] * 4]
    assert {(r.lat_ms.queue, r.lat_ms.decode, r.lat_ms.window) for r in turn.results} == {(1000.0, 2.0, 1.0)}


@pytest.mark.parametrize("n", [1, TOGETHER_FROM])
def test_stage_columns_hold_every_message_and_every_window(n: int) -> None:
    bench = Bench(NUMBERED, together=True, window=WindowSettings(samples=1, hop=1))
    found = columns(bench.run([sample(i, at_s=997.0) for i in range(n)] + [sample(n, retain=True)]))

    lengths = {stage: len(column) for stage, column in found.items()}
    assert lengths == {"queue": n + 1, "decode": n, "window": n, "wait": n, "infer": n, "decide": n}
    assert found["queue"] == [0] + [3 * S] * n


@pytest.mark.parametrize("n", [1, TOGETHER_FROM])
def test_a_window_waits_from_its_cut_to_its_run(n: int) -> None:
    bench = Bench(NUMBERED, together=True, window=WindowSettings(samples=1, hop=1))
    turn = bench.pipeline.ingest([sample(i, at_s=998.0) for i in range(n)])
    bench.clock.advance(0.5)
    bench.pipeline.predict(turn)
    bench.clock.advance(4.0)
    bench.pipeline.emit(turn)

    assert [(r.lat_ms.queue, r.lat_ms.wait, r.lat_ms.infer) for r in turn.results] == [(2000.0, 500.0, 0.0)] * n
    assert columns(turn)["wait"] == [S // 2] * n
    assert (turn.emitted_ns, turn.decided_ns) == ([998 * S] * n, int(1004.5 * S))


@pytest.mark.parametrize("n", [1, TOGETHER_FROM])
def test_the_way_from_the_sensor_is_timed_only_where_its_clock_can_be_trusted(n: int) -> None:
    bench = Bench(TIMED, together=True)
    sent_s = (bench.clock.unix_ns - bench.clock.monotonic_ns) / S + 1000.0 - 0.25
    samples = [message({"n": i, "t": sent_s, "v": [0, 1]}) for i in range(2 * n)]
    assert "transit" not in columns(bench.run(samples[:n]))

    bench.pipeline.transit = True
    assert columns(bench.run(samples[n:]))["transit"] == pytest.approx([S // 4] * n, abs=1000)


@pytest.mark.parametrize(("rate_hz", "transit_s"), [(10.0, 0.5), (None, 0.8)])
def test_the_way_from_the_sensor_begins_with_the_last_sample_where_the_rate_is_known(rate_hz, transit_s) -> None:
    bench = Bench(TIMED, together=True, rate_hz=rate_hz)
    bench.pipeline.transit = True
    sent_s = (bench.clock.unix_ns - bench.clock.monotonic_ns) / S + 1000.0 - 0.8
    turn = bench.run([message({"n": 0, "t": sent_s, "v": [[0, 1]] * 4})])

    assert columns(turn)["transit"] == pytest.approx([transit_s * S], abs=1000)
