"""Log-mel spectrogram inside the graph, the front-end of every digits net but the one on the wave.

The Fourier basis and the mel filters are computed in forward() from torch.arange and not kept as buffers: they follow
from five numbers, and ONNX Runtime folds them once at load, so that the file need not carry 100 KB of cosines.

Half the work of a Fourier transform as a matrix product is saved by folding each frame in its middle: the cosine is
even about it and the sine odd, so the sum of both halves meets the one and their difference the other.
"""

from __future__ import annotations

import math

import torch
from torch import nn

RATE_HZ = 8000.0
LENGTH = 8000
HOP = 160
HALF = 100  # samples on each side of a frame's middle: frames of 25 ms
FRAMES = LENGTH // HOP - 1
BIN_HZ = RATE_HZ / (2 * HALF)
BINS = (2, 96)  # 80 to 3,800 Hz
MELS = 32
QUIET = 1e-9  # power in one mel band that always counts as quiet; that of a sine at full scale is 1
RANGE_NATS = 10.0  # below the loudest point of the window everything is equally quiet


class LogMel(nn.Module):
    """(n, 8000) at 8 kHz -> (n, 49 frames, 32 bands) from 0 to RANGE_NATS, how far each is above what counts as quiet.

    Frame i lies around sample 160 (i + 1). image: (n, 1, 49, 32) instead.
    """

    def __init__(self, *, image: bool = False) -> None:
        super().__init__()
        self.shape = (-1, 1, FRAMES + 1, HOP) if image else (-1, FRAMES + 1, HOP)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = x.reshape(self.shape)
        before = blocks[..., :-1, HOP - HALF :].flip(-1)
        after = blocks[..., 1:, :HALF]
        cosine, sine = fourier()
        real, imaginary = torch.matmul(after + before, cosine), torch.matmul(after - before, sine)
        power = torch.matmul(real * real + imaginary * imaginary, mel_filters())
        loudest = power.amax(dim=(-2, -1), keepdim=True)
        quiet = torch.clamp(loudest * math.exp(-RANGE_NATS), min=QUIET)
        return torch.log(torch.clamp(power / quiet, min=1.0))


def fourier() -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of one half of a frame under a Hann window, (100, 94) each: what a sine of amplitude 1 gives
    is 1."""
    angles = 2 * math.pi / (2 * HALF) * (torch.arange(HALF) + 0.5)
    window = (1 + torch.cos(angles)) / (2 * HALF)
    phases = angles[:, None] * torch.arange(*BINS)
    return torch.cos(phases) * window[:, None], torch.sin(phases) * window[:, None]


def mel_filters() -> torch.Tensor:
    """Triangles of height 1, evenly spaced in mel = 2595 log10(1 + f / 700): (94 bins, 32)."""
    lowest, highest = (2595 * math.log10(1 + edge * BIN_HZ / 700) for edge in (BINS[0], BINS[1] - 1))
    step = (highest - lowest) / (MELS + 1)
    mel = 2595 / math.log(10) * torch.log(1 + torch.arange(*BINS) * (BIN_HZ / 700))
    centers = lowest + step * torch.arange(1, MELS + 1)
    return torch.clamp(1 - torch.abs(mel[:, None] - centers) / step, min=0.0)
