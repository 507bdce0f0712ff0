"""Dynamic int8, weight-only int8, what ONNX Runtime makes of them, and everything that is refused."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from export_nets import altered, artifact_of, exported, padded_convolution, two_matrices, windows
from onnx import helper, numpy_helper

from edge_runtime.errors import ExportError
from export import calibrate, clean, half, probe, quantize, space, weight_only
from export.artifact import Artifact, batch_of, outputs_of, parse
from export.evaluate import snr_db
from export.islands import islands, of_graph
from export.prepare import prepared

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[1]
FLAG = "session.disable_quant_qdq"


def constants(artifact: Artifact) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in parse(artifact.model).graph.initializer}


def types(model: bytes) -> set[str]:
    return {node.op_type for node in parse(model).graph.node}


def test_dynamic_int8_makes_an_lstm_small() -> None:
    done = quantize.dynamic()(exported("lstm"))

    assert (done.name, done.precision) == ("int8-dynamic", "int8")
    assert done.size_kb < exported("lstm").size_kb / 3
    assert 30 < snr_db(outputs_of(exported("lstm"), windows("lstm")), outputs_of(done, windows("lstm"))) < 80
    assert done.steps[-2] == "quantized: 2 DynamicQuantizeLSTM, 1 MatMulInteger, 100.0% of the weights"
    assert done.steps[-1].startswith("ONNX Runtime computes 2 DynamicQuantizeLSTM, 1 DynamicQuantizeMatMul in int8")


@pytest.mark.parametrize("name", ["lstm", "encoder"])
def test_dynamic_int8_takes_windows_one_by_one_because_a_neighbour_would_change_the_scale(name: str) -> None:
    done = quantize.dynamic()(exported(name))
    loud = np.concatenate([windows(name)[:1], 50 * windows(name)[1:2]])

    assert (batch_of(parse(exported(name).model)), batch_of(parse(done.model))) == ("batch", 1)
    np.testing.assert_array_equal(outputs_of(done, loud)[0], outputs_of(done, loud[:1])[0])
    together = parse(done.model)
    together.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    together.graph.output[0].type.tensor_type.ClearField("shape")
    del together.graph.value_info[:]
    free = msgspec.structs.replace(done, model=together.SerializeToString())
    assert not np.array_equal(outputs_of(free, loud)[0], outputs_of(free, loud[:1])[0])


def test_dynamic_int8_of_a_transformer_quantizes_its_matrices() -> None:
    done = quantize.dynamic()(exported("encoder"))

    wanted = outputs_of(exported("encoder"), windows("encoder"))
    assert snr_db(wanted, outputs_of(done, windows("encoder"))) > 30
    assert islands(done).islands == ()
    assert set(islands(done).integer) == {"DynamicQuantizeMatMul"}


def test_dynamic_int8_with_reduced_range_uses_seven_bits() -> None:
    stored = [
        v for v in constants(quantize.dynamic(reduce_range=True)(exported("lstm"))).values() if v.dtype == np.int8
    ]

    assert max(int(np.abs(weight).max()) for weight in stored) == 64


@pytest.mark.parametrize(
    ("name", "step", "told"),
    [
        ("convolutions", quantize.dynamic(), "In float32 stay 3040 weights of Conv: dynamic int8 makes convolutions"),
        ("gru", quantize.dynamic(), r"only 0\.8% of the weights would become int8, wanted at least 50%"),
        ("gru", quantize.dynamic(), r"stay \d+ weights of GRU: ONNX Runtime has no int8 GRU \(onnxruntime#9796\)"),
        ("gru", quantize.static_qdq(windows("gru")), r"has no int8 GRU \(onnxruntime#9796\): weight_only\.int8"),
        ("lstm", quantize.static_qdq(windows("lstm")), r"an int8 LSTM is only dynamic \(onnxruntime#5747\)"),
    ],
)
def test_an_operator_that_would_stay_float_is_named_with_the_reason(name: str, step, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        step(exported(name))


@pytest.mark.parametrize(("name", "ratio"), [("gru", 3.0), ("lstm", 3.0), ("convolutions", 1.9)])
def test_weight_only_int8_is_small_and_close(name: str, ratio: float) -> None:
    done = weight_only.int8()(exported(name))

    assert done.size_kb < exported(name).size_kb / ratio
    assert snr_db(outputs_of(exported(name), windows(name)), outputs_of(done, windows(name))) > 45
    assert done.session == {FLAG: "1"}
    assert batch_of(parse(done.model)) == "batch"


def test_weight_only_int8_makes_a_gru_of_useful_size_three_and_a_half_times_smaller() -> None:
    random = np.random.default_rng(0)
    shapes = {"W": (1, 384, 128), "R": (1, 384, 128), "B": (1, 768)}
    weights = {name: random.uniform(-0.09, 0.09, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "W", "R", "B"], ["", "last"], hidden_size=128, linear_before_reset=1),
        helper.make_node("Squeeze", ["last", "zero"], ["y"]),
    ]
    artifact = artifact_of(nodes, {**weights, "zero": np.array([0])}, shape=[16, 128], width=128)
    inputs = random.normal(size=(20, 16, 128)).astype(np.float32)

    done = weight_only.int8()(artifact)

    assert artifact.size_kb / done.size_kb > 3.5
    assert snr_db(outputs_of(artifact, inputs), outputs_of(done, inputs)) > 45
    assert {name: value.dtype for name, value in constants(done).items() if value.ndim > 1} == {
        "W_int8": np.int8, "R_int8": np.int8, "B": np.float32
    }  # fmt: skip
    assert "weight-only int8: 2 weights, 98304 of 99073 elements" in done.steps[-1]


def test_weights_are_folded_at_load_only_with_the_session_entry() -> None:
    done = weight_only.int8()(exported("gru"))
    bare = msgspec.structs.replace(done, session={})

    with_entry, without = probe.optimized(done), probe.optimized(bare)

    assert isinstance(with_entry, bytes)
    assert isinstance(without, bytes)
    assert "DequantizeLinear" not in types(with_entry)
    assert "DequantizeLinear" in types(without)
    np.testing.assert_allclose(outputs_of(done, windows("gru")), outputs_of(bare, windows("gru")), atol=1e-6)


def test_rows_are_scaled_by_their_largest_magnitude() -> None:
    stored, scale = weight_only.rows_to_int8(np.array([[1.0, -2.0], [0.0, 0.0], [127.0, 1.0]], np.float32), 0)

    assert stored.tolist() == [[64, -127], [0, 0], [127, 1]]
    np.testing.assert_allclose(scale, [2 / 127, 1, 1])


def test_both_directions_share_the_scale_of_a_gate_row() -> None:
    weight = np.array([[[1.0], [2.0]], [[-4.0], [1.0]]], np.float32)  # (directions, gates x hidden, in)

    stored, scale = weight_only.rows_to_int8(weight, 1)

    np.testing.assert_allclose(scale, [4 / 127, 2 / 127])
    assert stored.reshape(2, 2).tolist() == [[32, 127], [-127, 64]]


def test_weight_only_int8_with_nothing_large_enough_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"no float32 weight of 1024 elements or more; the graph has 2 MatMul and 128"
    ):
        weight_only.int8()(two_matrices())


@pytest.mark.parametrize("step", [weight_only.int8(min_elements=1), quantize.dynamic()], ids=["weights", "dynamic"])
def test_the_front_end_keeps_its_float_weights(step) -> None:
    artifact = two_matrices()

    found = constants(step(artifact))

    np.testing.assert_array_equal(found["fixed"], constants(artifact)["fixed"])
    assert "learned" not in found


def test_a_weight_read_along_two_axes_stays_float() -> None:
    """It has one scale per row, and the rows of one reader are the columns of the other."""
    random = np.random.default_rng(0)
    weights = {"both": (16, 16), "one": (16, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "both"], ["there"]),
        helper.make_node("Gemm", ["there", "both"], ["back"], transB=1),
        helper.make_node("MatMul", ["back", "one"], ["y"]),
    ]
    values = {name: random.normal(size=size).astype(np.float32) for name, size in weights.items()}

    found = constants(weight_only.int8(min_elements=1)(artifact_of(nodes, values, shape=[16], width=4)))

    assert {name: value.dtype for name, value in found.items()} == {
        "both": np.float32, "one_int8": np.int8, "one_scale": np.float32
    }  # fmt: skip


def test_a_transposed_convolution_has_a_scale_for_each_output_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)  # (in, out, kernel)
    weight[:, 4] *= 1000
    nodes = [
        helper.make_node("ConvTranspose", ["x", "weight"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "time"], ["y"], keepdims=0),
    ]
    artifact = artifact_of(nodes, {"weight": weight, "time": np.array([2])}, shape=[3, 10], width=5)

    found = constants(weight_only.int8(min_elements=1)(artifact))

    np.testing.assert_allclose(found["weight_scale"], np.abs(weight).max(axis=(0, 2)) / 127)


STEPS = {
    "static int8": quantize.static_qdq(windows("lstm")),
    "dynamic int8": quantize.dynamic(),
    "weight-only int8": weight_only.int8(),
    "clean-up": clean.graph(windows("lstm")),
    "fp16": half.fp16(windows("lstm")),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_is_float16_already_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=rf"{name}: fp16 has \d+ float16 weights already, wanted a float32 graph"):
        STEPS[name](half.fp16(windows("lstm"))(exported("lstm")))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("before", [weight_only.int8(), quantize.dynamic()], ids=["weights", "dynamic"])
def test_what_is_quantized_already_is_refused(name: str, before) -> None:
    with pytest.raises(ExportError, match=rf"{name}: int8-\w+ is quantized already \(.*\), wanted a float32 graph"):
        STEPS[name](before(exported("lstm")))


ON_MATRICES = {
    "static int8": quantize.static_qdq(np.random.default_rng(0).normal(size=(33, 8)).astype(np.float32)),
    "dynamic int8": quantize.dynamic(),
    "weight-only int8": weight_only.int8(min_elements=1),
    "clean-up": clean.graph(np.ones((7, 8), np.float32)),
    "fp16": half.fp16(np.ones((7, 8), np.float32)),
}


@pytest.mark.parametrize("name", ON_MATRICES)
def test_initializers_that_older_exporters_list_as_inputs_are_constants(name: str) -> None:
    inputs = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)

    done = ON_MATRICES[name](altered(two_matrices(), listed=True))

    assert [value.name for value in onnx.load_from_string(done.model).graph.input] == ["x"]
    np.testing.assert_array_equal(outputs_of(done, inputs), outputs_of(ON_MATRICES[name](two_matrices()), inputs))


@pytest.mark.parametrize("batch", [1, 3])
def test_static_int8_of_a_graph_with_a_fixed_batch_is_that_of_a_free_one(batch: int) -> None:
    done = ON_MATRICES["static int8"](altered(two_matrices(), batch=batch))

    free = constants(ON_MATRICES["static int8"](two_matrices()))
    assert batch_of(parse(done.model)) == batch
    assert {name: value.tolist() for name, value in constants(done).items()} == {
        name: value.tolist() for name, value in free.items()
    }


@pytest.mark.parametrize("name", ["static int8", "weight-only int8"])
def test_a_graph_older_than_per_channel_quantizers_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match=f"^{name}: the graph has opset 11, wanted at least 13$"):
        ON_MATRICES[name](altered(two_matrices(), opset=11))


def test_the_report_counts_int8_operators_leftover_quantizers_and_float_islands() -> None:
    done = quantize.static_qdq(windows("convolutions"))(exported("convolutions"))

    found = islands(done)

    assert found.integer["QLinearConv"] == 2
    assert found.integer["QGemm"] == 1
    assert [dict(island) for island in found.islands] == [{"ReduceMean": 1}]
    assert done.steps[-1] == str(found)
    assert str(found).endswith("float islands: 1 (1 of 1 ReduceMean)")


def test_an_island_is_float_between_a_dequantizer_and_a_quantizer_and_the_ends_of_the_graph_are_none() -> None:
    def node(kind: str, source: str, target: str) -> onnx.NodeProto:
        inputs = [source, "scale"] if kind.endswith("Linear") else [source]
        return helper.make_node(kind, inputs, [target], name=target)

    chain = [
        "Relu",
        "QuantizeLinear",
        "DequantizeLinear",
        "Sigmoid",
        "Tanh",
        "QuantizeLinear",
        "DequantizeLinear",
        "Abs",
    ]
    nodes = [node(kind, f"t{i}", f"t{i + 1}") for i, kind in enumerate(chain)]
    nodes.append(node("DequantizeLinear", "weight", "float_weight"))
    weight = numpy_helper.from_array(np.ones(3, np.int8), "weight")

    found = of_graph(helper.make_model(helper.make_graph(nodes, "chain", [], [], [weight])))

    assert [dict(island) for island in found.islands] == [{"Sigmoid": 1, "Tanh": 1}]
    assert found.quantizers == {"QuantizeLinear": 2, "DequantizeLinear": 3}
    assert not found.integer


@pytest.mark.parametrize("method", ["distribution", "Distribution", "mse", "smoothquant", ""])
def test_calibration_methods_that_destroy_models_or_are_unknown_are_refused(method: str) -> None:
    with pytest.raises(ExportError, match=rf"method '{method}', wanted one of minmax, percentile, entropy"):
        quantize.static_qdq(windows("convolutions"), method=method)


@pytest.mark.parametrize("scheme", ["u8u8", "u16s8", "s16s8", "u16u8", "int4"])
def test_types_that_lose_the_speed_are_not_offered(scheme: str) -> None:
    with pytest.raises(ExportError, match=f"scheme '{scheme}', wanted one of u8s8, s8s8"):
        quantize.static_qdq(windows("convolutions"), scheme=scheme)


def test_no_option_reaches_smoothquant_and_every_argument_of_the_quantizers_is_given() -> None:
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    source = inspect.getsource(quantize)
    for function, name in ((QDQQuantizer, "QDQQuantizer"), (quantize_dynamic, "ort.quantize_dynamic")):
        call = source[source.index(f"{name}(") :]
        given = set(re.findall(r"^ +(\w+)=", re.split(r"\n +\)\n", call)[0], re.MULTILINE))
        parameters = inspect.signature(function).parameters.values()
        wanted = {p.name for p in parameters if p.default is not p.empty or name == "QDQQuantizer"}
        assert wanted - given == ({"model"} if name == "QDQQuantizer" else set()), name
    assert "SmoothQuant" not in source
    assert set(inspect.signature(quantize.static_qdq).parameters) == {
        "windows", "scheme", "method", "reduce_range", "keep"
    }  # fmt: skip


def test_onnxruntime_tools_is_not_used() -> None:
    sources = [*(ROOT / "export").glob("*.py"), *(ROOT / "edge_runtime").rglob("*.py"), ROOT / "pyproject.toml"]

    assert len(sources) > 30
    assert [path.name for path in sources if re.search("onnxruntime[-_]tools", path.read_text())] == []


def test_candidates_follow_from_what_the_graph_holds() -> None:
    static = ["int8 u8s8 minmax", "int8 s8s8 minmax"]
    fused = ["fuse", "fuse + int8-dynamic"]

    def names(artifact: Artifact) -> list[str]:
        return [space.named(chain) for chain in space.post_training(space.held(artifact), gpu=False)]

    assert names(exported("convolutions")) == static
    assert names(exported("gru")) == ["int8-weights"]
    assert names(exported("lstm")) == ["int8-dynamic", "int8-weights"]
    assert names(exported("encoder")) == [*static, "int8-dynamic", "int8-weights", *fused]
    assert names(padded_convolution()) == static


def test_a_layer_kept_in_float32_between_int8_ones_stays_so_when_the_graph_is_loaded() -> None:
    """ONNX Runtime would quantize its weights while loading, but for a session entry."""
    inputs = windows("convolutions")
    chain = deep_convolutions()
    first, middle, last = quantize.weighted(prepared(chain, "test").body)

    done = quantize.static_qdq(inputs, keep=(middle,))(chain)

    assert islands(done).integer["QLinearConv"] == 2
    assert islands(msgspec.structs.replace(done, session={})).integer["QLinearConv"] == 3
    assert done.session == {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}
    kept = {node.name: set(node.input) for node in parse(done.model).graph.node if node.name in {first, middle, last}}
    floats = {name for name, value in constants(done).items() if value.dtype == np.float32 and value.ndim > 1}
    assert {name for name, inputs in kept.items() if inputs & floats} == {middle}
    assert f"over 32 calibration windows, {middle} kept in float32" in done.steps[-4]
    assert "100.0% of the weights" in done.steps[-2]


def deep_convolutions() -> Artifact:
    """x (batch, 6, 64) -> three Conv with Relu -> mean over time -> y (batch, 8)."""
    random = np.random.default_rng(0)
    weights = {f"w{i}": random.normal(size=(8, width, 3)).astype(np.float32) for i, width in enumerate((6, 8, 8))}
    nodes = []
    for i, source in enumerate(("x", "r0", "r1")):
        nodes += [
            helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"]),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
    nodes.append(helper.make_node("ReduceMean", ["r2", "time"], ["y"], keepdims=0))
    return artifact_of(nodes, {**weights, "time": np.array([2])}, shape=[6, 64], width=8)


def test_a_session_entry_that_was_there_before_is_kept_beside_the_one_for_float_layers() -> None:
    assert quantize.staying_float(half.WITHOUT_NCHWC) == {
        "optimization.disable_specified_optimizers": "NchwcTransformer;WeightBiasQuantization"
    }


def test_a_layer_to_keep_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(ExportError, match=r"no nodes nowhere to keep in float32; there are \w+, \w+"):
        quantize.static_qdq(windows("convolutions"), keep=("nowhere",))(exported("convolutions"))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_quantization_that_destroys_the_model_is_refused_with_the_figures(method: str) -> None:
    """One channel is 10,000 times as loud as the others and nearly silenced behind: 8 bits hold no more than that."""
    random = np.random.default_rng(0)
    loud = np.ones(16, np.float32)
    loud[0] = 1e4
    into, out = (random.normal(size=size).astype(np.float32) for size in ((8, 16), (16, 4)))
    nodes = [helper.make_node("MatMul", ["x", "into"], ["wide"]), helper.make_node("MatMul", ["wide", "out"], ["y"])]
    artifact = artifact_of(nodes, {"into": into * loud, "out": out / loud[:, None] ** 2}, shape=[8], width=4)
    inputs = random.normal(size=(64, 8)).astype(np.float32)

    with pytest.raises(ExportError, match=rf"^calibration method {method} destroys the model: over 64 windows output "):
        quantize.static_qdq(inputs, method=method)(artifact)


def ranges_of(values: np.ndarray, method: str) -> dict[str, calibrate.Range]:
    """Ranges in the graph x -> Relu -> r, for (n, 8) values in batches of 64."""
    body = parse(artifact_of([helper.make_node("Relu", ["x"], ["y"])], {}, shape=[8], width=8).model)
    feeds = [{"x": values[i : i + 64]} for i in range(0, len(values), 64)]
    return calibrate.ranges(body, feeds, method=method, session={})


def test_ranges_take_in_everything_or_leave_outliers_out() -> None:
    values = np.random.default_rng(0).normal(size=(20000, 8)).astype(np.float32)
    values[7, 3], values[4000, 0] = 400.0, -30.0

    everything = ranges_of(values, "minmax")
    assert everything == {"x": (-30.0, 400.0), "y": (0.0, 400.0)}
    for method, most in (("percentile", 5.0), ("entropy", 51.0)):
        found = ranges_of(values, method)
        assert (found["y"].low, found["x"].low >= -30.0) == (0.0, True)
        assert 3.0 < found["x"].high < most, method
        assert 3.0 < found["y"].high < most, method
    assert ranges_of(np.zeros((3, 8), np.float32), "entropy")["y"] == (0.0, 0.0)


def test_windows_that_make_a_tensor_nan_are_refused_by_its_name() -> None:
    with pytest.raises(ExportError, match="calibration: 'x' is NaN or infinite on the windows"):
        ranges_of(np.full((2, 8), np.nan, np.float32), "minmax")
