"""How good a variant is: the metric with its interval, agreement with float32, output SNR, paired significance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import ERROR_KINDS
from edge_runtime.model.session import reconstruction_error
from edge_runtime.records import Floats
from export.recipe import Labels, Recipe, Split

Z_95 = 1.959963984540054
RESAMPLES = 1000
NORMAL_SHARE = 0.995
Metric = Callable[[Floats, Labels], float]


class Evaluation(msgspec.Struct, frozen=True):
    """One variant on one split of n windows.

    low, high: 95 % interval of the metric, Wilson's for accuracy, else a bootstrap. agreement: share of windows
    decided as torch float32 decides them. snr_db: output power over the power of the difference to torch.
    p_value: McNemar's exact test that variant and float32 are right equally often.
    """

    n: int
    metric: float
    low: float
    high: float
    agreement: float
    snr_db: float
    p_value: float


def evaluate(
    recipe: Recipe, split: Split, outputs: Floats, reference: Floats, *, threshold: float | None
) -> Evaluation:
    """Hold a variant's outputs on a split against its targets and torch's outputs.

    outputs, reference: (n, ...), what the recipe's model returns. threshold: for reconstruction and error.
    """
    decided = decisions(recipe, split.inputs, outputs, threshold)
    wanted = decisions(recipe, split.inputs, reference, threshold)
    right, right_before = decided == split.targets, wanted == split.targets
    metric, low, high = _metric(recipe, split, comparable(recipe, split.inputs, outputs), right)
    return Evaluation(
        n=len(split.targets),
        metric=metric,
        low=low,
        high=high,
        agreement=float(np.mean(decided == wanted)),
        snr_db=snr_db(reference, outputs),
        p_value=mcnemar(right_before, right),
    )


def comparable(recipe: Recipe, inputs: Floats, outputs: Floats) -> Floats:
    """What a metric sees: (n, labels) logits or scores, or (n, 1) errors."""
    return reconstruction_error(inputs, outputs) if recipe.output == "reconstruction" else outputs


def decisions(recipe: Recipe, inputs: Floats, outputs: Floats, threshold: float | None) -> Labels:
    """(n,) the label of each window; for errors 1 above the threshold, else 0."""
    seen = comparable(recipe, inputs, outputs)
    if recipe.output in ERROR_KINDS:
        if threshold is None:
            raise ValueError(f"{recipe.output} is decided by a threshold, got None")
        decided: Labels = (seen[:, 0] > threshold).astype(np.int64)
        return decided
    return np.asarray(seen.argmax(axis=-1), dtype=np.int64)


def threshold_of(recipe: Recipe, inputs: Floats, outputs: Floats) -> float | None:
    """The recipe's threshold, or where it gives none the error that 99.5 % of these windows stay below."""
    if recipe.output not in ERROR_KINDS or recipe.threshold is not None:
        return recipe.threshold
    return float(np.quantile(comparable(recipe, inputs, outputs), NORMAL_SHARE))


def check_metric(recipe: Recipe, split: Split, outputs: Floats) -> None:
    """Raises ExportError when the recipe's metric cannot judge a whole split."""
    if recipe.metric is not None:
        _number(recipe, recipe.metric(comparable(recipe, split.inputs, outputs), split.targets))


def _metric(recipe: Recipe, split: Split, outputs: Floats, right: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    if recipe.metric is None:
        return float(np.mean(right)), *wilson(int(right.sum()), len(right))
    value = _number(recipe, recipe.metric(outputs, split.targets))
    return value, *bootstrap(recipe.metric, outputs, split.targets, seed=recipe.seed)


def _number(recipe: Recipe, value: float) -> float:
    if not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise ExportError(f"{recipe.path}: metric() returned {value!r}, wanted a finite number")
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
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(0, len(targets), len(targets))
        with contextlib.suppress(ExportError):
            values.append(float(metric(outputs[chosen], targets[chosen])))
    finite = np.asarray(values)[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


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
