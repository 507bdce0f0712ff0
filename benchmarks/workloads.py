"""What is sent and what must come back: small ONNX models at a fixed seed, JSON payloads, the label of each."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_runtime.model.bundle import Golden, write
from edge_runtime.model.manifest import Histogram, Manifest, OutputSpec, Provenance, Reference, Tolerance
from edge_runtime.records import Floats, InputSpec

SEED = 20
CANDIDATES = 96
PAYLOADS = 16
CLEAR_MARGIN = 0.02
FIRST_NUMBER = 1_000_000_000
PREFIX = b'{"seq":'
DIGITS = len(str(FIRST_NUMBER))


class Payload(msgspec.Struct, frozen=True):
    """One JSON message and the label its model gives it. The number at DIGITS bytes from len(PREFIX) is replaced."""

    body: bytes
    label: str


class Workload(msgspec.Struct, frozen=True):
    """One model with its payloads; bundle and model hold the same ONNX bytes."""

    name: str
    model: Path
    bundle: Path
    labels: tuple[str, ...]
    payloads: tuple[Payload, ...]


def build(folder: Path) -> dict[str, Workload]:
    """Write the models and bundles of every workload into a folder."""
    return {
        "feat64": _build(folder, "feat64", mlp(), shape=(1, 64), n_labels=8),
        "win": _build(folder, "win", cnn(), shape=(128, 6), n_labels=5),
    }


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


def _build(folder: Path, name: str, model: bytes, *, shape: tuple[int, int], n_labels: int) -> Workload:
    labels = tuple(f"state-{i}" for i in range(n_labels))
    inputs = _inputs(shape)
    scores = _scores(model, inputs)
    clear = _clear(scores)
    path, bundle = folder / f"{name}.onnx", folder / f"{name}.edge"
    path.write_bytes(model)
    write(
        bundle,
        _manifest(name, shape, labels),
        model=model,
        golden=Golden(inputs[clear], scores[clear]),
        reference=Reference(features={"x.mean": Histogram((0.0, 1.0), (0, PAYLOADS, 0))}, scores={}, n=PAYLOADS),
        card=f"# {name}\n\nRandom weights at seed {SEED}: for measuring time, not for judging anything.\n",
    )
    payloads = tuple(Payload(_body(inputs[i]), labels[int(scores[i].argmax())]) for i in clear)
    return Workload(name, path, bundle, labels, payloads)


def _scores(model: bytes, inputs: Floats) -> Floats:
    """By ONNX's own reference in numpy: nothing that is measured takes part in saying what is right."""
    (scores,) = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"x": inputs})
    return np.asarray(scores)


def _inputs(shape: tuple[int, int]) -> Floats:
    """Candidates (n, length, channels): slow waves with an offset per channel, rounded as a sensor would send them."""
    random = np.random.default_rng(SEED + 1)
    time = np.linspace(0, 1, shape[0])[:, None]
    size = (CANDIDATES, 1, shape[1])
    waves = random.normal(0, 1, size) * np.sin(2 * np.pi * (random.uniform(1, 20, size) * time + random.random(size)))
    values = waves + random.normal(0, 0.6, size)
    return np.round(values, 4).astype(np.float32)


def _clear(scores: Floats) -> list[int]:
    """Indices of PAYLOADS candidates with a clear winner, dealt over the labels in turn. Raises ValueError."""
    ordered = np.sort(scores, axis=1)
    clear = np.flatnonzero(ordered[:, -1] - ordered[:, -2] > CLEAR_MARGIN)
    by_label: dict[int, list[int]] = {}
    for i in clear:
        by_label.setdefault(int(scores[i].argmax()), []).append(int(i))
    chosen: list[int] = []
    while len(chosen) < PAYLOADS and any(by_label.values()):
        chosen += [found.pop(0) for found in by_label.values() if found]
    if len(by_label) < 3 or len(chosen) < PAYLOADS:
        raise ValueError(f"{len(clear)} clear candidates of {len(by_label)} labels: a wrong label might go unseen")
    return chosen[:PAYLOADS]


def _body(values: Floats) -> bytes:
    """{"seq":1000000000,"v":...}: a flat list for a single row, a list of rows otherwise."""
    rows = [[round(float(value), 4) for value in row] for row in values]
    document = {"seq": FIRST_NUMBER, "v": rows[0] if len(rows) == 1 else rows}
    return json.dumps(document, separators=(",", ":")).encode()


def _manifest(name: str, shape: tuple[int, int], labels: tuple[str, ...]) -> Manifest:
    length, channels = shape
    return Manifest(
        schema=1,
        name=name,
        version="1.0.0",
        precision="float32",
        input=InputSpec("x", tuple(f"c{i}" for i in range(channels)), ("1",) * channels, length, length),
        output=OutputSpec("scores", "scores"),
        labels=labels,
        tolerances={"default": Tolerance(1e-4)},
        files={},
        provenance=Provenance("benchmarks/workloads.py", SEED, {}, ()),
    )
