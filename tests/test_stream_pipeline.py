from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from bundles import means_manifest
from turns import columns

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Message, Properties, Queued, Result, StageTimes, Turn
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, ModelOfMeans

MANIFEST = means_manifest(length=4, hop=4)


class Bench:
    """A pipeline of means over rows of two channels, and what it is given."""

    def __init__(
        self, *, layout: str = "NTC", decide: DecideSettings | None = None, numbered: bool = True, **options: object
    ) -> None:
        self.clock, self.ledger, self.model = ManualClock(), Ledger(), ModelOfMeans()
        source = SourceSettings(topic="t", seq_property="n" if numbered else "", max_payload_bytes=10_000)
        window = options.pop("window", WindowSettings(samples=4, hop=4))
        spec = msgspec.structs.replace(MANIFEST.input, layout=layout, length=window.samples)
        self.pipeline = Pipeline(
            "p",
            spec=spec,
            window=window,
            decode=make_decoder(source, 2),
            predictor=self.model,
            decider=Decider(decide or DecideSettings(), labels=MANIFEST.labels),
            ledger=self.ledger,
            run_id="run",
            clock=self.clock.clock(),
            **options,
        )
        self.numbers: dict[str, int] = {}

    def message(self, rows: object, stream: str = "a", *, number: int | None = None, **fields: object) -> Queued:
        n = self.numbers.get(stream, 0) if number is None else number
        self.numbers[stream] = n + 1
        payload = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        properties = Properties(user=(("n", str(n)),))
        message = Message("t", payload, self.clock.monotonic_ns, qos=1, properties=properties, **fields)
        return Queued(stream, [message])

    def run(self, *messages: Queued) -> Turn:
        turn = self.pipeline.process(messages)
        for queued in messages:
            self.ledger.received("p", queued.stream)
        self.ledger.settle(turn)
        for result in turn.results:
            self.ledger.confirmed("p", result.stream)
        assert self.ledger.balance({}, {}, {}) == []
        return turn


def labels(results: list[Result]) -> list[tuple[str, str]]:
    return [(result.stream, result.label) for result in results]


STILL, MOVING = [[1, 0]] * 4, [[0, 1]] * 4


def test_windows_of_two_streams_share_one_batch() -> None:
    bench = Bench()

    turn = bench.run(bench.message(STILL, "a"), bench.message(MOVING, "b"))

    assert labels(turn.results) == [("a", "still"), ("b", "moving")]
    assert bench.model.batches == [2]


def test_a_result_says_what_when_and_how_long() -> None:
    bench = Bench()
    bench.clock.advance(1.0)

    (result,) = bench.run(bench.message(STILL, number=7)).results

    assert (result.pipeline, result.stream, result.model, result.n) == ("p", "a", "means@1.0.0", 4)
    assert (result.label, result.score, result.scores) == ("still", 1.0, {"still": 1.0, "moving": 0.0})
    assert (result.seq, result.missing, result.flags, result.t1) == ((7, 7), 0, ("receipt_time",), 1_700_000_001.0)
    assert isinstance(result.lat_ms, StageTimes)
    assert msgspec.json.decode(msgspec.json.encode(result), type=Result) == result


def test_every_stage_is_recorded() -> None:
    bench = Bench()
    turn = bench.run(bench.message(STILL))

    assert set(columns(turn)) == {"queue", "decode", "window", "wait", "infer", "decide"}


def test_result_ids_are_the_same_in_every_run_and_differ_between_windows() -> None:
    def ids() -> list[str]:
        bench = Bench()
        turn = bench.run(bench.message(STILL + MOVING, "a"), bench.message(STILL, "b"), bench.message(STILL, "a"))
        return [result.id for result in turn.results]

    assert ids() == ids()
    assert len(set(ids())) == 4


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("NTC", (1, 4, 2)),
        ("NCT", (1, 2, 4)),
        ("NF", (1, 8)),
        ("N1TC", (1, 1, 4, 2)),
        ("N1CT", (1, 1, 2, 4)),
        ("NTC1", (1, 4, 2, 1)),
    ],
)
def test_the_model_gets_its_own_layout(layout: str, shape: tuple[int, ...]) -> None:
    bench = Bench(layout=layout)
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    turn = bench.pipeline.ingest([bench.message(rows.tolist())])

    assert turn.inputs.shape == shape
    assert np.array_equal(turn.inputs[0], (rows.T if "CT" in layout else rows).reshape(shape[1:]))
    assert turn.inputs.flags.c_contiguous


def test_windows_stay_as_they_were_while_later_messages_are_ingested() -> None:
    bench = Bench()
    rows = [[[i, i]] * 4 for i in range(40)]

    turn = bench.pipeline.ingest([bench.message(r) for r in rows])

    assert [window.values[0, 0] for window in turn.windows] == list(range(40))
    assert turn.inputs[:, 0, 0].tolist() == list(range(40))


def test_two_turns_in_flight_do_not_share_their_inputs() -> None:
    bench = Bench()
    first = bench.pipeline.ingest([bench.message(STILL)])
    second = bench.pipeline.ingest([bench.message(MOVING)])
    for turn in (first, second):
        bench.pipeline.predict(turn)
    for turn in (first, second):
        bench.pipeline.emit(turn)

    assert labels(first.results + second.results) == [("a", "still"), ("a", "moving")]


def test_a_bad_message_is_dead_lettered_and_the_next_one_served() -> None:
    bench = Bench()

    turn = bench.run(bench.message(b"{"), bench.message([["x"]]), bench.message(b"\xff"), bench.message(STILL))

    assert [letter.reason for letter in turn.dead_letters] == ["shape", "shape", "malformed"]
    assert labels(turn.results) == [("a", "still")]


def test_duplicates_late_and_retained_messages_are_counted_not_used() -> None:
    bench = Bench()
    turn = bench.run(
        bench.message(STILL, number=1),
        bench.message(STILL, number=1),
        bench.message(STILL, number=3),
        bench.message(STILL, number=2),
        bench.message(STILL, number=4, retain=True),
    )

    assert turn.duplicates == {"a": 1}
    assert turn.dropped == {("a", "late"): 1, ("a", "stale_retained"): 1}
    assert [result.seq for result in turn.results] == [(1, 1), (3, 3)]
    (account,) = bench.ledger.snapshot({}, {}, {})
    assert account.lost_before_us == 0


def test_a_number_that_never_comes_is_lost_before_us() -> None:
    bench = Bench()
    bench.run(bench.message(STILL, number=1), bench.message(STILL, number=5))

    assert bench.ledger.snapshot({}, {}, {})[0].lost_before_us == 3


def test_a_numbered_message_given_up_here_leaves_a_hole_but_was_not_lost_before_us() -> None:
    bench = Bench(window=WindowSettings(samples=8, hop=8))
    turn = bench.run(
        bench.message(STILL, number=1),
        bench.message(b"{", number=2),
        bench.message(STILL, number=3),
        bench.message(STILL, number=4),
    )

    assert [result.seq for result in turn.results] == [(3, 4)]
    assert bench.ledger.snapshot({}, {}, {})[0].lost_before_us == 0


def test_an_unnumbered_message_given_up_here_leaves_a_hole() -> None:
    bench = Bench(window=WindowSettings(samples=8, hop=8), numbered=False)
    turn = bench.run(bench.message(STILL), bench.message(b"{"), bench.message(STILL), bench.message(MOVING))

    assert [(result.missing, result.label, result.scores["moving"]) for result in turn.results] == [(0, "still", 0.5)]
    held = Bench(window=WindowSettings(samples=8, hop=8, max_gap_samples=4), numbered=False)
    turn = held.run(held.message(STILL), msgspec.structs.replace(held.message(MOVING), given_up=1))
    assert [(result.missing, result.scores["moving"]) for result in turn.results] == [(4, 0.0)]


def test_a_full_turn_takes_no_more_messages() -> None:
    bench = Bench(max_windows=2)
    messages = [bench.message(STILL + STILL), bench.message(STILL), bench.message(STILL)]

    assert len(bench.pipeline.ingest(messages).messages) == 1


def test_a_message_that_waited_too_long_is_dropped_undecoded() -> None:
    bench = Bench(max_age_ns=1_000_000_000)
    old = bench.message(b"not even JSON")
    bench.clock.advance(1.5)

    turn = bench.run(old, bench.message(STILL))

    assert turn.dropped == {("a", "expired"): 1}
    assert labels(turn.results) == [("a", "still")]


def test_one_message_may_not_complete_more_windows_than_allowed() -> None:
    bench = Bench(window=WindowSettings(samples=4, hop=1, max_windows_per_message=10))

    turn = bench.run(bench.message([[0, 1]] * 13), bench.message([[0, 1]] * 11))

    assert len(turn.results) == 10
    assert [letter.reason for letter in turn.dead_letters] == ["too_large"]


def test_on_change_only_a_new_label_or_alarm_is_published() -> None:
    bench = Bench(publish="change")

    turn = bench.run(*[bench.message(rows) for rows in (STILL, STILL, MOVING, MOVING, STILL)])

    assert [result.label for result in turn.results] == ["still", "moving", "still"]
    assert turn.unchanged == {"a": 2}


def test_an_alarm_is_told_when_it_turns() -> None:
    bench = Bench(decide=DecideSettings(alarm_on="moving", score=0.5, k=2, n=2))

    turn = bench.run(*[bench.message(rows) for rows in (STILL, MOVING, MOVING, MOVING)])

    assert [(change.on, change.label) for change in turn.state_changes] == [(False, "still"), (True, "moving")]
    assert turn.state_changes[1].id == turn.results[2].id
    assert [result.alarm for result in turn.results] == [False, False, True, True]


def test_scores_that_are_no_numbers_are_dropped_and_counted() -> None:
    bench = Bench()
    bench.model.predict = lambda inputs: np.array([[np.nan, 0.5], [0.2, 0.8]], np.float32)

    turn = bench.run(bench.message(STILL), bench.message(STILL))

    assert turn.window_drops == {("a", "not_finite"): 1}
    assert [stage for stage, column in columns(turn).items() if len(column) == 1] == ["decide"]
    assert labels(turn.results) == [("a", "moving")]


def test_a_turn_that_completes_no_window_is_a_turn_like_any_other() -> None:
    bench = Bench()

    turn = bench.run(bench.message([[1, 0]]))

    assert (turn.results, turn.prediction, len(turn.accepted)) == ([], None, 1)
    assert bench.model.batches == []
