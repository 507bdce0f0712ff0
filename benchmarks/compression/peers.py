"""What others make of the same float32 file with the same calibration windows; a crash or a refusal is a result."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.compression import child
from benchmarks.compression.child import FRONT_END, MODEL, OUTPUTS, QUANTIZED, RUN, WINDOWS
from edge_runtime.records import Floats
from export import probe
from export.artifact import Artifact, ancestors, parse
from export.probe import Failure

ROOT = Path(__file__).parents[2]
NNCF = Path(sys.prefix) / "nncf"
"""NNCF and what it needs beyond our own environment; openvino-telemetry is left out, without which it sends nothing."""
NAMES = tuple(child.QUANTIZERS)
TOLD = tuple(name for name in NAMES if name.endswith("-told"))
"""Of no use for a model without a front-end."""
LIMIT_S = 900.0


def quantized(name: str, original: Artifact, windows: Floats) -> Artifact | Failure:
    """What the peer makes of the original. windows: (n, ...) for calibration, in the model's layout."""
    if name.startswith("nncf") and not (NNCF / "nncf").is_dir():
        return Failure(f"not installed in {NNCF.parent.name}/{NNCF.name}: make bench-export does it")
    with _folder(original.model, windows) as folder:
        front = sorted(ancestors(parse(original.model).graph, original.front_end))
        (folder / FRONT_END).write_bytes(msgspec.json.encode(front))
        failure = _child(name, folder)
        if failure:
            return failure
        model = (folder / QUANTIZED).read_bytes()
    return msgspec.structs.replace(original, name=name, precision="int8", model=model, steps=(name,), module=None)


def outputs(artifact: Artifact, windows: Floats) -> Floats | Failure:
    """What the graph returns for each of the windows alone. windows: (n, ...) float32 in the model's layout."""
    with _folder(artifact.model, windows) as folder:
        entries = msgspec.json.encode(artifact.session).decode()
        failure = _child(RUN, folder, entries, artifact.input, artifact.output)
        if failure:
            return failure
        found: Floats = np.load(folder / OUTPUTS)
    return found


def version(name: str) -> str:
    """Of the peer's package, "" where it is not installed."""
    package, path = ("nncf", [str(NNCF)]) if name.startswith("nncf") else ("onnxruntime", sys.path)
    found = next(iter(importlib.metadata.distributions(name=package, path=path)), None)
    return f"{package} {found.version}" if found else ""


@contextmanager
def _folder(model: bytes, windows: Floats) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        np.save(folder / WINDOWS, windows)
        yield folder


def _child(what: str, folder: Path, *rest: str) -> Failure | None:
    arguments = [what, str(folder), *rest]
    told = probe.child("benchmarks.compression.child", arguments, ROOT, environment=_environment(), limit_s=LIMIT_S)
    return told if isinstance(told, Failure) else None


def _environment() -> dict[str, str]:
    """NNCF_CI: no telemetry, even where somebody has installed openvino-telemetry."""
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "NNCF_CI": "1", "PYTHONPATH": str(NNCF)}
