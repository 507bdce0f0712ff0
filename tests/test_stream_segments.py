from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from bundles import means_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.records import Message, Queued, Result, Segment, Turn
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.segments import Segments
from edge_runtime.stream.window import WindowSettings
from edge_runtime.testing import ManualClock, ModelOfMeans

MANIFEST = means_manifest(length=2, hop=2, rate_hz=10.0)
SOURCE = SourceSettings(topic="t", path="v", seq_field="n", time_field="t")
ALARM = DecideSettings(alarm_on="moving", score=0.5)
NOT_A_NUMBER = 9.0


class Model(ModelOfMeans):
    """A model of means whose scores are no numbers where the input is NOT_A_NUMBER."""

    def predict(self, inputs):
        means = super().predict(inputs)
        return np.where(means == NOT_A_NUMBER, np.nan, means)


def pipeline(decide: DecideSettings = ALARM, **options: object) -> Pipeline:
    """Windows of two rows at 10 Hz, each message one window."""
    return Pipeline(
        "p",
        spec=MANIFEST.input,
        window=options.pop("window", WindowSettings(samples=2, hop=2)),
        decode=make_decoder(SOURCE, 2),
        predictor=Model(),
        decider=Decider(decide, labels=MANIFEST.labels),
        ledger=Ledger(),
        run_id="run",
        clock=ManualClock().clock(),
        **options,
    )


def message(n: int, moving: float, stream: str = "a") -> Queued:
    """Message n of a stream, taken 0.2 n seconds after second 1,000; both rows score as given."""
    still = moving if moving == NOT_A_NUMBER else 1 - moving
    body = {"n": n, "t": 1000 + n / 5, "v": [[still, moving]] * 2}
    return Queued(stream, [Message("t", json.dumps(body).encode(), 0, qos=1)])


def events(*scores: float, **options: object) -> list[Segment]:
    messages = [message(n, score) for n, score in enumerate(scores)]
    return pipeline(**options).process(messages).events


def test_windows_in_alarm_are_one_event_told_when_the_alarm_has_ended() -> None:
    made = pipeline()
    results = made.process([message(n, score) for n, score in enumerate([0, 0.6, 0.9, 0.7])])
    assert results.events == []

    (event,) = made.process([message(4, 0.1)]).events
    assert (event.pipeline, event.stream, event.model, event.label) == ("p", "a", "means@1.0.0", "moving")
    assert (event.start, event.end) == (1000.2, 1000.7)
    assert (event.peak_score, event.peak_at) == (pytest.approx(0.9), 1000.5)
    assert (event.windows, event.seq, event.flags) == (3, (1, 3), ())


def test_every_alarm_is_an_event_of_its_own_with_an_id_that_is_the_same_in_every_run() -> None:
    scores = [0.6, 0.1, 0.7, 0.8, 0.1]
    found = events(*scores)

    assert [(event.seq, event.windows) for event in found] == [((0, 0), 1), ((2, 3), 2)]
    assert len({event.id for event in found}) == 2
    assert events(*scores) == found


def test_an_id_is_no_results_id_and_differs_between_streams() -> None:
    turn = pipeline().process([message(n, score, stream) for n, score in enumerate([0.9, 0.1]) for stream in "ab"])

    assert [event.stream for event in turn.events] == ["a", "b"]
    assert len({event.id for event in turn.events} | {result.id for result in turn.results}) == 6


def test_the_event_is_as_long_as_the_alarm_hysteresis_and_k_of_n_included() -> None:
    decide = DecideSettings(alarm_on="moving", score=0.8, release=0.4, k=2, n=3)
    (event,) = events(0.9, 0.5, 0.8, 0.5, 0.1, 0.5, 0.2, 0.9, decide=decide)

    assert (event.seq, event.windows, event.peak_at) == ((2, 5), 4, 1000.5)


def test_the_peak_of_an_alarm_on_not_a_label_is_where_that_label_scores_least() -> None:
    (event,) = events(0.6, 0.75, 0.7, 0.1, decide=DecideSettings(alarm_on="not still", score=0.5))

    assert (event.peak_score, event.peak_at) == (0.75, 1000.3)


def test_the_first_of_equal_peaks_counts() -> None:
    (event,) = events(0.6, 0.8, 0.8, 0.1)

    assert event.peak_at == 1000.3


def test_label_and_model_are_those_of_the_peak() -> None:
    segments = Segments()
    (result,) = pipeline().process([message(0, 0.9)]).results
    for label, model, evidence in (("worn", "m@1", 0.6), ("broken", "m@2", 0.8), ("worn", "m@3", 0.7)):
        segments.extend(msgspec.structs.replace(result, label=label, model=model), evidence, fresh=False)
    event = segments.end(result.stream)

    assert (event.label, event.model, event.peak_score, event.windows) == ("broken", "m@2", 0.8, 3)


def test_an_error_is_its_own_peak_score() -> None:
    decider = Decider(DecideSettings(), labels=(), threshold=2.0)
    alarms = [decider.follow("a", scores, 1) for _, _, scores in decider.decide([[3.0], [0.5]])]

    assert [alarm.evidence for alarm in alarms] == [3.0, 0.5]


def test_a_window_whose_scores_are_no_numbers_neither_ends_an_event_nor_counts() -> None:
    (event,) = events(0.9, NOT_A_NUMBER, 0.9, 0.1)

    assert (event.windows, event.seq) == (2, (0, 2))


def test_windows_count_when_only_changes_are_published() -> None:
    scores = [0.6, 0.7, 0.8, 0.1]
    turn = pipeline(publish="change").process([message(n, score) for n, score in enumerate(scores)])

    assert len(turn.results) == 2
    assert turn.events == events(*scores)


def test_an_event_goes_on_across_a_gap_and_says_so() -> None:
    def across(numbers: Sequence[int], **options: object) -> Segment:
        (event,) = pipeline(**options).process([message(n, 0.1 if n == 9 else 0.9) for n in numbers]).events
        return event

    mark = WindowSettings(samples=2, hop=1, on_gap="mark")
    assert [across([0, 1, 4, 9]).flags, across([0, 1, 4, 9], window=mark).flags] == [("gap",), ("gap",)]
    assert across([0, 1, 2, 9]).flags == ()
    restarted = across([7, 8, 0, 1, 9])
    assert (restarted.seq, restarted.windows, restarted.flags) == ((7, 1), 4, ("gap",))


def test_the_first_window_of_a_stream_is_no_gap() -> None:
    assert [event.flags for event in events(0.9, 0.1)] == [()]


def test_a_turn_holds_the_open_segment_as_of_its_end() -> None:
    made = pipeline()
    begun, going, over, quiet = (made.process([message(n, score)]) for n, score in enumerate([0.6, 0.9, 0.1, 0.1]))

    assert [turn.segments["a"] and turn.segments["a"].windows for turn in (begun, going, over)] == [1, 2, None]
    assert over.events == [going.segments["a"]]
    assert quiet.segments == {}


def test_a_stream_without_an_alarm_has_no_events() -> None:
    turn = pipeline(DecideSettings()).process([message(n, score) for n, score in enumerate([0.9, 0.1])])

    assert (turn.events, turn.segments) == ([], {})


def expected(results: list[Result]) -> list[tuple[str, tuple[int, int], float, float, int, float]]:
    """What the results alone say the events are; the last run of a stream is still open."""
    found = []
    for stream in "ab":
        own = [result for result in results if result.stream == stream]
        runs = [(alarm, list(run)) for alarm, run in itertools.groupby(own, lambda result: result.alarm)]
        for _, run in [pair for pair in runs[:-1] if pair[0]]:
            seq = run[0].seq[0], run[-1].seq[1]
            found.append((stream, seq, run[0].t0, run[-1].t1, len(run), max(r.scores["moving"] for r in run)))
    return found


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.45, 0.6, 0.9, NOT_A_NUMBER])), max_size=30),
    cuts=st.lists(st.integers(1, 6), min_size=30, max_size=30),
    k=st.integers(1, 3),
    publish=st.sampled_from(["window", "change"]),
)
def test_events_do_not_depend_on_how_messages_were_cut_into_turns(steps, cuts, k, publish) -> None:
    decide = DecideSettings(alarm_on="moving", score=0.5, release=0.4, k=k, n=3)
    numbers = {"a": itertools.count(), "b": itertools.count()}
    messages = [message(next(numbers[stream]), score, stream) for stream, score in steps]
    whole = pipeline(decide).process(messages)
    made, rest, turns = pipeline(decide, publish=publish), iter(messages), list[Turn]()
    for n in cuts:
        turns.append(made.process(list(itertools.islice(rest, n))))

    found = [event for turn in turns for event in turn.events]
    assert found == whole.events
    summary = [(e.stream, e.seq, e.start, e.end, e.windows, e.peak_score) for e in found]
    assert sorted(summary) == sorted(expected(whole.results))
    still_open = {stream: segment for turn in turns for stream, segment in turn.segments.items()}
    assert still_open == whole.segments
    assert {stream: segment for stream, segment in still_open.items() if segment} == made._results._segments.open


def test_the_segments_of_streams_that_are_not_in_alarm_take_no_memory() -> None:
    made = pipeline()
    made.process([message(0, 0.9), message(1, 0.1), message(2, 0.1)])

    assert made._results._segments.open == {}


def test_a_gap_before_a_window_that_had_to_be_dropped_is_still_told() -> None:
    subject = pipeline()
    turn = subject.process([message(0, 1.0), message(5, NOT_A_NUMBER), message(6, 1.0), message(7, 0.0)])

    [event] = turn.events
    assert "gap" in event.flags
    assert event.windows == 2
    [next_event] = subject.process([message(8, 1.0), message(9, 1.0), message(10, 0.0)]).events
    assert next_event.flags == ()
