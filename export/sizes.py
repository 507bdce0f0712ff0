"""Where the bytes of an ONNX file go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from export.artifact import QDQ, Artifact, ancestors, is_integer, name_nodes, parse

if TYPE_CHECKING:
    import onnx

Part = Literal[
    "int8 weights",
    "float32 weights",
    "float16 weights",
    "scales and zero points",
    "int32 biases",
    "other constants",
    "front-end constants",
    "nodes",
    "tensor types",
    "other",
]
PARTS: tuple[Part, ...] = get_args(Part)
BY_DTYPE: dict[str, Part] = {
    "INT8": "int8 weights",
    "UINT8": "int8 weights",
    "FLOAT": "float32 weights",
    "FLOAT16": "float16 weights",
    "INT32": "int32 biases",
}


class TensorSize(msgspec.Struct, frozen=True):
    """A constant. dtype: as ONNX says it, in lower case. reader: type of the operator that uses it, "" for none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    part: Part
    reader: str


class Size(msgspec.Struct, frozen=True):
    """Bytes. parts add up to total. tensors: every constant, the largest first."""

    total: int
    parts: dict[Part, int]
    tensors: tuple[TensorSize, ...]


def sizes(artifact: Artifact) -> Size:
    """What the file is made of; "other" is what stands around it: the header, field lengths, inputs and outputs."""
    proto = parse(artifact.model)
    name_nodes(proto)
    graph = proto.graph
    constants = _constants(graph)
    readers = _readers(graph, constants)
    front = ancestors(graph, artifact.front_end)
    users = {tensor: node.op_type for node in graph.node for tensor in node.input}
    tensors = [
        _measured(name, tensor, readers.get(name, []), front, reader=_behind(readers.get(name, []), users))
        for name, tensor in constants.items()
    ]
    parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for tensor in tensors:
        parts[tensor.part] += tensor.size
    inside = sum(a.t.ByteSize() for node in graph.node if node.op_type == "Constant" for a in node.attribute)
    parts["nodes"] = sum(node.ByteSize() for node in graph.node) - inside
    parts["tensor types"] = sum(value.ByteSize() for value in graph.value_info)
    parts["other"] = len(artifact.model) - sum(parts.values())
    return Size(len(artifact.model), parts, tuple(sorted(tensors, key=lambda tensor: -tensor.size)))


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and what Constant nodes hold, by the name under which they are read."""
    held = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.HasField("t")
    }
    return {**{tensor.name: tensor for tensor in graph.initializer}, **held}


def _readers(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto]
) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    """Who reads each constant, and as which input."""
    found: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in constants:
                found.setdefault(name, []).append((node, slot))
    return found


def _measured(
    name: str, tensor: onnx.TensorProto, readers: list[tuple[onnx.NodeProto, int]], front: set[str], *, reader: str
) -> TensorSize:
    import onnx

    dtype = onnx.TensorProto.DataType.Name(tensor.data_type)
    part = BY_DTYPE.get(dtype, "other constants")
    if readers and all(node.name in front for node, _ in readers):
        part = "front-end constants"
    elif any(_is_scale(node, slot, tensor) for node, slot in readers):
        part = "scales and zero points"
    return TensorSize(name, dtype.lower(), tuple(tensor.dims), tensor.ByteSize(), part, reader)


def _behind(readers: list[tuple[onnx.NodeProto, int]], users: dict[str, str]) -> str:
    """Type of the operator that uses a constant, a quantizer between them passed over. users: tensor to operator."""
    for node, _ in readers[:1]:
        return users.get(node.output[0], node.op_type) if node.op_type in QDQ else str(node.op_type)
    return ""


def _is_scale(node: onnx.NodeProto, slot: int, tensor: onnx.TensorProto) -> bool:
    """Whether an input says how values are quantized; in operators on int8 those are the ones of at most one axis."""
    if node.op_type in QDQ:
        return slot > 0
    return is_integer(node) and len(tensor.dims) <= 1 and tensor.data_type != tensor.INT32
