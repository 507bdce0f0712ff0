"""Which of two channels carries a pulse, for a small LSTM: only to see the search meet a recurrent net."""

import numpy as np
import torch
from torch import nn

from export.recipe import Budget, InputSpec, Split, Splits

NAME = "pulses"
VERSION = "0.1.0"
SEED = 11
INPUT = InputSpec(name="x", channels=("a", "b"), units=("g", "g"), length=16, hop=8, layout="NTC")
LABELS = ("first", "second")
BUDGET = Budget(max_drop=0.05)
EPOCHS = 15


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 48, batch_first=True)
        self.head = nn.Linear(48, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def build() -> nn.Module:
    return Net()


def pulses(generator: np.random.Generator, n: int) -> Split:
    targets = generator.integers(0, 2, n)
    inputs = generator.normal(scale=0.3, size=(n, INPUT.length, 2))
    inputs[np.arange(n), generator.integers(0, INPUT.length, n), targets] += 3.0
    return Split(inputs.astype(np.float32), targets.astype(np.int64))


def data() -> Splits:
    generator = np.random.default_rng(SEED)
    return Splits(train=pulses(generator, 600), validation=pulses(generator, 100), test=pulses(generator, 100))
