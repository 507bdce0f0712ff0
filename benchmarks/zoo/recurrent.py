"""Spoken digits with recurrent layers over the frames of a log-mel spectrogram, averaged over time."""

from __future__ import annotations

import torch
from digits import LABELS, Net
from logmel import MELS, LogMel
from torch import nn

HIDDEN = 128
LAYERS = 2


class Body(nn.Module):
    """(n, 49, 32) -> (n, 10) logits."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rnn = kind(MELS, HIDDEN, LAYERS, batch_first=True, dropout=0.2)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(HIDDEN, len(LABELS))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.rnn(features)[0].mean(dim=1)))
        return logits


def net(kind: type[nn.LSTM | nn.GRU]) -> nn.Module:
    return Net(LogMel(), Body(kind))
