"""What lies before the front-end's end stays as it is in every step, and what it computes is not stored."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from export_nets import artifact_of
from onnx import helper, numpy_helper
from torch import nn

from edge_runtime.errors import ExportError
from export import clean, front_end, half, probe, quantize, to_onnx, weight_only
from export.artifact import Artifact, ancestors, outputs_of, parse
from export.evaluate import snr_db
from export.train import deterministic

pytestmark = pytest.mark.torch

FRAME, BINS = 128, 60


class Spectrum(nn.Module):
    """Log power of a Fourier transform whose tables forward() computes from ranges: (n, 640) -> (n, 60, 5)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(BINS, dtype=torch.float32)[:, None] * torch.arange(FRAME) * (2 * torch.pi / FRAME)
        basis = torch.cat([angles.cos(), -angles.sin()])
        parts = nn.functional.conv1d(x.unsqueeze(1), basis[:, None], stride=FRAME)
        return torch.log(parts[:, :BINS].square() + parts[:, BINS:].square() + 1.0)


class Stored(nn.Module):
    """The same with its tables as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(BINS)[:, None] * torch.arange(FRAME) * (2 * torch.pi / FRAME)
        self.register_buffer("basis", torch.cat([angles.cos(), -angles.sin()])[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = nn.functional.conv1d(x.unsqueeze(1), self.basis, stride=FRAME)
        return torch.log(parts[:, :BINS].square() + parts[:, BINS:].square() + 1.0)


class Net(nn.Module):
    def __init__(self, front: nn.Module) -> None:
        super().__init__()
        self.front_end = front
        self.body = nn.Sequential(nn.Conv1d(BINS, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.front_end(x)).mean(dim=2))


WINDOWS = np.random.default_rng(0).normal(size=(16, 640)).astype(np.float32)


@cache
def exported(front: type[nn.Module]) -> Artifact:
    with deterministic(5):
        net = Net(front()).eval().requires_grad_(False)
    return to_onnx.export(net, WINDOWS, input_name="x", output_name="logits")


def stored(artifact: Artifact) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in parse(artifact.model).graph.initializer}


def test_tables_that_the_front_end_computes_are_not_in_the_file_and_cost_nothing_when_it_runs() -> None:
    computed, buffered = exported(Spectrum), exported(Stored)

    assert max(value.size for name, value in stored(computed).items() if "body" not in name) <= to_onnx.MAX_COMPUTED
    assert computed.size_kb < buffered.size_kb - 4 * 2 * BINS * FRAME / 1000 + 3
    np.testing.assert_allclose(outputs_of(computed, WINDOWS), outputs_of(buffered, WINDOWS), atol=1e-4)
    loaded = [probe.optimized(artifact) for artifact in (computed, buffered)]
    kinds = [sorted(node.op_type for node in parse(raw).graph.node) for raw in loaded if isinstance(raw, bytes)]
    assert kinds[0] == kinds[1]


def test_a_normalization_after_a_wide_convolution_is_folded_into_it() -> None:
    wide = to_onnx.MAX_COMPUTED + 1
    net = nn.Sequential(nn.Conv1d(2, wide, 1, bias=False), nn.BatchNorm1d(wide), nn.ReLU()).eval().requires_grad_(False)
    windows = np.ones((8, 2, 8), np.float32)

    graph = parse(to_onnx.export(net, windows, input_name="x", output_name="y").model).graph

    assert [node.op_type for node in graph.node] == ["Conv", "Relu"]


def test_tables_that_are_a_buffer_are_stored_as_they_are() -> None:
    front = Stored()

    tables = [value for value in stored(exported(Stored)).values() if value.size == 2 * BINS * FRAME]

    np.testing.assert_array_equal(tables[0], front.basis.numpy())


STEPS = {
    "static int8": quantize.static_qdq(WINDOWS),
    "weight-only int8": weight_only.int8(min_elements=64),
    "clean-up": clean.graph(WINDOWS),
    "float16": half.fp16(WINDOWS),
}


@pytest.mark.parametrize("name", STEPS)
def test_nodes_and_constants_of_the_front_end_are_the_same_bytes_after_every_step(name: str) -> None:
    before = exported(Spectrum)

    done = STEPS[name](before)

    def front(artifact: Artifact) -> list[bytes]:
        graph = parse(artifact.model).graph
        names = ancestors(graph, artifact.front_end)
        nodes = [node for node in graph.node if node.name in names]
        read = {name for node in nodes for name in node.input}
        constants = sorted((t for t in graph.initializer if t.name in read), key=lambda tensor: tensor.name)
        return [item.SerializeToString() for item in (*nodes, *constants)]

    assert len(front(before)) > 12
    assert front(done) == front(before)
    assert snr_db(outputs_of(before, WINDOWS), outputs_of(done, WINDOWS)) > 25
    assert len({node.name for node in parse(done.model).graph.node}) == len(parse(done.model).graph.node)


def test_the_body_gets_what_the_front_end_makes_and_every_other_tensor_that_crosses() -> None:
    nodes = [
        helper.make_node("Add", ["x", "one"], ["more"], name="front_add"),
        helper.make_node("Mul", ["more", "two"], ["front_end"], name="front_mul"),
        helper.make_node("Add", ["front_end", "more"], ["both"], name="body_add"),
        helper.make_node("Sub", ["both", "x"], ["rest"], name="body_sub"),
        helper.make_node("Mul", ["rest", "two"], ["y"], name="body_mul"),
    ]
    constants = {"one": np.float32([1]), "two": np.float32([2])}
    artifact = artifact_of(nodes, constants, shape=[8], width=8, front_end="front_end")
    inputs = np.arange(24, dtype=np.float32).reshape(3, 8)

    parts = front_end.cut(artifact, "test")

    assert parts.front == {"front_add", "front_mul"}
    assert [value.name for value in parts.body.graph.input] == ["front_end", "more", "x"]
    assert [tensor.name for tensor in parts.body.graph.initializer] == ["two_body"]
    (feed,) = parts.feeds(inputs)
    np.testing.assert_array_equal(feed["front_end"], 2 * (inputs + 1))
    np.testing.assert_array_equal(feed["more"], inputs + 1)
    joined = Artifact("joined", "float32", parts.joined(parts.body).SerializeToString(), "x", "y", ())
    np.testing.assert_array_equal(outputs_of(joined, inputs), outputs_of(artifact, inputs))


def test_a_body_that_takes_something_else_is_refused() -> None:
    parts = front_end.cut(exported(Spectrum), "test")
    other = parse(exported(Stored).model)

    with pytest.raises(ExportError, match="behind the front-end the inputs became x, wanted front_end"):
        parts.joined(other)


def test_a_body_that_takes_names_of_the_front_end_is_refused() -> None:
    parts = front_end.cut(exported(Spectrum), "test")
    body = parse(parts.body.SerializeToString())
    taken = next(node.output[0] for node in parts.whole.graph.node if node.name in parts.front)
    body.graph.node.append(helper.make_node("Relu", ["front_end"], [taken], name="new"))

    with pytest.raises(ExportError, match=f"tensors got names of the front-end's: {taken}"):
        parts.joined(body)
