"""The default trainer, and the switches that make a training run repeatable on one machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.evaluate import check_metric
from export.recipe import Progress, Recipe, Splits
from export.weights import tuned

THREADS = 1  # small nets gain little from a second core, and take nine times as long when somebody else has it
BATCH = 64
LEARNING_RATE = 1e-3


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed every generator and fix the number of threads; both change the last bits of a training run."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (a recipe may use the global generator)
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def trained(recipe: Recipe, splits: Splits, progress: Progress, *, kept: Path | None = None) -> nn.Module:
    """The recipe's model, trained, in evaluation mode. Raises ExportError when it does not fit the recipe.

    What cannot work is found before the training, not after it. kept: a file of the weights, read or else written.
    """
    model = recipe.build()
    if not isinstance(model, nn.Module):
        raise ExportError(f"{recipe.path}: build() returned {type(model).__name__}, wanted torch.nn.Module")
    _check_forward(recipe, model, splits)
    check_metric(recipe, splits.validation, torch_outputs(model, splits.validation.inputs))

    def train(module: nn.Module) -> None:
        if recipe.train is None:
            fit(module, splits, seed=recipe.seed, epochs=recipe.epochs, progress=progress)
        else:
            recipe.train(module, splits, seed=recipe.seed, progress=progress)

    if kept is None:
        train(model)
    else:
        tuned(model, kept, train)
    return model.eval().requires_grad_(False)


def fit(model: nn.Module, splits: Splits, *, seed: int, epochs: int, progress: Progress) -> None:
    """Adam and cross-entropy on the train split; progress gets the loss of each epoch."""
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(splits.train.inputs), torch.from_numpy(splits.train.targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            if len(chosen) < 2 <= len(inputs):
                continue  # batch normalization has no statistics of a single window
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(chosen)
        progress(f"training: epoch {epoch + 1} of {epochs}, loss {total / len(inputs):.4f}")


def torch_outputs(model: nn.Module, inputs: Floats) -> Floats:
    """What torch computes for (n, ...) float32 inputs, without gradients.

    Raises ExportError when the model returns anything but one tensor.
    """
    with torch.no_grad():
        parts = [_one(model(torch.from_numpy(inputs[i : i + BATCH]))).numpy() for i in range(0, len(inputs), BATCH)]
    joined: Floats = np.concatenate(parts)
    return joined


def _one(output: object) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):
        raise ExportError(f"forward() must return one tensor, found {type(output).__name__}")
    return output


def _check_forward(recipe: Recipe, model: nn.Module, splits: Splits) -> None:
    """Run two windows and compare the shape with what the recipe says."""
    try:
        found = torch_outputs(model.eval(), splits.train.inputs[:2])
    except ExportError as error:
        raise ExportError(f"{recipe.path}: {error}") from error
    except Exception as error:
        raise ExportError(
            f"{recipe.path}: forward() raised {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    n = len(splits.train.inputs[:2])
    wanted = {"reconstruction": (n, *recipe.input.shape()), "error": (n, 1)}.get(recipe.output, (n, len(recipe.labels)))
    if found.shape != wanted:
        raise ExportError(f"{recipe.path}: forward() returned shape {found.shape} for {n} windows, wanted {wanted}")
