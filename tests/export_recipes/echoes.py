"""An autoencoder of one channel of slow sines that must notice fast ones: reconstruction, own training, own metric."""

import numpy as np
import torch
from torch import nn

from export.recipe import Budget, InputSpec, Split, Splits

NAME = "echoes"
VERSION = "0.1.0"
SEED = 3
INPUT = InputSpec(name="signal", channels=("a",), units=("g",), length=64, hop=64, layout="NT")
LABELS = ()
OUTPUT = "reconstruction"
BUDGET = Budget(max_drop=0.2)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 64))


def sines(generator: np.random.Generator, *, slow: int, fast: int) -> Split:
    targets = np.repeat([0, 1], [slow, fast])
    cycles = np.where(targets == 0, generator.uniform(1, 2, len(targets)), generator.uniform(8, 12, len(targets)))
    phase = generator.uniform(0, 2 * np.pi, (len(targets), 1))
    inputs = np.sin(2 * np.pi * cycles[:, None] * np.arange(64) / 64 + phase)
    return Split(inputs.astype(np.float32), targets.astype(np.int64))


def data() -> Splits:
    generator = np.random.default_rng(SEED)
    return Splits(
        train=sines(generator, slow=400, fast=0),
        validation=sines(generator, slow=60, fast=20),
        test=sines(generator, slow=60, fast=20),
    )


def train(model: nn.Module, splits: Splits, *, seed: int, progress) -> None:
    inputs = torch.from_numpy(splits.train.inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs).square().mean()
        loss.backward()
        optimizer.step()
    progress(f"loss {loss.item():.4f}")


def metric(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Area under the ROC curve of the reconstruction errors; needs both kinds."""
    slow, fast = outputs[targets == 0, 0], outputs[targets == 1, 0]
    if not len(slow) or not len(fast):
        raise ValueError("one kind only")
    return float(np.mean(fast[:, None] > slow[None, :]))
