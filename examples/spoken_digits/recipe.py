"""Spoken digits, zero to nine: real recordings of six speakers, log-mel spectrogram inside the graph, 2-D CNN.

Data: Free Spoken Digit Dataset, 3,000 recordings at 8 kHz, CC BY-SA 4.0; not part of this project, see README.md.
The official split is kept: recordings 0 to 4 of each digit and speaker are the test set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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

NAME = "spoken-digits"
VERSION = "1.0.0"
SEED = 7
RATE_HZ = 8000.0
LENGTH = 8000
INPUT = InputSpec(
    name="x", channels=("audio",), units=("full scale",), length=LENGTH, hop=LENGTH, rate_hz=RATE_HZ, layout="NT"
)
LABELS = tuple("0123456789")
OUTPUT = "logits"
BUDGET = Budget(max_drop=0.01)
SCALE = 1 / 32768  # of one count, so that full scale is 1

ARCHIVE = "fsdd_8k_int16.npz"
TEST_RECORDINGS = 5
VALIDATION_SHARE = 0.1

FRAME, HOP, MELS = 256, 160, 32
FRAMES = (LENGTH - FRAME) // HOP + 1
BAND_HZ = (80.0, 3800.0)
QUIET = 1e-9  # power in one mel band that counts as silence
RANGE_NATS = 10.0  # below the loudest point of the window everything is equally quiet
EPOCHS = 25
BATCH = 64
VARIANTS = 5  # of each training clip: itself and four that were moved, stretched and made noisy

Counts = npt.NDArray[np.int16]


class Recording(NamedTuple):
    """One recording. clip: its number, for clip_int16. split: train, validation or test."""

    clip: int
    speaker: str
    label: int
    split: str


class Corpus(NamedTuple):
    """The archive in memory. wave: all recordings, one after the other. ends: where each one ends."""

    wave: Counts
    lengths: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    speakers: npt.NDArray[np.str_]
    numbers: npt.NDArray[np.int64]


def archive_path() -> Path:
    """Where the recordings are wanted: in EDGE_SHARED_DATA, else beside the checkout."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return Path(os.environ.get("EDGE_SHARED_DATA", beside)) / ARCHIVE


@lru_cache(maxsize=1)
def _corpus() -> Corpus:
    path = archive_path()
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset, "
            "CC BY-SA 4.0) as one archive; examples/spoken_digits/README.md says how to make it. "
            "EDGE_SHARED_DATA names another folder"
        )
    with np.load(path) as arrays:
        lengths = arrays["length"].astype(np.int64)
        labels, numbers = arrays["label"].astype(np.int64), arrays["index"].astype(np.int64)
        return Corpus(arrays["wave"], lengths, np.cumsum(lengths), labels, arrays["speaker"], numbers)


def recordings() -> tuple[Recording, ...]:
    """Every recording of the archive, in its order, with the split it is in. Raises ExportError without the archive."""
    corpus = _corpus()
    split = np.where(corpus.numbers < TEST_RECORDINGS, "test", "train").astype("<U10")
    train = np.flatnonzero(split == "train")
    chosen = np.random.default_rng(SEED).permutation(train)[: round(VALIDATION_SHARE * len(train))]
    split[chosen] = "validation"
    rows = zip(corpus.speakers.tolist(), corpus.labels.tolist(), split.tolist(), strict=True)
    return tuple(Recording(clip, *row) for clip, row in enumerate(rows))


def clip_int16(number: int) -> Counts:
    """One recording, cut or padded with zeros at its end to (8000,): what a microphone would send."""
    corpus = _corpus()
    end, length = int(corpus.ends[number]), int(corpus.lengths[number])
    clip = np.zeros(LENGTH, np.int16)
    kept = min(length, LENGTH)
    clip[:kept] = corpus.wave[end - length : end - length + kept]
    return clip


def data() -> Splits:
    """The official split, with a seeded tenth of its training part for validation."""
    splits = {}
    for name in ("train", "validation", "test"):
        rows = [row for row in recordings() if row.split == name]
        inputs = np.stack([clip_int16(row.clip) for row in rows]) * np.float32(SCALE)
        splits[name] = Split(inputs, np.array([row.label for row in rows], np.int64))
    return Splits(train=splits["train"], validation=splits["validation"], test=splits["test"])


class LogMel(nn.Module):
    """Log-mel spectrogram relative to the loudest point: (n, 8000) -> (n, 1, 32 bands, 49 frames).

    A Hann-windowed Fourier transform as a convolution. mean, deviation: of each band over the training split.
    """

    filters: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = torch.from_numpy(mel_filters())
        used = torch.nonzero(filters.sum(dim=0))[:, 0]
        angles = 2 * torch.pi * used[:, None] * torch.arange(FRAME) / FRAME
        basis = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(FRAME) / (FRAME / 2)
        self.transform = nn.Conv1d(1, len(basis), FRAME, HOP, bias=False)
        self.transform.weight = nn.Parameter(basis[:, None].float(), requires_grad=False)
        self.bins = len(used)
        self.register_buffer("filters", filters[:, used].float())
        self.register_buffer("mean", torch.zeros(MELS, 1))
        self.register_buffer("deviation", torch.ones(MELS, 1))

    def log_mel(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1, 32, 49) natural logarithm of power, at most 0, at least -RANGE_NATS."""
        spectrum = self.transform(x.unsqueeze(1))
        real, imaginary = spectrum[:, : self.bins], spectrum[:, self.bins :]
        power = torch.matmul(self.filters, real * real + imaginary * imaginary)
        level = torch.log(torch.clamp(power, min=QUIET)).unsqueeze(1)  # power + 1e-9 would lose its 1e-9 in the export
        loudest = nn.functional.max_pool2d(level, (MELS, FRAMES))  # ORT's shape inference stumbles over amax()
        return torch.clamp(level - loudest, min=-RANGE_NATS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.log_mel(x) - self.mean) / self.deviation


def mel_filters() -> Floats:
    """Triangles of height 1, evenly spaced in mel = 2595 log10(1 + f / 700): (32, 129)."""
    lowest_mel, highest_mel = 2595 * np.log10(1 + np.array(BAND_HZ) / 700)
    edges_mel = np.linspace(lowest_mel, highest_mel, MELS + 2)
    edges_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    bins_hz = np.fft.rfftfreq(FRAME, 1 / RATE_HZ)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    triangles: Floats = np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)
    return triangles


class Net(nn.Module):
    """Four 2-D convolutions, averaged over time; 25,000 weights behind the front-end."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = LogMel()
        blocks: list[nn.Module] = []
        for before, after, size, stride, pool in (
            (1, 16, 5, 2, 1),
            (16, 32, 3, 1, 2),
            (32, 32, 3, 1, 2),
            (32, 32, 3, 1, 1),
        ):
            blocks += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            blocks += [nn.MaxPool2d(pool)] if pool > 1 else []
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(32 * (MELS // 8), len(LABELS))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of what the front-end made. features: (n, 1, 32, 49)."""
        logits: torch.Tensor = self.head(self.body(features).mean(dim=3).flatten(1))
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.front_end(x))


def build() -> nn.Module:
    return Net()


def train(model: nn.Module, splits: Splits, *, seed: int, progress: Callable[[str], None]) -> None:
    """Fit the convolutions on spectrograms that are computed once; half a minute on one core."""
    if not isinstance(model, Net):
        raise TypeError(f"{type(model).__name__} is not this recipe's model")
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # a net this small gains little from a second core, and loses much if it is taken
    random = np.random.default_rng(seed)
    with torch.no_grad():
        level = _in_parts(model.front_end.log_mel, splits.train.inputs)
        model.front_end.mean.copy_(level.mean(dim=(0, 1, 3))[:, None])
        model.front_end.deviation.copy_(level.std(dim=(0, 1, 3))[:, None])
        variants = [splits.train.inputs, *(_varied(splits.train.inputs, random) for _ in range(VARIANTS - 1))]
        features = torch.stack([_in_parts(model.front_end, inputs) for inputs in variants])
        seen = _in_parts(model.front_end, splits.validation.inputs)
    _fit(
        model,
        features,
        torch.from_numpy(splits.train.targets),
        validation=(seen, torch.from_numpy(splits.validation.targets)),
        progress=progress,
    )


def _fit(
    model: Net,
    features: torch.Tensor,
    targets: torch.Tensor,
    *,
    validation: tuple[torch.Tensor, torch.Tensor],
    progress: Callable[[str], None],
) -> None:
    """features: (VARIANTS, n, 1, 32, 49); each epoch sees one variant of each clip, with masks."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    steps = EPOCHS * -(-len(targets) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        variant = torch.randint(VARIANTS, (len(targets),))
        for rows in torch.split(torch.randperm(len(targets)), BATCH):
            logits = model.classify(_masked(features[variant[rows], rows]))
            loss = nn.functional.cross_entropy(logits, targets[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            right = (model.classify(validation[0]).argmax(dim=1) == validation[1]).float().mean().item()
        progress(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}, validation accuracy {right:.3f}")
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _in_parts(function: Callable[[torch.Tensor], torch.Tensor], inputs: Floats) -> torch.Tensor:
    return torch.cat([function(part) for part in torch.split(torch.from_numpy(inputs), 256)])


def _varied(inputs: Floats, random: np.random.Generator) -> Floats:
    """Each clip a little faster or slower, later, and with noise 20 to 60 dB below its peak: (n, 8000)."""
    varied = np.zeros_like(inputs)
    for row, clip in zip(varied, inputs, strict=True):
        speed = random.uniform(0.88, 1.14)
        stretched = np.interp(np.arange(0, LENGTH - 1, speed), np.arange(LENGTH), clip)
        start = int(random.integers(0, LENGTH // 4))
        kept = stretched[: LENGTH - start]
        row[start : start + len(kept)] = kept
        noise = np.abs(clip).max() * 10 ** random.uniform(-3, -1)
        row[:] += (noise * random.standard_normal(LENGTH)).astype(np.float32)
    return varied


def _masked(features: torch.Tensor) -> torch.Tensor:
    """Set a few bands and a few frames of each spectrogram to the mean (SpecAugment, Park et al. 2019)."""
    masked = features.clone()
    for row in masked:
        for size, widest in ((MELS, 5), (FRAMES, 8)):
            width = int(torch.randint(widest + 1, (1,)))
            start = int(torch.randint(size - width + 1, (1,)))
            if size == MELS:
                row[:, start : start + width] = 0
            else:
                row[:, :, start : start + width] = 0
    return masked
