from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import REFERENCE, means_manifest, means_model, slow_model, write_means_bundle
from onnx import TensorProto, helper

from edge_runtime.errors import BundleError, DependencyError, ProviderError
from edge_runtime.model.bundle import Golden, read, write
from edge_runtime.model.manifest import OutputSpec
from edge_runtime.model.session import (
    Session,
    SessionSettings,
    load_onnxruntime,
    reconstruction_error,
    softmax,
)
from edge_runtime.records import InputSpec


def session(path: Path, **settings: object) -> Session:
    return Session(read(path), SessionSettings(**settings))


def test_a_batch_gives_what_its_windows_give_one_by_one(tmp_path: Path) -> None:
    subject = session(write_means_bundle(tmp_path / "m.edge"), max_batch=4)
    inputs = np.random.default_rng(1).random((11, 4, 2), dtype=np.float32)

    scores = subject.predict(inputs)

    assert np.allclose(scores, inputs.mean(axis=1), atol=1e-6)
    assert np.array_equal(scores, np.concatenate([subject.predict(inputs[i : i + 1]) for i in range(11)]))


@pytest.mark.parametrize(("batch", "max_batch", "runs"), [("batch", 4, 3), ("batch", 64, 1), (1, 64, 11)])
def test_runs_are_counted_and_the_longest_is_that_of_the_largest_batch(
    tmp_path: Path, batch: int | str, max_batch: int, runs: int
) -> None:
    model = means_model(length=4, channels=2, batch=batch)
    subject = session(write_means_bundle(tmp_path / "m.edge", model=model), max_batch=max_batch)
    before = subject.runs
    subject.predict(np.zeros((11, 4, 2), np.float32))

    assert subject.runs - before == runs
    assert subject.longest_run_s == pytest.approx(subject.infer_ns / 1e9 * (1 if batch == 1 else max_batch))


def test_scores_stay_as_they_are_when_the_next_window_is_predicted(tmp_path: Path) -> None:
    subject = session(write_means_bundle(tmp_path / "m.edge"))
    windows = np.random.default_rng(2).random((20, 4, 2), dtype=np.float32)

    kept = [subject.predict(windows[i : i + 1]) for i in range(20)]

    assert np.allclose(np.concatenate(kept), windows.mean(axis=1), atol=1e-6)


def test_threads_that_predict_at_the_same_time_get_their_own_scores(tmp_path: Path) -> None:
    subject = session(write_means_bundle(tmp_path / "m.edge", model=slow_model(length=4, channels=2)))
    windows = np.random.default_rng(3).random((4, 50, 1, 4, 2), dtype=np.float32) * 40

    def scores(own: np.ndarray) -> np.ndarray:
        return np.concatenate([subject.predict(window) for window in own])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scores, windows))

    assert np.allclose(found, windows[:, :, 0].mean(axis=2), atol=1e-4)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_window_may_lie_in_memory_as_it_likes(tmp_path: Path, order: str) -> None:
    subject = session(write_means_bundle(tmp_path / "m.edge"))
    inputs = np.asarray(np.random.default_rng(4).random((3, 4, 2), dtype=np.float32), order=order)

    for n in (1, 3):
        assert np.allclose(subject.predict(inputs[:n]), inputs[:n].mean(axis=1), atol=1e-6)


def test_a_graph_with_a_fixed_batch_of_one_is_run_window_by_window(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge", model=means_model(length=4, channels=2, batch=1))
    subject = session(path)
    inputs = np.random.default_rng(1).random((3, 4, 2), dtype=np.float32)

    assert not subject.dynamic_batch
    assert np.allclose(subject.predict(inputs), inputs.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (means_model(length=5, channels=2), r"graph input x is tensor\(float\) \('batch', 5, 2\)"),
        (means_model(length=4, channels=2, batch=3), "fixed batch of 3"),
        (b"no protobuf at all", "model.onnx: malformed"),
        (means_model(length=4, channels=2)[:80], "model.onnx: malformed"),
    ],
)
def test_a_model_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, model: bytes, words: str) -> None:
    path = write_means_bundle(tmp_path / "m.edge", model=model)

    with pytest.raises(BundleError, match=words) as caught:
        session(path)
    assert str(path) in str(caught.value)


def test_names_and_labels_that_the_graph_does_not_have_are_refused(tmp_path: Path) -> None:
    good = means_manifest()
    wrong_input = msgspec.structs.replace(good, input=msgspec.structs.replace(good.input, name="z"))
    wrong_output = msgspec.structs.replace(good, output=OutputSpec("z", "scores"))
    wrong_labels = msgspec.structs.replace(good, labels=("a", "b", "c"))
    for manifest, words in ((wrong_input, "graph inputs"), (wrong_output, "graph outputs"), (wrong_labels, "3 labels")):
        with pytest.raises(BundleError, match=words):
            session(write_means_bundle(tmp_path / "m.edge", manifest))


def test_golden_vectors_that_do_not_come_out_are_refused_with_the_figure(tmp_path: Path) -> None:
    inputs = np.ones((2, 4, 2), np.float32)
    golden = Golden(inputs, np.full((2, 2), 1.5, np.float32))
    path = tmp_path / "m.edge"
    write(path, means_manifest(), model=means_model(length=4, channels=2), golden=golden, reference=REFERENCE, card="")

    with pytest.raises(BundleError, match=r"outputs differ by 0\.5, allowed 1e-05"):
        session(path)


def test_golden_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    golden = Golden(np.ones((2, 4, 2), np.float32), np.full((2, 2), np.nan, np.float32))
    path = tmp_path / "m.edge"
    write(path, means_manifest(), model=means_model(length=4, channels=2), golden=golden, reference=REFERENCE, card="")

    with pytest.raises(BundleError, match="golden"):
        session(path)


def reshaped(shape: list[int | str], operator: str) -> bytes:
    """x -> y: without its second axis (Squeeze), or its means along it, which stays as an axis of 1 (ReduceMean)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [helper.make_node(operator, ["x", "axis"], ["y"])]
    graph = helper.make_graph(nodes, "shapes", [x], [y], initializer=[axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_an_output_with_one_axis_too_many_is_refused_even_where_its_numbers_would_do(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((3, 4, 2), dtype=np.float32)
    manifest = msgspec.structs.replace(means_manifest(), output=OutputSpec("y", "logits"))
    path, golden = tmp_path / "m.edge", Golden(inputs, inputs.mean(axis=1, keepdims=True))
    write(path, manifest, model=reshaped(["b", 4, 2], "ReduceMean"), golden=golden, reference=REFERENCE, card="")

    with pytest.raises(BundleError, match=r"returns \(1, 2\) a window, wanted \(2,\): logits of 2 labels"):
        session(path)


def test_a_reconstruction_of_another_shape_is_refused_even_where_it_would_broadcast(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).random((3, 1, 4, 2), dtype=np.float32)
    manifest = means_manifest()
    spec = msgspec.structs.replace(manifest.input, layout="N1TC")
    manifest = msgspec.structs.replace(
        manifest, input=spec, output=OutputSpec("y", "reconstruction"), labels=(), threshold=1.0
    )
    path, golden = tmp_path / "m.edge", Golden(inputs, inputs[:, 0])
    write(path, manifest, model=reshaped(["b", 1, 4, 2], "Squeeze"), golden=golden, reference=REFERENCE, card="")

    with pytest.raises(BundleError, match=r"returns \(4, 2\) a window, a reconstruction of \(1, 4, 2\) was wanted"):
        session(path)


def test_scores_beyond_one_are_refused(tmp_path: Path) -> None:
    inputs = np.full((2, 4, 2), 50.0, np.float32)
    path, golden = tmp_path / "m.edge", Golden(inputs, inputs.mean(axis=1))
    write(path, means_manifest(), model=means_model(length=4, channels=2), golden=golden, reference=REFERENCE, card="")

    with pytest.raises(BundleError, match="returns 50 to 50 for the golden vectors, scores lie in 0 to 1"):
        session(path)


def test_the_provider_asked_for_is_the_provider_got_or_an_error_naming_what_there_is(tmp_path: Path) -> None:
    path = write_means_bundle(tmp_path / "m.edge")

    assert session(path)._session.get_providers()[0] == "CPUExecutionProvider"
    with pytest.raises(ProviderError, match="CUDAExecutionProvider is not available; available: .*CPU.*gpu"):
        session(path, provider="CUDAExecutionProvider")


def test_a_run_that_fails_is_not_repeated_on_another_provider(tmp_path: Path) -> None:
    assert session(write_means_bundle(tmp_path / "m.edge"))._session._enable_fallback is False


def test_logits_become_scores_and_reconstructions_an_error() -> None:
    scores = softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]], np.float32))
    assert np.allclose(scores, [[0.5, 0.5], [0.25, 0.75]])

    inputs = np.zeros((2, 2, 2), np.float32)
    outputs = np.array([[[1, 1], [1, 1]], [[0, 0], [0, 4]]], np.float32)
    assert reconstruction_error(inputs, outputs).tolist() == [[1.0], [4.0]]


def test_a_missing_onnxruntime_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from edge_runtime.model.session import load_onnxruntime\n"
        "try:\n    load_onnxruntime()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.startswith(DependencyError.__name__)
    assert "pip install 'edge-runtime[cpu]'" in found.stdout


def test_a_32_bit_system_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("struct.calcsize", lambda _: 4)

    with pytest.raises(DependencyError, match="32-bit.*64-bit system"):
        load_onnxruntime()


def test_no_telemetry_leaves_the_device(tmp_path: Path) -> None:
    """Outside CI a bare import would write a device id under the home folder and start a thread."""
    code = (
        "from edge_runtime.model.session import load_onnxruntime\n"
        "load_onnxruntime()\n"
        "import pathlib; print(len(list(pathlib.Path('/proc/self/task').iterdir())))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )

    assert found.stdout.strip() == "1"
    assert list(tmp_path.rglob("*")) == []


def test_the_layout_decides_the_shape() -> None:
    def shape(layout: str, channels: int) -> tuple[int, ...]:
        return InputSpec("x", ("c",) * channels, ("1",) * channels, 5, 5, None, layout).shape()

    assert [shape("NTC", 2), shape("NCT", 2), shape("NT", 1)] == [(5, 2), (2, 5), (5,)]
