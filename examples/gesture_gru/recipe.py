"""Gestures of a wrist, told by a recurrent net from a SIMULATED inertial stream (wrist.py), not from recordings.

The split leaves people out: nobody who trains validates or tests, and everybody has a tempo, a size, poses, a strap
and a sensor of their own. A window is labelled with what fills most of it, moves from pose to pose included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from wrist import AXES, LABELS, RATE_HZ, SCALE, UNITS, perform, random_script, random_wearer, to_int16

from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Split, Splits

__all__ = ["LABELS", "build", "data", "train"]

NAME = "gestures"
VERSION = "1.0.0"
SEED = 7
INPUT = InputSpec(name="x", channels=AXES, units=UNITS, length=100, hop=25, rate_hz=RATE_HZ, layout="NTC")
OUTPUT = "logits"
BUDGET = Budget(max_drop=0.01)

WEARERS = {"train": 60, "validation": 12, "test": 40}
SESSION_S = 90.0

SAMPLES_PER_STEP = 2  # the net takes samples in pairs: half the steps
HIDDEN = 64
EPOCHS = 10
BATCH = 128


class Session(NamedTuple):
    """Windows of one wearer. inputs: (n, 100, 6). targets: (n,). purity: share of each window that its label fills."""

    inputs: Floats
    targets: npt.NDArray[np.int64]
    purity: npt.NDArray[np.float64]


def sessions(split: str) -> list[Session]:
    """One session of everybody in a split."""
    random = np.random.default_rng((SEED, list(WEARERS).index(split)))
    return [session(random) for _ in range(WEARERS[split])]


def session(random: np.random.Generator) -> Session:
    wearer, script = random_wearer(random), random_script(random, seconds=SESSION_S)
    values, labels = perform(wearer, script, seed=int(random.integers(2**32)))
    received = to_int16(values) * np.float32(SCALE)
    starts = np.arange(0, len(labels) - INPUT.length + 1, INPUT.hop)
    rows = starts[:, None] + np.arange(INPUT.length)
    shares = np.stack([(labels[rows] == label).mean(axis=1) for label in range(len(LABELS))], axis=1)
    return Session(received[rows], shares.argmax(axis=1), shares.max(axis=1))


def data() -> Splits:
    """Simulated windows of three disjoint groups of people; some seconds on one core."""
    splits = {}
    for name in WEARERS:
        found = sessions(name)
        splits[name] = Split(np.concatenate([s.inputs for s in found]), np.concatenate([s.targets for s in found]))
    return Splits(train=splits["train"], validation=splits["validation"], test=splits["test"])


class FrontEnd(nn.Module):
    """Each channel to about unit size, samples in pairs: (n, 100, 6) -> (n, 50, 12)."""

    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.1] * 3 + [0.3] * 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale).reshape(-1, INPUT.length // SAMPLES_PER_STEP, SAMPLES_PER_STEP * len(AXES))


class Net(nn.Module):
    """One gated recurrent layer, its output averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = FrontEnd()
        self.gru = nn.GRU(SAMPLES_PER_STEP * len(AXES), HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.gru(self.front_end(x))[0].mean(dim=1))
        return logits


def build() -> nn.Module:
    return Net()


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Callable[[str], None]) -> None:
    """Cross-entropy; well under a minute on one core."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a net this small gains little from a second core, and loses much if it is taken
    inputs, targets = torch.from_numpy(splits.train.inputs), torch.from_numpy(splits.train.targets)
    steps = EPOCHS * -(-len(inputs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            found = model(torch.from_numpy(splits.validation.inputs)).argmax(dim=1).numpy()
        right = float((found == splits.validation.targets).mean())
        progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}, validation accuracy {right:.3f}")
