"""Two channels of noisy tones, three pitches: small enough to train in a second, with a front-end."""

import numpy as np
import torch
from torch import nn

from export.recipe import Budget, InputSpec, Split, Splits

NAME = "tones"
VERSION = "0.1.0"
SEED = 7
INPUT = InputSpec(name="x", channels=("a", "b"), units=("g", "g"), length=256, hop=128, rate_hz=256.0, layout="NCT")
LABELS = ("low", "middle", "high")
BUDGET = Budget(max_drop=0.05)
EPOCHS = 4
PITCHES_HZ = (8.0, 24.0, 60.0)


class Standardize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        return centered / (centered.square().mean(dim=-1, keepdim=True).sqrt() + 1e-3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front_end = Standardize()
        self.body = nn.Sequential(
            nn.Conv1d(2, 16, 9, stride=4),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 5, stride=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(32, len(LABELS)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.front_end(x))


def build() -> nn.Module:
    return Net()


def tones(generator: np.random.Generator, n: int) -> Split:
    targets = generator.integers(0, len(LABELS), n)
    time_s = np.arange(INPUT.length) / INPUT.rate_hz
    pitch = np.asarray(PITCHES_HZ)[targets][:, None, None]
    phase = generator.uniform(0, 2 * np.pi, (n, 2, 1))
    gain = generator.uniform(0.5, 2.0, (n, 1, 1))
    noise = generator.normal(scale=1.2, size=(n, 2, INPUT.length))
    inputs = gain * np.sin(2 * np.pi * pitch * time_s + phase) + noise
    return Split(inputs.astype(np.float32), targets.astype(np.int64))


def data() -> Splits:
    generator = np.random.default_rng(SEED)
    return Splits(train=tones(generator, 600), validation=tones(generator, 200), test=tones(generator, 300))
