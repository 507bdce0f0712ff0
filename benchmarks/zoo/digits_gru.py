"""Spoken digits, zero to nine: log-mel spectrogram inside the graph, two GRU layers of 128 behind it."""

from __future__ import annotations

from functools import partial

import digits
from digits import BUDGET, INPUT, LABELS, SEED, augment, data
from recurrent import net
from torch import nn

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "digits-gru"
VERSION = "1.0.0"

build = partial(net, nn.GRU)
train = partial(digits.train, epochs=50, peak=5e-3)
