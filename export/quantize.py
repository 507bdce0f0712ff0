"""Static and dynamic int8: only how, never whether.

The front-end stays float32, and a quantization that leaves most of the weights in float32 is an error: what it costs
in accuracy would buy nothing.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export.artifact import (
    DEQUANTIZE,
    QDQ,
    Artifact,
    Step,
    ancestors,
    batch_of,
    changed,
    listed,
    name_nodes,
    operators,
    parse,
    require_float32,
)
from export.islands import islands
from export.quiet import one_line, silenced
from export.recipe import Splits

if TYPE_CHECKING:
    import onnx

CALIBRATION_WINDOWS = 256
CALIBRATION_BATCH = 32
MIN_OPSET = 13  # QuantizeLinear and DequantizeLinear have an axis since then
SCHEMES = {"u8s8": ("QUInt8", "QInt8"), "s8s8": ("QInt8", "QInt8")}  # activations, weights
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT = ("GRU", "LSTM", "RNN")
DYNAMIC = ("Attention", "Gemm", "LSTM", "MatMul")  # never Conv
INTEGER = ("DynamicQuantizeLSTM", "MatMulInteger", "QAttention")
MIN_SHARE = 0.5  # of the weights that must become int8
NO_INT8_GRU = "ONNX Runtime has no int8 GRU (onnxruntime#9796): weight_only.int8"
STATIC_FLOAT = {
    "GRU": NO_INT8_GRU,
    "LSTM": "an int8 LSTM is only dynamic (onnxruntime#5747): quantize.dynamic or weight_only.int8",
}
DYNAMIC_FLOAT = {
    "GRU": NO_INT8_GRU,
    "Conv": "dynamic int8 makes convolutions 4 to 33 times slower (onnxruntime#12854): quantize.static_qdq",
}


def calibration(splits: Splits, *, seed: int) -> Floats:
    """At most CALIBRATION_WINDOWS windows of the train split, drawn by seed.

    Raises ExportError when any window stands in two splits, or one of those drawn in validation or test.
    """
    check_disjoint(splits)
    size = min(CALIBRATION_WINDOWS, len(splits.train.inputs))
    chosen = np.sort(np.random.default_rng(seed).choice(len(splits.train.inputs), size=size, replace=False))
    windows: Floats = splits.train.inputs[chosen]
    check_calibration(windows, splits)
    return windows


def check_calibration(windows: Floats, splits: Splits) -> None:
    """Raises ExportError when a calibration window is also one of validation or test."""
    for name in ("validation", "test"):
        _refuse_overlap("calibration", windows, name, getattr(splits, name).inputs)


def check_disjoint(splits: Splits) -> None:
    """Raises ExportError when one window, bit for bit, stands in two splits."""
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        _refuse_overlap(one, getattr(splits, one).inputs, other, getattr(splits, other).inputs)


def _refuse_overlap(one: str, windows: Floats, other: str, others: Floats) -> None:
    known = {_digest(window): index for index, window in enumerate(windows)}
    shared = [(known[digest], index) for index, window in enumerate(others) if (digest := _digest(window)) in known]
    if shared:
        first, second = shared[0]
        raise ExportError(
            f"{len(shared)} windows of {other} are also in {one} (first: {one}[{first}] = {other}[{second}]); "
            "the measured accuracy would mean nothing"
        )


def _digest(window: Floats) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(window).tobytes()).digest()


def static_qdq(
    windows: Floats,
    *,
    scheme: str = "u8s8",
    method: str = "minmax",
    reduce_range: bool = False,
) -> Step:
    """A step that quantizes an artifact: weights per channel, activations by their range over the windows.

    windows: (n, ...) float32 in the model's layout. scheme: types of activations and weights.
    Raises ExportError for an unknown scheme or method; "distribution" is one, because ONNX Runtime accepts it
    for int8 and then destroys the model. The step raises ExportError when less than MIN_SHARE of the weights becomes
    int8.
    """
    if scheme not in SCHEMES:
        raise ExportError(f"quantization scheme {scheme!r}, wanted one of {', '.join(SCHEMES)}")
    if method not in METHODS:
        raise ExportError(f"calibration method {method!r}, wanted one of {', '.join(METHODS)}")
    settings = _Settings(scheme, method, reduce_range)
    return lambda artifact: _qdq(artifact, windows, settings)


def _qdq(artifact: Artifact, windows: Floats, settings: _Settings) -> Artifact:
    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        before = prepared(artifact, Path(folder), "static int8", min_opset=MIN_OPSET)
        front = ancestors(before.graph, artifact.front_end)
        reader = _Windows(artifact.input, windows, batch_of(before))
        quantized = _quantized(before, reader, Path(folder), settings=settings, kept=sorted(front))
    done = quantized_operators(quantized)
    _check(quantized, artifact.front_end, done)
    bits = ", 7-bit weights" if settings.reduce_range else ""
    return _reported(
        changed(
            artifact,
            quantized,
            f"static QDQ int8 {settings.scheme} per channel{bits}, {settings.method} over {len(windows)} train windows",
            name=f"int8-{settings.scheme}",
            precision="int8",
        ),
        before,
        done,
        STATIC_FLOAT,
    )


def dynamic(*, reduce_range: bool = False) -> Step:
    """A step that makes the weights of LSTM, MatMul and Gemm int8, and activations as they come; never of Conv.

    Activations are scaled by their range over the whole batch, so that a window's result would depend on the others
    in its batch: the batch axis is fixed to 1. reduce_range: 7-bit weights, for x86 without VNNI.
    The step raises ExportError when less than MIN_SHARE of the weights becomes int8.
    """
    return lambda artifact: _dynamic(artifact, reduce_range=reduce_range)


def _dynamic(artifact: Artifact, *, reduce_range: bool) -> Artifact:
    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        before = prepared(artifact, Path(folder), "dynamic int8")
        front = ancestors(before.graph, artifact.front_end)
        quantized = _quantized_dynamically(before, Path(folder), reduce_range=reduce_range, kept=sorted(front))
    _fix_batch(quantized)
    done = Counter(node.op_type for node in quantized.graph.node if node.op_type in INTEGER)
    bits = ", 7-bit weights" if reduce_range else ""
    return _reported(
        changed(
            artifact,
            quantized,
            f"dynamic int8, weights per tensor{bits}; batch axis fixed to 1, as activations are scaled over the batch",
            name="int8-dynamic",
            precision="int8",
        ),
        before,
        done,
        DYNAMIC_FLOAT,
    )


def _reported(artifact: Artifact, before: onnx.ModelProto, done: Counter[str], why: dict[str, str]) -> Artifact:
    """The quantized artifact with what was quantized, what was not, and what ONNX Runtime makes of it.

    Raises ExportError when most of the weights stayed in float32. why: the reason of each such operator.
    """
    after = parse(artifact.model)
    had, left = (_float_weights(proto, artifact.front_end) for proto in (before, after))
    share = 1 - left.total() / had.total() if had else 0.0
    if share < MIN_SHARE:
        reasons = "; ".join(why[op] for op in left if op in why)
        raise ExportError(
            f"{artifact.name}: only {share:.1%} of the weights would become int8, wanted at least {MIN_SHARE:.0%}. "
            f"In float32 stay {_weights(left)}{': ' if reasons else ''}{reasons}"
        )
    front = ancestors(after.graph, artifact.front_end)
    note = f"; {len(front)} front-end nodes left in float32" if front else ""
    stayed = f"; in float32 stay {_weights(left)}" if left else ""
    told = f"quantized: {listed(done)}, {share:.1%} of the weights{stayed}{note}"
    return msgspec.structs.replace(artifact, steps=(*artifact.steps, told, str(islands(artifact))))


def _weights(counts: Counter[str]) -> str:
    return ", ".join(f"{count} weights of {op}" for op, count in counts.most_common()) or "no weights"


def _float_weights(proto: onnx.ModelProto, front_end: str) -> Counter[str]:
    """Elements of float32 weights by the operator that reads them, those of the front-end left out."""
    import onnx

    front = ancestors(proto.graph, front_end)
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    counts: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.name not in front and node.op_type in (*WEIGHTED, *RECURRENT, *DYNAMIC):
            counts[node.op_type] += sum(sizes.pop(name, 0) for name in node.input)
    return +counts


def quantized_operators(proto: onnx.ModelProto) -> Counter[str]:
    """How many operators of each type compute on int8: activation and weight both come out of a DequantizeLinear."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    constants = {initializer.name for initializer in proto.graph.initializer}
    counts: Counter[str] = Counter()
    for node in proto.graph.node:
        sources = [makers[name] for name in node.input if name in makers and makers[name].op_type == DEQUANTIZE]
        constant = [source.input[0] in constants for source in sources]
        if node.op_type in WEIGHTED and any(constant) and not all(constant):
            counts[node.op_type] += 1
    return counts


def prepared(artifact: Artifact, folder: Path, step: str, *, min_opset: int = 1) -> onnx.ModelProto:
    """The graph after ORT's pre-processing (shape inference, folding, fusions), its front-end boundary kept.

    step: what wants it, for errors. Raises ExportError when the graph is no float32 one, is of an opset below
    min_opset, or cannot be processed.
    As an output of the graph the boundary cannot be fused away; the node metadata of the exporter would not
    survive this step. Symbolic shape inference is left out: torch's exporter has recorded the shapes already, and
    ONNX Runtime's fails on some of them (1.32, a MatMul it knows no rank of).
    """
    load_onnxruntime()
    from onnxruntime.quantization.preprocess import quant_pre_process  # after telemetry is off

    proto = parse(artifact.model)
    require_float32(artifact, proto, step)
    opset = max(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset < min_opset:
        raise ExportError(f"{step}: the graph has opset {opset}, wanted at least {min_opset}")
    if artifact.front_end:
        proto.graph.output.append(next(v for v in proto.graph.value_info if v.name == artifact.front_end))
    source, target = folder / "exported.onnx", folder / "prepared.onnx"
    source.write_bytes(proto.SerializeToString())
    try:
        with silenced():
            quant_pre_process(source, target, skip_optimization=False, skip_onnx_shape=False, skip_symbolic_shape=True)
    except Exception as error:
        raise ExportError(
            f"{step}: pre-processing before quantization failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    done = parse(target.read_bytes())
    name_nodes(done)
    if artifact.front_end:
        done.graph.output.remove(next(v for v in done.graph.output if v.name == artifact.front_end))
    return done


class _Settings(msgspec.Struct, frozen=True):
    scheme: str
    method: str
    reduce_range: bool


class _Windows:
    """Calibration inputs, a batch at a time, as ORT's calibrator asks for them. axis: the graph's, fixed or named."""

    def __init__(self, name: str, windows: Floats, axis: int | str) -> None:
        batch = axis if isinstance(axis, int) else CALIBRATION_BATCH
        self._batches = iter([{name: windows[i : i + batch]} for i in range(0, len(windows), batch)])

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._batches, None)


def _quantized(
    proto: onnx.ModelProto, reader: _Windows, folder: Path, *, settings: _Settings, kept: list[str]
) -> onnx.ModelProto:
    load_onnxruntime()
    from onnxruntime import quantization as ort

    activations, weights = SCHEMES[settings.scheme]
    target = folder / "quantized.onnx"
    try:
        with silenced():
            ort.quantize_static(
                proto,
                target,
                reader,
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=None,
                per_channel=True,
                reduce_range=settings.reduce_range,
                activation_type=ort.QuantType[activations],
                weight_type=ort.QuantType[weights],
                nodes_to_quantize=None,
                nodes_to_exclude=kept,
                use_external_data_format=False,
                calibrate_method=ort.CalibrationMethod[METHODS[settings.method]],
                calibration_providers=["CPUExecutionProvider"],
                extra_options={},
            )
    except Exception as error:
        raise ExportError(f"quantization failed: {type(error).__name__}: {one_line(error)}") from error
    return parse(target.read_bytes())


def _quantized_dynamically(
    proto: onnx.ModelProto, folder: Path, *, reduce_range: bool, kept: list[str]
) -> onnx.ModelProto:
    load_onnxruntime()
    from onnxruntime import quantization as ort

    target = folder / "quantized.onnx"
    try:
        with silenced():
            ort.quantize_dynamic(
                proto,
                target,
                op_types_to_quantize=list(DYNAMIC),
                per_channel=False,
                reduce_range=reduce_range,
                weight_type=ort.QuantType.QInt8,
                nodes_to_quantize=None,
                nodes_to_exclude=kept,
                use_external_data_format=False,
                extra_options={"MatMulConstBOnly": True},
            )
    except Exception as error:
        raise ExportError(f"quantization failed: {type(error).__name__}: {one_line(error)}") from error
    return parse(target.read_bytes())


def _fix_batch(proto: onnx.ModelProto) -> None:
    name = batch_of(proto)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if name and axis.dim_param == name:
                axis.dim_value = 1
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _check(proto: onnx.ModelProto, front_end: str, done: Counter[str]) -> None:
    if not done:
        raise ExportError(
            f"quantization changed no {', '.join(WEIGHTED)}; the graph has {operators(proto)}. Every such operator is "
            "missing or belongs to the front-end"
        )
    before = ancestors(proto.graph, front_end)
    touched = [node.name for node in proto.graph.node if node.name in before and node.op_type in QDQ]
    if touched:
        raise ExportError(f"quantization reached into the front-end: {', '.join(touched)}")
