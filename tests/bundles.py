"""Small real bundles for tests: an ONNX graph of channel means, made with onnx.helper."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper

from edge_runtime.model.bundle import Golden, write
from edge_runtime.model.manifest import (
    Histogram,
    Manifest,
    OutputSpec,
    Provenance,
    Reference,
    ScalarInput,
    StateSpec,
    Tolerance,
)
from edge_runtime.records import InputSpec

REFERENCE = Reference(features={"x.mean": Histogram((0.0, 1.0), (0, 4, 0))}, scores={}, n=4)


def means_model(*, length: int, channels: int, batch: int | str = "batch", width: int | None = None) -> bytes:
    """x (batch, length, channels) -> mean per channel (batch, channels)."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, length, channels])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width or channels])
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph([node], "means", [x], [y], initializer=[axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def slow_model(*, length: int, channels: int) -> bytes:
    """The means, after a loop of as many rounds as the largest sample says, that does nothing but take time."""
    body_inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("keep_in", TensorProto.BOOL, []),
        helper.make_tensor_value_info("total_in", TensorProto.FLOAT, []),
    ]
    body_outputs = [
        helper.make_tensor_value_info("keep_out", TensorProto.BOOL, []),
        helper.make_tensor_value_info("total_out", TensorProto.FLOAT, []),
    ]
    keep = helper.make_node("Identity", ["keep_in"], ["keep_out"])
    nodes = [keep, helper.make_node("Neg", ["total_in"], ["total_out"])]
    body = helper.make_graph(nodes, "round", body_inputs, body_outputs)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", length, channels])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", channels])
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
    ]
    graph_nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "yes", "sum"], ["total"], body=body),
        helper.make_node("Sub", ["total", "total"], ["zero"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("Add", ["means", "zero"], ["y"]),
    ]
    graph = helper.make_graph(graph_nodes, "slow_means", [x], [y], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def means_manifest(
    *, length: int = 4, hop: int = 4, labels: tuple[str, ...] = ("still", "moving"), rate_hz: float | None = None
) -> Manifest:
    channels = tuple(f"c{i}" for i in range(len(labels)))
    return Manifest(
        schema=1,
        name="means",
        version="1.0.0",
        precision="float32",
        input=InputSpec("x", channels, ("1",) * len(channels), length, hop, rate_hz),
        output=OutputSpec("y", "scores"),
        labels=labels,
        tolerances={"default": Tolerance(1e-5)},
        files={},
        provenance=Provenance("tests/bundles.py", 0, {}, ()),
    )


def write_means_bundle(path: Path, manifest: Manifest | None = None, *, model: bytes | None = None) -> Path:
    manifest = manifest or means_manifest()
    spec = manifest.input
    inputs = np.random.default_rng(0).random((6, *spec.shape()), dtype=np.float32)
    golden = Golden(inputs, inputs.mean(axis=1))
    body = model or means_model(length=spec.length, channels=len(spec.channels))
    write(path, manifest, model=body, golden=golden, reference=REFERENCE, card="# means\n")
    return path


def running_model(*, length: int, channels: int, batch: int | str = "batch") -> bytes:
    """A streaming model: stateN = state / 2 + mean(x), y = stateN[0] * gain. The state's batch axis is 1."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, length, channels])
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, batch, channels])
    gain = helper.make_tensor_value_info("gain", TensorProto.FLOAT, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels])
    state_after = helper.make_tensor_value_info("stateN", TensorProto.FLOAT, [2, batch, channels])
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("first", TensorProto.INT64, [], [0]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["state", "half"], ["kept"]),
        helper.make_node("Add", ["kept", "means"], ["stateN"]),
        helper.make_node("Gather", ["stateN", "first"], ["newest"], axis=0),
        helper.make_node("Mul", ["newest", "gain"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "running", [x, state, gain], [y, state_after], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def write_running_bundle(
    path: Path, manifest: Manifest | None = None, *, batch: int | str = "batch", gain: float = 0.25
) -> Path:
    """A bundle of running_model whose golden outputs are computed here."""
    if manifest is None:
        state = StateSpec("state", "stateN", (2, 1, 2), batch_axis=1 if batch == "batch" else None)
        manifest = msgspec.structs.replace(
            means_manifest(), name="running", states=(state,), scalars=(ScalarInput("gain", gain),)
        )
    inputs = np.random.default_rng(0).random((6, *manifest.input.shape()), dtype=np.float32)
    golden = Golden(inputs, running(inputs) * np.float32(gain))
    body = running_model(length=manifest.input.length, channels=2, batch=batch)
    write(path, manifest, model=body, golden=golden, reference=REFERENCE, card="# running\n")
    return path


def running(windows: np.ndarray) -> np.ndarray:
    """What the newest state of running_model is after each window of one stream. windows: (n, length, channels)."""
    state, states = np.zeros(windows.shape[2], np.float32), []
    for window in windows:
        state = state / 2 + window.mean(axis=0, dtype=np.float32)
        states.append(state)
    return np.array(states, np.float32)
