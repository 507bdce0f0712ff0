"""Spoken digits, zero to nine: a 1-D CNN on the wave itself, its loudness evened out inside the graph."""

from __future__ import annotations

import torch
from digits import BUDGET, INPUT, LABELS, SEED, Net, data
from fit import fit, in_parts
from logmel import LENGTH
from torch import nn

from export.recipe import Progress, Splits

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "digits-wave-cnn1d"
VERSION = "1.0.0"
# channels in, out, size, stride
STAGES = ((1, 16, 64, 8), (16, 32, 7, 2), (32, 64, 7, 2), (64, 96, 7, 2), (96, 128, 7, 2), (128, 128, 7, 2))
QUIET = 1e-3  # of full scale: what is never louder is not made loud
FASTEST, LATEST = 0.15, LENGTH // 4  # change of speed, samples of delay


class Loudness(nn.Module):
    """(n, 8000) -> (n, 1, 8000) with a peak of 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        peak = torch.clamp(x.abs().amax(dim=1, keepdim=True), min=QUIET)
        return (x / peak).unsqueeze(1)


def build() -> nn.Module:
    blocks: list[nn.Module] = []
    for before, after, size, stride in STAGES:
        padding = (size - stride) // 2 if before == 1 else size // 2
        blocks += [nn.Conv1d(before, after, size, stride, padding, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    head = [nn.AvgPool1d(32), nn.Flatten(), nn.Dropout(0.3), nn.Linear(STAGES[-1][1], len(LABELS))]
    return Net(Loudness(), nn.Sequential(*blocks, *head))


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Progress) -> None:
    """Fit the convolutions, every clip varied anew each time it is seen."""
    if not isinstance(model, Net):
        raise TypeError(f"{type(model).__name__} is not this recipe's model")
    torch.set_num_threads(1)  # a net this small gains little from a second core, and loses much if it is taken
    fit(
        model.body,
        in_parts(model.front_end, splits.train.inputs)[None],
        splits.train.targets,
        validation=(in_parts(model.front_end, splits.validation.inputs), splits.validation.targets),
        augment=augment,
        seed=seed,
        epochs=32,
        peak=4e-3,
        progress=progress,
    )


def augment(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each wave up to 15 % faster or slower, up to a quarter of a second later, with noise 30 to 60 dB below its peak.

    features: (n, 1, 8000).
    """
    n = len(features)
    uniform = torch.rand((3, n, 1), generator=generator)
    source = (torch.arange(LENGTH) - LATEST * uniform[0]) * (1 + FASTEST * (2 * uniform[1] - 1))
    inside = (source >= 0) & (source < LENGTH - 1)
    before = source.clamp(0, LENGTH - 2).long()
    share = source - before
    waves = features[:, 0]
    row = torch.arange(n)[:, None]
    moved = (waves[row, before] * (1 - share) + waves[row, before + 1] * share) * inside
    noise = 10 ** (-3 + 1.5 * uniform[2])
    return (moved + noise * torch.randn((n, LENGTH), generator=generator))[:, None]
