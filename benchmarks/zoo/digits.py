"""Spoken digits for the zoo: folds over all recordings, variants of a clip, and training on log-mel features.

Data: Free Spoken Digit Dataset, 3,000 recordings at 8 kHz of six speakers, CC BY-SA 4.0; not part of this project.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from fit import fit, in_parts
from logmel import LENGTH, RATE_HZ, LogMel
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Labels, Progress, Split, Splits

SEED = 7
INPUT = InputSpec(
    name="x", channels=("audio",), units=("full scale",), length=LENGTH, hop=LENGTH, rate_hz=RATE_HZ, layout="NT"
)
LABELS = tuple("0123456789")
BUDGET = Budget(max_drop=0.01)
ARCHIVE = "fsdd_8k_int16.npz"
SCALE = 1 / 32768  # of one count, so that full scale is 1
FOLDS = 5
VALIDATION_SHARE = 0.2
VARIANTS = 6  # of each training clip: itself and five that were moved, stretched and made noisy
WIDEST_BANDS, WIDEST_FRAMES = 5, 8  # of a mask
SHIFT_FRAMES = 4


class Net(nn.Module):
    """A front-end with nothing to learn, and what is learned."""

    def __init__(self, front_end: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(self.front_end(x))
        return logits


@lru_cache(maxsize=1)
def recordings() -> tuple[Floats, Labels, Labels]:
    """Every clip cut or padded at its end to (3000, 8000), its digit, and its digit and speaker as one number."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("EDGE_SHARED_DATA", beside)) / ARCHIVE
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset, "
            "CC BY-SA 4.0) as one archive; examples/spoken_digits/README.md says how to make it. "
            "EDGE_SHARED_DATA names another folder"
        )
    with np.load(path) as arrays:
        wave, lengths = arrays["wave"], arrays["length"].astype(np.int64)
        labels, speakers = arrays["label"].astype(np.int64), np.unique(arrays["speaker"], return_inverse=True)[1]
    clips = np.zeros((len(lengths), LENGTH), np.float32)
    for clip, end, length in zip(clips, np.cumsum(lengths), lengths, strict=True):
        kept = min(length, LENGTH)
        clip[:kept] = wave[end - length : end - length + kept] * np.float32(SCALE)
    return clips, labels, labels + len(LABELS) * speakers


def data(fold: int = 0) -> Splits:
    """One of FOLDS folds over all recordings: 1,920 to train, 480 to validate, 600 to test."""
    clips, labels, groups = recordings()
    test = np.arange(len(clips)) % FOLDS == fold
    random = np.random.default_rng((SEED, fold))
    validation = np.zeros_like(test)
    for group in np.unique(groups):
        rest = np.flatnonzero(~test & (groups == group))
        validation[random.permutation(rest)[: round(VALIDATION_SHARE * len(rest))]] = True
    parts = (~test & ~validation, validation, test)
    return Splits(*(Split(clips[rows], labels[rows]) for rows in parts))


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Progress, epochs: int, peak: float) -> None:
    """Fit a Net whose front-end is a LogMel, in place; the front-end runs once over the variants of each clip."""
    if not (isinstance(model, Net) and isinstance(model.front_end, LogMel)):
        raise TypeError(f"{type(model).__name__} is not a model of the zoo's digits")
    torch.set_num_threads(1)  # nets this small gain little from a second core, and lose much if it is taken
    inputs, random = splits.train.inputs, np.random.default_rng(seed)
    variants = [inputs, *(varied(inputs, random) for _ in range(VARIANTS - 1))]
    fit(
        model.body,
        torch.stack([in_parts(model.front_end, variant) for variant in variants]),
        splits.train.targets,
        validation=(in_parts(model.front_end, splits.validation.inputs), splits.validation.targets),
        augment=augment,
        seed=seed,
        epochs=epochs,
        peak=peak,
        progress=progress,
    )


def varied(inputs: Floats, random: np.random.Generator) -> Floats:
    """Each clip a little faster or slower, later, and with noise 20 to 60 dB below its peak: (n, 8000)."""
    changed = np.zeros_like(inputs)
    for row, clip in zip(changed, inputs, strict=True):
        stretched = np.interp(np.arange(0, LENGTH - 1, random.uniform(0.86, 1.16)), np.arange(LENGTH), clip)
        start = int(random.integers(0, LENGTH // 4))
        kept = stretched[: LENGTH - start]
        row[start : start + len(kept)] = kept
        noise = np.float32(np.abs(clip).max() * 10 ** random.uniform(-3, -1))
        row[:] += noise * random.standard_normal(LENGTH, np.float32)
    return changed


def augment(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Features up to SHIFT_FRAMES earlier or later, a few bands and frames silent (SpecAugment, Park et al. 2019).

    features: (n, 49, 32) or (n, 1, 49, 32).
    """
    n, frames, bands = len(features), features.shape[-2], features.shape[-1]
    shift = torch.randint(-SHIFT_FRAMES, SHIFT_FRAMES + 1, (n, 1), generator=generator)
    source = (torch.arange(frames) + shift).clamp(0, frames - 1)
    moved = features.reshape(n, frames, bands)[torch.arange(n)[:, None], source]
    kept = ~_mask(n, frames, WIDEST_FRAMES, generator)[:, :, None] & ~_mask(n, bands, WIDEST_BANDS, generator)[:, None]
    return (moved * kept).reshape(features.shape)


def _mask(n: int, size: int, widest: int, generator: torch.Generator) -> torch.Tensor:
    """(n, size): True over 0 to widest neighbours in each row."""
    width = torch.randint(widest + 1, (n, 1), generator=generator)
    start = (torch.rand((n, 1), generator=generator) * (size - width + 1)).long()
    place = torch.arange(size)
    return (place >= start) & (place < start + width)
