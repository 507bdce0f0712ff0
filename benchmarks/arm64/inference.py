"""Instructions of one inference by every variant of every example, on every core, and whether it is right there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.arm64.inference_guest import GOLDEN, Proof
from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from export.arm64 import runs
from export.arm64.counter import count
from export.arm64.runs import Instructions
from export.arm64.userland import Userland
from export.probe import Failure

SEPARATOR = "-"


class Inference(msgspec.Struct, frozen=True, tag="inference"):
    """A prediction of one window as the daemon makes it, Python and ONNX Runtime included.

    sha256: of the graph. onnx: its bytes. least, median, most: instructions. proof: of its golden vectors.
    """

    example: str
    variant: str
    core: str
    sha256: str
    onnx: int
    precision: str
    least: int
    median: int
    most: int
    proof: Proof


def inference(where: Userland, cores: Iterable[str], bundles: Sequence[Path]) -> Iterator[Inference]:
    """bundles: EXAMPLE-VARIANT.edge. Raises ExportError when the guest fails, or nothing can be counted here."""
    for core in cores:
        with tempfile.TemporaryDirectory(prefix="edge-bench-") as name:
            program = ["-m", "benchmarks.arm64.inference_guest", *(str(path.resolve()) for path in bundles)]
            marks = count(where, core, program, folder=Path(name))
            if isinstance(marks, Failure):
                raise ExportError(f"{core}: {marks.reason}")
            proofs = msgspec.json.Decoder(Proof).decode_lines((Path(name) / GOLDEN).read_bytes())
        for path, spent, proof in zip(bundles, runs.summaries(marks, len(bundles)), proofs, strict=True):
            yield _line(path, core, spent, proof)


def _line(path: Path, core: str, spent: Instructions, proof: Proof) -> Inference:
    found = bundle.read(path)
    example, _, variant = path.stem.rpartition(SEPARATOR)
    return Inference(
        example=example,
        variant=variant,
        core=core,
        sha256=hashlib.sha256(found.model).hexdigest(),
        onnx=len(found.model),
        precision=found.manifest.precision,
        least=spent.least,
        median=spent.median,
        most=spent.most,
        proof=proof,
    )
