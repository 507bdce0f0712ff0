"""Spoken digits, zero to nine: log-mel spectrogram inside the graph, a 2-D CNN of six convolutions behind it."""

from __future__ import annotations

from functools import partial

import digits
from digits import BUDGET, INPUT, LABELS, SEED, augment, data
from logmel import LogMel
from torch import nn

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "digits-cnn2d"
VERSION = "1.0.0"
# channels in, out, size, stride
STAGES = ((1, 32, 5, 2), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 2), (64, 96, 3, 1), (96, 96, 3, 2))


def build() -> nn.Module:
    blocks: list[nn.Module] = []
    for before, after, size, stride in STAGES:
        blocks += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    head = [nn.AvgPool2d((7, 4)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(STAGES[-1][1], len(LABELS))]
    return digits.Net(LogMel(image=True), nn.Sequential(*blocks, *head))


train = partial(digits.train, epochs=12, peak=4e-3)
