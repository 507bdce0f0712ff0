"""Graph clean-up: constants folded, operators without effect removed, the outputs proven equal."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export import front_end, parity
from export.artifact import Artifact, Step, batch_of, changed, name_nodes, outputs_of, parse, require_float32
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx


def graph(windows: Floats) -> Step:
    """A step that simplifies the graph with onnxslim and proves on windows that nothing else changed.

    windows: (n, ...) float32 in the model's layout, n >= 7 for a dynamic batch axis.
    The front-end stays as it is. The step raises ExportError when outputs differ, a name or the batch axis changed, or
    the graph is quantized: folding would make its weights float32 again.
    """
    return lambda artifact: _graph(artifact, windows)


def _graph(artifact: Artifact, windows: Floats) -> Artifact:
    before = parse(artifact.model)
    require_float32(artifact, before, "clean-up")
    batches = parity.BATCHES if isinstance(batch_of(before), str) else (1,)
    if len(windows) < max(batches):
        raise ExportError(f"clean-up: the proof needs {max(batches)} windows, got {len(windows)}")
    parts = front_end.cut(artifact, "clean-up")
    after = parts.joined(_slim(parts.body))
    _check(before, after)
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


def _slim(body: onnx.ModelProto) -> onnx.ModelProto:
    load_onnxruntime()  # before onnxslim does, so that its telemetry is off
    try:
        import onnxslim

        with silenced():
            slimmed: onnx.ModelProto = onnxslim.slim(body)
    except Exception as error:
        raise ExportError(f"clean-up failed: {type(error).__name__}: {one_line(error)}") from error
    name_nodes(slimmed)
    return slimmed


def _check(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for side in ("input", "output"):
        wanted, found = ([value.name for value in getattr(proto.graph, side)] for proto in (before, after))
        if found != wanted:
            raise ExportError(f"clean-up changed the {side}s to {found}, wanted {wanted}")
    if batch_of(before) != batch_of(after):
        raise ExportError(f"clean-up changed the batch axis from {batch_of(before)!r} to {batch_of(after)!r}")
