"""What there is before a search: a trained recipe, a torch network with its data, or an ONNX file, as a Task."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import ERROR_KINDS
from edge_runtime.records import Floats
from export.artifact import Artifact, outputs_of
from export.calibrate import check_disjoint, drawn
from export.contents import tools
from export.evaluate import decisions, threshold_of
from export.recipe import Progress, Recipe, Split, files_of
from export.task import Task

if TYPE_CHECKING:
    from torch import nn

NO_TARGET = -1
"""Target of a window that nobody labelled: right is what the original decides."""


def of_recipe(recipe: Recipe, *, folder: Path | None, progress: Progress) -> Task:
    """Train the recipe's network and export it. folder: where weights are kept, so that it is trained once.

    Raises ExportError when it cannot be trained or exported, or a window stands in two splits.
    """
    from export import to_onnx
    from export.train import deterministic, trained

    with deterministic(recipe.seed):
        progress("loading data")
        splits = recipe.data()
        named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        calibrate = drawn(splits.train.inputs, seed=recipe.seed)
        check_disjoint(named, calibrate)
        kept = folder / f"{_digest(recipe, named)}.original.npz" if folder else None
        trained_now = kept is None or not kept.exists()
        model = trained(recipe, splits, progress, kept=kept)
        progress("exporting to ONNX")
        original = to_onnx.export(model, splits.train.inputs, input_name=recipe.input.name, output_name=recipe.output)
    task = Task(
        name=recipe.name,
        version=recipe.version,
        source="/".join(recipe.path.resolve().parts[-2:]),
        seed=recipe.seed,
        input=recipe.input,
        labels=recipe.labels,
        output=recipe.output,
        metric=recipe.metric,
        threshold=recipe.threshold,
        budget=recipe.budget,
        train=splits.train,
        calibrate=calibrate,
        validation=splits.validation,
        test=splits.test,
        original=original,
        reference={},
        augment=recipe.augment,
        summary=recipe.summary,
        code=hashlib.sha256(b"".join(path.read_bytes() for path in files_of(recipe.path))).hexdigest(),
        trained_now=trained_now,
    )
    return referred(task)


def of_network(model: nn.Module, task: Task, *, sample: Floats, input_name: str = "x") -> Task:
    """A task with a trained network as its original. sample: (n, ...) windows to export with and to prove it equal.

    Raises ExportError when it cannot be exported or a window stands in two splits.
    """
    from export import to_onnx

    check_windows(task)
    check_disjoint(task.splits(), task.calibrate)
    original = to_onnx.export(model, sample, input_name=input_name, output_name=task.output)
    return referred(msgspec.structs.replace(task, original=original))


def of_onnx(path: Path, task: Task, *, sample: Floats) -> Task:
    """A task with an ONNX file as its original.

    Raises ExportError when the file is none that can be quantized and judged, or a window stands in two splits.
    """
    from export.source import check_source

    check_windows(task)
    check_disjoint(task.splits(), task.calibrate)
    return referred(msgspec.structs.replace(task, original=check_source(path, sample=sample)))


def referred(task: Task) -> Task:
    """The task with what its original returns for each split, a threshold, labels and targets where nobody gave them.

    Raises ExportError when targets or labels do not fit the outputs.
    """
    reference = {name: _returned(task.original, split.inputs) for name, split in task.splits().items()}
    threshold = None
    if task.output in ERROR_KINDS:  # never of windows that judge
        normal = task.calibrate if task.train is None else task.train.inputs
        threshold = threshold_of(task, normal, _returned(task.original, normal))
    found = msgspec.structs.replace(task, reference=reference, threshold=threshold)
    decided = {name: _decided(found, split, reference[name]) for name, split in task.splits().items()}
    found = msgspec.structs.replace(found, labels=_labels(found), **decided)
    for name, split in found.splits().items():
        _check_targets(found, name, split)
    return found


def check_windows(task: Task) -> None:
    """Raises ExportError when windows are not finite float32 ones of one shape."""
    shape = task.calibrate.shape[1:] if task.input is None else task.input.shape()
    for name, inputs in {"calibrate": task.calibrate, **{n: s.inputs for n, s in task.splits().items()}}.items():
        if inputs.dtype != np.float32 or inputs.shape[1:] != shape or not len(inputs):
            wanted = f"float32 (n, {', '.join(map(str, shape))}), n at least 1"
            raise ExportError(f"{task.name}: {name} holds {inputs.dtype} {inputs.shape}, wanted {wanted}")
        if not np.isfinite(inputs).all():
            raise ExportError(f"{task.name}: {name} holds NaN or infinity")


def _width(task: Task) -> int:
    """Labels that the output tells apart."""
    if task.output in ERROR_KINDS:
        return 0
    return 2 if task.output == "probability" else int(task.reference["validation"].shape[1])


def _labels(task: Task) -> tuple[str, ...]:
    width = _width(task)
    labels = task.labels or tuple(f"class{i}" for i in range(width))
    if len(labels) != width:
        raise ExportError(f"{task.name}: {task.output} for {width} labels, told {len(labels)}: {', '.join(labels)}")
    return labels


def _check_targets(task: Task, name: str, split: Split) -> None:
    low, high = int(split.targets.min()), int(split.targets.max())
    if low < 0 or (task.labels and high >= len(task.labels)):
        raise ExportError(
            f"{task.name}: targets of {name} run from {low} to {high}, wanted 0 to {len(task.labels) - 1}"
        )


def _returned(original: Artifact, inputs: Floats) -> Floats:
    """By torch where torch has the network: what the graph gives is then judged too."""
    if original.module is None:
        return outputs_of(original, inputs)
    from export.train import torch_outputs

    return torch_outputs(original.module, inputs)


def _decided(task: Task, split: Split, reference: Floats) -> Split:
    if not np.all(split.targets == NO_TARGET):
        return split
    return Split(split.inputs, decisions(task, split.inputs, reference, task.threshold))


def _digest(recipe: Recipe, splits: dict[str, Split]) -> str:
    """Of all that the trained weights follow from: the recipe and its neighbours, the data, the tools."""
    found = hashlib.sha256(repr((recipe.seed, recipe.epochs, sorted(tools("torch").items()))).encode())
    for path in files_of(recipe.path):
        found.update(path.name.encode() + path.read_bytes())
    for split in splits.values():
        found.update(np.ascontiguousarray(split.inputs).data)
        found.update(np.ascontiguousarray(split.targets).data)
    return found.hexdigest()[:32]


NOTHING = Artifact("", "", b"", "", "", ())
"""The original of a task that is yet to get one."""
