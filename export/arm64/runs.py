"""How many instructions a run of a model takes. In the guest, this is the program that does the runs.

`python -m export.arm64.runs REQUEST`, in a folder that holds the models and the windows.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import SessionSettings, create
from edge_runtime.records import Floats
from export.arm64.counter import Mark, count, workplace
from export.arm64.marks import RUNS, counted
from export.arm64.userland import Userland
from export.probe import Failure

WINDOW = "window.npy"


class Model(msgspec.Struct, frozen=True):
    """An ONNX graph and the session entries it needs."""

    onnx: bytes
    input: str
    session: dict[str, str]


class Entry(msgspec.Struct, frozen=True):
    """In the guest's request: a file of the folder. input: the name of the model's."""

    path: str
    input: str
    session: dict[str, str]


class Instructions(msgspec.Struct, frozen=True):
    """Of one run, the call from Python included: least, median and most of RUNS."""

    least: int
    median: int
    most: int


def instructions(
    models: Sequence[Model], window: Floats, *, where: Userland, core: str
) -> list[Instructions] | Failure:
    """Of each model, run in one process one after the other, one thread.

    window: (1, ...) float32 in the models' layout. Raises ExportError when nothing can be counted here.
    """
    with workplace(where) as folder:
        entries = []
        for number, model in enumerate(models):
            path = f"{number}.onnx"
            (folder / path).write_bytes(model.onnx)
            entries.append(Entry(path, model.input, model.session))
        np.save(folder / WINDOW, window)
        request = msgspec.json.encode(entries).decode()
        marks = count(where, core, ["-m", "export.arm64.runs", request], folder=folder)
    return marks if isinstance(marks, Failure) else summaries(marks, len(models))


def summaries(marks: Sequence[Mark], models: int) -> list[Instructions]:
    """Of each model what lies between its marks. Raises ExportError when there are not RUNS + 1 for each."""
    size = RUNS + 1
    if len(marks) != size * models:
        raise ExportError(f"{len(marks)} marks of {models} models, wanted {size * models}")
    return [_summary(marks[first : first + size]) for first in range(0, len(marks), size)]


def _summary(marks: Sequence[Mark]) -> Instructions:
    runs = [after.since(before).instructions for before, after in itertools.pairwise(marks)]
    return Instructions(min(runs), int(statistics.median(runs)), max(runs))


def main(arguments: list[str]) -> None:
    """The guest."""
    entries = msgspec.json.decode(arguments[0], type=list[Entry])
    window = np.load(WINDOW)
    for entry in entries:
        session = create(Path(entry.path).read_bytes(), settings=SessionSettings(), entries=entry.session)
        counted(partial(session.run, None, {entry.input: window}))


if __name__ == "__main__":
    main(sys.argv[1:])
