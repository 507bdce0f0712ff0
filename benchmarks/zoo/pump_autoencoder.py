"""Faults of pumps told from vibration spectra by an autoencoder that saw only sound ones. Simulated, not recorded.

Every machine of a fold (edge_runtime.demo.pump) is in all three splits, each with runs of its own, as a fleet is
watched that was sound when its model was trained. Judged by the area under the ROC curve of sound against faulty.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from edge_runtime.demo.pump import AXES, FAULTS, SCALE_G, Bearing, Fault, Pump, PumpSpec, to_int16
from edge_runtime.errors import ExportError
from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Labels, Progress, Split, Splits

NAME = "pump-autoencoder"
VERSION = "1.0.0"
SEED = 7
BINS = 128  # of 12.5 Hz each
INPUT = InputSpec(name="x", channels=AXES, units=("dB", "dB"), length=BINS, hop=BINS, layout="NF")
LABELS = ()
OUTPUT = "reconstruction"
BUDGET = Budget(max_drop=0.01)

MACHINES = 30
RUNS = {"train": (14, 0), "validation": (4, 1), "test": (8, 2)}  # of each machine: sound ones, and of each fault
SPECTRA_PER_RUN = 10
SAMPLES, SEGMENT = 1024, 256  # of one spectrum, and of each of the seven averaged in it
FLOOR_G = 1e-4
WEAKEST = 0.1  # severity of a fault; drawn on a log scale from here to 1

WIDTHS = (2 * BINS, 256, 128, 32, 128, 256, 2 * BINS)
EPOCHS, BATCH, PEAK = 40, 64, 2e-3
NOISE = 0.2  # of what augment adds, in standard deviations of a bin


class Scale(nn.Module):
    """Multiply and add, bin by bin."""

    factor: torch.Tensor
    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(WIDTHS[0]))
        self.register_buffer("offset", torch.zeros(WIDTHS[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + self.offset


class Net(nn.Module):
    """Spectra in dB, standardized, through 32 numbers and back to dB: (n, 256) -> (n, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = Scale()
        layers: list[nn.Module] = []
        for before, after in pairwise(WIDTHS):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        self.restore = Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rebuilt: torch.Tensor = self.restore(self.body(self.front_end(x)))
        return rebuilt


def build() -> nn.Module:
    return Net()


@lru_cache(maxsize=1)
def data(fold: int = 0) -> Splits:
    """Spectra of one fleet: 4,200 to train, all sound; 2,400 to validate and 4,800 to test, half of them faulty."""
    random = np.random.default_rng((SEED, fold))
    machines = [random_machine(random) for _ in range(MACHINES)]
    return Splits(*(_split(machines, *RUNS[name], random) for name in RUNS))


def random_machine(random: np.random.Generator) -> PumpSpec:
    """A pump of 1,080 to 3,120 rpm with a bearing, a structure and flow of its own."""
    between = random.uniform
    ball_mm, shaft_g = between(6.0, 13.0), between(0.04, 0.12)
    return PumpSpec(
        speed_hz=between(18.0, 52.0),
        bearing=Bearing(int(random.integers(7, 11)), ball_mm, ball_mm / between(0.18, 0.25)),
        shaft_g=(shaft_g, shaft_g * between(0.2, 0.6), shaft_g * between(0.1, 0.3)),
        resonance_hz=(between(750.0, 1250.0), between(750.0, 1250.0)),
        coupling=(between(0.6, 1.1), between(0.6, 1.1)),
        vanes=int(random.integers(5, 8)),
        vane_g=between(0.01, 0.08),
        noise_g=between(0.015, 0.06),
        flow_g=between(0.015, 0.06),
    )


def _split(machines: list[PumpSpec], sound: int, faulty: int, random: np.random.Generator) -> Split:
    runs: list[Fault | None] = [None] * sound + [fault for fault in FAULTS for _ in range(faulty)]
    inputs = [run(machine, fault, random) for machine in machines for fault in runs]
    targets = [int(fault is not None) for _ in machines for fault in runs for _ in range(SPECTRA_PER_RUN)]
    return Split(np.concatenate(inputs), np.array(targets, np.int64))


def run(machine: PumpSpec, fault: Fault | None, random: np.random.Generator) -> Floats:
    """Consecutive spectra of a pump as its sensor would see it: (SPECTRA_PER_RUN, 256) in dB."""
    pump = Pump(machine, int(random.integers(2**32)))
    if fault is not None:
        pump.fail(fault, severity=float(WEAKEST ** random.uniform()))
    pump.chunk(SAMPLES)
    return spectra(to_int16(pump.chunk(SPECTRA_PER_RUN * SAMPLES)) * np.float32(SCALE_G))


def spectra(values: Floats) -> Floats:
    """Welch's power spectra, the direct current left out: (k * 1024, 2) in g -> (k, 256), both axes, dB of 1 g."""
    windows = values.reshape(-1, SAMPLES, len(AXES)).transpose(0, 2, 1)
    segments = np.lib.stride_tricks.sliding_window_view(windows, SEGMENT, axis=2)[:, :, :: SEGMENT // 2]
    taper = np.hanning(SEGMENT + 1)[:-1].astype(np.float32)
    amplitude = np.fft.rfft(segments * taper)[..., 1:] * (2 / taper.sum())
    power = np.mean(np.abs(amplitude) ** 2, axis=2)
    level: Floats = 10 * np.log10(power + FLOOR_G**2).astype(np.float32)
    return level.reshape(len(level), -1)


def metric(errors: Floats, targets: Labels) -> float:
    """Area under the ROC curve: how often a faulty spectrum has the larger error than a sound one; a tie is half."""
    faulty, sound = errors[targets == 1, 0], np.sort(errors[targets == 0, 0])
    if not (len(faulty) and len(sound)):
        raise ExportError(f"{len(sound)} sound and {len(faulty)} faulty spectra, wanted at least one of each")
    below = np.searchsorted(sound, faulty, "left") + np.searchsorted(sound, faulty, "right")
    return float(below.mean() / (2 * len(sound)))


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Progress) -> None:
    """Least squares on noisy spectra that are to come out clean."""
    if not isinstance(model, Net):
        raise TypeError(f"{type(model).__name__} is not this recipe's model")
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a net this small loses with a second core
    seen = torch.from_numpy(splits.train.inputs)
    mean, deviation = seen.mean(dim=0), seen.std(dim=0)
    model.front_end.factor.copy_(1 / deviation)
    model.front_end.offset.copy_(-mean / deviation)
    model.restore.factor.copy_(deviation)
    model.restore.offset.copy_(mean)
    wanted, generator = model.front_end(seen), torch.Generator().manual_seed(seed)
    steps = EPOCHS * -(-len(seen) // BATCH)
    optimizer = torch.optim.AdamW(model.body.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK, total_steps=steps)
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(seen), generator=generator), BATCH):
            loss = nn.functional.mse_loss(model.body(augment(wanted[rows], generator)), wanted[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.4f}")


def augment(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standardized spectra with noise. features: (n, 256)."""
    return features + NOISE * torch.randn(features.shape, generator=generator)
