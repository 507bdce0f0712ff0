"""An ONNX file and a file of windows as a task: what `edge-export compress MODEL.onnx` works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import ExportError
from export import originals, signature
from export.derive import derive
from export.originals import NO_TARGET
from export.pack_onnx import load_windows, read_spec
from export.quiet import one_line
from export.recipe import Budget, InputSpec, Split
from export.task import Task

ARRAYS = ("calibrate", "validation", "validation_targets", "test", "test_targets")


def onnx_task(path: Path, data: Path | None, told: dict[str, Any], asked: Budget, *, seed: int) -> Task:
    """data: a .npz file with the ARRAYS; calibrate and validation are needed, targets are judged by where given.

    told: of a PackSpec; "spec" is a TOML file of them. Raises ExportError with what was found and what was wanted.
    """
    if data is None:
        raise ExportError(
            f"{path}: an ONNX file has no data of its own; wanted --data FILE.npz with {', '.join(ARRAYS)}"
        )
    plan = derive(signature.read(path), read_spec(told.pop("spec", None), told))
    if plan.states or plan.scalars:
        raise ExportError(f"{path}: takes a state or scalars beside the window; pack it as it is with edge-export pack")
    arrays = _arrays(data)
    calibrate = load_windows(arrays["calibrate"], plan.input)
    task = Task(
        name=plan.name,
        version=str(told.get("version", "0.1.0")),
        source=path.name,
        seed=seed,
        input=plan.input,
        labels=plan.labels,
        output=plan.kind,
        metric=None,
        threshold=told.get("threshold"),
        budget=asked,
        train=None,
        calibrate=calibrate,
        validation=_split(data, arrays, "validation", plan.input),
        test=_split(data, arrays, "test", plan.input) if "test" in arrays else None,
        original=originals.NOTHING,
        reference={},
    )
    return originals.of_onnx(path, task, sample=calibrate)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path}: not a .npz file of windows: {one_line(error)}") from error
    missing = {"calibrate", "validation"} - found.keys()
    if missing or not found.keys() <= set(ARRAYS):
        raise ExportError(
            f"{path}: holds {', '.join(sorted(found))}, wanted calibrate and validation of {', '.join(ARRAYS)}"
        )
    return found


def _split(path: Path, arrays: dict[str, Any], name: str, spec: InputSpec) -> Split:
    inputs = load_windows(arrays[name], spec)
    targets = arrays.get(f"{name}_targets", np.full(len(inputs), NO_TARGET))
    if targets.shape != (len(inputs),) or not np.issubdtype(targets.dtype, np.integer):
        raise ExportError(f"{path}: {name}_targets are {targets.dtype} {targets.shape}, wanted int64 ({len(inputs)},)")
    return Split(inputs, targets.astype(np.int64))
