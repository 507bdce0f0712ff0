"""Small networks for the tests of export steps, each exported once, and graphs written by hand."""

from __future__ import annotations

from functools import cache

import msgspec
import numpy as np
import onnx
import torch
from export_recipes.tones import Standardize
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export import to_onnx
from export.artifact import Artifact
from export.train import deterministic

SEED = 5


class Recurrent(nn.Module):
    """Two recurrent layers over (n, 24, 6), five logits."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 64) -> None:
        super().__init__()
        self.rnn = kind(6, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Encoder(nn.Module):
    """One transformer encoder layer over (n, 8, 32), five logits."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(dim=1))


class Wide(nn.Module):
    """The net of the recipe with more channels, so that its weights are most of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = Standardize()
        self.body = nn.Sequential(
            nn.Conv1d(2, 48, 9, 4), nn.BatchNorm1d(48), nn.ReLU(), nn.Conv1d(48, 64, 5, 4), nn.ReLU()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.front_end(x)).mean(dim=2))


class Convolutions(nn.Module):
    """Two convolutions over (n, 6, 64), five logits."""

    def __init__(self, widths: tuple[int, int] = (16, 32)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(6, widths[0], 5, 2), nn.BatchNorm1d(widths[0]), nn.ReLU(), nn.Conv1d(*widths, 5, 2), nn.ReLU()
        )
        self.head = nn.Linear(widths[1], 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(dim=2))


BUILD = {
    "gru": (lambda: Recurrent(nn.GRU), (24, 6)),
    "lstm": (lambda: Recurrent(nn.LSTM), (24, 6)),
    "encoder": (lambda: Encoder(norm_first=False), (8, 32)),
    "pre-norm encoder": (lambda: Encoder(norm_first=True), (8, 32)),
    "convolutions": (Convolutions, (6, 64)),
    "narrow convolutions": (lambda: Convolutions((8, 8)), (6, 64)),
}


@cache
def windows(name: str, count: int = 32) -> np.ndarray:
    """Noise in the shape that the network takes."""
    return np.random.default_rng(SEED).normal(size=(count, *BUILD[name][1])).astype(np.float32)


def network(name: str) -> nn.Module:
    """The untrained network."""
    with deterministic(SEED):
        return BUILD[name][0]().eval().requires_grad_(False)


@cache
def exported(name: str) -> Artifact:
    """The untrained network as a float32 artifact."""
    return to_onnx.export(network(name), windows(name), input_name="x", output_name="logits")


def artifact_of(nodes, constants, *, shape: list[int], width: int, front_end: str = "") -> Artifact:
    """A graph from x (batch, *shape) to y (batch, width). constants: name to array."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inner = [helper.make_tensor_value_info(front_end, TensorProto.FLOAT, None)] if front_end else []
    graph = helper.make_graph(nodes, "by_hand", [x], [y], values, value_info=inner)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return Artifact("float32", "float32", proto.SerializeToString(), "x", "y", (), front_end)


def two_matrices(learned: np.ndarray | None = None) -> Artifact:
    """x (batch, 8) -> MatMul with `fixed` -> front_end -> MatMul with `learned` (32, 4) -> y (batch, 4)."""
    random = np.random.default_rng(SEED)
    fixed, drawn = (random.normal(size=size).astype(np.float32) for size in ((8, 32), (32, 4)))
    constants = {"fixed": fixed, "learned": drawn if learned is None else learned}
    nodes = [
        helper.make_node("MatMul", ["x", "fixed"], ["front_end"], name="front"),
        helper.make_node("MatMul", ["front_end", "learned"], ["y"], name="body"),
    ]
    return artifact_of(nodes, constants, shape=[8], width=4, front_end="front_end")


@cache
def recurrent(op: str) -> Artifact:
    """x (batch, 12, 6) -> Transpose -> GRU or LSTM of 32 -> Reshape by the shape of x -> Gemm -> y (batch, 5)."""
    random, gates = np.random.default_rng(SEED), {"GRU": 3, "LSTM": 4}[op]
    constants = {
        "w": random.normal(size=(1, gates * 32, 6)).astype(np.float32) / 4,
        "r": random.normal(size=(1, gates * 32, 32)).astype(np.float32) / 8,
        "head": random.normal(size=(32, 5)).astype(np.float32),
        "start": np.array([0]),
        "end": np.array([1]),
        "units": np.array([32]),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], name="turn", perm=[1, 0, 2]),
        helper.make_node(op, ["steps", "w", "r"], ["", "last"], name="rnn", hidden_size=32),
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Slice", ["shape", "start", "end"], ["batch"], name="slice"),
        helper.make_node("Concat", ["batch", "units"], ["wanted"], name="concat", axis=0),
        helper.make_node("Reshape", ["last", "wanted"], ["flat"], name="reshape"),
        helper.make_node("Gemm", ["flat", "head"], ["y"], name="head"),
    ]
    return artifact_of(nodes, constants, shape=[12, 6], width=5)


def altered(artifact: Artifact, *, opset: int = 20, batch: int = 0, listed: bool = False) -> Artifact:
    """The same graph as an older exporter writes it. batch: fixed to it. listed: initializers as inputs, before x."""
    proto = onnx.load_from_string(artifact.model)
    proto.opset_import[0].version = opset
    if batch:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    if listed:
        proto.ir_version = 3
        given = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer]
        given.extend(proto.graph.input)
        del proto.graph.input[:]
        proto.graph.input.extend(given)
    return msgspec.structs.replace(artifact, model=proto.SerializeToString())


def padded_convolution() -> Artifact:
    """A Conv behind a Pad whose amounts are computed from constants, as the old torch exporter writes them."""

    def constant(name: str, value: np.ndarray):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))

    int64 = np.int64
    nodes = [
        constant("given", np.array([1, 0], int64)),
        constant("missing", np.array([2], int64)),
        helper.make_node("ConstantOfShape", ["missing"], ["zeros"], value=helper.make_tensor("v", 7, [1], [0])),
        helper.make_node("Concat", ["given", "zeros"], ["joined"], axis=0),
        constant("square", np.array([-1, 2], int64)),
        helper.make_node("Reshape", ["joined", "square"], ["pairs"]),
        constant("last", np.array([-1], int64)),
        constant("lowest", np.array([-(2**63)], int64)),
        constant("axis", np.array([0], int64)),
        helper.make_node("Slice", ["pairs", "last", "lowest", "axis", "last"], ["reversed"]),
        helper.make_node("Transpose", ["reversed"], ["turned"], perm=[1, 0]),
        helper.make_node("Reshape", ["turned", "last"], ["flat"]),
        constant("front", np.array([0, 0], int64)),
        helper.make_node("Cast", ["flat"], ["amounts"], to=TensorProto.INT64),
        helper.make_node("Slice", ["amounts", "axis", "ends"], ["two"]),
        helper.make_node("Concat", ["front", "two", "front", "two"], ["mixed"], axis=0),
        constant("order", np.array([0, 1, 3, 4, 5, 7], int64)),
        helper.make_node("Gather", ["mixed", "order"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("Conv", ["padded", "weight"], ["convolved"]),
        helper.make_node("ReduceMean", ["convolved", "time"], ["y"], keepdims=0),
    ]
    weight = np.random.default_rng(SEED).normal(size=(4, 3, 3)).astype(np.float32)
    constants = {"weight": weight, "time": np.array([2], int64), "ends": np.array([2], int64)}
    return artifact_of(nodes, constants, shape=[3, 10], width=4)
