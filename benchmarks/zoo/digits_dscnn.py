"""Spoken digits, zero to nine: log-mel spectrogram inside the graph, a depthwise-separable CNN behind it."""

from __future__ import annotations

from functools import partial

import digits
from digits import INPUT, LABELS, SEED, augment, data
from logmel import LogMel
from torch import nn

from export.recipe import Budget

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "digits-dscnn"
VERSION = "1.0.0"
BUDGET = Budget(max_drop=0.008)
FIRST = 64
STAGES = ((64, 128, 1), (128, 128, 2), (128, 128, 1), (128, 192, 1), (192, 192, 1))  # channels in, out, stride


def build() -> nn.Module:
    blocks = normalized(nn.Conv2d(1, FIRST, 3, 2, 1, bias=False))
    for before, after, stride in STAGES:
        blocks += normalized(nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False))
        blocks += normalized(nn.Conv2d(before, after, 1, bias=False))
    head = [nn.AvgPool2d((13, 8)), nn.Flatten(), nn.Dropout(0.2), nn.Linear(STAGES[-1][1], len(LABELS))]
    return digits.Net(LogMel(image=True), nn.Sequential(*blocks, *head))


def normalized(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()]


train = partial(digits.train, epochs=12, peak=4e-3)
