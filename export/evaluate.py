"""How good a variant is: the metric with its interval, agreement with float32, output SNR, paired significance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import ERROR_KINDS, OutputKind
from edge_runtime.model.session import both_scores, reconstruction_error
from edge_runtime.records import Floats
from export.recipe import Labels, Metric, Split

Z_95 = 1.959963984540054
RESAMPLES = 1000
NORMAL_SHARE = 0.995


class Judged(Protocol):
    """What says how outputs are judged: a recipe or a task. name: for errors."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def output(self) -> OutputKind: ...
    @property
    def metric(self) -> Metric | None: ...
    @property
    def threshold(self) -> float | None: ...


class Drop(NamedTuple):
    """How much lower the metric is than the original's on the same windows, absolute.

    error: its standard error, above zero though no window is decided otherwise: few windows say little. low, high: 95 %
    interval. p_value: of no difference, McNemar's exact test for accuracy, else twice the share of paired resamples on
    the other side of zero.
    """

    value: float
    error: float
    low: float
    high: float
    p_value: float


class Evaluation(msgspec.Struct, frozen=True):
    """One variant on one split of n windows.

    low, high: 95 % interval of the metric, Wilson's for accuracy, else a bootstrap. agreement: share of windows
    decided as the original decides them. snr_db: output power over the power of the difference to the original.
    """

    n: int
    metric: float
    low: float
    high: float
    agreement: float
    snr_db: float
    drop: Drop


def evaluate(task: Judged, split: Split, outputs: Floats, reference: Floats) -> Evaluation:
    """Hold a variant's outputs on a split against its targets and the original's outputs.

    outputs, reference: (n, ...), what the task's network returns.
    """
    decided, wanted = (decisions(task, split.inputs, found, task.threshold) for found in (outputs, reference))
    right, right_before = decided == split.targets, wanted == split.targets
    seen, before = (comparable(task, split.inputs, found) for found in (outputs, reference))
    metric, low, high = _metric(task, split, seen, right)
    if task.metric is None:
        drop = paired_shares(right_before, right)
    else:
        drop = paired_bootstrap(task.metric, before, seen, split.targets, seed=task.seed)
    return Evaluation(
        n=len(split.targets),
        metric=metric,
        low=low,
        high=high,
        agreement=float(np.mean(decided == wanted)),
        snr_db=snr_db(reference, outputs),
        drop=drop,
    )


def paired_shares(right_before: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> Drop:
    """The difference of two shares over the same windows: adjusted Wald interval (Agresti and Min 2005)."""
    n, lost, won = len(right), int(np.sum(right_before & ~right)), int(np.sum(~right_before & right))
    center, error = (lost - won) / (n + 2), math.sqrt(lost + won + 1 - (lost - won) ** 2 / (n + 2)) / (n + 2)
    return Drop((lost - won) / n, error, center - Z_95 * error, center + Z_95 * error, mcnemar(right_before, right))


def paired_bootstrap(metric: Metric, before: Floats, outputs: Floats, targets: Labels, *, seed: int) -> Drop:
    """The difference of a metric over the same windows, by resampling them; see `bootstrap`."""

    def difference(chosen: Labels) -> float:
        return float(metric(before[chosen], targets[chosen])) - float(metric(outputs[chosen], targets[chosen]))

    everything = np.arange(len(targets), dtype=np.int64)
    values = _resampled(difference, len(targets), seed=seed)
    value = difference(everything)
    if not len(values):
        return Drop(value, math.nan, math.nan, math.nan, math.nan)
    low, high = np.percentile(values, [2.5, 97.5])
    least = abs(float(metric(outputs, targets))) / (len(targets) + 2)  # of a metric that no resample changes
    return Drop(value, max(float(np.std(values)), least), float(low), float(high), bootstrap_p(values))


def bootstrap_p(differences: npt.NDArray[np.float64]) -> float:
    """Two-sided, of resampled differences; never zero, as so many resamples cannot say that."""
    beyond = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    return min(1.0, 2 * (beyond + 1) / (len(differences) + 1))


def comparable(task: Judged, inputs: Floats, outputs: Floats) -> Floats:
    """What a metric sees: (n, labels) logits or scores, or (n, 1) errors."""
    if task.output == "probability":
        return both_scores(outputs)
    return reconstruction_error(inputs, outputs) if task.output == "reconstruction" else outputs


def decisions(task: Judged, inputs: Floats, outputs: Floats, threshold: float | None) -> Labels:
    """(n,) the label of each window; for errors 1 above the threshold, else 0."""
    seen = comparable(task, inputs, outputs)
    if task.output in ERROR_KINDS:
        if threshold is None:
            raise ValueError(f"{task.output} is decided by a threshold, got None")
        decided: Labels = (seen[:, 0] > threshold).astype(np.int64)
        return decided
    return np.asarray(seen.argmax(axis=-1), dtype=np.int64)


def threshold_of(task: Judged, inputs: Floats, outputs: Floats) -> float | None:
    """The task's threshold, or where it gives none the error that 99.5 % of these windows stay below."""
    if task.output not in ERROR_KINDS or task.threshold is not None:
        return task.threshold
    return float(np.quantile(comparable(task, inputs, outputs), NORMAL_SHARE))


def check_metric(task: Judged, split: Split, outputs: Floats) -> None:
    """Raises ExportError when the metric cannot judge a whole split."""
    if task.metric is not None:
        _number(task, task.metric(comparable(task, split.inputs, outputs), split.targets))


def _metric(task: Judged, split: Split, outputs: Floats, right: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    if task.metric is None:
        return float(np.mean(right)), *wilson(int(right.sum()), len(right))
    value = _number(task, task.metric(outputs, split.targets))
    return value, *bootstrap(task.metric, outputs, split.targets, seed=task.seed)


def _number(task: Judged, value: float) -> float:
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ExportError(f"{task.name}: metric() returned {value!r}, wanted a finite number")
    return float(value)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); unlike the normal one it holds near 0 and 1."""
    share, z2 = right / n, Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap(metric: Metric, outputs: Floats, targets: Labels, *, seed: int) -> tuple[float, float]:
    """95 % percentile interval of a metric over resampled windows.

    A resample that the metric cannot judge (it raises or is not finite, as an AUC of one label only) is left out.
    """
    values = _resampled(lambda chosen: float(metric(outputs[chosen], targets[chosen])), len(targets), seed=seed)
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resampled(statistic: Callable[[Labels], float], n: int, *, seed: int) -> npt.NDArray[np.float64]:
    """Finite values of a statistic of n windows' indices, drawn with replacement RESAMPLES times."""
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        with contextlib.suppress(ExportError):
            values.append(statistic(generator.integers(0, n, n)))
    found = np.asarray(values, dtype=np.float64)
    return found[np.isfinite(found)]


def mcnemar(right_before: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Two-sided exact binomial p-value over the windows that only one of the two gets right; 1 when there are none."""
    lost, won = int(np.sum(right_before & ~right)), int(np.sum(~right_before & right))
    n, k = lost + won, min(lost, won)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return float(min(1.0, 2 * tail / 2**n))


def snr_db(reference: Floats, outputs: Floats) -> float:
    """10 log10 of the reference's power over the power of the difference; infinite when equal."""
    wanted = reference.astype(np.float64)
    noise = float(np.sum(np.square(wanted - outputs)))
    signal = float(np.sum(np.square(wanted)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
