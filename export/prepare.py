"""ONNX Runtime's pre-processing before a quantization, on what lies behind the front-end."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from export import front_end
from export.artifact import Artifact, name_nodes, parse, require_float32
from export.front_end import Cut
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13  # QuantizeLinear and DequantizeLinear have an axis since then


class Prepared(msgspec.Struct, frozen=True):
    """parts: the graph, cut behind its front-end. body: the part behind it after shape inference, folding and fusions;
    its nodes have names, the same ones every time.
    """

    parts: Cut
    body: onnx.ModelProto


def prepared(artifact: Artifact, step: str, *, min_opset: int = 1) -> Prepared:
    """step: what wants it, for errors. Raises ExportError when the graph is no float32 one, is of an opset below
    min_opset, or cannot be processed.

    Symbolic shape inference is left out: torch's exporter has recorded the shapes already, and ONNX Runtime's fails
    on some of them (1.32, a MatMul it knows no rank of).
    """
    load_onnxruntime()
    from onnxruntime.quantization.preprocess import quant_pre_process  # after telemetry is off

    proto = parse(artifact.model)
    require_float32(artifact, proto, step)
    opset = max(entry.version for entry in proto.opset_import if entry.domain == "")
    if opset < min_opset:
        raise ExportError(f"{step}: the graph has opset {opset}, wanted at least {min_opset}")
    parts = front_end.cut(artifact, step)
    with tempfile.TemporaryDirectory(prefix="edge-export-") as name:
        source, target = Path(name) / "body.onnx", Path(name) / "prepared.onnx"
        source.write_bytes(parts.body.SerializeToString())
        try:
            with silenced():
                quant_pre_process(
                    source, target, skip_optimization=False, skip_onnx_shape=False, skip_symbolic_shape=True
                )
        except Exception as error:
            raise ExportError(
                f"{step}: pre-processing before quantization failed: {type(error).__name__}: {one_line(error)}"
            ) from error
        body = parse(target.read_bytes())
    name_nodes(body)
    return Prepared(parts, body)
