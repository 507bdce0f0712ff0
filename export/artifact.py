"""A model between the steps from torch to bundle, and the few facts about its graph that several rooms need."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.model.session import SessionSettings, create
from edge_runtime.records import Floats

if TYPE_CHECKING:
    import onnx
    from torch import nn

BATCH = 64


class Artifact(msgspec.Struct, frozen=True):
    """One ONNX model on its way to a bundle.

    name: of the variant, as tables show it. precision: as the manifest shows it. model: ONNX bytes, one input, one
    output, first axis the dynamic batch. front_end: the tensor up to which everything stays float32, "" without a
    front-end. steps: what was done to it, in order. session: ONNX Runtime session config entries that it needs.
    module: the torch network it was exported from, None for one that came as ONNX or was changed as ONNX since.
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


def parse(model: bytes) -> onnx.ModelProto:
    """The onnx.ModelProto of ONNX bytes."""
    import onnx  # only export needs it, and `edge-export --help` must not wait for it

    return onnx.load_from_string(model)


def outputs_of(artifact: Artifact, inputs: Floats) -> Floats:
    """What the graph returns for inputs, in batches, one thread.

    inputs: (n, ...) float32 in the model's layout. Raises ModelError when ONNX Runtime refuses the model.
    """
    session = create(artifact.model, settings=SessionSettings(), entries=artifact.session)
    parts = [
        session.run([artifact.output], {artifact.input: np.ascontiguousarray(inputs[i : i + BATCH])})[0]
        for i in range(0, len(inputs), BATCH)
    ]
    joined: Floats = np.concatenate(parts)
    return joined


def ancestors(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of all nodes that the tensor is computed from, its own included; none for a tensor that no node makes."""
    maker = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting.extend(node.input)
    return found
