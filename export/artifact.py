"""A model between the steps from torch to bundle, and the few facts about its graph that several steps need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.errors import ExportError, ModelError
from edge_runtime.model.session import CPU, SessionSettings, create
from edge_runtime.records import Floats
from export.quiet import one_line

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from torch import nn

BATCH = 64
DEQUANTIZE = "DequantizeLinear"
QDQ = (DEQUANTIZE, "QuantizeLinear")
RECURRENT = ("GRU", "LSTM", "RNN")
UNLISTED_IR = 4  # an initializer need not be an input since then


class Artifact(msgspec.Struct, frozen=True):
    """One ONNX model on its way to a bundle.

    name: of the variant, as tables show it. precision: as the manifest shows it. model: ONNX bytes, one input, one
    output, first axis the batch: dynamic, or 1 where a step says so. front_end: the tensor up to which everything
    stays float32, "" without a front-end. steps: what was done to it, in order. session: ONNX Runtime session config
    entries that it needs. module: the torch network it was exported from, None for one that came as ONNX or was
    changed as ONNX since.
    """

    name: str
    precision: str
    model: bytes
    input: str
    output: str
    steps: tuple[str, ...]
    front_end: str = ""
    session: dict[str, str] = {}
    module: nn.Module | None = None

    @property
    def size_kb(self) -> float:
        """Size of the ONNX file in kilobytes (1000 bytes)."""
        return len(self.model) / 1000


Step = Callable[[Artifact], Artifact]


def changed(artifact: Artifact, proto: onnx.ModelProto, *steps: str, name: str = "", precision: str = "") -> Artifact:
    """The artifact with another graph, which torch no longer has. steps: what was done. "" keeps the old name."""
    return msgspec.structs.replace(
        artifact,
        name=name or artifact.name,
        precision=precision or artifact.precision,
        model=proto.SerializeToString(deterministic=True),
        steps=(*artifact.steps, *steps),
        module=None,
    )


def parse(model: bytes) -> onnx.ModelProto:
    """The onnx.ModelProto of ONNX bytes; initializers that are listed as inputs too, as IR version 3 wants, are not."""
    import onnx  # only export needs it, and `edge-export --help` must not wait for it

    proto = onnx.load_from_string(model)
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) < len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, UNLISTED_IR)
    return proto


def outputs_of(artifact: Artifact, inputs: Floats, *, provider: str = CPU) -> Floats:
    """What the graph returns for inputs, in batches as large as it takes, one thread.

    inputs: (n, ...) float32 in the model's layout. Raises ModelError when ONNX Runtime refuses or fails the model.
    """
    session = create(artifact.model, settings=SessionSettings(provider=provider), entries=artifact.session)
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) else BATCH
    parts = [
        ran(session, artifact.output, {artifact.input: np.ascontiguousarray(inputs[i : i + batch])})
        for i in range(0, len(inputs), batch)
    ]
    joined: Floats = np.concatenate(parts)
    return joined


def ran(session: onnxruntime.InferenceSession, output: str, feed: dict[str, Any]) -> Floats:
    """One output of one run. Raises ModelError with what ONNX Runtime says when it fails."""
    try:
        found: Floats = session.run([output], feed)[0]
    except Exception as error:
        raise ModelError(f"ONNX Runtime does not run the model: {one_line(error)}") from error
    return found


def ancestors(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of all nodes that the tensor is computed from, its own included; none for a tensor that no node makes."""
    maker = {output: node for node in graph.node for output in node.output if output}  # "" is an output left out
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found


def name_nodes(proto: onnx.ModelProto) -> None:
    """Give every node without a name one: `ancestors` and the quantizers know nodes by name."""
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"


def batch_of(proto: onnx.ModelProto) -> int | str:
    """The first axis of the input: a number when it is fixed, else its name ("" when it has none)."""
    axis = proto.graph.input[0].type.tensor_type.shape.dim[0]
    return int(axis.dim_value) if axis.HasField("dim_value") else str(axis.dim_param)


def operators(proto: onnx.ModelProto) -> str:
    """Operator types with their counts, most frequent first, quantizers left out."""
    found = Counter(node.op_type for node in proto.graph.node if node.op_type not in QDQ)
    return listed(found)


def listed(counts: Counter[str]) -> str:
    """`3 Conv, 1 Gemm`, or `nothing`."""
    return ", ".join(f"{count} {op}" for op, count in counts.most_common()) or "nothing"


def require_float32(artifact: Artifact, proto: onnx.ModelProto, step: str) -> None:
    """Raises ExportError for integer operators or float16 weights: the step would undo or double their work."""
    import onnx

    integer = Counter(node.op_type for node in proto.graph.node if is_integer(node))
    if integer:
        raise ExportError(f"{step}: {artifact.name} is quantized already ({listed(integer)}), wanted a float32 graph")
    halves = [tensor for tensor in tensors(proto) if tensor.data_type == onnx.TensorProto.FLOAT16]
    if halves:
        raise ExportError(f"{step}: {artifact.name} has {len(halves)} float16 weights already, wanted a float32 graph")


def parts(proto: onnx.ModelProto) -> Iterator[Any]:
    """The graph and its functions, and every graph inside a node of theirs."""
    waiting: list[Any] = [proto.graph, *proto.functions]
    while waiting:
        part = waiting.pop()
        yield part
        for node in part.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of the model."""
    for part in parts(proto):
        yield from getattr(part, "initializer", ())
        sparse = [*getattr(part, "sparse_initializer", ())]
        for node in part.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else []
                yield from attribute.tensors
                sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                sparse += attribute.sparse_tensors
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)


def is_integer(node: onnx.NodeProto) -> bool:
    """Whether an operator quantizes, dequantizes or computes on quantized values."""
    kind: str = node.op_type
    return kind in QDQ or "Integer" in kind or kind.startswith(("QLinear", "DynamicQuantize", "QGemm", "QAttention"))
