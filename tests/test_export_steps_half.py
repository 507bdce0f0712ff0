"""float16: what it keeps, and the crash that must be caught."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import artifact_of, exported, two_matrices, windows
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.errors import ExportError
from export import half, probe
from export.artifact import ancestors, outputs_of, parse
from export.evaluate import snr_db

pytestmark = pytest.mark.torch

ADVICE = r"Use fp16 on a GPU only; .* ORT_ENABLE_EXTENDED or below, or with session=half\.WITHOUT_NCHWC"


def test_fp16_is_half_the_size_and_close_with_float32_at_both_ends() -> None:
    artifact = exported("convolutions")

    done = half.fp16(windows("convolutions"))(artifact)

    graph = parse(done.model).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    assert (done.name, done.precision, done.session) == ("fp16", "float16", {})
    assert done.size_kb < 0.65 * artifact.size_kb
    assert snr_db(outputs_of(artifact, windows("convolutions")), outputs_of(done, windows("convolutions"))) > 50
    assert done.steps[-1].startswith("fp16 with float32 inputs and outputs: output SNR ")
    assert " dB over 32 windows as this CPU computes it; activations reach " in done.steps[-1]


def test_fp16_leaves_the_front_end_in_float32() -> None:
    inputs = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)

    done = half.fp16(inputs)(two_matrices())

    types = {t.name: numpy_helper.to_array(t).dtype for t in parse(done.model).graph.initializer}
    assert types == {"fixed": np.float32, "learned": np.float16}
    assert done.steps[-1].endswith("1 front-end nodes left in float32")


def test_a_front_end_of_several_operators_takes_what_float16_cannot_hold() -> None:
    """Pressures in Pa, centred and scaled in front of a matrix; `one` is read on both sides."""
    random = np.random.default_rng(0)
    inputs = (101_325 + random.normal(size=(9, 8))).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x", "last"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "one"], ["front_end"]),
        helper.make_node("MatMul", ["front_end", "learned"], ["product"]),
        helper.make_node("Add", ["product", "one"], ["y"]),
    ]
    learned = random.normal(size=(8, 4)).astype(np.float32)
    values = {"last": np.array([1]), "two": np.float32([2.0]), "one": np.float32([1.0]), "learned": learned}
    artifact = artifact_of(nodes, values, shape=[8], width=4, front_end="front_end")

    done = half.fp16(inputs)(artifact)

    graph = parse(done.model).graph
    casts = {(node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"}
    assert {source for source, to in casts if to == TensorProto.FLOAT16} == {"front_end"}
    assert [t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT16] == ["one_body", "learned"]
    before = len(ancestors(graph, "front_end"))
    assert (before, [node.op_type for node in graph.node[:before]]) == (4, ["ReduceMean", "Sub", "Mul", "Add"])
    assert snr_db(outputs_of(artifact, inputs), outputs_of(done, inputs)) > 50
    assert done.steps[-1].endswith("4 front-end nodes left in float32")


@pytest.mark.parametrize(
    ("learned", "loudness", "told"),
    [
        (1.0, 1e5, r"fp16: 'front_end' reaches \d\.\d+e\+05 on the windows, float16 ends at 65504"),
        (2e3, 1e2, r"fp16: 'y' reaches \d\.\d+e\+06 on the windows"),
        (1e5, 1e-3, r"fp16: weight 'learned' reaches 1e\+05, float16 ends at 65504"),
        (1e-8, 1.0, r"fp16: 128 of 128 weights are lost below 2\.98e-08, allowed 1%"),
        (1.0, np.nan, r"fp16: 8 of 8 outputs are not finite"),
    ],
)
def test_what_float16_cannot_hold_is_refused(learned: float, loudness: float, told: str) -> None:
    artifact = two_matrices(np.full((32, 4), learned, np.float32))

    with pytest.raises(ExportError, match=told):
        half.fp16(np.full((2, 8), loudness, np.float32))(artifact)


def test_a_mask_that_stands_for_minus_infinity_is_no_overflow() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "learned"], ["product"]),
        helper.make_node("Add", ["product", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    values = {"learned": np.eye(8, dtype=np.float32), "mask": np.float32([0] * 7 + [np.finfo(np.float32).min])}
    inputs = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)

    done = half.fp16(inputs)(artifact_of(nodes, values, shape=[8], width=8))

    assert outputs_of(done, inputs)[:, 7].tolist() == [0] * 9


def test_fp16_with_no_weight_behind_the_front_end_is_refused() -> None:
    everything = msgspec.structs.replace(two_matrices(), front_end="y")

    with pytest.raises(ExportError, match=r"fp16: no float32 weight behind the front-end; the graph has nothing there"):
        half.fp16(np.ones((1, 8), np.float32))(everything)


def test_fp16_keeps_the_session_entries_that_the_graph_needed_before() -> None:
    entry = {"session.intra_op.allow_spinning": "0"}
    artifact = msgspec.structs.replace(exported("convolutions"), session=entry)

    done = half.fp16(windows("convolutions"), session=half.WITHOUT_NCHWC)(artifact)

    assert done.session == {**entry, **half.WITHOUT_NCHWC}
    assert "; needs optimization.disable_specified_optimizers=NchwcTransformer: output SNR" in done.steps[-1]


def test_a_crash_of_the_child_is_an_error_that_names_the_signal_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGSEGV in the child, sent by what its interpreter runs at start."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(ExportError, match=rf"fp16: ONNX Runtime crashed with SIGSEGV in a child process\. {ADVICE}"):
        half.fp16(windows("convolutions"))(exported("convolutions"))


def test_onnxruntime_crashes_on_a_pre_norm_transformer_in_fp16_unless_one_optimizer_is_off() -> None:
    inputs = windows("pre-norm encoder")
    artifact = exported("pre-norm encoder")

    done = half.fp16(inputs, session=half.WITHOUT_NCHWC)(artifact)

    assert done.session == half.WITHOUT_NCHWC
    assert snr_db(outputs_of(artifact, inputs), outputs_of(done, inputs)) > 50
    bare = msgspec.structs.replace(done, session={})
    if not isinstance(probe.run(bare, inputs), probe.Failure):
        pytest.skip("this ONNX Runtime does not crash (1.32 does): half.WITHOUT_NCHWC may go")
    with pytest.raises(ExportError, match=rf"fp16: ONNX Runtime crashed with SIGSEGV in a child process\. {ADVICE}"):
        half.fp16(inputs)(artifact)
