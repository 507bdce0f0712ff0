"""One call: the smallest and fastest form of a model that keeps a budget on a target, proven and explained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import OutputKind
from edge_runtime.records import Floats, InputSpec
from export import originals, report, targets
from export.cache import Cache
from export.calibrate import drawn
from export.candidate import Measured
from export.quiet import one_line
from export.recipe import Augment, Budget, Labels, Metric, Progress, Split, require_tools
from export.search import EFFORTS, Outcome, search
from export.task import FineTune, Task

if TYPE_CHECKING:
    from torch import nn

    from export.explain import Explanation

__all__ = ["Best", "Budget", "Compressed", "compress", "run"]

Labelled = Split | tuple[Floats, Labels]
DEFAULT_DROP = 0.01
"""Where a budget names none: nobody wants what is merely small or fast."""


class Best:
    """The chosen candidate."""

    def __init__(self, outcome: Outcome, measured: Measured) -> None:
        self.measured = measured
        self._outcome = outcome

    def save(self, path: Path | str) -> Path:
        """Write it as a bundle. Raises ExportError when nobody said what its input is."""
        from export.pack import pack

        pack(Path(path), self._outcome)
        return Path(path)


class Compressed:
    """What a search found. outcome: everything measured."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    @property
    def best(self) -> Best:
        """Raises ExportError with the nearest candidates and what to relax when nothing keeps the budget."""
        if self.outcome.chosen is None:
            raise ExportError(report.missed(self.outcome))
        return Best(self.outcome, self.outcome.chosen)

    def table(self) -> str:
        return report.page(self.outcome)

    def plot(self, path: Path | str) -> None:
        """The Pareto plot; .html or .png."""
        from export.pareto import plot

        plot(self.outcome, Path(path))

    def explain(self) -> Explanation:
        """What became of each node of the chosen candidate, where its time and size went. str() of it is a page."""
        from export.explain import explain_outcome

        return explain_outcome(self.outcome)


def compress(
    model: nn.Module | Path | str,
    *,
    validate: Labelled | Floats,
    sample: Floats | None = None,
    train: Labelled | FineTune | None = None,
    calibrate: Floats | None = None,
    test: Labelled | Floats | None = None,
    metric: Metric | None = None,
    budget: Budget = Budget(),  # noqa: B008  immutable
    target: str = "local",
    output: OutputKind = "logits",
    labels: tuple[str, ...] = (),
    input: InputSpec | None = None,  # noqa: A002  the word of the manifest
    threshold: float | None = None,
    augment: Augment | None = None,
    name: str = "model",
    version: str = "0.1.0",
    seed: int = 0,
    effort: str = "default",
    time_limit_s: float | None = None,
    cache: Path | str | None = None,
    progress: Progress = lambda _text: None,
) -> Compressed:
    """Find the best form of a trained network, or of an ONNX file, within a budget.

    Windows are float32, (n, ...) in the model's layout; targets int64. train: windows and labels to fine-tune on, or
    a function that trains a network in place; None leaves pruning out. calibrate: by default drawn from train. sample:
    windows to export with, by default those of calibration. validate, test: windows and labels, or windows alone,
    which are judged by agreement with the original. output: what the model returns. input, labels, name, version:
    for the bundle. target: local, local:cuda, emulated:a72 or mqtts://user@host/node. time_limit_s: no training is
    begun that would end past it; by default that of the effort, math.inf for none. cache: a folder in which candidates
    are kept, so that a search goes on where it was broken off.
    Raises ExportError when the model or the data cannot be used, with what was found and what was wanted.
    """
    require_tools(("onnx",) if isinstance(model, Path | str) else ("torch", "onnx", "onnxscript"))
    known = None if train is None or callable(train) else _split("train", train)
    windows = calibrate if calibrate is not None else None if known is None else drawn(known.inputs, seed=seed)
    if windows is None:
        raise ExportError(f"{name}: calibration needs windows, wanted calibrate=, or train= with windows")
    task = Task(
        name=name,
        version=version,
        source="Python",
        seed=seed,
        input=input,
        labels=labels,
        output=output,
        metric=metric and _guarded(metric),
        threshold=threshold,
        budget=budget,
        train=known,
        calibrate=windows,
        validation=_split("validate", validate),
        test=None if test is None else _split("test", test),
        original=originals.NOTHING,
        reference={},
        augment=augment,
        finetune=train if callable(train) else None,
    )
    targets.parse(target)
    example = windows if sample is None else sample
    if isinstance(model, Path | str):
        task = originals.of_onnx(Path(model), task, sample=example)
    else:
        name_in = input.name if input else "x"
        task = originals.of_network(model, task, sample=example, input_name=name_in)
    folder = Path(cache).expanduser() if cache else None
    return run(task, target=target, effort=effort, time_limit_s=time_limit_s, folder=folder, progress=progress)


def run(
    task: Task,
    *,
    target: str = "local",
    effort: str = "default",
    time_limit_s: float | None = None,
    folder: Path | None = None,
    progress: Progress = lambda _text: None,
) -> Compressed:
    """Search; a budget without max_drop gets DEFAULT_DROP.

    folder: where candidates are kept, None for nowhere. Raises ExportError.
    """
    if effort not in EFFORTS:
        raise ExportError(f"effort {effort!r}, wanted one of {', '.join(EFFORTS)}")
    if task.budget.max_drop is None:
        task = msgspec.structs.replace(task, budget=msgspec.structs.replace(task.budget, max_drop=DEFAULT_DROP))
    outcome = search(
        task,
        target=targets.parse(target),
        cache=Cache(task, folder, progress),
        effort=effort,
        time_limit_s=time_limit_s,
        progress=progress,
    )
    return Compressed(outcome)


def _guarded(metric: Metric) -> Metric:
    """The metric, what it raises told in a line: a resample of one label only is no end of a search."""

    @functools.wraps(metric)
    def call(outputs: Floats, targets_: Labels) -> float:
        try:
            return metric(outputs, targets_)
        except Exception as error:
            raise ExportError(f"metric() raised {type(error).__name__}: {one_line(error)}") from error

    return call


def _split(name: str, given: Labelled | Floats) -> Split:
    """Raises ExportError naming the argument when it is no windows, or windows and labels, of one length."""
    if isinstance(given, Split):
        split = given
    elif isinstance(given, np.ndarray):
        split = Split(given, np.full(len(given), originals.NO_TARGET, np.int64))
    else:
        inputs, targets_ = given
        split = Split(np.asarray(inputs), np.asarray(targets_))
    found = f"{split.inputs.dtype} {split.inputs.shape} and {split.targets.dtype} {split.targets.shape}"
    if (
        split.inputs.dtype != np.float32
        or split.targets.dtype != np.int64
        or split.targets.shape != (len(split.inputs),)
    ):
        raise ExportError(f"{name}: {found}, wanted float32 windows (n, …) and int64 targets (n)")
    return split
