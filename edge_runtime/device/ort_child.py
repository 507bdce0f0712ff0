"""What `runtime.attempt` runs in a process of its own, because it may die: import ONNX Runtime, run a model of ours.

    python -m edge_runtime.device.ort_child FD PARENT [BUNDLE]

Writes a step to FD as one line of JSON after each that went well: Imported, Ran, or Failed.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.model import child
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings, load_onnxruntime


class Imported(msgspec.Struct, frozen=True, tag=True):
    """ONNX Runtime was imported."""

    version: str
    providers: list[str]


class Ran(msgspec.Struct, frozen=True, tag=True):
    """A model ran its golden vectors. golden_error: largest deviation."""

    model: str
    golden_error: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    error: str


Step = Imported | Ran | Failed


def main(bundles: Sequence[str], tell: Callable[[Step], None]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        ort = load_onnxruntime()
        tell(Imported(ort.__version__, ort.get_available_providers()))
        for bundle in bundles:
            session = Session(read(Path(bundle)), SessionSettings())
            tell(Ran(session.model_id, session.golden_error))
    except EdgeRuntimeError as error:
        tell(Failed(child.printable(str(error))))


if __name__ == "__main__":
    tell, arguments = child.begin(sys.argv)
    main(arguments, tell)
