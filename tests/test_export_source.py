"""An ONNX file as the original of a search: what is taken, and what is refused with the fact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from export_nets import altered, artifact_of, padded_convolution, two_matrices
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.errors import ExportError
from export import half, quantize
from export.artifact import Artifact, batch_of, outputs_of, parse
from export.source import check_source

pytestmark = pytest.mark.torch

WINDOWS = np.random.default_rng(3).normal(size=(16, 8)).astype(np.float32)


def shape(artifact: Artifact) -> list[int | str]:
    return [
        axis.dim_value or axis.dim_param for axis in parse(artifact.model).graph.input[0].type.tensor_type.shape.dim
    ]


def test_a_file_becomes_a_float32_artifact_that_says_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(two_matrices().model)

    found = check_source(path)

    assert (found.input, found.output, found.precision, found.module) == ("x", "y", "float32", None)
    assert found.steps[0].startswith("ONNX file net.onnx, sha256 ")
    assert found.steps[0].endswith("opset 20, 2 nodes")
    assert np.array_equal(outputs_of(found, WINDOWS), outputs_of(two_matrices(), WINDOWS))


@pytest.mark.parametrize("batch", [0, 1])
def test_an_open_batch_axis_and_one_of_1_are_both_taken_and_can_be_quantized(batch: int) -> None:
    artifact = check_source(altered(two_matrices(), batch=batch).model)

    assert batch_of(parse(artifact.model)) == (1 if batch else "batch")
    assert quantize.static_qdq(WINDOWS)(artifact).precision == "int8"
    assert outputs_of(artifact, WINDOWS).shape == (16, 4)


def test_a_batch_fixed_to_another_number_is_refused() -> None:
    with pytest.raises(ExportError, match="batch axis of x is fixed to 4, wanted an open one or 1"):
        check_source(altered(two_matrices(), batch=4).model)


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    assert check_source(altered(two_matrices(), listed=True).model).input == "x"


def test_pads_computed_from_constants_are_no_obstacle() -> None:
    assert shape(check_source(padded_convolution().model)) == ["batch", 3, 10]


def test_an_opset_too_old_for_int8_is_refused_with_the_way_out() -> None:
    with pytest.raises(ExportError, match="opset 12 is too old for int8, wanted at least 13: .*convert_version"):
        check_source(altered(two_matrices(), opset=12).model)


def test_weights_in_another_file_are_refused_with_its_name(tmp_path: Path) -> None:
    proto, path = onnx.load_from_string(two_matrices().model), tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="net.data", size_threshold=0)

    with pytest.raises(ExportError, match=r"external data: 2 of 2 tensors lie outside it, in 'net.data'; wanted one"):
        check_source(path)
    with pytest.raises(ExportError, match="external data"):
        check_source(path.read_bytes())


def with_more(*, inputs: int = 0, outputs: int = 0) -> bytes:
    proto = onnx.load_from_string(two_matrices().model)
    for index in range(inputs):
        proto.graph.input.append(helper.make_tensor_value_info(f"extra{index}", TensorProto.FLOAT, ["batch", 2]))
    for _ in range(outputs):
        proto.graph.output.append(helper.make_tensor_value_info("front_end", TensorProto.FLOAT, ["batch", 32]))
    return proto.SerializeToString()


def test_several_inputs_or_outputs_are_refused_by_name() -> None:
    with pytest.raises(ExportError, match=r"2 inputs \(x float32 \(\?, 8\) · extra0 float32 \(\?, 2\)\), wanted one"):
        check_source(with_more(inputs=1))
    with pytest.raises(ExportError, match=r"2 outputs \(y .* front_end .*\), wanted one"):
        check_source(with_more(outputs=1))


def test_a_model_that_is_quantized_or_float16_already_is_refused() -> None:
    with pytest.raises(ExportError, match="is quantized already .*wanted a float32 graph"):
        check_source(quantize.static_qdq(WINDOWS)(two_matrices()).model)
    with pytest.raises(ExportError, match="float16 weights already, wanted a float32 graph"):
        check_source(half.fp16(WINDOWS)(two_matrices()).model)


def test_an_input_of_another_type_is_refused() -> None:
    proto = onnx.load_from_string(two_matrices().model)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    with pytest.raises(ExportError, match="input x is float64, wanted float32"):
        check_source(proto.SerializeToString())


def open_length() -> bytes:
    """x (batch, time, 4) -> the mean over time (batch, 4)."""
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean", keepdims=0)]
    proto = onnx.load_from_string(artifact_of(nodes, {"axes": np.array([1])}, shape=[1, 4], width=4).model)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "time"
    return proto.SerializeToString()


def test_an_axis_of_a_window_that_is_open_is_closed_by_a_sample() -> None:
    with pytest.raises(ExportError, match=r"x float32 \(\?, \?, 4\) leaves axes of a window open; give a sample"):
        check_source(open_length())

    assert shape(check_source(open_length(), sample=np.zeros((3, 50, 4), np.float32))) == ["batch", 50, 4]


def test_a_sample_of_another_shape_or_type_is_refused() -> None:
    with pytest.raises(ExportError, match=r"x float32 \(\?, 8\), the sample is float32 \(3, 7\)"):
        check_source(two_matrices().model, sample=np.zeros((3, 7), np.float32))
    with pytest.raises(ExportError, match="the sample is float64"):
        check_source(two_matrices().model, sample=np.zeros((3, 8)))


def test_outputs_that_are_not_finite_on_a_real_window_are_refused() -> None:
    learned = np.full((32, 4), np.nan, np.float32)

    with pytest.raises(ExportError, match="the output for the first sample window holds NaN or infinity"):
        check_source(two_matrices(learned).model, sample=WINDOWS)


def test_a_window_whose_result_depends_on_its_batch_is_refused() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], name="mean", keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"], name="centred"),
    ]
    artifact = artifact_of(nodes, {"axes": np.array([0])}, shape=[4], width=4)

    with pytest.raises(ExportError, match="a window has an output that is off by .* when another one is in its batch"):
        check_source(artifact.model)


def test_a_batch_axis_that_is_open_in_name_only_is_refused() -> None:
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["y"], name="flat")]
    artifact = artifact_of(nodes, {"flat": np.array([1, 4])}, shape=[4], width=4)

    with pytest.raises(ExportError, match="does not run on a batch of 2: failed: "):
        check_source(artifact.model)


def test_functions_of_the_model_are_written_out() -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"], name="inside")]
    function = helper.make_function("local", "Twice", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)])
    nodes = [helper.make_node("Twice", ["x", "w"], ["y"], domain="local", name="call")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]),
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
        ir_version=10,
    )

    found = parse(check_source(proto.SerializeToString()).model)

    assert [node.op_type for node in found.graph.node] == ["MatMul"]
    assert not found.functions


@pytest.mark.parametrize("raw", [b"", b"hello world", b"\x00" * 64])
def test_what_is_no_onnx_file_is_refused(raw: bytes) -> None:
    with pytest.raises(ExportError, match="the model: not an ONNX file"):
        check_source(raw)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="missing.onnx: cannot be read: No such file or directory"):
        check_source(tmp_path / "missing.onnx")
