"""Articles of clothing in grey images of 28 x 28 (Fashion-MNIST): inverted residuals with linear bottlenecks.

After M. Sandler et al., "MobileNetV2", CVPR 2018, at the size of the images: ReLU6, expansion 4, six blocks.
"""

from __future__ import annotations

from functools import partial

import fashion
import torch
from fashion import BUDGET, INPUT, LABELS, SEED, augment, data
from torch import nn

__all__ = ["BUDGET", "INPUT", "LABELS", "SEED", "augment", "build", "data", "train"]

NAME = "fashion-mobilenet"
VERSION = "1.0.0"
FIRST, LAST, EXPANSION = 32, 256, 4
STAGES = ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 2), (96, 96, 1), (96, 96, 1))  # channels in, out, stride


class InvertedResidual(nn.Module):
    """Widen, filter depthwise, narrow without an activation; added to its input where the shapes agree."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = EXPANSION * before
        self.body = nn.Sequential(
            *activated(nn.Conv2d(before, wide, 1, bias=False)),
            *activated(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.residual = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return x + y if self.residual else y


def activated(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6()


def build() -> nn.Module:
    return nn.Sequential(
        *activated(nn.Conv2d(1, FIRST, 3, 2, 1, bias=False)),
        *(InvertedResidual(*stage) for stage in STAGES),
        *activated(nn.Conv2d(STAGES[-1][1], LAST, 1, bias=False)),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(LAST, len(LABELS)),
    )


train = partial(fashion.train, epochs=8, peak=6e-3)
