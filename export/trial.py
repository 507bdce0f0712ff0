"""What somebody else's graph returns, run in a child process, so that a crash is only a refusal.

Run as a program in a folder that holds the model, the windows and the request, it is that child.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from edge_runtime.errors import EdgeRuntimeError, ExportError
from edge_runtime.model.manifest import ScalarInput, StateSpec
from edge_runtime.model.session import SessionSettings, create, load_onnxruntime
from edge_runtime.records import Floats
from export.probe import Failure, child
from export.quiet import one_line

if TYPE_CHECKING:
    import onnxruntime

    from edge_runtime.model.bundle import Bundle

MODEL, REQUEST, WINDOWS, OUTPUTS, PLAIN = "model.onnx", "request.json", "windows.npy", "outputs.npy", "plain.npy"
REASON_CHARACTERS = 190


class Request(msgspec.Struct, frozen=True):
    """What to feed and to read.

    golden: indices of the windows that run once more, on the graph as it stands. session: ONNX Runtime session config
    entries of both runs.
    """

    input: str
    output: str
    states: tuple[StateSpec, ...] = ()
    scalars: tuple[ScalarInput, ...] = ()
    golden: tuple[int, ...] = ()
    session: dict[str, str] = {}


class Returned(NamedTuple):
    """outputs: (n, ...) as the graph returns them. difference: largest, optimized graph to plain one, if that ran."""

    outputs: Floats
    difference: float


def run(model: bytes, windows: Floats, request: Request, *, name: str, python: tuple[str, ...] = ()) -> Returned:
    """Run windows one by one; states go from each to the next. name: of the model, in errors.

    windows: (n, ...) float32 in the model's layout. python: the command that runs them, by default this Python.
    Raises ExportError when the graph does not run.
    """
    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        place = Path(folder)
        (place / MODEL).write_bytes(model)
        (place / REQUEST).write_bytes(msgspec.json.encode(request))
        np.save(place / WINDOWS, windows)
        done = child("export.trial", [], place, python=python)
        if isinstance(done, Failure):
            raise ExportError(f"{name}: {done.reason}")
        outputs = np.load(place / OUTPUTS)
        plain = np.load(place / PLAIN) if request.golden else outputs[:0]
    if outputs.shape[1:2] != (1,) or outputs.ndim < 3:
        raise ExportError(
            f"{name}: output {request.output} has shape {outputs.shape[1:]} for a batch of 1, wanted (1, …)"
        )
    difference = np.abs(outputs[list(request.golden)].astype(np.float64) - plain)
    return Returned(outputs[:, 0], float(difference.max(initial=0.0)))


def main() -> int:
    """The child: 0, or 1 and one line on stderr."""
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=Request)
    model, windows = Path(MODEL).read_bytes(), np.load(WINDOWS)
    try:
        optimized = create(model, settings=SessionSettings(), entries=request.session)
        np.save(OUTPUTS, _outputs(optimized, windows, request))
        if request.golden:
            np.save(PLAIN, _outputs(_plain(model, request.session), windows[list(request.golden)], request))
    except EdgeRuntimeError as error:
        sys.stderr.write(f"{textwrap.shorten(one_line(error), REASON_CHARACTERS, placeholder=' …')}\n")
        return 1
    return 0


def _plain(model: bytes, entries: dict[str, str]) -> onnxruntime.InferenceSession:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _outputs(session: onnxruntime.InferenceSession, windows: Floats, request: Request) -> Floats:
    """(n, 1, ...): what the graph returns for each window, one by one. Raises ExportError when it does not run."""
    feed: dict[str, Any] = {
        scalar.name: np.full(scalar.shape, scalar.value, scalar.dtype) for scalar in request.scalars
    }
    feed |= {state.input: np.zeros(state.shape, state.dtype) for state in request.states}
    names = [request.output, *(state.output for state in request.states)]
    found = []
    for window in windows:
        feed[request.input] = window[np.newaxis]
        try:
            output, *after = session.run(names, feed)
        except Exception as error:
            raise ExportError(f"ONNX Runtime does not run it: {one_line(error)}") from error
        for state, value in zip(request.states, after, strict=True):
            if value.shape != state.shape:
                raise ExportError(f"state {state.output} comes out as {value.shape}, goes in as {state.shape}")
            feed[state.input] = value
        found.append(output)
    return np.stack(found)


def golden_outputs(bundle: Bundle) -> Floats:
    """(n, ...): what a bundle's graph returns here for its golden windows. Raises ModelError, ExportError."""
    manifest = bundle.manifest
    session = create(bundle.model, settings=SessionSettings(), entries=manifest.session)
    request = Request(manifest.input.name, manifest.output.name, manifest.states, manifest.scalars)
    return _outputs(session, bundle.golden.inputs, request)[:, 0]


if __name__ == "__main__":
    raise SystemExit(main())
