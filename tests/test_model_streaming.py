"""Streaming models in the session: states in and out, scalar inputs, several streams in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import means_manifest, means_model, running, write_means_bundle, write_running_bundle

from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import Golden, read
from edge_runtime.model.manifest import Manifest, OutputSpec, ScalarInput, StateSpec, contradictions
from edge_runtime.model.session import Session, SessionSettings

STATE = StateSpec("state", "stateN", (2, 1, 2), batch_axis=1)
GAIN = ScalarInput("gain", 0.25)


def manifest(**changes: Any) -> Manifest:
    return msgspec.structs.replace(means_manifest(), **{"states": (STATE,), "scalars": (GAIN,), **changes})


def session(path: Path, **settings: object) -> Session:
    return Session(read(path), SessionSettings(**settings))


@pytest.mark.parametrize(("batch", "max_batch"), [("batch", 64), ("batch", 2), (1, 64)])
def test_streams_side_by_side_give_what_each_gives_alone(tmp_path: Path, batch: int | str, max_batch: int) -> None:
    state = msgspec.structs.replace(STATE, batch_axis=1 if batch == "batch" else None)
    subject = session(write_running_bundle(tmp_path / "m.edge", manifest(states=(state,)), batch=batch))
    windows = np.random.default_rng(1).random((5, 7, 4, 2), dtype=np.float32)
    states = [subject.initial()] * 5

    scores = []
    for step in range(7):
        found, states = subject.step(windows[:, step], states)
        scores.append(found)

    assert subject.dynamic_batch is (batch == "batch")
    assert subject.is_streaming
    for stream in range(5):
        assert np.allclose([row[stream] for row in scores], running(windows[stream]) / 4, atol=1e-6)
        assert np.allclose(states[stream][0][0, 0], running(windows[stream])[-1], atol=1e-6)


def test_predict_takes_each_window_as_the_first_of_a_stream(tmp_path: Path) -> None:
    subject = session(write_running_bundle(tmp_path / "m.edge"))
    windows = np.random.default_rng(1).random((3, 4, 2), dtype=np.float32)

    assert np.allclose(subject.predict(windows), windows.mean(axis=1) / 4, atol=1e-6)


def test_a_state_kept_from_a_shared_run_holds_no_memory_of_the_others(tmp_path: Path) -> None:
    subject = session(write_running_bundle(tmp_path / "m.edge"))

    _, states = subject.step(np.zeros((3, 4, 2), np.float32), [subject.initial()] * 3)

    assert all(array.base is None for state in states for array in state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": ()}, r"graph inputs are \['x', 'state', 'gain'\], manifest says \['x', 'gain'\]"),
        ({"scalars": (msgspec.structs.replace(GAIN, name="gin"),)}, "manifest says .*'gin'"),
        ({"scalars": (msgspec.structs.replace(GAIN, shape=(1,)),)}, r"graph input gain is tensor\(float\) \(\), manif"),
        ({"scalars": (msgspec.structs.replace(GAIN, dtype="int64", value=2),)}, r"manifest says tensor\(int64\)"),
        ({"states": (msgspec.structs.replace(STATE, output="s"),)}, "graph outputs are .*, manifest says 's'"),
        ({"states": (msgspec.structs.replace(STATE, shape=(2, 1, 3)),)}, r"manifest says tensor\(float\) \(2, 1, 3\)"),
        ({"states": (msgspec.structs.replace(STATE, dtype="int64"),)}, r"manifest says tensor\(int64\)"),
        ({"states": (msgspec.structs.replace(STATE, output="y"),)}, "state y has shape"),
        ({"scalars": (msgspec.structs.replace(GAIN, value=0.3),)}, "golden vectors: outputs differ"),
    ],
)
def test_states_and_scalars_that_the_graph_does_not_have_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write_running_bundle(tmp_path / "m.edge", manifest(**changes))

    with pytest.raises(BundleError, match=words):
        session(path)


def test_a_batch_axis_that_the_graph_fixes_is_refused(tmp_path: Path) -> None:
    path = write_running_bundle(tmp_path / "m.edge", manifest(), batch=1)

    with pytest.raises(BundleError, match="state state: the graph fixes axis 1, which the manifest calls its batch"):
        session(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"states": (msgspec.structs.replace(STATE, batch_axis=0),)}, "batch axis 0 of shape"),
        ({"states": (msgspec.structs.replace(STATE, batch_axis=3),)}, "batch axis 3 of shape"),
        ({"states": (msgspec.structs.replace(STATE, shape=(2, 0, 2)),)}, "every axis must be at least 1"),
        ({"states": (STATE, STATE)}, "two inputs of the graph have the same name"),
        ({"scalars": (msgspec.structs.replace(GAIN, shape=(2,)),)}, r"shape \(2,\), wanted \(\) or \(1,\)"),
        ({"scalars": (msgspec.structs.replace(GAIN, dtype="int64"),)}, r"scalar gain: 0\.25 is no int64"),
        ({"scalars": (msgspec.structs.replace(GAIN, dtype="int32", value=3e9),)}, r"3000000000\.0 is no int32"),
        ({"scalars": (msgspec.structs.replace(GAIN, dtype="bool", value=2),)}, "2 is no bool"),
        ({"scalars": (msgspec.structs.replace(GAIN, value=1e39),)}, r"1e\+39 is no float32"),
        ({"input": msgspec.structs.replace(means_manifest().input, lead_in=4)}, "lead_in 4, wanted 0 to 3"),
        ({"output": OutputSpec("y", "probability"), "labels": ("a", "b", "c")}, "probability needs two labels"),
    ],
)
def test_a_manifest_that_cannot_be_is_named_as_such(changes: dict[str, Any], words: str) -> None:
    import re

    assert any(re.search(words, fact) for fact in contradictions(manifest(**changes)))
    assert contradictions(manifest()) == []


def test_a_probability_becomes_the_scores_of_two_labels(tmp_path: Path) -> None:
    one = msgspec.structs.replace(means_manifest().input, channels=("c",), units=("1",))
    wanted = msgspec.structs.replace(means_manifest(), input=one, output=OutputSpec("y", "probability"))
    path = write_means_bundle(tmp_path / "m.edge", wanted, model=means_model(length=4, channels=1))
    windows = np.random.default_rng(1).random((3, 4, 1), dtype=np.float32)

    scores = session(path).predict(windows)

    assert np.allclose(scores[:, 1], windows.mean(axis=1)[:, 0], atol=1e-6)
    assert np.allclose(scores.sum(axis=1), 1.0)


def test_a_model_whose_state_grows_beyond_numbers_is_refused(tmp_path: Path) -> None:
    path = write_running_bundle(tmp_path / "m.edge")
    bundle = read(path)
    inputs = bundle.golden.inputs.copy()
    inputs[3] = np.inf

    with pytest.raises(BundleError, match="state stateN becomes infinite or NaN"):
        Session(msgspec.structs.replace(bundle, golden=Golden(inputs, bundle.golden.outputs)), SessionSettings())


def test_golden_vectors_of_a_streaming_model_are_held_in_order(tmp_path: Path) -> None:
    path = write_running_bundle(tmp_path / "m.edge")
    bundle = read(path)
    swapped = Golden(bundle.golden.inputs[::-1].copy(), bundle.golden.outputs[::-1].copy())

    assert session(path).golden_error < 1e-6
    with pytest.raises(BundleError, match="golden vectors: outputs differ"):
        Session(msgspec.structs.replace(bundle, golden=swapped), SessionSettings())
