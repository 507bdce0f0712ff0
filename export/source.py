"""An ONNX file as the float32 original of a search: asked what can be quantized and judged, refused with the fact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import ExportError, ModelError
from edge_runtime.model.onnx_graph import read_facts
from edge_runtime.model.policy import objections
from edge_runtime.records import Floats
from export import probe
from export.artifact import Artifact, batch_of, name_nodes, parse, require_float32
from export.prepare import MIN_OPSET
from export.probe import Failure
from export.quiet import one_line
from export.signature import Graph, Tensor, of

if TYPE_CHECKING:
    import onnx

SEED = 0
MOST_NAMED = 3
PAIR = 2
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""How far a window's float32 output may move when another window is in its batch."""


def check_source(model: bytes | Path, *, sample: Floats | None = None) -> Artifact:
    """The float32 artifact of an ONNX file: one float32 input, one float32 output, weights inside.

    sample: (n, ...) windows, float32; they close the axes behind the batch that the graph leaves open. Without them
    noise is run. The batch axis may be open or 1.
    Raises ExportError with what was found and what was wanted.
    """
    name, raw = (model.name, _bytes(model)) if isinstance(model, Path) else ("the model", model)
    _check_file(name, raw)
    proto = _whole(name, raw)
    opset = _check_opset(name, proto)
    asked = Artifact(name, "float32", proto.SerializeToString(deterministic=True), "", "", ())
    require_float32(asked, proto, "compress")
    graph = of(asked)
    window, output = _the_one(name, graph, "input"), _the_one(name, graph, "output")
    _close(name, proto, window, sample)
    digest = hashlib.sha256(raw).hexdigest()
    artifact = Artifact(
        name="float32",
        precision="float32",
        model=proto.SerializeToString(deterministic=True),
        input=window.name,
        output=output.name,
        steps=(f"ONNX file {name}, sha256 {digest}, opset {opset}, {len(proto.graph.node)} nodes",),
    )
    _check_runs(name, artifact, _windows(proto, sample), is_real=sample is not None)
    return artifact


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error


def _check_file(name: str, raw: bytes) -> None:
    """Raises ExportError for weights that lie in another file, and for what a device would refuse to load."""
    try:
        facts = read_facts(raw)
    except ModelError as error:
        raise ExportError(f"{name}: not an ONNX file: {error}") from error
    if facts.external_tensors:
        where = ", ".join(ascii(place) for place in sorted(set(facts.locations))[:MOST_NAMED]) or "no named place"
        raise ExportError(
            f"{name}: external data: {facts.external_tensors} of {facts.tensors} tensors lie outside it, in {where}; "
            "wanted one file with all weights inside: onnx.save(onnx.load(PATH), NEW_PATH, save_as_external_data=False)"
        )
    for objection in objections(facts, {}):
        raise ExportError(f"{name}: {objection}")


def _whole(name: str, raw: bytes) -> onnx.ModelProto:
    """The graph with a name for every node, its own functions written out."""
    from onnx.inliner import inline_local_functions

    try:
        proto = parse(raw)
        proto = inline_local_functions(proto) if proto.functions else proto
    except Exception as error:  # protobuf's DecodeError has no public home, nor has what the inliner raises
        raise ExportError(f"{name}: not an ONNX file: {one_line(error)}") from error
    if not proto.graph.output:
        raise ExportError(f"{name}: not an ONNX file: it has no graph with an output")
    name_nodes(proto)
    return proto


def _check_opset(name: str, proto: onnx.ModelProto) -> int:
    opset = max((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    if opset < MIN_OPSET:
        raise ExportError(
            f"{name}: opset {opset} is too old for int8, wanted at least {MIN_OPSET}: export again with a newer "
            "opset_version, or try onnx.version_converter.convert_version"
        )
    return int(opset)


def _the_one(name: str, graph: Graph, side: str) -> Tensor:
    """The only input or output, which must be float32 with a known number of axes."""
    tensors = graph.inputs if side == "input" else graph.outputs
    if len(tensors) != 1:
        listed = " · ".join(map(str, tensors)) or "none"
        raise ExportError(
            f"{name}: {len(tensors)} {side}s ({listed}), wanted one; a model with a state or constant inputs is packed "
            "as it is by `edge-export pack`"
        )
    found = tensors[0]
    if found.dtype != "float32":
        raise ExportError(f"{name}: {side} {found.name} is {found.dtype}, wanted float32")
    if side == "input" and (not found.has_rank or len(found.shape) < 2):
        raise ExportError(f"{name}: {side} {found}, wanted a batch axis and the axes of a window")
    return found


def _close(name: str, proto: onnx.ModelProto, window: Tensor, sample: Floats | None) -> None:
    """Fix the axes behind the batch to those of the sample. Raises ExportError when they stay open or do not fit."""
    shape = tuple(size or None for size in window.shape[1:])  # old exporters write 0 for an open axis
    batch = window.shape[0]
    if batch not in (None, 0, -1, 1):
        raise ExportError(f"{name}: the batch axis of {window.name} is fixed to {batch}, wanted an open one or 1")
    if sample is None and None in shape:
        raise ExportError(f"{name}: {window} leaves axes of a window open; give a sample window, which closes them")
    given = shape if sample is None else sample.shape[1:]
    fits = len(given) == len(shape) and all(size in (None, wanted) for size, wanted in zip(shape, given, strict=True))
    if sample is not None and (not fits or sample.dtype != np.float32):
        raise ExportError(f"{name}: {window}, the sample is {sample.dtype} {sample.shape}")
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    words = {axis.dim_param: size for axis, size in zip(list(axes)[1:], given, strict=True) if axis.dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in words:
                axis.dim_value = words[axis.dim_param]
    for axis, size in zip(list(axes)[1:], given, strict=True):
        axis.dim_value = size
    if batch != 1 and not axes[0].dim_param:
        axes[0].dim_param = "batch"


def _windows(proto: onnx.ModelProto, sample: Floats | None) -> Floats:
    """Two windows that differ: the sample's first, else noise."""
    if sample is not None and len(sample) >= PAIR:
        return sample[:PAIR]
    shape = [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    return np.random.default_rng(SEED).standard_normal((PAIR, *shape), dtype=np.float32)


def _check_runs(name: str, artifact: Artifact, windows: Floats, *, is_real: bool) -> None:
    """Raises ExportError when it does not run, or a window's result depends on the others in its batch."""
    alone = _ran(name, artifact, windows[:1])
    if is_real and not np.isfinite(alone).all():
        raise ExportError(f"{name}: the output for the first sample window holds NaN or infinity")
    if batch_of(parse(artifact.model)) == 1:
        return
    together = _ran(name, artifact, windows)[:1]
    if together.shape == alone.shape and np.allclose(together, alone, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
        return
    differ = f"shape {together.shape[1:]}, alone {alone.shape[1:]}"
    if together.shape == alone.shape:
        differ = f"an output that is off by {np.abs(together - alone).max():.3g}"
    raise ExportError(
        f"{name}: a window has {differ} when another one is in its batch; fix the batch axis to 1: "
        "onnxruntime.tools.make_dynamic_shape_fixed"
    )


def _ran(name: str, artifact: Artifact, windows: Floats) -> Floats:
    outputs = probe.run(artifact, windows)
    if isinstance(outputs, Failure):
        raise ExportError(f"{name}: does not run on a batch of {len(windows)}: {outputs.reason}")
    if outputs.ndim < 2 or len(outputs) != len(windows):
        raise ExportError(f"{name}: a batch of {len(windows)} gives {outputs.shape}, wanted the batch axis first")
    return outputs
