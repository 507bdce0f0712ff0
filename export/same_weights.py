"""Whether a model was made from the weights of another one: quantized, transposed or fused, but not other ones."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.artifact import DEQUANTIZE, Artifact, parse
from export.prepare import prepared
from export.sizes import sizes

if TYPE_CHECKING:
    import onnx

MIN_ELEMENTS = 64
CORRELATION = 0.9
"""Int8 keeps 0.999 and more, fine-tuning somewhat less; weights that have nothing to do with each other have 0."""


class Weights(NamedTuple):
    """Shares of the original's weights, by elements, behind its front-end.

    alike: those for which the model has a tensor of the same size, each counted once. found: those that the model
    has, up to CORRELATION.
    """

    elements: int
    alike: float
    found: float


def found_again(original: Artifact, model: bytes) -> Weights:
    """Look for every weight of the original in a model: as its file has it, and as the quantizers get it, which fold
    constants and fuse. Those of the front-end are the same in every training and left out.
    """
    held = list(_held(parse(model).graph))
    fixed = {tensor.name for tensor in sizes(original).tensors if tensor.part == "front-end constants"}
    proto = parse(original.model)
    named = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name not in fixed}
    forms = [list(_weights(named.values()))]
    with contextlib.suppress(ExportError):  # an original that no quantizer can read is compared as it stands
        forms.append(list(_weights(prepared(original, "verify").body.graph.initializer)))
    return max((_shares(wanted, held) for wanted in forms), key=lambda weights: weights.found)


def _shares(wanted: list[Floats], held: list[Floats]) -> Weights:
    elements = sum(weight.size for weight in wanted)
    sizes_wanted, sizes_held = (Counter(weight.size for weight in weights) for weights in (wanted, held))
    alike = sum(size * count for size, count in (sizes_wanted & sizes_held).items())
    found = sum(weight.size for weight in wanted if any(_is_same(weight, other) for other in held))
    return Weights(elements, alike / max(elements, 1), found / max(elements, 1))


def _is_same(weight: Floats, other: Floats) -> bool:
    """Whether they correlate, as they are or with the last two axes exchanged."""
    if weight.size != other.size:
        return False
    flat = weight.ravel()
    return any(_correlation(flat, form.ravel()) >= CORRELATION for form in (other, other.swapaxes(-1, -2)))


def _correlation(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / size if size else 0.0


def _weights(tensors: Iterable[onnx.TensorProto]) -> Iterator[Floats]:
    """Float tensors of at least two axes that are large enough to be told from others."""
    import onnx

    for tensor in tensors:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            if array.ndim > 1 and array.size >= MIN_ELEMENTS:
                yield array


def _held(graph: onnx.GraphProto) -> Iterator[Floats]:
    """What a graph computes with: its float weights, the quantized ones made float again, and int8 ones as they are."""
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    yield from _weights(constants.values())
    dequantized = set()
    for node in graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] in constants:
            dequantized.add(node.input[0])
            values, scale, *rest = (onnx.numpy_helper.to_array(constants[name]) for name in node.input if name)
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            if values.ndim > 1 and values.size >= MIN_ELEMENTS:
                yield _dequantized(values, scale, rest[0] if rest else np.zeros(1, values.dtype), axis)
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    for name in constants.keys() - dequantized:
        tensor = constants[name]
        if tensor.data_type in eight and len(tensor.dims) > 1 and np.prod(tensor.dims) >= MIN_ELEMENTS:
            yield onnx.numpy_helper.to_array(tensor).astype(np.float32)


def _dequantized(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> Floats:
    shape = [-1 if index == axis % values.ndim and scale.size > 1 else 1 for index in range(values.ndim)]
    made: Floats = (values.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
    return made
