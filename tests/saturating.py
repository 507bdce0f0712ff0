"""A matrix product in int8 whose sums do not fit into 16 bit, in which x86 without VNNI adds unless told otherwise."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from export.artifact import Artifact

IN, OUT = 256, 64
X_SCALE, Y_SCALE = 1 / 255, 1.0


def windows(count: int = 8) -> np.ndarray:
    """(count, IN) float32 just below 1: activations near 255."""
    return np.random.default_rng(0).uniform(0.8, 1.0, (count, IN)).astype(np.float32)


def weights(largest: int) -> np.ndarray:
    """(IN, OUT) int8, all positive, up to the largest."""
    return np.random.default_rng(1).integers(largest // 2, largest + 1, (IN, OUT)).astype(np.int8)


def float32() -> Artifact:
    """x (batch, IN) times weights(127) / 127 -> y (batch, OUT)."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return Artifact("float32", "float32", _model(nodes, {"w": weights(127) / np.float32(127)}), "x", "y", ())


def int8(largest: int = 127) -> bytes:
    """x (batch, IN) -> quantized to uint8 -> times weights(largest) -> quantized to uint8 -> y (batch, OUT)."""
    scale = np.float32(1 / largest)
    constants = {
        "x_scale": np.float32(X_SCALE),
        "w_scale": scale,
        "y_scale": np.float32(Y_SCALE),
        "zero": np.uint8(0),
        "w_zero": np.int8(0),
        "w": weights(largest),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"]),
        helper.make_node("MatMul", ["x_d", "w_d"], ["product"]),
        helper.make_node("QuantizeLinear", ["product", "y_scale", "zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "y_scale", "zero"], ["y"]),
    ]
    return _model(nodes, constants)


def _model(nodes: list, constants: dict) -> bytes:
    graph = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUT])],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


def by_hand(inputs: np.ndarray, largest: int = 127) -> np.ndarray:
    """What the model returns where integers are added as integers. inputs: (n, IN)."""
    quantized = np.clip(np.rint(inputs / np.float32(X_SCALE)), 0, 255).astype(np.int64)
    product = (quantized @ weights(largest).astype(np.int64)) * (X_SCALE / largest)
    return (np.clip(np.rint(product / Y_SCALE), 0, 255) * Y_SCALE).astype(np.float32)
