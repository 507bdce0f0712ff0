"""What `runtime.examine` runs in a process of its own, because it may die: import ONNX Runtime, run a model.

    python -m edge_runtime.device.ort_child [BUNDLE PROVIDER THREADS MAX_BATCH]

Prints a step as one line of JSON after each that went well: Imported, Ran, or Failed.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import msgspec

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings, load_onnxruntime


class Imported(msgspec.Struct, frozen=True, tag=True):
    """ONNX Runtime was imported."""

    version: str
    providers: list[str]


class Ran(msgspec.Struct, frozen=True, tag=True):
    """A model was proven on its golden vectors. infer_ms: one window. golden_error: largest deviation."""

    model: str
    precision: str
    provider: str
    golden_error: float
    infer_ms: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    error: str


Step = Imported | Ran | Failed


def main(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        ort = load_onnxruntime()
        _say(Imported(ort.__version__, ort.get_available_providers()))
        if arguments:
            bundle, provider, threads, max_batch = arguments
            session = Session(read(Path(bundle)), SessionSettings(provider, int(threads), int(max_batch)))
            precision, infer_ms = session.manifest.precision, session.infer_ns / 1e6
            _say(Ran(session.model_id, precision, provider, session.golden_error, infer_ms))
    except EdgeRuntimeError as error:
        _say(Failed(str(error)))


def _say(step: Step) -> None:
    sys.stdout.write(msgspec.json.encode(step).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
