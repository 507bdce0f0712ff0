"""Bearing faults and imbalance from two axes of vibration. All data is simulated by edge_runtime.demo.pump.

The split leaves machines out: the test machines differ from the training machines in speed, bearing geometry,
resonances, noise and coupling, and the pumps of the demo are in neither.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_runtime.demo.pump import AXES, FAULTS, LABELS, RATE_HZ, SCALE_G, Bearing, Fault, Pump, PumpSpec, to_int16
from edge_runtime.records import Floats, InputSpec
from export.recipe import Budget, Split, Splits

NAME = "pump-vibration"
VERSION = "1.0.0"
SEED = 7
INPUT = InputSpec(name="x", channels=AXES, units=("g", "g"), length=1024, hop=512, rate_hz=RATE_HZ, layout="NCT")
OUTPUT = "logits"
BUDGET = Budget(max_drop=0.01)

MACHINES = {"train": 320, "validation": 32, "test": 64}
RUNS = {"ok": 6} | dict.fromkeys(FAULTS, 2)  # of each machine, each with a severity of its own
WINDOWS_PER_RUN = 4
WEAKEST = 0.15  # severity; drawn on a log scale from here to 1

BANDS_HZ = (650.0, 950.0, 1250.0)
TAPS = 17
STRIDE = 4
FLOOR_G = 0.02  # of the envelopes, about the noise in one band
EPOCHS = 14
BATCH = 128

Integers = npt.NDArray[np.int64]


class FrontEnd(nn.Module):
    """Envelope analysis with fixed filters: (n, 2, 1024) in g -> (n, 5, 256) at a quarter of the rate.

    Per axis the low frequencies (shaft, vanes); over both axes the log power in BANDS_HZ, where impacts ring.
    """

    def __init__(self) -> None:
        super().__init__()
        seconds = (torch.arange(TAPS) - TAPS // 2) / RATE_HZ
        taper = torch.hann_window(TAPS + 2, periodic=False)[1:-1]
        angles = 2 * torch.pi * torch.tensor(BANDS_HZ)[:, None] * seconds
        kernels = torch.cat([torch.ones(1, TAPS), angles.cos(), angles.sin()]) * taper / taper.sum()
        self.filters = nn.Conv1d(len(AXES), len(AXES) * len(kernels), TAPS, STRIDE, TAPS // 2, groups=2, bias=False)
        self.filters.weight = nn.Parameter(kernels.repeat(len(AXES), 1)[:, None], requires_grad=False)
        self.per_axis = len(kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filtered = self.filters(x)
        first, second = filtered[:, : self.per_axis], filtered[:, self.per_axis :]
        low = torch.cat([first[:, :1], second[:, :1]], dim=1)
        power = first[:, 1:] * first[:, 1:] + second[:, 1:] * second[:, 1:]
        bands = power[:, : len(BANDS_HZ)] + power[:, len(BANDS_HZ) :]
        envelopes = torch.log(bands / FLOOR_G**2 + 1.0)
        return torch.cat([low * 5.0, envelopes - 1.0], dim=1)


class Net(nn.Module):
    """Four 1-D convolutions over the envelopes, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = FrontEnd()
        widths = (2 + len(BANDS_HZ), 16, 24, 32, 32)
        blocks: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False):
            blocks += [nn.Conv1d(before, after, 9, stride, 4, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], len(LABELS))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of what the front-end made. features: (n, 5, 256)."""
        logits: torch.Tensor = self.head(self.body(features).mean(dim=2))
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.front_end(x))


def build() -> nn.Module:
    return Net()


def data() -> Splits:
    """Simulated windows of three disjoint sets of machines."""
    splits = {name: simulate(name)[0] for name in MACHINES}
    return Splits(train=splits["train"], validation=splits["validation"], test=splits["test"])


def simulate(split: str) -> tuple[Split, Floats]:
    """Windows of one split, and the severity of the fault in each (0 for ok)."""
    random = np.random.default_rng((SEED, list(MACHINES).index(split)))
    inputs, targets, severities = [], [], []
    for _ in range(MACHINES[split]):
        spec = random_spec(random)
        for label, runs in RUNS.items():
            for _ in range(runs):
                severity = float(np.exp(random.uniform(np.log(WEAKEST), 0)))
                fault = next((name for name in FAULTS if name == label), None)
                inputs.append(record(spec, fault, severity, seed=int(random.integers(2**32))))
                targets += [LABELS.index(label)] * WINDOWS_PER_RUN
                severities += [severity if fault else 0.0] * WINDOWS_PER_RUN
    return Split(np.concatenate(inputs), np.array(targets, np.int64)), np.array(severities, np.float32)


def record(spec: PumpSpec, fault: Fault | None, severity: float, *, seed: int) -> Floats:
    """Consecutive windows of one run as the sensor would send them: (WINDOWS_PER_RUN, 2, 1024) in g."""
    pump = Pump(spec, seed)
    if fault is not None:
        pump.fail(fault, severity=severity)
    pump.chunk(INPUT.length)
    values = to_int16(pump.chunk(WINDOWS_PER_RUN * INPUT.length)) * np.float32(SCALE_G)
    windows: Floats = values.reshape(WINDOWS_PER_RUN, INPUT.length, len(AXES)).transpose(0, 2, 1)
    return np.ascontiguousarray(windows)


def random_spec(random: np.random.Generator) -> PumpSpec:
    """A machine nobody has seen: speed 1,080 to 3,120 rpm, 7 to 10 balls, any load, noise and structure."""
    between = random.uniform
    ball_mm = between(6.0, 13.0)
    shaft_g = between(0.04, 0.12)
    return PumpSpec(
        speed_hz=between(18.0, 52.0),
        bearing=Bearing(int(random.integers(7, 11)), ball_mm, ball_mm / between(0.18, 0.25)),
        shaft_g=(shaft_g, shaft_g * between(0.2, 0.6), shaft_g * between(0.1, 0.3)),
        resonance_hz=(between(750.0, 1250.0), between(750.0, 1250.0)),
        coupling=(between(0.6, 1.1), between(0.6, 1.1)),
        wander=between(0.002, 0.01),
        slip=between(0.01, 0.02),
        vanes=int(random.integers(5, 8)),
        vane_g=between(0.01, 0.08),
        noise_g=between(0.015, 0.06),
        flow_g=between(0.015, 0.06),
        knocks_hz=between(0.0, 3.0),
        knock_g=between(0.02, 0.08),
        damping=between(0.025, 0.05),
        imbalance_g=between(0.4, 0.6),
        strike_g=between(0.7, 1.3),
        load_zone=between(0.35, 0.5),
    )


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Callable[[str], None]) -> None:
    """Fit the convolutions; the front-end has nothing to learn, so it runs once. About a minute on one core."""
    if not isinstance(model, Net):
        raise TypeError(f"{type(model).__name__} is not this recipe's model")
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a net this small gains little from a second core, and loses much if it is taken
    features, targets = _features(model, splits.train), torch.from_numpy(splits.train.targets)
    seen, wanted = _features(model, splits.validation), splits.validation.targets
    steps = EPOCHS * -(-len(features) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.split(torch.randperm(len(features)), BATCH):
            loss = nn.functional.cross_entropy(model.classify(features[rows]), targets[rows], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            right = float((model.classify(seen).argmax(dim=1).numpy() == wanted).mean())
        progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}, validation accuracy {right:.3f}")


def _features(model: Net, split: Split) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.front_end(part) for part in torch.split(torch.from_numpy(split.inputs), 512)])
