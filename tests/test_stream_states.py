"""The states of a streaming model: carried per stream, reset on a gap or by rule, bounded by the streams."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import means_manifest, running, write_running_bundle
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.delivery.ledger import Ledger
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings
from edge_runtime.records import Floats, InputSpec, Message, Properties, Queued, State, Turn, Window
from edge_runtime.stream.decide import Decider, DecideSettings
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.states import StateSettings, StreamStates, rounds
from edge_runtime.stream.window import WindowSettings


class Sums:
    """The state is the sum of everything a stream has shown; so is the score. Remembers the size of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def initial(self) -> State:
        return (np.zeros(1, np.float32),)

    def step(self, inputs: Floats, states: list[State]) -> tuple[Floats, list[State]]:
        self.runs.append(len(inputs))
        sums = np.array([state[0] for state in states]) + inputs.reshape(len(inputs), -1).sum(axis=1, keepdims=True)
        return sums.astype(np.float32), [(row.astype(np.float32),) for row in sums]


def window(stream: str, *, fresh: bool = False) -> Window:
    values = np.zeros((1, 1), np.float32)
    return Window(stream, values, 0, 0, 0, 0, False, 0, 0, False, "", 0, fresh)


def ones(n: int) -> Floats:
    return np.ones((n, 1, 1), np.float32)


@given(streams=st.lists(st.sampled_from("abc"), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_scores_do_not_depend_on_the_other_streams_or_on_how_windows_share_turns(streams: list[str], cut: int) -> None:
    subject = StreamStates(Sums(), StateSettings())
    values = np.arange(1, len(streams) + 1, dtype=np.float32).reshape(-1, 1, 1)
    windows = [window(stream) for stream in streams]
    parts = [(windows[:cut], values[:cut]), (windows[cut:], values[cut:])]

    found = [score for part, inputs in parts if part for score in subject.predict(part, inputs)[0][:, 0]]

    wanted = [sum(v for s, v in zip(streams[: i + 1], values[: i + 1, 0, 0], strict=True) if s == stream)
              for i, stream in enumerate(streams)]  # fmt: skip
    assert found == wanted


def test_windows_of_different_streams_share_a_run_and_those_of_one_stream_never_do() -> None:
    model = Sums()

    StreamStates(model, StateSettings()).predict([window(s) for s in "abaab"], ones(5))

    assert model.runs == [2, 2, 1]
    assert rounds([window(s) for s in "abaab"]) == [[0, 1], [2, 4], [3]]


@pytest.mark.parametrize(("on_gap", "wanted"), [("reset", [1, 2, 1, 2]), ("keep", [1, 2, 3, 4])])
def test_a_gap_that_resets_the_window_resets_the_state_unless_it_is_kept(on_gap: str, wanted: list[float]) -> None:
    windows = [window("a", fresh=True), window("a"), window("a", fresh=True), window("a")]

    scores, _ = StreamStates(Sums(), StateSettings(on_gap=on_gap)).predict(windows, ones(4))

    assert scores[:, 0].tolist() == wanted


def test_a_state_begins_anew_after_so_many_windows() -> None:
    scores, _ = StreamStates(Sums(), StateSettings(max_windows=3)).predict([window("a")] * 7, ones(7))

    assert scores[:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_a_state_that_is_not_finite_costs_its_window_and_is_not_carried_on() -> None:
    inputs = ones(3)
    inputs[1] = np.inf

    scores, states = StreamStates(Sums(), StateSettings()).predict([window("a")] * 3, inputs)

    assert np.array_equal(scores[:, 0], [1, np.nan, 1], equal_nan=True)
    assert states["a"].state[0].tolist() == [1]


def message(stream: str, number: int, rows: Floats) -> Queued:
    properties = Properties(user=(("n", str(number)),))
    return Queued(stream, [Message("t", rows.astype("<f4").tobytes(), 0, qos=1, properties=properties)])


def pipeline(path: Path, *, lead_in: int = 0) -> Pipeline:
    session = Session(read(path), SessionSettings())
    spec: InputSpec = msgspec.structs.replace(means_manifest().input, lead_in=lead_in)
    return Pipeline(
        "p",
        spec=spec,
        window=WindowSettings(samples=4, hop=4),
        decode=make_decoder(SourceSettings(topic="t", format="raw", seq_property="n"), 2),
        predictor=session,
        states=StreamStates(session, StateSettings()),
        decider=Decider(DecideSettings(), labels=("still", "moving")),
        ledger=Ledger(),
        run_id="run",
    )


def test_a_pipeline_carries_the_state_of_each_stream_and_resets_it_on_a_gap(tmp_path: Path) -> None:
    subject = pipeline(write_running_bundle(tmp_path / "m.edge"))
    rows = np.random.default_rng(3).random((2, 10, 4, 2), dtype=np.float32)
    numbers = [0, 1, 2, 3, 7, 8, 9]  # 4 to 6 never come
    turns: list[Turn] = []

    for numbers_of_turn in (numbers[:3], numbers[3:]):
        both = [message(s, n, rows[i, n]) for n in numbers_of_turn for i, s in enumerate("ab")]
        turns.append(subject.process(both))

    for i, stream in enumerate("ab"):
        wanted = np.concatenate((running(rows[i, :4]), running(rows[i, 7:]))) / 4
        results = [r for turn in turns for r in turn.results if r.stream == stream]
        assert np.allclose([list(r.scores.values()) for r in results], wanted, atol=1e-6)
        assert np.allclose(turns[1].model_states[stream].state[0][0, 0], wanted[-1] * 4, atol=1e-6)


def test_a_lead_in_of_zeros_stands_before_a_stream_and_after_a_gap(tmp_path: Path) -> None:
    subject = pipeline(write_running_bundle(tmp_path / "m.edge"), lead_in=1)
    rows = np.arange(2, 26, dtype=np.float32).reshape(4, 3, 2)
    zero = np.zeros((1, 2), np.float32)

    turn = subject.process([message("a", n, rows[i]) for i, n in enumerate((0, 5))])

    wanted = [np.concatenate((zero, rows[0])).mean(axis=0), np.concatenate((zero, rows[1])).mean(axis=0)]
    assert np.allclose([list(r.scores.values()) for r in turn.results], np.array(wanted) / 4)
    assert [r.seq for r in turn.results] == [(0, 0), (5, 5)]
    assert [w.fresh for w in turn.windows] == [True, True]
    assert [r.missing for r in turn.results] == [0, 0]
