"""How every classifier here is trained: AdamW, one cycle, smoothed labels, on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from edge_runtime.records import Floats
from export.recipe import Augment, Labels, Progress

PART = 256  # windows that go through a front-end together


def fit(
    body: nn.Module,
    features: torch.Tensor,
    targets: Labels,
    *,
    validation: tuple[torch.Tensor, Labels],
    augment: Augment,
    seed: int,
    epochs: int,
    peak: float,
    progress: Progress,
    batch: int = 32,
    smoothing: float = 0.05,
) -> None:
    """Train what follows the front-end, in place.

    features: (variants, n, ...); each epoch sees one variant of each window, varied once more by augment. peak: of the
    learning rate.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images = features.dim() == 5
    if images:
        body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    wanted, seen = torch.from_numpy(targets), torch.from_numpy(validation[1])
    optimizer = torch.optim.AdamW(body.parameters(), lr=peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=epochs * (len(wanted) // batch))
    for epoch in range(epochs):
        body.train()
        variant = torch.randint(len(features), (len(wanted),), generator=generator)
        order = torch.randperm(len(wanted), generator=generator)
        for rows in torch.split(order[: len(order) // batch * batch], batch):
            logits = body(augment(features[variant[rows], rows], generator))
            loss = nn.functional.cross_entropy(logits, wanted[rows], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(body.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        body.eval()
        with torch.no_grad():
            decided = in_parts(body, validation[0]).argmax(dim=1)
        right = (decided == seen).float().mean().item()
        progress(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}, validation accuracy {right:.3f}")
    body.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def in_parts(function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor | Floats) -> torch.Tensor:
    """The function of many windows, PART at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([function(part) for part in torch.split(torch.as_tensor(inputs), PART)])
