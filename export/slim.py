"""The graph as it ships: without what ONNX Runtime finds out by itself, and with short names for what nobody reads."""

from __future__ import annotations

import string
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from export.artifact import QDQ, Artifact, parse

if TYPE_CHECKING:
    import onnx

DIGITS = string.digits + string.ascii_letters


def slim(artifact: Artifact) -> Artifact:
    """Shapes between nodes dropped; activations, scales and zero points renamed. Of a small int8 net it is a tenth.

    Inputs, outputs, weights, the front-end's boundary and the nodes that compute keep their names.
    """
    proto = parse(artifact.model)
    graph = proto.graph
    graph.ClearField("value_info")
    if not proto.functions and not any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        _rename(graph, kept={artifact.front_end, *(value.name for value in (*graph.input, *graph.output))})
    return msgspec.structs.replace(artifact, model=proto.SerializeToString(deterministic=True))


def _rename(graph: onnx.GraphProto, kept: set[str]) -> None:
    inner = [name for node in graph.node for name in node.output if name]
    small = [tensor for tensor in graph.initializer if len(tensor.dims) < 2]
    taken = kept | {*inner, *(tensor.name for tensor in graph.initializer)}
    words = (word for word in map(_word, count()) if word not in taken)
    names = [name for name in (*inner, *(tensor.name for tensor in small)) if name not in kept]
    short = dict(zip(names, words, strict=False))
    for tensor in small:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type in QDQ:
            node.ClearField("name")


def _word(number: int) -> str:
    """The number in base 62, behind a t."""
    digits = ""
    while number or not digits:
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return f"t{digits}"
