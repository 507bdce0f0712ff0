"""Weight-only int8: a small file for recurrent nets, which ONNX Runtime cannot compute in int8.

Values are stored as int8 with a float scale per row and made float32 again when the model is loaded. That saves
storage and download, not time or memory, and it needs the session entry that makes ONNX Runtime fold them at load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.artifact import DEQUANTIZE, RECURRENT, Artifact, Step, changed, operators, parse
from export.prepare import MIN_OPSET, prepared

if TYPE_CHECKING:
    import onnx

FOLDED = {"session.disable_quant_qdq": "1"}
MIN_ELEMENTS = 1024  # below it the scales and the extra operator eat what int8 saves
PRECISION = "int8-weights"
LARGEST = 127


def int8(*, min_elements: int = MIN_ELEMENTS) -> Step:
    """A step that stores float32 weights of at least min_elements as int8: symmetric, one scale per output row.

    A row is a gate's for GRU, LSTM and RNN, shared by both directions, and a channel's elsewhere. The front-end keeps
    its float32. The step raises ExportError when nothing is large enough or the graph is quantized already.
    """
    if min_elements < 1:
        raise ExportError(f"min_elements is {min_elements}, wanted at least 1")
    return lambda artifact: _int8(artifact, min_elements)


def _int8(artifact: Artifact, min_elements: int) -> Artifact:
    import onnx

    ready = prepared(artifact, "weight-only int8", min_opset=MIN_OPSET)
    graph = ready.body.graph
    total = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    axes = _axes(graph)
    chosen = [t for t in graph.initializer if t.name in axes and int(np.prod(t.dims)) >= min_elements]
    if not chosen:
        raise ExportError(
            f"weight-only int8: no float32 weight of {min_elements} elements or more; the graph has "
            f"{operators(parse(artifact.model))} and {total} elements behind the front-end"
        )
    for tensor in chosen:
        stored, scale = rows_to_int8(onnx.numpy_helper.to_array(tensor), axes[tensor.name])
        _replace(graph, tensor, stored, scale, axes[tensor.name])
    elements = sum(int(np.prod(tensor.dims)) for tensor in chosen)
    told = (
        f"weight-only int8: {len(chosen)} weights, {elements} of {total} elements, symmetric per row; "
        "session.disable_quant_qdq=1, so that they are folded when the model is loaded"
    )
    done = changed(artifact, ready.parts.joined(ready.body), told, name="int8-weights", precision=PRECISION)
    return msgspec.structs.replace(done, session={**artifact.session, **FOLDED})


def rows_to_int8(weight: Floats, axis: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int8]], Floats]:
    """A weight as int8 in [-127, 127] with its scales, one per index of the axis: largest magnitude / 127."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight).max(axis=others)
    scale: Floats = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    stored = np.clip(np.rint(weight / scale.reshape(shape)), -LARGEST, LARGEST).astype(np.int8)
    return stored, scale


def _axes(graph: onnx.GraphProto) -> dict[str, int]:
    """Float32 initializers that are weights, each with its row axis; those read as anything else are left out."""
    import onnx

    ranks = {t.name: len(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    found: dict[str, set[int | None]] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in ranks:
                found.setdefault(name, set()).add(_axis(node, slot, ranks[name]))
    return {name: axis for name, (axis, *more) in found.items() if axis is not None and not more}


def _axis(node: onnx.NodeProto, slot: int, rank: int) -> int | None:
    """Along which the rows of an operator's input lie, None when it is no weight."""
    if node.op_type in RECURRENT:
        return 1 if slot in {1, 2} else None  # W and R: (directions, gates x hidden, in)
    if slot != 1 or rank < 2:
        return 0 if node.op_type == "Gather" and slot == 0 and rank > 1 else None
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        return 0 if transposed else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1, "Attention": 1}.get(node.op_type)


def _replace(
    graph: onnx.GraphProto,
    tensor: onnx.TensorProto,
    stored: np.ndarray[tuple[int, ...], np.dtype[np.int8]],
    scale: Floats,
    axis: int,
) -> None:
    """Put int8 values, scales and a DequantizeLinear in the place of a float32 initializer, under its name."""
    import onnx

    name = tensor.name
    values, scales = f"{name}_int8", f"{name}_scale"
    graph.initializer.remove(tensor)
    graph.initializer.extend(
        [onnx.numpy_helper.from_array(stored, values), onnx.numpy_helper.from_array(scale, scales)]
    )
    node = onnx.helper.make_node(DEQUANTIZE, [values, scales], [name], name=f"{name}_dequantize", axis=axis)
    graph.node.insert(0, node)
