"""Temperature of a machine that fails: a small autoencoder whose reconstruction error is the alarm. Real data.

Data: the series machine_temperature_system_failure of the Numenta Anomaly Benchmark, MIT licence, Copyright
2014-2024 Numenta Inc.; not part of this project, see README.md. It learns from a month without a labelled anomaly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Split, Splits

NAME = "machine-temperature"
VERSION = "1.0.0"
SEED = 7
PERIOD_S = 300
LENGTH = 32  # samples: 2 h 40 min
INPUT = InputSpec(
    name="x", channels=("temperature",), units=("degree",), length=LENGTH, hop=1, rate_hz=1 / PERIOD_S, layout="NT"
)
LABELS = ()
OUTPUT = "reconstruction"
BUDGET = Budget(max_drop=0.01)

ARCHIVE = "nab_sensor.npz"
SERIES = "machine_temperature_system_failure"
TRAIN_FROM, VALIDATE_FROM, TEST_FROM = (
    int(datetime(*day, tzinfo=timezone.utc).timestamp()) for day in ((2013, 12, 18), (2014, 1, 13), (2014, 1, 20))
)  # before TRAIN_FROM lies test too: two of the four anomalies

HIDDEN, CODE = 32, 4
EPOCHS = 40
BATCH = 128

Labels = npt.NDArray[np.int64]


class Series(NamedTuple):
    """The whole series in its order, (n,) each. unix_s: as its sensor says. labels: 1 inside an anomaly's window."""

    unix_s: Labels
    values: Floats
    labels: Labels


def archive_path() -> Path:
    """Where the series is wanted: in EDGE_SHARED_DATA, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return Path(os.environ.get("EDGE_SHARED_DATA", beside)) / ARCHIVE


@lru_cache(maxsize=1)
def series() -> Series:
    """Raises ExportError without the archive."""
    path = archive_path()
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: series of the Numenta Anomaly Benchmark (github.com/numenta/NAB, MIT) as one archive; "
            "examples/machine_temperature/README.md says how to make it. EDGE_SHARED_DATA names another folder"
        )
    with np.load(path) as arrays:
        unix_s, values, labels = (arrays[f"{SERIES}_{field}"] for field in ("time", "value", "label"))
    return Series(unix_s.astype(np.int64), values.astype(np.float32), labels.astype(np.int64))


def windows(name: str) -> tuple[Floats, Labels]:
    """Every window that lies in a split whole, and where in the series it ends: (n, LENGTH), (n,)."""
    found = series()
    before = np.searchsorted([TRAIN_FROM, VALIDATE_FROM, TEST_FROM], found.unix_s, side="right")
    part = np.array(["test", "train", "validation", "test"])[before]
    inside = np.lib.stride_tricks.sliding_window_view((part == name).astype(int), LENGTH).all(axis=1)
    ends = np.flatnonzero(inside) + LENGTH - 1
    cut: Floats = found.values[ends[:, None] + np.arange(1 - LENGTH, 1)]
    return cut, ends


def data() -> Splits:
    """Windows by time; the target of a window is the label of its newest sample."""
    splits = {}
    for name in ("train", "validation", "test"):
        cut, ends = windows(name)
        splits[name] = Split(cut, series().labels[ends])
    return Splits(train=splits["train"], validation=splits["validation"], test=splits["test"])


def metric(errors: Floats, targets: Labels) -> float:
    """Share of the training series' variance that the reconstruction explains, over windows without a label."""
    normal = errors[targets == 0]
    if not len(normal):
        raise ExportError("no window without a label, wanted at least one")
    return 1 - float(normal.mean(dtype=np.float64)) / float(windows("train")[0].var(dtype=np.float64))


class Standardize(nn.Module):
    """(n, 32) in degrees to zero mean and unit deviation of the training split."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def fit(self, mean: float, deviation: float) -> None:
        self.shift.fill_(-mean / deviation)
        self.scale.fill_(1 / deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


class Restore(nn.Module):
    """Back to degrees."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("deviation", torch.ones(1))

    def fit(self, mean: float, deviation: float) -> None:
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.deviation + self.mean


class Net(nn.Module):
    """32-32-4-32-32: what it has not seen does not fit through four numbers. Takes and gives degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = Standardize()
        self.body = nn.Sequential(
            nn.Linear(LENGTH, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, CODE),
            nn.Linear(CODE, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, LENGTH),
        )
        self.restore = Restore()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rebuilt: torch.Tensor = self.restore(self.body(self.front_end(x)))
        return rebuilt


def build() -> nn.Module:
    return Net()


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Callable[[str], None]) -> None:
    """Least squares; a few seconds on one core."""
    if not isinstance(model, Net):
        raise TypeError(f"{type(model).__name__} is not this recipe's model")
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a net this small loses with a second core
    seen = torch.from_numpy(splits.train.inputs)
    mean, deviation = seen.mean().item(), seen.std().item()
    model.front_end.fit(mean, deviation)
    model.restore.fit(mean, deviation)
    wanted, unseen = model.front_end(seen), model.front_end(torch.from_numpy(splits.validation.inputs))
    steps = EPOCHS * -(-len(seen) // BATCH)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(seen)), BATCH):
            loss = nn.functional.mse_loss(model.body(wanted[rows]), wanted[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            missed = nn.functional.mse_loss(model.body(unseen), unseen).item()
        progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.5f}, validation {missed:.5f}")
