"""Load and run a model in a child process, so that a crash of ONNX Runtime is a result and not the end.

Run as a program it is that child: `python -m export.probe run|optimize PROVIDER ENTRIES INPUT OUTPUT`, in a folder that
holds the model, and the inputs where it runs; what it makes is written beside them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.model.session import CPU, load_onnxruntime
from edge_runtime.records import Floats
from export.artifact import Artifact, outputs_of

CHILD_LIMIT_S = 300.0
MODEL, INPUTS, OUTPUTS, OPTIMIZED = "model.onnx", "inputs.npy", "outputs.npy", "optimized.onnx"


class Failure(msgspec.Struct, frozen=True):
    """The model did not survive being loaded and run; reason in a few words."""

    reason: str


def run(artifact: Artifact, inputs: Floats, *, provider: str = CPU) -> Floats | Failure:
    """What the graph returns for inputs, computed in a child process.

    inputs: (n, ...) float32 in the model's layout.
    """
    with tempfile.TemporaryDirectory(prefix="edge-export-") as name:
        folder = Path(name)
        np.save(folder / INPUTS, inputs)
        done = _ask("run", artifact, folder, provider)
        if isinstance(done, Failure):
            return done
        outputs: Floats = np.load(folder / OUTPUTS)
        return outputs


def optimized(artifact: Artifact) -> bytes | Failure:
    """The graph as ONNX Runtime would run it here: ONNX bytes after all of its optimizations."""
    with tempfile.TemporaryDirectory(prefix="edge-export-") as name:
        done = _ask("optimize", artifact, Path(name), CPU)
        return done if isinstance(done, Failure) else (Path(name) / OPTIMIZED).read_bytes()


def child(
    module: str,
    arguments: list[str],
    folder: Path,
    *,
    python: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    limit_s: float | None = None,
) -> bytes | Failure:
    """The standard output of a module of ours, run as a program in the folder; a crash, error or hang is a Failure.

    python: the command that is Python, by default the one that runs. environment: by default this process's. limit_s:
    by default CHILD_LIMIT_S.
    """
    command = [*(python or (sys.executable,)), "-m", module, *arguments]
    return output_of(command, folder, environment=environment, limit_s=limit_s or CHILD_LIMIT_S)


def output_of(
    command: Sequence[str], folder: Path, *, environment: Mapping[str, str] | None = None, limit_s: float
) -> bytes | Failure:
    """What a program prints, as child() says it."""
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Failure(f"did not finish within {limit_s:g} s")
    if done.returncode < 0:
        return Failure(f"crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Failure(f"failed: {lines[-1][:200] if lines else f'exit status {done.returncode}'}")
    return done.stdout


def _ask(what: str, artifact: Artifact, folder: Path, provider: str) -> bytes | Failure:
    (folder / MODEL).write_bytes(artifact.model)
    entries = msgspec.json.encode(artifact.session).decode()
    return child("export.probe", [what, provider, entries, artifact.input, artifact.output], folder)


def main(arguments: list[str]) -> None:
    """The child."""
    what, provider, entries, input_name, output_name = arguments
    session = msgspec.json.decode(entries, type=dict[str, str])
    if what == "run":
        artifact = Artifact("", "", Path(MODEL).read_bytes(), input_name, output_name, (), session=session)
        np.save(OUTPUTS, outputs_of(artifact, np.load(INPUTS), provider=provider))
        return
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.optimized_model_filepath = OPTIMIZED
    options.log_severity_level = 3
    for key, value in session.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(MODEL, options, providers=[provider])


if __name__ == "__main__":
    main(sys.argv[1:])
