"""Static QDQ int8: only how, never whether. The front-end stays float32, and nothing quantized is an error."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export.artifact import Artifact, Step, ancestors, parse
from export.quiet import one_line, silenced
from export.recipe import Splits

if TYPE_CHECKING:
    import onnx

CALIBRATION_WINDOWS = 256
CALIBRATION_BATCH = 32
SCHEMES = {"u8s8": ("QUInt8", "QInt8"), "s8s8": ("QInt8", "QInt8")}  # activations, weights
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DEQUANTIZE = "DequantizeLinear"
QDQ = (DEQUANTIZE, "QuantizeLinear")


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
    for int8 and then destroys the model. The step raises ExportError when nothing could be quantized.
    """
    if scheme not in SCHEMES:
        raise ExportError(f"quantization scheme {scheme!r}, wanted one of {', '.join(SCHEMES)}")
    if method not in METHODS:
        raise ExportError(f"calibration method {method!r}, wanted one of {', '.join(METHODS)}")
    settings = _Settings(scheme, method, reduce_range)
    return lambda artifact: _qdq(artifact, windows, settings)


def _qdq(artifact: Artifact, windows: Floats, settings: _Settings) -> Artifact:
    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        prepared = _prepared(artifact, Path(folder))
        front = ancestors(prepared.graph, artifact.front_end)
        reader = _Windows(artifact.input, windows)
        quantized = _quantized(prepared, reader, Path(folder), settings=settings, kept=sorted(front))
    done = quantized_operators(quantized)
    _check(quantized, artifact.front_end, done)
    bits = ", 7-bit weights" if settings.reduce_range else ""
    counts = ", ".join(f"{n} {op}" for op, n in sorted(done.items()))
    note = f"; {len(front)} front-end nodes left in float32" if front else ""
    return msgspec.structs.replace(
        artifact,
        name=f"int8-{settings.scheme}",
        precision="int8",
        model=quantized.SerializeToString(deterministic=True),
        steps=(
            *artifact.steps,
            f"static QDQ int8 {settings.scheme} per channel{bits}, {settings.method} over {len(windows)} train windows",
            f"quantized: {counts}{note}",
        ),
    )


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


def _prepared(artifact: Artifact, folder: Path) -> onnx.ModelProto:
    """The graph after ORT's pre-processing (shape inference, fusions), its front-end boundary kept.

    As an output of the graph the boundary cannot be fused away; the node metadata of the exporter would not
    survive this step. Symbolic shape inference is left out: torch's exporter has recorded the shapes already, and
    ONNX Runtime's fails on some of them (1.32, a MatMul it knows no rank of).
    """
    load_onnxruntime()
    from onnxruntime.quantization.preprocess import quant_pre_process  # after telemetry is off

    proto = parse(artifact.model)
    if artifact.front_end:
        proto.graph.output.append(next(v for v in proto.graph.value_info if v.name == artifact.front_end))
    source, target = folder / "exported.onnx", folder / "prepared.onnx"
    source.write_bytes(proto.SerializeToString())
    try:
        with silenced():
            quant_pre_process(source, target, skip_optimization=False, skip_onnx_shape=False, skip_symbolic_shape=True)
    except Exception as error:
        raise ExportError(
            f"pre-processing before quantization failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    prepared = parse(target.read_bytes())
    for index, node in enumerate(prepared.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    if artifact.front_end:
        prepared.graph.output.remove(next(v for v in prepared.graph.output if v.name == artifact.front_end))
    return prepared


class _Settings(msgspec.Struct, frozen=True):
    scheme: str
    method: str
    reduce_range: bool


class _Windows:
    """Calibration inputs, a batch at a time, as ORT's calibrator asks for them."""

    def __init__(self, name: str, windows: Floats) -> None:
        self._batches = iter(
            [{name: windows[i : i + CALIBRATION_BATCH]} for i in range(0, len(windows), CALIBRATION_BATCH)]
        )

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


def _check(proto: onnx.ModelProto, front_end: str, done: Counter[str]) -> None:
    if not done:
        found = Counter(node.op_type for node in proto.graph.node if node.op_type not in QDQ)
        listed = ", ".join(f"{count} {op}" for op, count in found.most_common())
        raise ExportError(
            f"quantization changed no {', '.join(WEIGHTED)}; the graph has {listed}. Every such operator is missing "
            "or belongs to the front-end"
        )
    before = ancestors(proto.graph, front_end)
    touched = [node.name for node in proto.graph.node if node.name in before and node.op_type in QDQ]
    if touched:
        raise ExportError(f"quantization reached into the front-end: {', '.join(touched)}")
