"""The autoencoder beside a z-score, both judged alike: AUC, anomalies hit, false alarms. A table on stdout.

A score belongs to the newest sample of its window; nothing looks ahead. Scored are the windows of the test split: the
series without its training and validation part. An alarm is device.toml's: K of the last N windows, by the daemon's
own Decider. The seeds change the autoencoder only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import recipe
import torch

from edge_runtime.model.session import reconstruction_error
from edge_runtime.records import Floats
from edge_runtime.stream.decide import ERROR, Decider, DecideSettings
from export.recipe import Splits
from export.train import deterministic, torch_outputs

SEEDS = (7, 1, 2)
K, N = 6, 12
FALSE_ALARMS = 0.005  # share of the unlabelled samples, at which the detectors are compared
NORMAL_SHARE = 0.995  # of the training windows below the threshold where no label may be looked at, as export.evaluate
HALVINGS = 40

Flags = npt.NDArray[np.bool_]


class Detector(NamedTuple):
    """Scores, higher is stranger. train: (windows of the train split,). test: (windows of the test split,)."""

    name: str
    train: Floats
    test: Floats


class Judged(NamedTuple):
    """A detector at one threshold. hits: anomalies with an alarm inside. false, inside: share of the unlabelled and of
    the labelled samples in alarm. delays_s: per anomaly from the start of its window to the alarm, None without one.
    """

    threshold: float
    hits: int
    false: float
    inside: float
    delays_s: tuple[int | None, ...]


def detectors(splits: Splits) -> Iterator[Detector]:
    """The baselines, then one autoencoder a seed."""
    mean, deviation = splits.train.inputs.mean(), splits.train.inputs.std()
    newest, averaged = ([way(part.inputs) for part in (splits.train, splits.test)] for way in (_newest, _average))
    yield Detector("z of the newest sample", *(np.abs(part - mean) / deviation for part in newest))
    yield Detector("z of the window's mean", *(np.abs(part - mean) / deviation for part in averaged))
    for seed in SEEDS:
        with deterministic(seed):
            model = recipe.build()
            recipe.train(model, splits, seed=seed, progress=lambda _line: None)
            model.eval()
            errors = [
                reconstruction_error(x, torch_outputs(model, x))[:, 0]
                for x in (splits.train.inputs, splits.test.inputs)
            ]
        yield Detector(f"autoencoder, seed {seed}", *errors)


def _newest(inputs: Floats) -> Floats:
    return inputs[:, -1]


def _average(inputs: Floats) -> Floats:
    means: Floats = inputs.mean(axis=1)
    return means


def auc(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Share of (labelled, unlabelled) pairs of samples that the scores put in the right order; ties count half."""
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    ones = int(labels.sum())
    above = ranks[labels == 1].sum() - ones * (ones + 1) / 2
    return float(above / (ones * (len(labels) - ones)))


def alarms(scores: Floats, threshold: float) -> Flags:
    """Whether the daemon's alarm is on after each window: (n,)."""
    decider = Decider(DecideSettings(k=K, n=N), labels=(), threshold=threshold)
    return np.array([decider.follow("machine", {ERROR: score}, 0).state.on for score in scores.tolist()])


def judge(scores: Floats, threshold: float, labels: npt.NDArray[np.int64]) -> Judged:
    on = alarms(scores, threshold)
    first = [int(np.argmax(on[rows])) * recipe.PERIOD_S if on[rows].any() else None for rows in anomalies(labels)]
    hits = sum(delay is not None for delay in first)
    return Judged(threshold, hits, float(on[labels == 0].mean()), float(on[labels == 1].mean()), tuple(first))


def anomalies(labels: npt.NDArray[np.int64]) -> list[slice]:
    """The runs of ones."""
    edges = np.flatnonzero(np.diff(labels, prepend=0, append=0))
    return [slice(start, stop) for start, stop in edges.reshape(-1, 2)]


def threshold_at(scores: Floats, labels: npt.NDArray[np.int64], share: float) -> float:
    """The lowest threshold, by bisection, whose alarms last at most that share of the unlabelled samples."""
    low, high = float(scores.min()), float(scores.max()) + 1
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if alarms(scores, middle)[labels == 0].mean() <= share else (middle, high)
    return high


def main() -> None:
    torch.set_num_threads(1)
    splits = recipe.data()
    labels = splits.test.targets
    hours = float((labels == 0).sum()) * recipe.PERIOD_S / 3600
    print(f"{len(labels)} windows scored, {labels.sum()} of them in {len(anomalies(labels))} anomalies")
    at = f"at {FALSE_ALARMS:.1%} false alarms"
    print(f"{'':24}  {'':5}  {'median score':^14}  {at:^59}  {'threshold from the training windows':^59}")
    head = f"{'threshold':>9}  {'hit':>3}  {'false':>6}  {'h':>5}  {'inside':>6}  {'alarm after, h':>20}"
    print(f"{'':24}  {'AUC':>5}  {'outside':>7} {'inside':>6}  {head}  {head}")
    for name, train, test in detectors(splits):
        limits = threshold_at(test, labels, FALSE_ALARMS), float(np.quantile(train, NORMAL_SHARE))
        medians = (np.median(test[labels == label]) for label in (0, 1))
        shown = [f"{auc(test, labels):5.3f}", "{:7.2f} {:6.2f}".format(*medians)]
        print("  ".join([f"{name:24}", *shown, *(row(judge(test, limit, labels), hours) for limit in limits)]))


def row(found: Judged, unlabelled_h: float) -> str:
    """unlabelled_h: how long the scored samples without a label last together."""
    delays = " ".join("-" if delay is None else f"{delay / 3600:.1f}" for delay in found.delays_s)
    wrong = f"{found.false:6.2%}  {found.false * unlabelled_h:5.1f}"
    return f"{found.threshold:9.2f}  {found.hits:3}  {wrong}  {found.inside:6.2%}  {delays:>20}"


if __name__ == "__main__":
    main()
