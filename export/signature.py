"""What somebody else's ONNX file asks for and gives, read without running it; nothing outside its folder is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ExportError, ModelError
from edge_runtime.model.bundle import MAX_BUNDLE_BYTES
from edge_runtime.model.onnx_graph import read_facts
from edge_runtime.model.policy import objections
from export.artifact import DEQUANTIZE, Artifact, is_integer, parts, tensors
from export.quiet import one_line

if TYPE_CHECKING:
    import onnx

PASSING_ON = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "QuantizeLinear", "DequantizeLinear"}
TYPE_WORDS = {"float": "float32", "double": "float64"}


class Tensor(msgspec.Struct, frozen=True):
    """An input or output of a graph.

    dtype: as NumPy says it; "sequence", "map" or "optional" for what is no tensor. shape: None for an axis that the
    graph leaves open. has_rank: False where it does not even say how many axes there are; shape is () then.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    has_rank: bool = True

    def __str__(self) -> str:
        if not self.has_rank:
            return f"{self.name} {self.dtype} of any shape"
        axes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} ({axes})"


class Graph(msgspec.Struct, frozen=True):
    """An ONNX model. file: where it came from, in errors. model: ONNX bytes, whole. steps: how it came to be.

    made_by: operator type behind each output, those that only pass values on left out. precision: float32, float16,
    int8, or what the export steps say. session: ONNX Runtime session config entries that it needs.
    """

    file: str
    model: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    made_by: dict[str, str]
    precision: str
    steps: tuple[str, ...]
    session: dict[str, str] = {}

    def listed(self) -> str:
        """Its inputs and outputs, two lines."""
        return f"  inputs:  {' · '.join(map(str, self.inputs))}\n  outputs: {' · '.join(map(str, self.outputs))}"


def read(path: Path) -> Graph:
    """Raises ExportError when the file is not ONNX, reaches outside its folder or needs operators of its own."""
    raw = _bytes(path)
    proto = _parsed(str(path), raw)
    embedded = _embed(path, proto)
    opened = _opened(proto)
    model = proto.SerializeToString(deterministic=True) if embedded or opened else raw
    _check_policy(str(path), model)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    digest, nodes = hashlib.sha256(raw).hexdigest(), len(proto.graph.node)
    steps = [f"packed from {path.name}, sha256 {digest}, opset {opset}, {nodes} nodes"]
    if embedded:
        steps.append(f"external data taken in: {', '.join(embedded)}")
    if opened:
        steps.append(f"axes of size 0 or -1 declared open: {', '.join(opened)}")
    return _graph(path.name, model, proto, _precision(proto), tuple(steps))


def of(artifact: Artifact) -> Graph:
    """What the export steps made, with its session entries and steps.

    Raises ExportError when it needs operators of its own.
    """
    _check_policy(artifact.name, artifact.model)
    proto = _parsed(artifact.name, artifact.model)
    found = _graph(artifact.name, artifact.model, proto, artifact.precision, artifact.steps)
    return msgspec.structs.replace(found, session=artifact.session)


def shaped(graph: Graph, shapes: Mapping[str, tuple[int | str, ...]]) -> Graph:
    """The graph with inputs that say no rank declared as told: input to shape, a word for an open axis."""
    from onnx import helper

    rankless = {tensor.name for tensor in graph.inputs if not tensor.has_rank} & shapes.keys()
    if not rankless:
        return graph
    proto = _parsed(graph.file, graph.model)
    for value in proto.graph.input:
        if value.name in rankless:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
    told = f"shape declared of {', '.join(f'{name} {shapes[name]}' for name in sorted(rankless))}"
    model = proto.SerializeToString(deterministic=True)
    return msgspec.structs.replace(graph, model=model, steps=(*graph.steps, told))


def _parsed(name: str, raw: bytes) -> onnx.ModelProto:
    import onnx

    try:
        proto = onnx.load_from_string(raw)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise ExportError(f"{name}: not an ONNX file: {one_line(error)}") from error
    if not proto.graph.output:
        raise ExportError(f"{name}: not an ONNX file: it has no graph with an output")
    return proto


def _graph(name: str, model: bytes, proto: onnx.ModelProto, precision: str, steps: tuple[str, ...]) -> Graph:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return Graph(
        file=name,
        model=model,
        inputs=tuple(_tensor(value) for value in proto.graph.input if value.name not in constants),
        outputs=tuple(_tensor(value) for value in proto.graph.output),
        made_by={value.name: _made_by(proto.graph, value.name) for value in proto.graph.output},
        precision=precision,
        steps=steps,
    )


def _opened(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Leave axes of size 0 or -1 open, by which old exporters mean just that; the inputs and outputs that had one."""
    found = []
    for value in (*proto.graph.input, *proto.graph.output):
        closed = [dim for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value") and dim.dim_value < 1]
        for dim in closed:
            dim.ClearField("dim_value")
        found += [value.name] if closed else []
    return tuple(found)


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BUNDLE_BYTES:
            raise ExportError(f"{path}: {size} bytes, larger than the limit of {MAX_BUNDLE_BYTES} of a bundle")
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    import onnx

    form = str(value.type.WhichOneof("value"))
    if form != "tensor_type":
        return Tensor(value.name, form.removesuffix("_type"), (), has_rank=False)
    tensor = value.type.tensor_type
    word = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Tensor(value.name, TYPE_WORDS.get(word, word), shape, has_rank=tensor.HasField("shape"))


def _check_policy(name: str, model: bytes) -> None:
    """Raises ExportError for what the device would refuse."""
    try:
        found = objections(read_facts(model), {})
    except ModelError as error:
        raise ExportError(f"{name}: {error}") from error
    for objection in found:
        raise ExportError(f"{name}: {objection}")


def _embed(path: Path, proto: onnx.ModelProto) -> tuple[str, ...]:
    """Take in tensors kept in files right beside the model; the names of those files.

    Raises ExportError for any other place, and for a link, which could lead anywhere.
    """
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    names: dict[str, int] = {}
    for tensor in tensors(proto):
        if not uses_external_data(tensor):
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location not in names:
            names[location] = _beside(path, location)
        if sum(names.values()) > MAX_BUNDLE_BYTES:
            raise ExportError(f"{path}: its external data is larger than the limit of {MAX_BUNDLE_BYTES} of a bundle")
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:
            raise ExportError(f"{path}: external data of {tensor.name}: {one_line(error)}") from error
    return tuple(sorted(names))


def _beside(path: Path, location: str) -> int:
    """Size in bytes of a file of external data."""
    file = path.parent / location
    if not location or location != Path(location).name or location in {".", ".."}:
        raise ExportError(f"{path}: external data in {location!r}, wanted a plain name of a file beside the model")
    if file.is_symlink() or not file.is_file():
        raise ExportError(f"{path}: external data in {location!r}, which is no plain file beside the model")
    if file.stat().st_nlink != 1:
        raise ExportError(f"{path}: external data in {location!r}, which has other names (hard links); copy it first")
    return file.stat().st_size


def _made_by(graph: onnx.GraphProto, tensor: str) -> str:
    makers = {output: node for node in graph.node for output in node.output}
    for _ in graph.node:
        node = makers.get(tensor)
        if node is None or node.op_type not in PASSING_ON or not node.input:
            break
        tensor = node.input[0]
    return makers[tensor].op_type if tensor in makers else ""


def _precision(proto: onnx.ModelProto) -> str:
    import onnx

    nodes = (node for part in parts(proto) for node in part.node)
    if any(is_integer(node) and node.op_type != DEQUANTIZE for node in nodes):
        return "int8"
    half = onnx.TensorProto.FLOAT16
    return "float16" if any(tensor.data_type == half for tensor in tensors(proto)) else "float32"
