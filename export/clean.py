"""Graph clean-up: constants folded, operators without effect removed, the outputs proven equal."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export import parity
from export.artifact import Artifact, Step, batch_of, changed, name_nodes, outputs_of, parse, require_float32
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx


def graph(windows: Floats) -> Step:
    """A step that simplifies the graph with onnxslim and proves on windows that nothing else changed.

    windows: (n, ...) float32 in the model's layout, n >= 7 for a dynamic batch axis.
    The step raises ExportError when outputs differ, a name or the batch axis changed, the front-end's boundary is
    gone, or the graph is quantized: folding would make its weights float32 again.
    """
    return lambda artifact: _graph(artifact, windows)


def _graph(artifact: Artifact, windows: Floats) -> Artifact:
    before, slimmed = parse(artifact.model), parse(artifact.model)
    require_float32(artifact, before, "clean-up")
    batches = parity.BATCHES if isinstance(batch_of(before), str) else (1,)
    if len(windows) < max(batches):
        raise ExportError(f"clean-up: the proof needs {max(batches)} windows, got {len(windows)}")
    after = _slim(slimmed, artifact.front_end)
    _check(before, after, artifact.front_end)
    done = changed(artifact, after)
    error = parity.largest_difference(
        "the cleaned graph",
        lambda inputs: outputs_of(done, inputs),
        artifact.name,
        lambda inputs: outputs_of(artifact, inputs),
        windows,
        batches=batches,
    )
    return changed(
        artifact,
        after,
        f"clean-up by onnxslim {metadata.version('onnxslim')}: {len(before.graph.node)} nodes to "
        f"{len(after.graph.node)}, {len(before.graph.initializer)} initializers to {len(after.graph.initializer)}; "
        f"at batch {', '.join(map(str, batches))} outputs differ by at most {error:.1e}",
    )


def _slim(proto: onnx.ModelProto, front_end: str) -> onnx.ModelProto:
    """As an output of the graph the front-end's boundary cannot be optimized away."""
    if front_end:
        proto.graph.output.append(next(value for value in proto.graph.value_info if value.name == front_end))
    load_onnxruntime()  # before onnxslim does, so that its telemetry is off
    try:
        import onnxslim

        with silenced():
            slimmed: onnx.ModelProto = onnxslim.slim(proto)
    except Exception as error:
        raise ExportError(f"clean-up failed: {type(error).__name__}: {one_line(error)}") from error
    if front_end:
        boundary = next(value for value in slimmed.graph.output if value.name == front_end)
        slimmed.graph.output.remove(boundary)
        if all(value.name != front_end for value in slimmed.graph.value_info):
            slimmed.graph.value_info.append(boundary)
    name_nodes(slimmed)
    return slimmed


def _check(before: onnx.ModelProto, after: onnx.ModelProto, front_end: str) -> None:
    for side in ("input", "output"):
        wanted, found = ([value.name for value in getattr(proto.graph, side)] for proto in (before, after))
        if found != wanted:
            raise ExportError(f"clean-up changed the {side}s to {found}, wanted {wanted}")
    if batch_of(before) != batch_of(after):
        raise ExportError(f"clean-up changed the batch axis from {batch_of(before)!r} to {batch_of(after)!r}")
    if front_end and all(front_end not in node.output for node in after.graph.node):
        raise ExportError(f"clean-up removed {front_end!r}, where the front-end ends")
