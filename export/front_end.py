"""A graph cut where its front-end ends, so that a step changes what lies behind and the front-end stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import SessionSettings, create
from edge_runtime.records import Floats
from export.artifact import BATCH, Artifact, ancestors, batch_of, name_nodes, parse

if TYPE_CHECKING:
    import onnx

Feed = dict[str, Floats]


class Cut(msgspec.Struct, frozen=True):
    """A graph in two.

    whole: as it was. front: names of the front-end's nodes, none without a front-end. body: the graph behind it, whose
    inputs are the tensors that cross the cut. session: entries that the graph needs.
    """

    whole: onnx.ModelProto
    front: frozenset[str]
    body: onnx.ModelProto
    session: dict[str, str]

    def joined(self, body: onnx.ModelProto) -> onnx.ModelProto:
        """The whole graph with another body; nodes and constants of the front-end are those of `whole`.

        Raises ExportError when the body's inputs or opset changed, or it gives names that the front-end has.
        """
        return _joined(self, body)

    def feeds(self, windows: Floats) -> list[Feed]:
        """What the body gets for each batch of windows: the front-end runs once.

        windows: (n, ...) float32 in the model's layout; a graph with a fixed batch axis gets batches of that size.
        """
        name = self.whole.graph.input[0].name
        axis = batch_of(self.whole)
        batch = axis if isinstance(axis, int) else BATCH
        given = [{name: np.ascontiguousarray(windows[i : i + batch])} for i in range(0, len(windows), batch)]
        crossing = [value.name for value in self.body.graph.input]
        made = [crossed for crossed in crossing if crossed != name]
        if not made:
            return given
        session = create(_watched(self.whole, made), settings=SessionSettings(), entries=self.session)
        return [
            {
                **{key: feed[key] for key in crossing if key == name},
                **dict(zip(made, session.run(made, feed), strict=True)),
            }
            for feed in given
        ]


def cut(artifact: Artifact, step: str) -> Cut:
    """The artifact's graph, cut behind its front-end. step: what wants it, for errors.

    Raises ExportError when the type of a tensor that crosses the cut is not known.
    """
    whole = parse(artifact.model)
    name_nodes(whole)
    front = frozenset(ancestors(whole.graph, artifact.front_end))
    return Cut(whole, front, _behind(whole, front, step), artifact.session)


def activations(body: onnx.ModelProto, feeds: list[Feed], session: dict[str, str]) -> Iterator[Feed]:
    """For each feed, every float32 tensor that the body's nodes read or make from its inputs, by name."""
    names = [name for node in body.graph.node for name in node.output if name]
    running = create(_watched(body, names), settings=SessionSettings(), entries=session)
    asked = [value.name for value in running.get_outputs()]
    for feed in feeds:
        found = {**feed, **dict(zip(asked, running.run(asked, feed), strict=True))}
        yield {
            name: value for name, value in found.items() if isinstance(value, np.ndarray) and value.dtype == np.float32
        }


def _watched(proto: onnx.ModelProto, names: list[str]) -> bytes:
    """The graph with tensors of it as outputs too."""
    import onnx

    watched = onnx.ModelProto.FromString(proto.SerializeToString())
    given = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    return bytes(watched.SerializeToString())


def _behind(whole: onnx.ModelProto, front: frozenset[str], step: str) -> onnx.ModelProto:
    import onnx

    body: onnx.ModelProto = onnx.shape_inference.infer_shapes(whole)
    graph = body.graph
    nodes = [node for node in graph.node if node.name not in front]
    read = {name for node in nodes for name in _reads(node)} | {value.name for value in graph.output}
    made = {name for node in graph.node if node.name in front for name in node.output}
    known = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
    crossing = sorted(read & (made | {value.name for value in graph.input}))
    if unknown := [name for name in crossing if name not in known]:
        raise ExportError(f"{step}: the front-end gives {', '.join(unknown)}, whose type is not known")
    for field, kept in (
        ("node", nodes),
        ("input", [known[name] for name in crossing]),
        ("initializer", [tensor for tensor in graph.initializer if tensor.name in read]),
        ("value_info", [value for value in graph.value_info if value.name not in made]),
    ):
        _set(graph, field, kept)
    _rename(body, {name: f"{name}_body" for name in _constants(body) & _read_in_front(whole, front)})
    return body


def _joined(parts: Cut, body: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    wanted, found = ([value.name for value in proto.graph.input] for proto in (parts.body, body))
    if sorted(found) != sorted(wanted):
        raise ExportError(f"behind the front-end the inputs became {', '.join(found)}, wanted {', '.join(wanted)}")
    done: onnx.ModelProto = onnx.ModelProto.FromString(body.SerializeToString())
    if not parts.front:
        return done
    opset, before = _opset(done), _opset(parts.whole)
    if opset != before:
        raise ExportError(f"behind the front-end the opset became {opset}, the front-end has {before}")
    old, graph = parts.whole.graph, done.graph
    nodes = [node for node in old.node if node.name in parts.front]
    read, made = _read_in_front(parts.whole, parts.front), {name for node in nodes for name in node.output}
    constants = [tensor for tensor in old.initializer if tensor.name in read]
    taken = (read | made) & (_constants(done) | {name for node in graph.node for name in node.output})
    if taken:
        raise ExportError(f"behind the front-end tensors got names of the front-end's: {', '.join(sorted(taken))}")
    for node in graph.node:
        while node.name in parts.front:
            node.name += "_body"
    inner = {value.name: value for value in (*graph.input, *old.value_info) if value.name in made}
    for field, kept in (
        ("node", [*nodes, *graph.node]),
        ("input", old.input),
        ("initializer", [*graph.initializer, *constants]),
        ("value_info", [*inner.values(), *graph.value_info]),
    ):
        _set(graph, field, kept)
    return done


def _set(graph: onnx.GraphProto, field: str, kept: Iterable[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)


def _rename(body: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give constants of the body names of their own."""
    for tensor in body.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    waiting = list(body.graph.node)
    while waiting:
        node = waiting.pop()
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            waiting.extend(attribute.g.node)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, and those that its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def _read_in_front(whole: onnx.ModelProto, front: frozenset[str]) -> set[str]:
    return {name for node in whole.graph.node if node.name in front for name in _reads(node)}


def _constants(proto: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer}


def _opset(proto: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}))
