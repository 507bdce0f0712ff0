"""Steps on their own and in a chain: pruning, clean-up, and what a child process finds out."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from export_nets import network, padded_convolution, windows
from export_recipes.tones import Standardize
from onnx import numpy_helper
from torch import nn

from edge_runtime.errors import ExportError
from export import clean, measure, probe, prune, quantize, to_onnx
from export.artifact import Artifact, Step, ancestors, batch_of, outputs_of, parse
from export.evaluate import snr_db
from export.probe import Failure
from export.recipe import Recipe, Split, Splits, load
from export.train import deterministic, torch_outputs, trained

pytestmark = pytest.mark.torch

TONES = Path(__file__).parent / "export_recipes" / "tones.py"
SHARED = Path(os.environ.get("EDGE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Wide(nn.Module):
    """The net of the recipe with more channels, so that its weights are most of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = Standardize()
        self.body = nn.Sequential(
            nn.Conv1d(2, 48, 9, 4), nn.BatchNorm1d(48), nn.ReLU(), nn.Conv1d(48, 64, 5, 4), nn.ReLU()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.front_end(x)).mean(dim=2))


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
    return quantize.static_qdq(quantize.calibration(splits, seed=7))


@pytest.fixture(scope="module")
def pruned(float32: Artifact, splits: Splits) -> Artifact:
    return prune.structured(splits, epochs=3, seed=7)(float32)


def accuracy(artifact: Artifact, split: Split) -> float:
    return float((outputs_of(artifact, split.inputs).argmax(axis=1) == split.targets).mean())


def splits_of(name: str) -> Splits:
    split = Split(windows(name), np.zeros(len(windows(name)), np.int64))
    return Splits(split, split, split)


def test_pruning_removes_half_of_the_channels_and_says_what_it_saved(float32: Artifact, pruned: Artifact) -> None:
    assert pruned.module is not None
    shapes = {name: tuple(value.shape) for name, value in pruned.module.named_parameters() if name.endswith("weight")}

    assert shapes == {
        "body.0.weight": (24, 2, 9),
        "body.1.weight": (24,),
        "body.3.weight": (32, 24, 5),
        "head.weight": (3, 32),
    }
    assert (pruned.name, pruned.precision) == ("pruned", "float32")
    told = next(step for step in pruned.steps if step.startswith("structured pruning"))
    assert "ratio 0.5, channels in multiples of 8: 16627 to 4475 parameters, 297987 to 91395 MACs" in told
    assert told.endswith("fine-tuned 3 epochs")
    assert pruned.steps[: len(float32.steps)] == float32.steps
    assert pruned.steps[-1].startswith("parity with torch at batch 1, 2, 7")


def test_pruning_leaves_the_original_network_as_it_was(float32: Artifact, splits: Splits) -> None:
    assert float32.module is not None
    before = copy.deepcopy(float32.module.state_dict())

    done = prune.structured(splits, epochs=1, seed=7)(float32)

    after = float32.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in float32.module.parameters())
    assert not any(part._forward_hooks for part in float32.module.modules())
    assert done.module is not None
    assert done.module is not float32.module
    assert not np.allclose(torch_outputs(done.module, splits.test.inputs), outputs_of(float32, splits.test.inputs))


def test_the_callers_own_fine_tuning_gets_the_pruned_network_ready_to_train(float32: Artifact, splits: Splits) -> None:
    seen: list[tuple[int, bool]] = []

    def finetune(module: torch.nn.Module) -> None:
        learnable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        seen.append((sum(parameter.numel() for parameter in learnable), module.training))
        with torch.no_grad():
            module.head.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))

    done = prune.structured(splits, finetune=finetune)(float32)

    assert seen == [(4475, False)]
    assert set(outputs_of(done, splits.test.inputs).argmax(axis=1)) == {0}
    assert any(step.endswith("fine-tuned by the caller") for step in done.steps)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "gru",
            r"pruning removed nothing: 39109 parameters before, 39109 after, ratio 0\.5 in multiples of 8; layers: ",
        ),
        (
            "gru",
            r"layers: 1 GRU \(38784 parameters\), 1 Linear \(325 parameters\)\. The last, 'head', is never pruned",
        ),
        ("lstm", r"cannot prune this network \(AssertionError: without a message\); its layers: 1 LSTM \(51712 param"),
        ("narrow convolutions", r"removed nothing: 637 parameters .* layers: 2 Conv1d .* too narrow for the multiple"),
    ],
)
def test_a_network_that_pruning_leaves_as_it_was_is_refused(name: str, told: str) -> None:
    artifact = Artifact("float32", "float32", b"", "x", "logits", (), module=network(name))

    with pytest.raises(ExportError, match=told):
        prune.structured(splits_of(name), epochs=1)(artifact)


class Scaled(nn.Module):
    """A parameter of the network's own around its layers, and a front-end that could be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.front_end = nn.Conv1d(2, 16, 3)
        self.body = nn.Conv1d(16, 32, 5, 4)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(torch.relu(self.body(self.front_end(x))).mean(dim=2))


@pytest.fixture(scope="module")
def scaled(splits: Splits) -> Artifact:
    with deterministic(7):
        return to_onnx.export(Scaled(), splits.train.inputs, input_name="x", output_name="logits")


def test_a_network_with_a_parameter_of_its_own_is_pruned_and_its_front_end_is_not_trained(
    scaled: Artifact, splits: Splits
) -> None:
    done = prune.structured(splits, epochs=1, seed=7)(scaled)

    assert isinstance(scaled.module, Scaled)
    assert isinstance(done.module, Scaled)
    assert tuple(done.module.body.weight.shape) == (16, 16, 5)
    assert torch.equal(done.module.front_end.weight, scaled.module.front_end.weight)
    assert not torch.equal(done.module.head.bias, scaled.module.head.bias)


def test_pruning_that_removes_nothing_names_the_layer_it_never_prunes(scaled: Artifact, splits: Splits) -> None:
    with pytest.raises(
        ExportError, match=r"removed nothing: .* The last, 'head', is never pruned; torch-pruning skips"
    ):
        prune.structured(splits, round_to=32)(scaled)


def test_pruning_wants_an_artifact_that_still_has_its_torch_network(float32: Artifact, splits: Splits) -> None:
    scores = to_onnx.with_scores(float32)

    with pytest.raises(ExportError, match=r"pruning float32: it has no torch network, wanted .* to_onnx\.export"):
        prune.structured(splits)(scores)


@pytest.mark.parametrize(("options", "told"), [({"ratio": 1.0}, "ratio 1.0"), ({"round_to": 0}, "round_to is 0")])
def test_options_of_pruning_that_cannot_be_are_refused(splits: Splits, options, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        prune.structured(splits, **options)


def test_pruned_and_quantized_is_smaller_than_either_and_still_knows_the_tones(
    float32: Artifact, pruned: Artifact, splits: Splits, int8: Step
) -> None:
    artifact = float32
    for step in (prune.structured(splits, epochs=3, seed=7), int8):
        artifact = step(artifact)

    assert artifact.size_kb < 0.7 * min(pruned.size_kb, int8(float32).size_kb)
    assert artifact.size_kb < float32.size_kb / 6
    assert accuracy(float32, splits.test) > 0.85
    assert accuracy(artifact, splits.test) > 0.8
    assert snr_db(outputs_of(pruned, splits.test.inputs), outputs_of(artifact, splits.test.inputs)) > 20
    assert [step.split()[0] for step in artifact.steps] == [
        "torch.onnx", "parity", "structured", "torch.onnx", "parity", "static", "quantized:", "ONNX",
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
