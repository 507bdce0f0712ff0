"""Static and dynamic int8: only how, never whether.

The front-end stays float32, and a quantization that leaves most of the weights in float32 is an error: what it costs
in accuracy would buy nothing.
"""

from __future__ import annotations

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
from export import probe
from export.artifact import (
    DEQUANTIZE,
    RECURRENT,
    Artifact,
    Step,
    batch_of,
    changed,
    listed,
    operators,
    outputs_of,
    parse,
)
from export.calibrate import Range, check_method, ranges
from export.evaluate import snr_db
from export.islands import islands
from export.prepare import MIN_OPSET, Prepared, prepared
from export.probe import Failure
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx

DISABLED, WEIGHT_QUANTIZER = "optimization.disable_specified_optimizers", "WeightBiasQuantization"
SCHEMES = {"u8s8": ("QUInt8", "QInt8"), "s8s8": ("QInt8", "QInt8")}  # activations, weights
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DYNAMIC = ("Attention", "Gemm", "LSTM", "MatMul")  # never Conv
INTEGER = ("DynamicQuantizeLSTM", "MatMulInteger", "QAttention")
MIN_SHARE = 0.5  # of the weights that must become int8
MIN_SNR_DB = 3.0  # a model that always answers the same has 0 dB, of what its outputs should vary by
MIN_AGREEMENT = 0.5
NO_INT8_GRU = "ONNX Runtime has no int8 GRU (onnxruntime#9796): weight_only.int8"
STATIC_FLOAT = {
    "GRU": NO_INT8_GRU,
    "LSTM": "an int8 LSTM is only dynamic (onnxruntime#5747): quantize.dynamic or weight_only.int8",
}
DYNAMIC_FLOAT = {
    "GRU": NO_INT8_GRU,
    "Conv": "dynamic int8 makes convolutions 4 to 33 times slower (onnxruntime#12854): quantize.static_qdq",
}


class Scheme(msgspec.Struct, frozen=True):
    """How a graph becomes int8. types: a key of SCHEMES. method: one of calibrate.METHODS. keep: nodes left float32."""

    types: str
    method: str
    reduce_range: bool = False
    keep: tuple[str, ...] = ()


def static_qdq(
    windows: Floats,
    *,
    scheme: str = "u8s8",
    method: str = "minmax",
    reduce_range: bool = False,
    keep: tuple[str, ...] = (),
) -> Step:
    """A step that quantizes an artifact: weights per channel, activations by their range over the windows.

    windows: (n, ...) float32 in the model's layout. scheme: types of activations and weights. keep: nodes that stay
    float32, by their names in `prepared`, which `sensitivity` gives.
    Raises ExportError for an unknown scheme or method; "distribution" is one, because ONNX Runtime accepts it
    for int8 and then destroys the model. The step raises ExportError when less than MIN_SHARE of the weights becomes
    int8, not counting those to keep, and when the outputs over the windows are destroyed.
    """
    check_scheme(scheme)
    check_method(method)
    return lambda artifact: _qdq(artifact, windows, Scheme(scheme, method, reduce_range, keep))


def check_scheme(scheme: str) -> None:
    """Raises ExportError for an unknown one."""
    if scheme not in SCHEMES:
        raise ExportError(f"quantization scheme {scheme!r}, wanted one of {', '.join(SCHEMES)}")


def _qdq(artifact: Artifact, windows: Floats, scheme: Scheme) -> Artifact:
    ready = prepared(artifact, "static int8", min_opset=MIN_OPSET)
    if unknown := sorted(set(scheme.keep) - {node.name for node in ready.body.graph.node}):
        raise ExportError(
            f"static int8: no nodes {', '.join(unknown)} to keep in float32; there are "
            f"{', '.join(weighted(ready.body))}"
        )
    found = ranges(ready.body, ready.parts.feeds(windows), method=scheme.method, session=artifact.session)
    body = qdq(ready.body, found, scheme)
    done = quantized_operators(body)
    if not done:
        raise ExportError(
            f"quantization changed no {', '.join(WEIGHTED)}; the graph has {operators(parse(artifact.model))}. Every "
            "such operator is missing, kept in float32 or belongs to the front-end"
        )
    bits = ", 7-bit weights" if scheme.reduce_range else ""
    kept = f", {', '.join(scheme.keep)} kept in float32" if scheme.keep else ""
    windows_told = f"{scheme.method} over {len(windows)} calibration windows"
    told = f"static QDQ int8 {scheme.types} per channel{bits}, {windows_told}{kept}"
    made = changed(artifact, ready.parts.joined(body), told, name=f"int8-{scheme.types}", precision="int8")
    if scheme.keep:
        made = msgspec.structs.replace(made, session=staying_float(made.session))
    compared = _compared(artifact, made, windows, scheme.method)
    made = msgspec.structs.replace(made, steps=(*made.steps, compared))
    return _reported(made, ready, body, done, STATIC_FLOAT, keep=scheme.keep)


def _compared(artifact: Artifact, made: Artifact, windows: Floats, method: str) -> str:
    """What the int8 outputs over the windows have to do with those in float32.

    Raises ExportError when it is next to nothing, in all or in what the outputs vary by from window to window, and
    when the int8 graph does not survive a child process.
    """
    wanted, found = outputs_of(artifact, windows), probe.run(made, windows)
    if isinstance(found, Failure):
        raise ExportError(f"static int8: ONNX Runtime {found.reason} in a child process")
    typical = wanted.mean(axis=0, keepdims=True)
    whole, varying = snr_db(wanted, found), snr_db(wanted - typical, found - typical)
    agreement = float(np.mean(wanted.argmax(axis=-1) == found.argmax(axis=-1)))
    told = f"output SNR {whole:.1f} dB, the same largest output in {agreement:.1%} of them"
    if not whole >= MIN_SNR_DB or (varying < MIN_SNR_DB and agreement < MIN_AGREEMENT):
        raise ExportError(
            f"calibration method {method} destroys the model: over {len(windows)} windows {told}, wanted at least "
            f"{MIN_SNR_DB:g} dB and, where what the outputs vary by has less than that ({varying:.1f} dB here), "
            f"{MIN_AGREEMENT:.0%}"
        )
    return f"over the calibration windows {told}"


def staying_float(session: dict[str, str]) -> dict[str, str]:
    """The session entries, with the one that stops ONNX Runtime from quantizing by itself, while it loads the graph,
    the weights of an operator that was left in float32 between int8 ones.
    """
    others = session.get(DISABLED, "")
    return {**session, DISABLED: f"{others};{WEIGHT_QUANTIZER}" if others else WEIGHT_QUANTIZER}


def weighted(body: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights can become int8."""
    constants = {tensor.name for tensor in body.graph.initializer}
    return [
        node.name
        for node in body.graph.node
        if node.op_type in WEIGHTED and any(name in constants for name in node.input[1:2])
    ]


def dynamic(*, reduce_range: bool = False) -> Step:
    """A step that makes the weights of LSTM, MatMul and Gemm int8, and activations as they come; never of Conv.

    Activations are scaled by their range over the whole batch, so that a window's result would depend on the others
    in its batch: the batch axis is fixed to 1. reduce_range: 7-bit weights, for x86 without VNNI.
    The step raises ExportError when less than MIN_SHARE of the weights becomes int8.
    """
    return lambda artifact: _dynamic(artifact, reduce_range=reduce_range)


def _dynamic(artifact: Artifact, *, reduce_range: bool) -> Artifact:
    ready = prepared(artifact, "dynamic int8")
    body = _quantized_dynamically(ready.body, reduce_range=reduce_range)
    quantized = ready.parts.joined(body)
    _fix_batch(quantized)
    done = Counter(node.op_type for node in body.graph.node if node.op_type in INTEGER)
    bits = ", 7-bit weights" if reduce_range else ""
    return _reported(
        changed(
            artifact,
            quantized,
            f"dynamic int8, weights per tensor{bits}; batch axis fixed to 1, as activations are scaled over the batch",
            name="int8-dynamic",
            precision="int8",
        ),
        ready,
        body,
        done,
        DYNAMIC_FLOAT,
    )


def _reported(
    artifact: Artifact,
    ready: Prepared,
    body: onnx.ModelProto,
    done: Counter[str],
    why: dict[str, str],
    *,
    keep: tuple[str, ...] = (),
) -> Artifact:
    """The quantized artifact with what was quantized, what was not, and what ONNX Runtime makes of it.

    Raises ExportError when most of the weights, those of nodes to keep left out, stayed in float32. body: quantized.
    done: operators that compute on int8 there. why: the reason of each such operator.
    """
    had, left = _float_weights(ready.body, keep), _float_weights(body, keep)
    share = 1 - left.total() / had.total() if had else 0.0
    if share < MIN_SHARE:
        reasons = "; ".join(why[op] for op in left if op in why)
        raise ExportError(
            f"{artifact.name}: only {share:.1%} of the weights would become int8, wanted at least {MIN_SHARE:.0%}. "
            f"In float32 stay {_weights(left)}{': ' if reasons else ''}{reasons}"
        )
    front = ready.parts.front
    note = f"; {len(front)} front-end nodes left in float32" if front else ""
    stayed = f"; in float32 stay {_weights(left)}" if left else ""
    told = f"quantized: {listed(done)}, {share:.1%} of the weights{stayed}{note}"
    return msgspec.structs.replace(artifact, steps=(*artifact.steps, told, str(islands(artifact))))


def _weights(counts: Counter[str]) -> str:
    return ", ".join(f"{count} weights of {op}" for op, count in counts.most_common()) or "no weights"


def _float_weights(proto: onnx.ModelProto, without: tuple[str, ...]) -> Counter[str]:
    """Elements of float32 weights by the operator that reads them. without: names of nodes that do not count."""
    import onnx

    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    counts: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.name not in without and node.op_type in (*WEIGHTED, *RECURRENT, *DYNAMIC):
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


def qdq(
    body: onnx.ModelProto, found: dict[str, Range], scheme: Scheme, *, only: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """The body with quantizers around its operators. found: of all its activations. only: nodes, where not all.

    Raises ExportError with what ONNX Runtime's quantizer says when it fails.
    """
    load_onnxruntime()
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    activations, weights = (ort.QuantType[kind] for kind in SCHEMES[scheme.types])
    limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}
    try:
        with silenced():
            quantizer = QDQQuantizer(
                save_and_reload_model_with_shape_infer(body),
                per_channel=True,
                reduce_range=scheme.reduce_range,
                weight_qType=weights,
                activation_qType=activations,
                tensors_range=TensorsData(ort.CalibrationMethod.MinMax, limits),
                nodes_to_quantize=list(only),
                nodes_to_exclude=list(scheme.keep),
                op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry}),
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
    except Exception as error:
        raise ExportError(f"quantization failed: {type(error).__name__}: {one_line(error)}") from error
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


def _quantized_dynamically(body: onnx.ModelProto, *, reduce_range: bool) -> onnx.ModelProto:
    load_onnxruntime()
    from onnxruntime import quantization as ort

    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        target = Path(folder) / "quantized.onnx"
        try:
            with silenced():
                ort.quantize_dynamic(
                    body,
                    target,
                    op_types_to_quantize=list(DYNAMIC),
                    per_channel=False,
                    reduce_range=reduce_range,
                    weight_type=ort.QuantType.QInt8,
                    nodes_to_quantize=None,
                    nodes_to_exclude=None,
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
