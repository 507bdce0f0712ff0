"""Keywords: the DS-CNN of MLPerf Tiny with its trained weights, for size and time only.

Source: mlcommons/tiny, Apache-2.0; the weights are not part of this project. Neither is the benchmark's test data,
whose owner grants no redistribution: the inputs here are noise, and what the network decides on them is the target.
No accuracy is measured and none can be: only agreement with the original, on noise. Inputs would be 49 frames of
10 mel-frequency cepstral coefficients of one second at 16 kHz.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import InputSpec
from export.recipe import Budget, Progress, Split, Splits
from export.train import torch_outputs

NAME = "kws-dscnn"
VERSION = "1.0.0"
SEED = 7
FRAMES, COEFFICIENTS, WIDTH, BLOCKS = 49, 10, 64, 4
INPUT = InputSpec(
    name="x",
    channels=tuple(f"coefficient {number}" for number in range(COEFFICIENTS)),
    units=("1",) * COEFFICIENTS,
    length=FRAMES,
    hop=FRAMES,
    layout="N1TC",
)
LABELS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
BUDGET = Budget(max_drop=0.1)
ARCHIVE = "mlperf_kws_dscnn_weights.npz"
SIZES = {"train": 512, "validation": 256, "test": 256}


class Net(nn.Module):
    """A convolution, four depthwise-separable ones and an average: (n, 1, 49, 10) -> (n, 12) logits."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.ZeroPad2d((1, 1, 4, 5)), *normalized(nn.Conv2d(1, WIDTH, (10, 4), 2)), nn.Dropout(0.2)]
        for _ in range(BLOCKS):
            layers += normalized(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH))
            layers += normalized(nn.Conv2d(WIDTH, WIDTH, 1))
        self.body = nn.Sequential(*layers, nn.Dropout(0.4), nn.AvgPool2d((25, 5)))
        self.fc = nn.Linear(WIDTH, len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(x).flatten(1))
        return logits


def normalized(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels, eps=1e-3), nn.ReLU()]


def build() -> nn.Module:
    """The network with its weights. Raises ExportError without the archive."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("EDGE_SHARED_DATA", beside)) / ARCHIVE
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: the weights of kws_ref_model (github.com/mlcommons/tiny, Apache-2.0) as one archive. "
            "EDGE_SHARED_DATA names another folder"
        )
    net = Net()
    with np.load(path) as arrays:
        net.load_state_dict({name: torch.as_tensor(arrays[name]) for name in arrays.files})
    return net


def data(fold: int = 0) -> Splits:
    """Noise, and what the network decides on it."""
    net, random = build().eval(), np.random.default_rng((SEED, fold))
    splits = {}
    for name, size in SIZES.items():
        inputs = random.standard_normal((size, *INPUT.shape()), dtype=np.float32)
        splits[name] = Split(inputs, torch_outputs(net, inputs).argmax(axis=1).astype(np.int64))
    return Splits(**splits)


def train(_model: nn.Module, _splits: Splits, *, seed: int, progress: Progress) -> None:  # noqa: ARG001  (names fixed)
    """Nothing: the network is trained."""
    progress("the weights are MLPerf Tiny's")
