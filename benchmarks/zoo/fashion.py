"""Fashion-MNIST for the zoo: folds, training and what varies an image.

Data: the first 20,000 training images and all 10,000 test images, 28 x 28, Zalando SE, MIT; not part of this project.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from fit import fit
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Labels, Progress, Split, Splits

SEED = 7
SIDE = 28
COLUMNS = tuple(f"column {number}" for number in range(SIDE))
INPUT = InputSpec(
    name="x", channels=COLUMNS, units=("full scale",) * SIDE, length=SIDE, hop=SIDE, layout="N1TC"
)  # an image arrives line by line
LABELS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
BUDGET = Budget(max_drop=0.01)
ARCHIVE = "fashion_mnist_20k.npz"
VALIDATION = 4000
SHIFT = 1  # pixels


@lru_cache(maxsize=1)
def images() -> tuple[Floats, Labels, Floats, Labels]:
    """(20000, 1, 28, 28) and (10000, 1, 28, 28) in [0, 1], each with its labels; training first."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("EDGE_SHARED_DATA", beside)) / ARCHIVE
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: Fashion-MNIST (github.com/zalandoresearch/fashion-mnist, MIT) as one archive of "
            "x_train, y_train, x_test and y_test, uint8. EDGE_SHARED_DATA names another folder"
        )
    with np.load(path) as arrays:
        train, test = ((arrays[name][:, None] / np.float32(255)).astype(np.float32) for name in ("x_train", "x_test"))
        return train, arrays["y_train"].astype(np.int64), test, arrays["y_test"].astype(np.int64)


def data(fold: int = 0) -> Splits:
    """16,000 to train and 4,000 to validate, drawn anew in each fold; always the official 10,000 to test."""
    inputs, targets, test_inputs, test_targets = images()
    order = np.random.default_rng((SEED, fold)).permutation(len(inputs))
    validation, train = order[:VALIDATION], order[VALIDATION:]
    return Splits(
        train=Split(inputs[train], targets[train]),
        validation=Split(inputs[validation], targets[validation]),
        test=Split(test_inputs, test_targets),
    )


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Progress, epochs: int, peak: float) -> None:
    """Fit a network on images, in place."""
    fit(
        model,
        torch.from_numpy(splits.train.inputs)[None],
        splits.train.targets,
        validation=(torch.from_numpy(splits.validation.inputs), splits.validation.targets),
        augment=augment,
        seed=seed,
        epochs=epochs,
        peak=peak,
        progress=progress,
        batch=64,
    )


def augment(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images mirrored or not, up to SHIFT pixels off. features: (n, 1, 28, 28)."""
    n = len(features)
    row, column = (_moved(n, generator) for _ in range(2))
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    column = torch.where(mirrored, column.flip(1), column)
    padded = nn.functional.pad(features[:, 0], (SHIFT,) * 4)
    return padded[torch.arange(n)[:, None, None], row[:, :, None], column[:, None]][:, None]


def _moved(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 28): where each line of pixels is taken from in an image padded by SHIFT."""
    return torch.arange(SIDE) + torch.randint(2 * SHIFT + 1, (n, 1), generator=generator)
