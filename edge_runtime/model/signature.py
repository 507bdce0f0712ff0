"""A graph's inputs and outputs held against what the manifest says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import Bundle
from edge_runtime.model.manifest import Manifest, StateSpec
from edge_runtime.records import Floats

SCORE_SLACK = 1e-5
ONNX_TYPES = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64", "bool": "bool"}


class Node(Protocol):
    """An input or output of a graph, as ONNX Runtime tells it; an axis that is no int is dynamic."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def check_signature(bundle: Bundle, input_nodes: Iterable[Node], output_nodes: Iterable[Node]) -> bool:
    """Whether the graph takes several windows at once; several streams of them, for a streaming model.

    Raises BundleError at the first input or output that is not what the manifest says.
    """
    manifest = bundle.manifest
    inputs = {node.name: node for node in input_nodes}
    outputs = {node.name: node for node in output_nodes}
    wanted = [manifest.input.name, *(s.input for s in manifest.states), *(s.name for s in manifest.scalars)]
    if sorted(inputs) != sorted(wanted):
        raise BundleError(bundle.path, f"graph inputs are {list(inputs)}, manifest says {wanted}")
    for name in (manifest.output.name, *(s.output for s in manifest.states)):
        if name not in outputs:
            raise BundleError(bundle.path, f"graph outputs are {list(outputs)}, manifest says {name!r}")
    for scalar in manifest.scalars:
        _check_input(bundle, inputs[scalar.name], scalar.dtype, scalar.shape)
    for state in manifest.states:
        _check_state(bundle, inputs[state.input], outputs[state.output], state)
    return _batches(bundle, inputs[manifest.input.name]) and all(s.batch_axis is not None for s in manifest.states)


def check_outputs(bundle: Bundle, found: Floats) -> None:
    """Raises BundleError when the outputs of the golden vectors are not what their kind and the labels ask for."""
    kind, labels = bundle.manifest.output.kind, len(bundle.manifest.labels)
    if kind == "reconstruction":
        if found.shape != bundle.golden.inputs.shape:
            wanted = bundle.golden.inputs.shape[1:]
            raise BundleError(
                bundle.path, f"model returns {found.shape[1:]} a window, a reconstruction of {wanted} was wanted"
            )
        return
    width = 1 if kind in ("error", "probability") else labels
    if found.ndim != 2 or found.shape[1] != width:
        said = f"{kind} of {labels} labels" if labels else kind
        raise BundleError(bundle.path, f"model returns {found.shape[1:]} a window, wanted ({width},): {said}")
    if kind in ("scores", "probability") and not (found.min() >= -SCORE_SLACK and found.max() <= 1 + SCORE_SLACK):
        raise BundleError(
            bundle.path,
            f"model returns {found.min():.3g} to {found.max():.3g} for the golden vectors, {kind} lie in 0 to 1",
        )


def _batches(bundle: Bundle, node: Node) -> bool:
    """Check the window's input; whether its batch axis is dynamic."""
    manifest: Manifest = bundle.manifest
    _check_input(bundle, node, "float32", (node.shape[0] if node.shape else 1, *manifest.input.shape()))
    batch = node.shape[0]
    if isinstance(batch, int) and batch != 1:
        raise BundleError(bundle.path, f"graph has a fixed batch of {batch}, wanted a dynamic one or 1")
    return not isinstance(batch, int)


def _check_state(bundle: Bundle, node: Node, output: Node, state: StateSpec) -> None:
    axis = state.batch_axis
    if axis is not None and axis < len(node.shape) and isinstance(node.shape[axis], int):
        raise BundleError(
            bundle.path, f"state {state.input}: the graph fixes axis {axis}, which the manifest calls its batch axis"
        )
    _check_input(bundle, node, state.dtype, state.shape)
    if output.type != node.type:
        raise BundleError(bundle.path, f"state {state.input} is {node.type}, its output {output.name} is {output.type}")


def _check_input(bundle: Bundle, node: Node, dtype: str, wanted: tuple[int | str | None, ...]) -> None:
    """A dynamic axis of the graph fits anything."""
    shape = tuple(node.shape)
    fits = len(shape) == len(wanted) and all(
        found == want or not isinstance(found, int) for found, want in zip(shape, wanted, strict=True)
    )
    if node.type != f"tensor({ONNX_TYPES[dtype]})" or not fits:
        raise BundleError(
            bundle.path,
            f"graph input {node.name} is {node.type} {shape}, manifest says tensor({ONNX_TYPES[dtype]}) {wanted}",
        )
