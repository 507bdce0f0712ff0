"""float16: half the file, and the type GPUs compute in. On a CPU it is no faster, and some graphs crash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import SessionSettings, create, load_onnxruntime
from edge_runtime.records import Floats
from export import probe
from export.artifact import (
    BATCH,
    Artifact,
    Step,
    ancestors,
    batch_of,
    changed,
    name_nodes,
    operators,
    outputs_of,
    parse,
    require_float32,
    tensors,
)
from export.evaluate import snr_db
from export.probe import Failure
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx

WITHOUT_NCHWC = {"optimization.disable_specified_optimizers": "NchwcTransformer"}
LARGEST = 65504.0  # of float16
INFINITE = 1e30  # attention masks stand for minus infinity with such values; as the largest float16 they still do
LOST = 2.0**-25  # float16 makes 0 of what is not larger
MAX_LOST = 0.01  # share of the weights that are not 0


def fp16(windows: Floats, *, session: dict[str, str] | None = None) -> Step:
    """A step that makes weights and arithmetic float16; inputs, outputs and the front-end stay float32.

    windows: (n, ...) float32 in the model's layout; the result is loaded and run on them in a child process.
    session: ONNX Runtime session entries that it shall need, such as WITHOUT_NCHWC.
    The step raises ExportError when a weight, or an activation on the windows, is beyond float16, more than MAX_LOST
    of the weights are below it, no weight would be converted, the child fails, or an output is not finite.
    """
    return lambda artifact: _fp16(artifact, windows, session or {})


def _fp16(artifact: Artifact, windows: Floats, session: dict[str, str]) -> Artifact:
    proto = parse(artifact.model)
    require_float32(artifact, proto, "fp16")
    name_nodes(proto)
    front = ancestors(proto.graph, artifact.front_end)
    body = _behind(proto, front)
    _check_weights(body)
    largest = _largest_activation(artifact, proto, body, windows)
    half = _converted(body)
    _put_before(half, proto, front)
    done = changed(artifact, half, name="fp16", precision="float16")
    done = msgspec.structs.replace(done, session={**artifact.session, **session})
    snr = _proven(artifact, done, windows)
    needs = f"; needs {', '.join(f'{key}={value}' for key, value in session.items())}" if session else ""
    note = f"; {len(front)} front-end nodes left in float32" if front else ""
    told = (
        f"fp16 with float32 inputs and outputs{needs}: output SNR {snr:.1f} dB over {len(windows)} windows as this CPU "
        f"computes it; activations reach {largest:.3g} of {LARGEST:g}{note}"
    )
    return msgspec.structs.replace(done, steps=(*done.steps, told))


def _behind(proto: onnx.ModelProto, front: set[str]) -> onnx.ModelProto:
    """The graph without its front-end, whose results are inputs: the converter would put casts inside of it."""
    import onnx

    body = onnx.shape_inference.infer_shapes(proto)
    graph = body.graph
    nodes = [node for node in graph.node if node.name not in front]
    read = {name for node in nodes for name in _reads(node)}
    made = {name for node in graph.node if node.name in front for name in node.output}
    known = {value.name: value for value in (*graph.value_info, *graph.input)}
    entering = sorted(read & (made | {value.name for value in graph.input}))
    if unknown := [name for name in entering if name not in known]:
        raise ExportError(f"fp16: the front-end gives {', '.join(unknown)}, whose type is not known")
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    inner = [value for value in graph.value_info if value.name not in made]
    for field, kept in (
        ("node", nodes),
        ("input", [known[name] for name in entering]),
        ("initializer", constants),
        ("value_info", inner),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
    return body


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, and those that its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def _put_before(half: onnx.ModelProto, proto: onnx.ModelProto, front: set[str]) -> None:
    """Put the front-end of the float32 graph before the converted one, whose inputs become those of the whole."""
    graph = half.graph
    nodes = [node for node in proto.graph.node if node.name in front]
    read = {name for node in nodes for name in _reads(node)}
    taken = {tensor.name for tensor in graph.initializer}
    own = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in read}
    for name in sorted(taken & set(own)):  # what both read is float16 behind the boundary
        own[name].name = f"{name}_front"
        for node in nodes:
            node.input[:] = [f"{name}_front" if given == name else given for given in node.input]
    made = {name for node in nodes for name in node.output}
    behind = list(graph.node)
    inner = [value for value in proto.graph.value_info if value.name in made]
    graph.ClearField("node")
    graph.node.extend([*nodes, *behind])
    graph.ClearField("input")
    graph.input.extend(proto.graph.input)
    graph.initializer.extend(own.values())
    graph.value_info.extend(inner)


def _converted(body: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    load_onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16  # after telemetry is off

    try:
        with silenced():
            half: onnx.ModelProto = convert_float_to_float16(body, keep_io_types=True)
    except Exception as error:
        raise ExportError(f"fp16: conversion failed: {type(error).__name__}: {one_line(error)}") from error
    if all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in tensors(half)):
        raise ExportError(f"fp16: no weight became float16; behind the front-end the graph has {operators(half)}")
    name_nodes(half)
    return half


def _check_weights(body: onnx.ModelProto) -> None:
    """Raises ExportError when there are none, or float16 cannot hold them."""
    import onnx

    floats = [tensor for tensor in tensors(body) if tensor.data_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise ExportError(f"fp16: no float32 weight behind the front-end; the graph has {operators(body)} there")
    lost = total = 0
    for tensor in floats:
        weight = onnx.numpy_helper.to_array(tensor)
        if (largest := _largest(weight)) > LARGEST:
            raise ExportError(f"fp16: weight {tensor.name!r} reaches {largest:.3g}, float16 ends at {LARGEST:g}")
        lost += int(np.count_nonzero((weight != 0) & (np.abs(weight) <= LOST)))
        total += int(np.count_nonzero(weight))
    if lost > MAX_LOST * total:
        raise ExportError(f"fp16: {lost} of {total} weights are lost below {LOST:.2e}, allowed {MAX_LOST:.0%}")


def _largest_activation(artifact: Artifact, proto: onnx.ModelProto, body: onnx.ModelProto, windows: Floats) -> float:
    """The largest magnitude that any tensor behind the front-end takes on the windows, computed in float32.

    Raises ExportError when it is beyond float16: a CPU that computes float16 in float32 would not show it.
    """
    import onnx

    entering = [value.name for value in body.graph.input]
    names = [name for name in (*entering, *(o for node in body.graph.node for o in node.output)) if name]
    watched = onnx.ModelProto.FromString(proto.SerializeToString())
    given = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = create(watched.SerializeToString(), settings=SessionSettings(), entries=artifact.session)
    asked = [value.name for value in session.get_outputs()]
    fixed = batch_of(proto)
    batch = fixed if isinstance(fixed, int) else BATCH
    worst = 0.0
    for start in range(0, len(windows), batch):
        inputs = windows[start : start + batch]
        outputs = {
            artifact.input: inputs,
            **dict(zip(asked, session.run(asked, {artifact.input: inputs}), strict=True)),
        }
        for name in names:
            if (largest := _largest(outputs[name])) > LARGEST:
                raise ExportError(f"fp16: {name!r} reaches {largest:.3g} on the windows, float16 ends at {LARGEST:g}")
            worst = max(worst, largest)
    return worst


def _largest(values: object) -> float:
    """The largest magnitude below INFINITE; 0 for what is not float32."""
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        return 0.0
    magnitudes = np.abs(values)
    return float(np.max(magnitudes, where=magnitudes < INFINITE, initial=0.0))


def _proven(artifact: Artifact, done: Artifact, windows: Floats) -> float:
    """Output SNR in dB of the float16 graph against the one it was made of."""
    outputs = probe.run(done, windows)
    if isinstance(outputs, Failure):
        raise ExportError(
            f"fp16: ONNX Runtime {outputs.reason} in a child process. Use fp16 on a GPU only; on a CPU such a graph "
            "may load at optimization level ORT_ENABLE_EXTENDED or below, or with session=half.WITHOUT_NCHWC"
        )
    if not np.isfinite(outputs).all():
        raise ExportError(f"fp16: {int((~np.isfinite(outputs)).sum())} of {outputs.size} outputs are not finite")
    return snr_db(outputs_of(artifact, windows), outputs)
