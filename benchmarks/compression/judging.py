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
from export.evaluate import RESAMPLES, Drop, bootstrap_p, comparable, paired_shares, wilson
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


def judged(folds: Sequence[Seen], *, metric: Metric | None, seed: int, together: int = 1) -> Verdict:
    """Accuracy, windows counted over all folds; or the metric's mean over folds, windows resampled within each.

    together: so many windows in a row are of one machine, and are drawn or left out as one.
    """
    return _accuracy(folds) if metric is None else _metric(folds, metric, seed=seed, together=together)


def _accuracy(folds: Sequence[Seen]) -> Verdict:
    right_before, right = (
        np.concatenate([getattr(fold, which).argmax(axis=-1) == fold.targets for fold in folds])
        for which in ("before", "after")
    )
    drop = paired_shares(right_before, right)
    low, high = wilson(int(right_before.sum()), len(right_before))
    lost, won = int(np.sum(right_before & ~right)), int(np.sum(~right_before & right))
    return _verdict(drop, len(right), (float(right_before.mean()), low, high), lost, won)


def _metric(folds: Sequence[Seen], metric: Metric, *, seed: int, together: int) -> Verdict:
    """A resample that the metric cannot judge, as an AUC of one label only, is left out."""
    generator = np.random.default_rng(seed)
    resamples = []
    for _ in range(RESAMPLES):
        with contextlib.suppress(ExportError):
            resamples.append(_means(folds, metric, [_drawn(len(fold.targets), together, generator) for fold in folds]))
    drawn = np.array(resamples)
    before, after = _means(folds, metric, [np.arange(len(fold.targets)) for fold in folds])
    drops = drawn[:, 0] - drawn[:, 1]
    low, high = (float(value) for value in np.percentile(drops, [2.5, 97.5]))
    p_value = bootstrap_p(drops)
    drop = Drop(before - after, float(drops.std()), low, high, p_value)
    before_low, before_high = (float(value) for value in np.percentile(drawn[:, 0], [2.5, 97.5]))
    return _verdict(drop, sum(len(fold.targets) for fold in folds), (before, before_low, before_high), None, None)


def _drawn(n: int, together: int, generator: np.random.Generator) -> Labels:
    """Rows of a resample of n windows."""
    machines = np.arange(n).reshape(-1, together)
    return machines[generator.integers(0, len(machines), len(machines))].reshape(-1)


def _means(folds: Sequence[Seen], metric: Metric, rows: Sequence[Labels]) -> tuple[float, float]:
    """The metric of float32 and of the variant on chosen rows of each fold, mean over folds."""
    before, after = np.mean(
        [
            [metric(outputs[chosen], fold.targets[chosen]) for outputs in (fold.before, fold.after)]
            for fold, chosen in zip(folds, rows, strict=True)
        ],
        axis=0,
    )
    return float(before), float(after)


def _verdict(drop: Drop, n: int, before: tuple[float, float, float], lost: int | None, won: int | None) -> Verdict:
    return Verdict(n, *before, before[0] - drop.value, drop.value, drop.low, drop.high, drop.p_value, lost, won)
