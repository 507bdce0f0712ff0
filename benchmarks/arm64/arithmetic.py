"""How exactly a graph's outputs are the same on another processor, read off the graph.

static int8: to the bit. Every node is Quantize- or DequantizeLinear, or moves values, or is one that ONNX Runtime has
an integer kernel for, with DequantizeLinear before every float input and QuantizeLinear, or a Relu before one, after
every output: no kernel of its computes in float.
mixed: some do, before or after int8 parts, and their last bits move single activations by a quantization step.
float32: nothing is quantized but constants, which are dequantized when the model is loaded.
"""

from __future__ import annotations

from typing import Literal

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

Arithmetic = Literal["static int8", "mixed", "float32"]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
QUANTIZERS = {QUANTIZE, DEQUANTIZE, "DynamicQuantizeLinear", "MatMulNBits", "QLinearConv", "QLinearMatMul"}
MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Identity", "MaxPool", "Gather", "Split"}
INTEGER = {"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "Sigmoid", "LeakyRelu"}
GAIN = {**dict.fromkeys(MOVES, 1.0), "Relu": 1.0, "Clip": 1.0, "Tanh": 1.0, "Softmax": 0.5, "Sigmoid": 0.25}
"""How much of the largest difference between two inputs can be left between their outputs, at most."""


class Graph:
    """Who gives each value, and who takes it."""

    def __init__(self, model: bytes) -> None:
        self._graph = onnx.load_from_string(model).graph
        self.nodes = list(self._graph.node)
        self.givers = {name: node for node in self.nodes for name in node.output}
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in self._graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def takers(self, name: str) -> list[NodeProto]:
        return [node for node in self.nodes if name in node.input]

    def is_output(self, name: str) -> bool:
        return any(name == output.name for output in self._graph.output)

    def is_constant(self, node: NodeProto) -> bool:
        """Whether a node always gives the same."""
        return node.op_type == DEQUANTIZE and all(not name or name in self.constants for name in node.input)

    def is_float(self, name: str) -> bool:
        """Of a constant; what a node gives is taken to be."""
        return name not in self.constants or self.constants[name].data_type == TensorProto.FLOAT


def arithmetic(model: bytes) -> Arithmetic:
    graph = Graph(model)
    if not any(node.op_type in QUANTIZERS and not graph.is_constant(node) for node in graph.nodes):
        return "float32"
    return "static int8" if all(_in_integers(node, graph) for node in graph.nodes) else "mixed"


def _in_integers(node: NodeProto, graph: Graph) -> bool:
    """Whether a node is run without float arithmetic other than that of Quantize- and DequantizeLinear."""
    if node.op_type in {QUANTIZE, DEQUANTIZE, "Constant", *MOVES}:
        return True
    if node.op_type == "Relu":
        return _is_quantized(node.output[0], graph)
    if node.op_type not in INTEGER:
        return False
    dequantized = [
        graph.givers[name].op_type == DEQUANTIZE if name in graph.givers else False
        for name in node.input
        if name and graph.is_float(name)
    ]
    return all(dequantized) and all(_is_quantized(name, graph) for name in node.output)


def _is_quantized(name: str, graph: Graph) -> bool:
    takers = graph.takers(name)
    fused = [
        _is_quantized(taker.output[0], graph) if taker.op_type == "Relu" else taker.op_type == QUANTIZE
        for taker in takers
    ]
    return bool(fused) and all(fused) and not graph.is_output(name)


def output_step(model: bytes, output: str) -> float | None:
    """How far one step of the last quantizer can move an output; None where what stands between them may enlarge it."""
    graph, name, gain = Graph(model), output, 1.0
    while name in graph.givers:
        node = graph.givers[name]
        if node.op_type == DEQUANTIZE:
            scale = graph.constants.get(node.input[1])
            return None if scale is None else gain * float(numpy_helper.to_array(scale).max())
        if node.op_type not in GAIN:
            return None
        name, gain = node.input[0], gain * GAIN[node.op_type]
    return None
