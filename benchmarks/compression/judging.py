"""A variant against float32 on the test windows of one fold, or of all folds together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec
import numpy as np

from benchmarks.compression.finished import Arrays
from benchmarks.compression.records import Verdict
from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.evaluate import RESAMPLES, Drop, comparable, paired_shares, wilson
from export.recipe import Labels, Metric
from export.task import Task


class Seen(msgspec.Struct, frozen=True):
    """The test windows of one fold: (n,) targets, and what a metric sees of float32 and of the variant, (n, ...)."""

    targets: Labels
    before: Floats
    after: Floats


def seen(task: Task, outputs: Floats) -> Seen:
    """outputs: of the variant on the task's test split, as the original gives them."""
    if task.test is None:
        raise ValueError(f"{task.name} has no test split")
    inputs = task.test.inputs
    return Seen(task.test.targets, comparable(task, inputs, task.reference["test"]), comparable(task, inputs, outputs))


def arrays_of(found: Seen) -> Arrays:
    return msgspec.structs.asdict(found)


def of_arrays(arrays: Arrays) -> Seen:
    return Seen(**arrays)  # type: ignore[arg-type]


def judged(folds: Sequence[Seen], *, metric: Metric | None, seed: int) -> Verdict:
    """Accuracy, windows counted over all folds; or the metric's mean over folds, windows resampled within each."""
    return _accuracy(folds) if metric is None else _metric(folds, metric, seed=seed)


def _accuracy(folds: Sequence[Seen]) -> Verdict:
    right_before, right = (
        np.concatenate([getattr(fold, which).argmax(axis=-1) == fold.targets for fold in folds])
        for which in ("before", "after")
    )
    drop = paired_shares(right_before, right)
    low, high = wilson(int(right_before.sum()), len(right_before))
    lost, won = int(np.sum(right_before & ~right)), int(np.sum(~right_before & right))
    return _verdict(drop, len(right), (float(right_before.mean()), low, high), lost, won)


def _metric(folds: Sequence[Seen], metric: Metric, *, seed: int) -> Verdict:
    """A resample that the metric cannot judge, as an AUC of one label only, is left out."""
    generator = np.random.default_rng(seed)
    resamples = []
    for _ in range(RESAMPLES):
        with contextlib.suppress(ExportError):
            resamples.append(_means(folds, metric, generator))
    drawn = np.array(resamples)
    before, after = _means(folds, metric, None)
    drops = drawn[:, 0] - drawn[:, 1]
    low, high = (float(value) for value in np.percentile(drops, [2.5, 97.5]))
    p_value = min(1.0, 2 * min(float(np.mean(drops <= 0)), float(np.mean(drops >= 0))))
    drop = Drop(before - after, float(drops.std()), low, high, p_value)
    before_low, before_high = (float(value) for value in np.percentile(drawn[:, 0], [2.5, 97.5]))
    return _verdict(drop, sum(len(fold.targets) for fold in folds), (before, before_low, before_high), None, None)


def _means(folds: Sequence[Seen], metric: Metric, generator: np.random.Generator | None) -> tuple[float, float]:
    """The metric of float32 and of the variant, mean over folds; of resampled windows when there is a generator."""
    values = []
    for fold in folds:
        n = len(fold.targets)
        rows = np.arange(n) if generator is None else generator.integers(0, n, n)
        values.append([metric(outputs[rows], fold.targets[rows]) for outputs in (fold.before, fold.after)])
    before, after = np.mean(values, axis=0)
    return float(before), float(after)


def _verdict(drop: Drop, n: int, before: tuple[float, float, float], lost: int | None, won: int | None) -> Verdict:
    return Verdict(n, *before, before[0] - drop.value, drop.value, drop.low, drop.high, drop.p_value, lost, won)
