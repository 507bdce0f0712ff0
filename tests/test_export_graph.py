"""torch to ONNX to int8 on one small net: what must be proven, and what must be refused."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.model.paired import PROCESSES, ROUNDS, Rounds
from export import calibrate, measure, quantize, to_onnx
from export.artifact import QDQ, Artifact, ancestors, outputs_of, parse
from export.evaluate import snr_db
from export.measure import Failure, Latency
from export.recipe import Recipe, Split, Splits, load
from export.train import deterministic, torch_outputs, trained

pytestmark = pytest.mark.torch

TONES = Path(__file__).parent / "export_recipes" / "tones.py"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(TONES)


@pytest.fixture(scope="module")
def splits(recipe: Recipe) -> Splits:
    return recipe.data()


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> nn.Module:
    with deterministic(recipe.seed):
        return recipe.build().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def float32(model: nn.Module, splits: Splits) -> Artifact:
    return to_onnx.export(model, splits.train.inputs, input_name="x", output_name="logits")


@pytest.fixture(scope="module")
def int8(float32: Artifact, splits: Splits) -> Artifact:
    return quantize.static_qdq(calibrate.calibration(splits, seed=7))(float32)


def with_bias_off(artifact: Artifact, by: float) -> Artifact:
    """The same graph with one number of its last bias changed."""
    proto = parse(artifact.model)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.dims == [3])
    wrong = numpy_helper.to_array(bias).copy()
    wrong[1] += by
    bias.CopyFrom(numpy_helper.from_array(wrong, bias.name))
    return msgspec.structs.replace(artifact, model=proto.SerializeToString())


def test_the_graph_gives_what_torch_gives_at_any_batch(float32: Artifact, model: nn.Module, splits: Splits) -> None:
    for batch in (1, 2, 7, 64, 65):
        inputs = splits.validation.inputs[:batch]
        np.testing.assert_allclose(outputs_of(float32, inputs), torch_outputs(model, inputs), atol=1e-5)


def test_a_graph_that_differs_from_torch_is_refused_with_the_figure(
    float32: Artifact, model: nn.Module, splits: Splits
) -> None:
    with pytest.raises(ExportError, match=r"at batch 1 the graph differs from torch by 0\.25, allowed 0\.0001"):
        to_onnx.check_parity(with_bias_off(float32, 0.25), model, splits.train.inputs)

    assert to_onnx.check_parity(with_bias_off(float32, 5e-5), model, splits.train.inputs) == pytest.approx(
        5e-5, rel=0.1
    )


def test_nothing_of_this_machine_is_in_the_graph(float32: Artifact) -> None:
    assert str(Path(__file__).parents[1]).encode() not in float32.model
    assert b"stack_trace" not in float32.model


class Widths(nn.Module):
    """A net without a front-end whose forward is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.of = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of(self, x)


def branches(net: Widths, x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return net.linear(x)
    return -net.linear(x)


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (
            lambda net, x: net.linear(x) * torch.linalg.svdvals(x).sum(),
            r"operator aten\._linalg_svd \(default\) cannot",
        ),
        (branches, r"'if x\.sum\(\) > 0:' \(test_export_graph\.py, line \d+, in branches\): Could not guard on data"),
        (lambda net, x: net.linear(x).reshape(2, 3), "the exporter fixed the batch axis to 2"),
        (lambda net, x: net.linear(x) + torch.zeros(int(x.shape[0]), 3), "the exporter fixed the batch axis to 2"),
        (
            lambda net, x: net.linear(x) * (1.0 if torch.compiler.is_exporting() else 2.0),
            r"parity: at batch 1 the graph differs from torch by",
        ),
        (lambda net, x: net.lineer(x), "AttributeError: 'Widths' object has no attribute 'lineer'"),
    ],
    ids=["missing operator", "branch on values", "fixed shape", "fixed batch", "other than torch", "typing error"],
)
def test_a_model_that_cannot_be_exported_is_told_in_one_line(
    forward, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    windows = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)

    with pytest.raises(ExportError, match=told) as refused:
        to_onnx.export(Widths(forward).eval(), windows, input_name="x", output_name="logits")

    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_the_front_end_stays_float_and_the_body_does_not(float32: Artifact, int8: Artifact, splits: Splits) -> None:
    proto = parse(int8.model)
    before = ancestors(proto.graph, int8.front_end)
    front = [node for node in proto.graph.node if node.name in before]

    assert {"ReduceMean", "Sub", "Div"} <= {node.op_type for node in front}
    assert not {node.op_type for node in front} & set(QDQ)
    assert quantize.quantized_operators(proto) == {"Conv": 2, "Gemm": 1}
    proto.graph.output.append(helper.make_tensor_value_info(int8.front_end, onnx.TensorProto.FLOAT, None))
    probe = msgspec.structs.replace(int8, model=proto.SerializeToString(), output=int8.front_end)
    inputs = splits.test.inputs[:9]
    wanted = inputs - inputs.mean(axis=2, keepdims=True)
    wanted /= np.sqrt(np.square(wanted).mean(axis=2, keepdims=True)) + 1e-3
    np.testing.assert_allclose(outputs_of(probe, inputs), wanted, atol=1e-5)


def test_int8_is_smaller_and_close_to_torch(
    float32: Artifact, int8: Artifact, model: nn.Module, splits: Splits
) -> None:
    wanted = torch_outputs(model, splits.test.inputs)

    assert int8.size_kb < float32.size_kb
    assert 20 < snr_db(wanted, outputs_of(int8, splits.test.inputs)) < 80
    assert int8.steps[-4].startswith("static QDQ int8 u8s8 per channel, minmax over 256 calibration windows")


def test_quantizing_twice_gives_the_same_bytes(float32: Artifact, int8: Artifact, splits: Splits) -> None:
    again = quantize.static_qdq(calibrate.calibration(splits, seed=7))(float32)

    assert again.model == int8.model
    assert not np.array_equal(calibrate.calibration(splits, seed=7), calibrate.calibration(splits, seed=8))


def test_a_quantization_that_changes_nothing_is_refused(splits: Splits) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"], name="pool"),
        helper.make_node("Flatten", ["mean"], ["logits"], name="flatten"),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2, 256])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "means", [x], [logits])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    artifact = Artifact("float32", "float32", proto.SerializeToString(), "x", "logits", ())

    with pytest.raises(ExportError, match="quantization changed no Conv, ConvTranspose, Gemm, MatMul; the graph has"):
        quantize.static_qdq(splits.train.inputs[:8])(artifact)


def test_the_calibration_method_that_destroys_models_is_refused() -> None:
    with pytest.raises(
        ExportError, match="calibration method 'distribution', wanted one of minmax, percentile, entropy"
    ):
        quantize.static_qdq(np.zeros((1, 2, 256), np.float32), method="distribution")


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
def test_a_window_that_stands_in_two_splits_is_refused_and_named(splits: Splits, one: str, other: str) -> None:
    held: Split = getattr(splits, other)
    inputs = held.inputs.copy()
    inputs[5] = getattr(splits, one).inputs[3]
    leaking = msgspec.structs.replace(splits, **{other: Split(inputs, held.targets)})

    with pytest.raises(
        ExportError, match=rf"1 windows of {other} are also in {one} \(first: {one}\[3\] = {other}\[5\]\)"
    ):
        calibrate.calibration(leaking, seed=7)


def test_calibration_on_test_windows_is_refused(splits: Splits) -> None:
    with pytest.raises(ExportError, match="2 windows of test are also in calibration"):
        calibrate.check_disjoint(
            {"test": splits.test}, np.concatenate([splits.train.inputs[:5], splits.test.inputs[:2]])
        )


def test_the_softmax_step_gives_scores(float32: Artifact, splits: Splits) -> None:
    inputs = splits.test.inputs[:5]
    logits, scores = outputs_of(float32, inputs), outputs_of(to_onnx.with_scores(float32), inputs)

    np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_second_softmax_is_refused(float32: Artifact) -> None:
    with pytest.raises(ExportError, match=r"float32: 'scores' is the output of a Softmax already, wanted logits"):
        to_onnx.with_scores(to_onnx.with_scores(float32))


@pytest.mark.parametrize(
    ("several", "found"),
    [(lambda y: {"logits": y}, "dict"), (lambda y: (y, y.softmax(dim=1)), "tuple"), (lambda _y: None, "NoneType")],
)
def test_a_network_that_returns_anything_but_a_tensor_is_refused(several, found: str) -> None:
    model = Widths(lambda net, x: several(net.linear(x)))

    with pytest.raises(ExportError, match=rf"^forward\(\) must return one tensor, found {found}$"):
        to_onnx.export(model, np.ones((7, 8), np.float32), input_name="x", output_name="y")


def test_a_recipe_whose_network_returns_a_dict_is_refused_by_its_path(recipe: Recipe, splits: Splits) -> None:
    wrong = msgspec.structs.replace(recipe, build=lambda: Widths(lambda net, x: {"logits": net.linear(x[:, 0, :8])}))

    with pytest.raises(ExportError, match=r"tones\.py: forward\(\) must return one tensor, found dict$"):
        trained(wrong, splits, lambda _text: None)


def test_latency_is_measured_in_pairs(float32: Artifact, int8: Artifact, splits: Splits) -> None:
    found = measure.latency(float32, int8, splits.validation.inputs[:1], seed=7)

    assert isinstance(found, Latency)
    assert found.rounds == PROCESSES * ROUNDS
    assert 0 < found.q1_us <= found.p50_us <= found.q3_us <= found.p95_us
    assert found.speedup_q1 <= found.speedup <= found.speedup_q3


def test_the_summary_of_rounds_is_the_median_of_their_ratios() -> None:
    found = measure.summarize(Rounds([2000, 9000, 4000], [1000, 3000, 4000]))

    assert (found.p50_us, found.speedup, found.rounds) == (3.0, 2.0, 3)


def test_a_candidate_that_onnxruntime_refuses_is_a_result(float32: Artifact, splits: Splits) -> None:
    broken = msgspec.structs.replace(float32, model=b"not a model")

    found = measure.latency(float32, broken, splits.validation.inputs[:1], seed=7)

    assert isinstance(found, Failure)
    assert "ONNX Runtime refuses the model" in found.reason


def test_a_candidate_that_kills_its_process_is_a_result(
    float32: Artifact, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGSEGV in the child, sent by what its interpreter runs at start."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start_s = time.monotonic()

    found = measure.latency(float32, float32, splits.validation.inputs[:1], seed=7)

    assert found == Failure("crashed with SIGSEGV")
    assert time.monotonic() - start_s < 60
