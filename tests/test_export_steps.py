"""Steps on their own and in a chain: clean-up, pruning before int8, and what a child process finds out."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from export_nets import Wide, padded_convolution
from onnx import numpy_helper
from torch import nn

from edge_runtime.errors import ExportError
from export import calibrate, clean, measure, probe, prune, quantize, to_onnx
from export.artifact import Artifact, Step, ancestors, batch_of, outputs_of, parse
from export.evaluate import snr_db
from export.probe import Failure
from export.recipe import Recipe, Split, Splits, load
from export.train import deterministic, fit, trained

pytestmark = pytest.mark.torch

TONES = Path(__file__).parent / "export_recipes" / "tones.py"
SHARED = Path(os.environ.get("EDGE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return msgspec.structs.replace(load(TONES), build=Wide)


@pytest.fixture(scope="module")
def splits(recipe: Recipe) -> Splits:
    return recipe.data()


@pytest.fixture(scope="module")
def float32(recipe: Recipe, splits: Splits) -> Artifact:
    """The recipe's net, trained."""
    with deterministic(recipe.seed):
        model = trained(recipe, splits, lambda _text: None)
        return to_onnx.export(model, splits.train.inputs, input_name="x", output_name="logits")


@pytest.fixture(scope="module")
def int8(splits: Splits) -> Step:
    return quantize.static_qdq(calibrate.calibration(splits, seed=7))


def narrower(splits: Splits) -> Step:
    def finetune(module: nn.Module) -> None:
        fit(module, splits, seed=7, epochs=3, progress=lambda _text: None)

    return prune.structured(splits.train.inputs, ratio=0.5, seed=7, finetune=finetune)


@pytest.fixture(scope="module")
def pruned(float32: Artifact, splits: Splits) -> Artifact:
    return narrower(splits)(float32)


def accuracy(artifact: Artifact, split: Split) -> float:
    return float((outputs_of(artifact, split.inputs).argmax(axis=1) == split.targets).mean())


def test_pruned_and_quantized_is_smaller_than_either_and_still_knows_the_tones(
    float32: Artifact, pruned: Artifact, splits: Splits, int8: Step
) -> None:
    artifact = float32
    for step in (narrower(splits), int8):
        artifact = step(artifact)

    assert artifact.size_kb < 0.7 * min(pruned.size_kb, int8(float32).size_kb)
    assert artifact.size_kb < float32.size_kb / 6
    assert accuracy(float32, splits.test) > 0.85
    assert accuracy(artifact, splits.test) > 0.8
    assert snr_db(outputs_of(pruned, splits.test.inputs), outputs_of(artifact, splits.test.inputs)) > 20
    assert [step.split()[0] for step in artifact.steps] == [
        "torch.onnx", "parity", "structured", "parity", "static", "over", "quantized:", "ONNX",
    ]  # fmt: skip
    assert artifact.model == int8(pruned).model, "the same seed gave another network"


def test_clean_up_folds_a_chain_of_constants_and_keeps_names_and_batch_axis() -> None:
    artifact = padded_convolution()
    inputs = np.random.default_rng(0).normal(size=(9, 3, 10)).astype(np.float32)

    done = clean.graph(inputs)(artifact)

    graph = parse(done.model).graph
    assert [node.op_type for node in graph.node] == ["Conv", "ReduceMean"]
    assert ([v.name for v in graph.input], [v.name for v in graph.output]) == (["x"], ["y"])
    assert batch_of(parse(done.model)) == "batch"
    assert all(node.name for node in graph.node)
    np.testing.assert_allclose(outputs_of(done, inputs), outputs_of(artifact, inputs), atol=1e-6)
    assert "21 nodes to 2, 3 initializers to 2; at batch 1, 2, 7 outputs differ by at most" in done.steps[-1]


def test_clean_up_of_a_model_with_a_constant_pad_chain_from_elsewhere() -> None:
    path = SHARED / "mlperf_kws_dscnn_fp32.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the shared data folder (EDGE_SHARED_DATA)")
    artifact = Artifact("float32", "float32", path.read_bytes(), "x", "logits", ())

    done = clean.graph(np.random.default_rng(0).normal(size=(7, 1, 49, 10)).astype(np.float32))(artifact)

    held = {node.op_type for node in parse(done.model).graph.node}
    assert held == {"Conv", "Relu", "AveragePool", "Flatten", "Gemm"}
    assert batch_of(parse(done.model)) == "N"


def test_clean_up_keeps_the_front_end_apart(float32: Artifact, splits: Splits, int8: Step) -> None:
    done = clean.graph(splits.train.inputs[:7])(float32)

    graph = parse(done.model).graph
    front = ancestors(graph, done.front_end)
    assert {"ReduceMean", "Sub", "Div"} <= {node.op_type for node in graph.node if node.name in front}
    quantized = int8(done)
    assert quantize.quantized_operators(parse(quantized.model)) == {"Conv": 2, "Gemm": 1}
    assert f"; {len(front)} front-end nodes left in float32" in quantized.steps[-2]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("outputs", r"parity: at batch 1 the cleaned graph differs from float32 by"),
        ("batch", r"clean-up changed the batch axis from 'batch' to 1"),
        ("names", r"clean-up changed the inputs to \['renamed'\], wanted \['x'\]"),
        ("crash", r"clean-up failed: RuntimeError: it broke"),
    ],
)
def test_a_clean_up_that_changes_more_than_the_graph_is_refused(
    monkeypatch: pytest.MonkeyPatch, harm: str, told: str
) -> None:
    """onnxslim as it might misbehave."""

    def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
        if harm == "crash":
            raise RuntimeError("it\nbroke")
        if harm == "outputs":
            weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "weight")
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, "weight"))
        elif harm == "batch":
            proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        else:
            proto.graph.input[0].name = "renamed"
        return proto

    monkeypatch.setattr("onnxslim.slim", slim)

    with pytest.raises(ExportError, match=told):
        clean.graph(np.ones((7, 3, 10), np.float32))(padded_convolution())


def test_a_child_process_returns_what_the_graph_returns(float32: Artifact, splits: Splits) -> None:
    found = probe.run(float32, splits.test.inputs[:9])

    np.testing.assert_array_equal(found, outputs_of(float32, splits.test.inputs[:9]))


def test_a_child_process_that_hangs_is_a_result(
    float32: Artifact, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "CHILD_LIMIT_S", 0.01)

    assert probe.run(float32, splits.test.inputs[:1]) == Failure("did not finish within 0.01 s")


def test_session_entries_reach_every_child(float32: Artifact, splits: Splits) -> None:
    """An entry that no ONNX file survives: ONNX Runtime then expects its own format."""
    asking = msgspec.structs.replace(float32, session={"session.load_model_format": "ORT"})
    window = splits.test.inputs[:1]

    for found in (probe.run(asking, window), probe.optimized(asking), measure.latency(float32, asking, window, seed=1)):
        assert isinstance(found, Failure), found
        assert found.reason.startswith("failed: ")
