"""Articles of clothing in grey images of 28 x 28 (Fashion-MNIST): a 2-D CNN of six convolutions."""

from __future__ import annotations

from functools import partial

import fashion
from fashion import BUDGET, INPUT, LABELS, SEED, augment, data
from torch import nn

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "fashion-cnn2d"
VERSION = "1.0.0"
# channels in, out, size, stride
STAGES = ((1, 32, 5, 2), (32, 32, 3, 1), (32, 64, 3, 1), (64, 96, 3, 2), (96, 96, 3, 1), (96, 128, 3, 2))


def build() -> nn.Module:
    blocks: list[nn.Module] = []
    for before, after, size, stride in STAGES:
        blocks += [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, len(LABELS)))


train = partial(fashion.train, epochs=8, peak=6e-3)
