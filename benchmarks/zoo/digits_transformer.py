"""Spoken digits, zero to nine: log-mel spectrogram inside the graph, three layers of transformer encoder behind it."""

from __future__ import annotations

from functools import partial

import digits
import torch
from digits import BUDGET, INPUT, LABELS, SEED, augment, data
from logmel import FRAMES, MELS, LogMel
from torch import nn

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "digits-transformer"
VERSION = "1.0.0"
WIDTH, HEADS, FEED_FORWARD, LAYERS = 96, 3, 384, 3


class Body(nn.Module):
    """(n, 49, 32) -> (n, 10) logits; one token a frame."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(MELS, WIDTH)
        self.position = nn.Parameter(0.5 * torch.randn(FRAMES, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(LABELS))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder(self.embed(features) + self.position)
        logits: torch.Tensor = self.head(tokens.mean(dim=1))
        return logits


def build() -> nn.Module:
    return digits.Net(LogMel(), Body())


train = partial(digits.train, epochs=34, peak=1.5e-3)
