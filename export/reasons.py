"""Why a node of an optimized graph is not computed in int8."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, get_args

from export.artifact import DEQUANTIZE, QDQ, Artifact, ancestors, is_integer, name_nodes, parse
from export.node_times import NodeTime

if TYPE_CHECKING:
    import onnx

Kind = Literal["int8", "float32", "float16", "conversion", "shape", "front-end"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CONVERSIONS = (*QDQ, "DynamicQuantizeLinear", "Cast")
FOLDED = "session.disable_quant_qdq"
MOVES_DATA = (
    "Expand Flatten Gather GatherElements Reshape Slice Squeeze Tile Transpose Unsqueeze Resize Split MaxPool "
    "ReduceMax ReduceMin ArgMax Relu Clip"
)
COMPUTES = "AveragePool LeakyRelu GlobalAveragePool Sigmoid Softmax Add Mul Concat Conv MatMul Gemm Where"
FUSED = "FusedConv FusedGemm FusedMatMul TransposeMatMul"
INT8 = frozenset(f"{MOVES_DATA} {COMPUTES} {FUSED}".split())
"""What ONNX Runtime 1.32 computes in int8, or passes int8 through, between quantizers on a CPU."""
RECURRENT = {
    "GRU": "ONNX Runtime has no int8 GRU (onnxruntime#9796)",
    "LSTM": "ONNX Runtime has only a dynamic int8 LSTM (onnxruntime#5747)",
    "RNN": "ONNX Runtime has no int8 RNN",
}
DYNAMIC = ("DynamicQuantizeLSTM", "MatMulInteger", "QAttention")
RENAMED = ("/", "_token_", "_nchwc", "_quant")
"""What ONNX Runtime's optimizations and the quantizer append to a node's name."""
LOAD_ONLY = "int8 only in the file: the weights are float32 again once it is loaded"


def kind_of(time: NodeTime) -> Kind:
    """What it computes in; a front-end cannot be told so."""
    if time.op in CONVERSIONS:
        return "conversion"
    if "int8" in time.dtype or any(word in time.op for word in ("QLinear", "Integer", "DynamicQuantize", "QGemm")):
        return "int8"
    if time.dtype == "float16":
        return "float16"
    return "float32" if time.dtype in ("float", "double", "") else "shape"


class Reasons:
    """Why nodes of the optimized graph are float32, by what the file's own graph says of them."""

    def __init__(self, artifact: Artifact, kept: Collection[str]) -> None:
        proto = parse(artifact.model)
        name_nodes(proto)
        self._nodes = {node.name: node for node in proto.graph.node}
        self._makers = {output: node for node in proto.graph.node for output in node.output}
        self._quantized = {node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
        self._front = ancestors(proto.graph, artifact.front_end)
        self._kept = kept
        self._steps = " ".join(step for step in artifact.steps if "kept in float32" in step)
        self._is_folded = artifact.session.get(FOLDED) == "1"
        self._is_dynamic = any(node.op_type in DYNAMIC for node in proto.graph.node)
        self._is_quantized = any(is_integer(node) for node in proto.graph.node)

    def front_of(self, graph: onnx.GraphProto) -> set[str]:
        """Nodes of the optimized graph that belong to the front-end: what makes its tensors, and all before them."""
        tensors = {name for node in self._front for name in self._nodes[node].output}
        made = {name for node in graph.node for name in node.output if name in tensors}
        return {name for tensor in made for name in ancestors(graph, tensor)}

    def why(self, time: NodeTime, kind: Kind, output: str) -> str:
        """Empty for what is int8, for what no one computes in int8, and for a model that is not quantized.

        output: the node's first.
        """
        if kind not in ("float32", "front-end") or not self._is_quantized:
            return ""
        source = self._nodes.get(self._before(time.name)) or self._makers.get(output)
        op, names = (time.op, {time.name}) if source is None else (source.op_type, {source.name, time.name})
        between = source is not None and any(map(self._is_dequantized, source.input)) and output in self._quantized
        reasons = (
            (kind == "front-end", "belongs to the front-end"),
            (any(map(self._is_kept, names)), "kept on purpose: int8 would cost too much accuracy"),
            (self._is_folded, LOAD_ONLY),
            (op in RECURRENT, RECURRENT.get(op, "")),
            (self._is_dynamic, "dynamic int8 computes products with a weight and LSTM only"),
            (op not in INT8, f"ONNX Runtime has no int8 {op}"),
            (between, "ONNX Runtime does not fuse it with the quantizers around it"),
            (True, "left out by the quantizer"),
        )
        return next(reason for holds, reason in reasons if holds)

    def _before(self, name: str) -> str:
        """The longest name in the file that a name in the optimized graph comes from; "" for a new one."""
        known = (old for old in self._nodes if name == old or name.startswith(tuple(old + end for end in RENAMED)))
        return max(known, key=len, default="")

    def _is_kept(self, name: str) -> bool:
        """Whether a move kept this node, or a step says so."""
        return name in self._kept or (re.search(rf"(?<![\w./]){re.escape(name)}(?![\w./])", self._steps) is not None)

    def _is_dequantized(self, tensor: str) -> bool:
        maker = self._makers.get(tensor)
        return maker is not None and maker.op_type == DEQUANTIZE
