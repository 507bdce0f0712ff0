"""The models that are run: small ONNX graphs with random weights at a fixed seed, for measuring time only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_runtime.model.bundle import Golden, write
from edge_runtime.model.manifest import Histogram, Manifest, OutputSpec, Provenance, Reference, Tolerance
from edge_runtime.records import Floats, InputSpec

SEED = 20
TOLERANCE = 1e-4


def mlp() -> bytes:
    """x (batch, 1, 64) -> scores (batch, 8)."""
    random = np.random.default_rng(SEED)
    weights = {
        "w1": random.normal(0, 0.35, (64, 32)),
        "b1": random.normal(0, 0.1, 32),
        "w2": random.normal(0, 0.5, (32, 8)),
        "b2": np.zeros(8),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["row"]),
        helper.make_node("Gemm", ["row", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    return _model("mlp", nodes, weights, (1, 64), 8)


def cnn() -> bytes:
    """x (batch, 128, 6) -> scores (batch, 5)."""
    random = np.random.default_rng(SEED)
    weights = {
        "w1": random.normal(0, 0.25, (16, 6, 5)),
        "b1": random.normal(0, 0.1, 16),
        "w2": random.normal(0, 0.25, (32, 16, 5)),
        "b2": random.normal(0, 0.1, 32),
        "w3": random.normal(0, 2.0, (32, 5)),
        "b3": np.zeros(5),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["nct"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["nct", "w1", "b1"], ["c1"], strides=[2], pads=[2, 2]),
        helper.make_node("Relu", ["c1"], ["h1"]),
        helper.make_node("Conv", ["h1", "w2", "b2"], ["c2"], strides=[2], pads=[2, 2]),
        helper.make_node("Relu", ["c2"], ["h2"]),
        helper.make_node("GlobalAveragePool", ["h2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["row"]),
        helper.make_node("Gemm", ["row", "w3", "b3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    return _model("cnn", nodes, weights, (128, 6), 5)


def reference_scores(model: bytes, inputs: Floats) -> Floats:
    """By ONNX's own reference in numpy: nothing that is measured takes part in saying what is right."""
    graph = onnx.load_model_from_string(model)
    (scores,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: inputs})
    return np.asarray(scores)


def write_bundle(path: Path, model: bytes, inputs: Floats, labels: tuple[str, ...]) -> None:
    """A bundle around the model, its golden vectors these inputs. inputs: (n, length, channels)."""
    name = path.stem
    write(
        path,
        _manifest(name, inputs.shape[1:], labels),
        model=model,
        golden=Golden(inputs, reference_scores(model, inputs)),
        reference=Reference(features={"x.mean": Histogram((0.0, 1.0), (0, len(inputs), 0))}, scores={}, n=len(inputs)),
        card=f"# {name}\n\nRandom weights at seed {SEED}: for measuring time, not for judging anything.\n",
    )


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, npt.NDArray[np.float64]],
    shape: tuple[int, ...],
    labels: int,
) -> bytes:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", labels])],
        initializer=[numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _manifest(name: str, shape: tuple[int, ...], labels: tuple[str, ...]) -> Manifest:
    length, channels = shape
    return Manifest(
        schema=1,
        name=name,
        version="1.0.0",
        precision="float32",
        input=InputSpec("x", tuple(f"c{i}" for i in range(channels)), ("1",) * channels, length, length),
        output=OutputSpec("scores", "scores"),
        labels=labels,
        tolerances={"default": Tolerance(TOLERANCE)},
        files={},
        provenance=Provenance("benchmarks/models.py", SEED, {}, ()),
    )
