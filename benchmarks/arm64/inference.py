"""Instructions of one inference by every variant of every example, on every core, and whether it is right there."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.arm64.golden import Proof, proof
from benchmarks.arm64.inference_guest import FOUND, Found
from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from export.arm64 import runs
from export.arm64.counter import count, workplace
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
    """bundles: EXAMPLE-VARIANT.edge; one process an example, so that none depends on which others there are.

    Raises ExportError when the guest fails, or nothing can be counted here.
    """
    examples = [list(paths) for _, paths in itertools.groupby(sorted(bundles, key=_name), key=lambda p: _name(p)[0])]
    for core, paths in itertools.product(cores, examples):
        yield from _of_example(where, core, paths)


def _of_example(where: Userland, core: str, paths: Sequence[Path]) -> Iterator[Inference]:
    with workplace(where) as folder:
        for path in paths:
            shutil.copy(path, folder)
        program = ["-m", "benchmarks.arm64.inference_guest", *(path.name for path in paths)]
        marks = count(where, core, program, folder=folder)
        if isinstance(marks, Failure):
            raise ExportError(f"{_name(paths[0])[0]}, {core}: {marks.reason}")
        found = msgspec.json.Decoder(Found).decode_lines((folder / FOUND).read_bytes())
    for path, spent, one in zip(paths, runs.summaries(marks, len(paths)), found, strict=True):
        yield _line(path, core, spent, one)


def _name(path: Path) -> tuple[str, str]:
    """Example and variant."""
    example, _, variant = path.stem.rpartition(SEPARATOR)
    return example, variant


def _line(path: Path, core: str, spent: Instructions, one: Found) -> Inference:
    found = bundle.read(path)
    example, variant = _name(path)
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
        proof=Proof(refused=one.refused) if one.refused else proof(found, np.array(one.outputs, np.float32)),
    )
