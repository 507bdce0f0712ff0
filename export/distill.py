"""Fine-tuning by distillation: a network that was cut learns again what the original answers.

The original's outputs say more than labels do (Hinton et al. 2015). The frozen front-end is computed once per window
where that gives the same outputs: of a net on raw waves it is most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import ERROR_KINDS, OutputKind
from export.recipe import Augment, Progress, Split
from export.task import FineTune, Task
from export.to_onnx import FRONT_END
from export.train import deterministic, torch_outputs

LEARNING_RATE = 3e-3
NORMALIZED_RATE = 1e-2  # of networks with batch normalization, which bear it and learn faster
BATCH = 64
TEMPERATURE = 2.0
SOFT_SHARE = 0.7  # of the loss: what the original answers; the rest: the labels
WARM_UP_SHARE = 0.2  # of the steps
WEIGHT_DECAY = 1e-2
LARGEST_GRADIENT = 1.0  # its norm: the batch statistics of a net just cut can throw one step far
PROOF_WINDOWS = 4
SMALLEST_SCORE = 1e-6
SMALLEST_VARIANCE = 1e-12

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def distill(
    task: Task,
    teacher: nn.Module,
    *,
    epochs: int,
    seed: int,
    learning_rate: float | None = None,
    progress: Progress,
) -> FineTune:
    """A function that trains a network in place, on the task's train split, to answer as teacher does.

    learning_rate: the highest, by default what batch normalization bears, or what others do.
    What requires a gradient is trained, but for the front-end. Classes learn by KL divergence at a temperature, mixed
    with cross-entropy on the labels; reconstructions and errors by squared difference, over the variance of teacher's.
    task.augment varies the features of every batch for both networks. task.finetune, where there is one, is returned.
    Raises ExportError without a train split; the function when nothing can be trained or the loss is not finite.
    """
    if task.finetune is not None:
        return task.finetune
    if task.train is None:
        raise ExportError(f"{task.name}: fine-tuning needs training data, the task has none")
    if epochs < 1:
        raise ExportError(f"fine-tuning for {epochs} epochs, wanted at least 1")
    if learning_rate is not None and not learning_rate > 0:
        raise ExportError(f"fine-tuning at a rate of {learning_rate:g}, wanted above zero")
    train = task.train

    def finetune(module: nn.Module) -> None:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ExportError(f"{task.name}: fine-tuning has nothing to train, no parameter requires a gradient")
        rate = learning_rate or _bearable(module)
        with (
            deterministic(seed),
            _lesson(task, train, teacher, module, progress) as lesson,
            _fast_layout(module, lesson),
        ):
            _fit(module, lesson, epochs=epochs, learning_rate=rate, progress=progress)

    return finetune


class _Lesson:
    """What is learned: features, what the teacher says of them and their labels, in the order of a seed."""

    def __init__(
        self, features: torch.Tensor, train: Split, teacher: nn.Module, augment: Augment | None, kind: OutputKind
    ) -> None:
        self._features, self._targets = features, torch.from_numpy(train.targets)
        self._teacher, self._augment = teacher, augment
        self._answers = _outputs(teacher, features)
        self._generator = torch.Generator().manual_seed(torch.initial_seed())
        self.loss = _loss(kind, self._answers)
        self.steps = math.ceil(len(features) / BATCH)

    def is_taken_by(self, network: nn.Module) -> bool:
        """Whether a network runs on the first features as its weights lie in memory now."""
        try:
            _outputs(network, self._features[:PROOF_WINDOWS])
        except RuntimeError:  # view() wants another order of the axes
            return False
        return True

    def batches(self) -> Iterator[Batch]:
        """An epoch in random order: features, answers, targets; of nearly equal sizes, so that none is one window."""
        order = torch.randperm(len(self._features), generator=self._generator)
        for rows in torch.tensor_split(order, self.steps):
            features, answers = self._features[rows], self._answers[rows]
            if self._augment is not None:
                features = self._augment(features, self._generator)
                answers = _outputs(self._teacher, features)
            yield features, answers, self._targets[rows]


@contextmanager
def _lesson(task: Task, train: Split, teacher: nn.Module, student: nn.Module, progress: Progress) -> Iterator[_Lesson]:
    """While it lasts, both networks lack their front-end, where they answer the same without it."""
    features, augment = torch.from_numpy(train.inputs), task.augment
    front_end = getattr(teacher, FRONT_END, None)
    was_training = teacher.training
    with ExitStack() as stack:
        stack.callback(teacher.train, was_training)
        teacher.eval()
        if isinstance(front_end, nn.Module):
            if _same_without(front_end, features[:PROOF_WINDOWS], (teacher, student)):
                features = _outputs(front_end, features)
                stack.enter_context(_without_front_end(teacher))
                stack.enter_context(_without_front_end(student))
            elif augment is not None:
                progress("fine-tuning without augmentation: the network uses more than its front-end gives")
                augment = None
        yield _Lesson(features, train, teacher, augment, task.output)


def _same_without(front_end: nn.Module, windows: torch.Tensor, networks: tuple[nn.Module, ...]) -> bool:
    """Whether networks answer to the front-end's features as they answer to the windows."""
    features = _outputs(front_end, windows)
    for network in networks:
        was_training = network.training
        wanted = _outputs(network.eval(), windows)
        try:
            with _without_front_end(network):
                found = _outputs(network, features)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False  # it takes windows, not features
        finally:
            network.train(was_training)
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            return False
    return True


@contextmanager
def _without_front_end(network: nn.Module) -> Iterator[None]:
    front_end = getattr(network, FRONT_END, None)
    if not isinstance(front_end, nn.Module):
        yield
        return
    setattr(network, FRONT_END, nn.Identity())
    try:
        yield
    finally:
        setattr(network, FRONT_END, front_end)


@contextmanager
def _fast_layout(module: nn.Module, lesson: _Lesson) -> Iterator[None]:
    """Channels last while training, where a network with 2-D convolutions takes it: they need a third less time."""
    if not any(isinstance(part, nn.Conv2d) for part in module.modules()):
        yield
        return
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        if not lesson.is_taken_by(module):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        yield
    finally:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _outputs(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(torch_outputs(network, inputs.numpy()))


def _loss(kind: OutputKind, answers: torch.Tensor) -> Loss:
    """(outputs, answers, targets) to a number. answers: the teacher's, of the whole split."""
    if kind in ERROR_KINDS:
        variance = answers.var(dim=0, correction=0).mean().clamp(min=SMALLEST_VARIANCE)
        return lambda outputs, wanted, _targets: mse_loss(outputs, wanted) / variance

    def classes(outputs: torch.Tensor, wanted: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found, taught = _logits(kind, outputs), _logits(kind, wanted)
        soft = kl_div(
            log_softmax(found / TEMPERATURE, dim=1),
            log_softmax(taught / TEMPERATURE, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return SOFT_SHARE * TEMPERATURE**2 * soft + (1 - SOFT_SHARE) * cross_entropy(found, targets)

    return classes


def _logits(kind: OutputKind, outputs: torch.Tensor) -> torch.Tensor:
    """(n, labels), up to a constant per window."""
    if kind == "logits":
        return outputs
    scores = torch.cat([1 - outputs, outputs], dim=1) if kind == "probability" else outputs
    return scores.clamp(min=SMALLEST_SCORE).log()


def _bearable(module: nn.Module) -> float:
    normalized = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return NORMALIZED_RATE if any(isinstance(part, normalized) for part in module.modules()) else LEARNING_RATE


def _fit(module: nn.Module, lesson: _Lesson, *, epochs: int, learning_rate: float, progress: Progress) -> None:
    """AdamW with warm-up and cosine decay, gradients clipped. Leaves the module in evaluation mode."""
    learnable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnable, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    total, step = epochs * lesson.steps, 0
    module.train()
    for epoch in range(epochs):
        losses = []
        for features, answers, targets in lesson.batches():
            optimizer.param_groups[0]["lr"] = learning_rate * _rate((step + 0.5) / total)
            loss = lesson.loss(module(features), answers, targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(learnable, LARGEST_GRADIENT)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        mean = sum(losses) / len(losses)
        if not math.isfinite(mean):
            raise ExportError(f"fine-tuning: the loss is {mean} in epoch {epoch + 1} of {epochs}")
        progress(f"fine-tuning: epoch {epoch + 1} of {epochs}, loss {mean:.4f}")
    module.eval()


def _rate(done: float) -> float:
    """Of the learning rate, after a share of the steps: up in a line, down in half a cosine."""
    if done < WARM_UP_SHARE:
        return done / WARM_UP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP_SHARE) / (1 - WARM_UP_SHARE)))
