"""Fine-tuning by distillation: what is learned, what is left alone, and what it costs."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.errors import ExportError
from export.artifact import Artifact
from export.distill import BATCH, distill
from export.recipe import Budget, Split
from export.task import Task
from export.train import torch_outputs

pytestmark = pytest.mark.torch

CHANNELS, LENGTH, LABELS = 3, 16, 4


class FrontEnd(nn.Module):
    """Centers each channel. calls: how many windows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += len(x)
        return self.gain * (x - x.mean(dim=-1, keepdim=True))


class Net(nn.Module):
    """One convolution over (n, 3, 16). end: what follows the head."""

    def __init__(self, width: int = 8, outputs: int = LABELS, end: nn.Module | None = None) -> None:
        super().__init__()
        self.front_end = FrontEnd()
        self.body = nn.Sequential(nn.Conv1d(CHANNELS, width, 5), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, outputs)
        self.end = end or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(self.body(self.front_end(x)).mean(dim=2)))


class Loudness(Net):
    """Uses its windows beside what the front-end makes of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x.square().mean(dim=(1, 2))[:, None]


class Images(nn.Module):
    """2-D convolutions, their output flattened with view(), which only takes one order of the axes in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 8, 3)
        self.head = nn.Linear(8 * (CHANNELS - 2) * (LENGTH - 2), LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.relu(self.body(x[:, None]))
        return self.head(maps.view(len(maps), -1))


class Restoring(nn.Module):
    """Rebuilds its windows from a few numbers."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(CHANNELS * LENGTH, code), nn.Linear(code, CHANNELS * LENGTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.flatten(1)).reshape(x.shape)


def seeded(build) -> nn.Module:
    """A network with clear answers, whose normalization knows its windows."""
    torch.manual_seed(0)
    network = build()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.mul_(8 if "head" in name else 1)
        for _ in range(30):
            network(torch.from_numpy(split(100, seed=2).inputs))
    network.apply(lambda part: setattr(part, "calls", 0))
    return network.eval()


def split(n: int, seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(n, CHANNELS, LENGTH)).astype(np.float32)
    return Split(inputs, random.integers(0, LABELS, n))


def task_of(teacher: nn.Module, output: str = "logits", n: int = 400, **changed) -> Task:
    """A task whose labels are drawn as likely as the teacher says."""
    learned, unseen = split(n), split(100, seed=1)
    if output not in ("reconstruction", "error"):
        says = torch.from_numpy(torch_outputs(teacher, learned.inputs))
        scores = {"logits": says.softmax(dim=1), "probability": torch.cat([1 - says, says], dim=1)}.get(output, says)
        torch.manual_seed(4)
        learned = Split(learned.inputs, scores.multinomial(1)[:, 0].numpy())
    task = Task(
        name="toy",
        version="1.0.0",
        source="test",
        seed=0,
        input=None,
        labels=tuple("abcd"),
        output=output,
        metric=None,
        threshold=None,
        budget=Budget(),
        train=learned,
        calibrate=learned.inputs,
        validation=unseen,
        test=None,
        original=Artifact("float32", "float32", b"", "x", "y", (), module=teacher),
        reference={},
    )
    return msgspec.structs.replace(task, **changed)


def quiet(_text: str) -> None:
    pass


def hurt(teacher: nn.Module) -> nn.Module:
    """A copy that answers otherwise, as a network does that was cut."""
    torch.manual_seed(3)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "front_end" not in name:
                parameter.add_(0.5 * parameter.std(correction=0) * torch.randn_like(parameter))
    return student


def distance(teacher: nn.Module, student: nn.Module) -> float:
    """Root mean square difference of outputs on windows that nobody has learned; of scores where those are logits."""
    wanted, found = (torch.from_numpy(torch_outputs(net, split(100, seed=1).inputs)) for net in (teacher, student))
    if wanted.shape[1:] == (LABELS,):
        wanted, found = ((x if x.min() >= 0 else x.softmax(dim=1)) for x in (wanted, found))
    return float((found - wanted).square().mean().sqrt())


@pytest.mark.parametrize(
    ("output", "build"),
    [
        ("logits", Net),
        ("scores", lambda: Net(end=nn.Softmax(dim=1))),
        ("probability", lambda: Net(outputs=1, end=nn.Sigmoid())),
        ("error", lambda: Net(outputs=1)),
        ("reconstruction", lambda: Restoring(6)),
        ("logits", Images),
    ],
)
def test_a_student_comes_to_answer_as_its_teacher(output: str, build) -> None:
    teacher = seeded(build)
    student = hurt(teacher)
    before = distance(teacher, student)

    distill(task_of(teacher, output), teacher, epochs=20, seed=1, learning_rate=1e-2, progress=quiet)(student)

    assert distance(teacher, student) < before / 1.5
    assert not student.training
    assert all(p.is_contiguous() for p in student.parameters())


def test_a_student_learns_from_answers_where_labels_are_noise() -> None:
    teacher = seeded(Net)
    task = task_of(teacher)
    noise = Split(task.train.inputs, np.random.default_rng(5).permutation(task.train.targets))
    student = hurt(teacher)
    before = distance(teacher, student)

    distill(msgspec.structs.replace(task, train=noise), teacher, epochs=20, seed=1, learning_rate=1e-2, progress=quiet)(
        student
    )

    assert distance(teacher, student) < before / 2


def test_the_front_end_is_computed_once_put_back_and_not_trained() -> None:
    teacher = seeded(Net).requires_grad_(False)
    student = hurt(teacher).requires_grad_(True)
    student.front_end.requires_grad_(False)
    own = {name: net.front_end for name, net in (("teacher", teacher), ("student", student))}

    distill(task_of(teacher), teacher, epochs=5, seed=1, progress=quiet)(student)

    assert (teacher.front_end, student.front_end) == (own["teacher"], own["student"])
    assert student.front_end.calls <= 10, "once for the proof"
    assert teacher.front_end.calls <= 810, "once to label the task, once for the features, and for the proof"
    assert student.front_end.gain.item() == 1.0


def test_a_network_that_uses_more_than_its_front_end_gives_is_trained_whole() -> None:
    teacher = seeded(Loudness)
    student = hurt(teacher)
    before = distance(teacher, student)
    told: list[str] = []
    task = task_of(teacher, augment=lambda features, _generator: features)

    distill(task, teacher, epochs=10, seed=1, learning_rate=1e-2, progress=told.append)(student)

    assert student.front_end.calls > 10 * 400
    assert distance(teacher, student) < before / 2
    assert told[0] == "fine-tuning without augmentation: the network uses more than its front-end gives"


def test_every_epoch_varies_the_features_and_asks_the_teacher_about_them() -> None:
    seen: list[torch.Tensor] = []

    def louder(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(features)
        return features * (1 + torch.rand(len(features), 1, 1, generator=generator))

    teacher = seeded(Net)
    student = hurt(teacher)
    before = distance(teacher, student)

    distill(task_of(teacher, augment=louder), teacher, epochs=10, seed=1, learning_rate=1e-2, progress=quiet)(student)

    assert sum(map(len, seen)) == 10 * 400
    assert max(features.mean(dim=-1).abs().max() for features in seen) < 1e-6, "what the front-end gives"
    assert distance(teacher, student) < before / 2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    teacher = seeded(Net)
    trained = []
    for seed in (1, 1, 2):
        student = hurt(teacher)
        distill(task_of(teacher), teacher, epochs=2, seed=seed, progress=quiet)(student)
        trained.append(student.head.weight.detach().clone())

    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_no_batch_is_left_with_a_single_window() -> None:
    teacher = seeded(Net)
    student = hurt(teacher)
    sizes: list[int] = []
    student.body.register_forward_hook(lambda module, _x, out: sizes.append(len(out)) if module.training else None)

    distill(task_of(teacher, n=BATCH + 1), teacher, epochs=1, seed=1, progress=quiet)(student)

    assert sorted(sizes) == [32, 33]


def test_progress_tells_the_loss_of_each_epoch() -> None:
    teacher, told = seeded(Net), []

    distill(task_of(teacher), teacher, epochs=2, seed=1, progress=told.append)(hurt(teacher))

    assert [text.rsplit(" ", 1)[0] for text in told] == [f"fine-tuning: epoch {n} of 2, loss" for n in (1, 2)]


def test_the_recipes_own_fine_tuning_is_used_where_there_is_one() -> None:
    teacher = seeded(Net)

    def own(module: nn.Module) -> None:
        pass

    assert distill(task_of(teacher, finetune=own, train=None), teacher, epochs=1, seed=1, progress=quiet) is own


@pytest.mark.parametrize(
    ("changed", "options", "told"),
    [
        ({"train": None}, {}, r"toy: fine-tuning needs training data, the task has none"),
        ({}, {"epochs": 0}, "fine-tuning for 0 epochs, wanted at least 1"),
        ({}, {"learning_rate": 0.0}, "fine-tuning at a rate of 0, wanted above zero"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_at_once(changed, options, told: str) -> None:
    teacher = seeded(Net)

    with pytest.raises(ExportError, match=told):
        distill(task_of(teacher, **changed), teacher, **{"epochs": 1, "seed": 1, "progress": quiet, **options})


def test_a_network_without_anything_to_train_is_refused() -> None:
    teacher = seeded(Net)

    with pytest.raises(ExportError, match="toy: fine-tuning has nothing to train, no parameter requires a gradient"):
        distill(task_of(teacher), teacher, epochs=1, seed=1, progress=quiet)(
            copy.deepcopy(teacher).requires_grad_(False)
        )


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_the_networks_whole() -> None:
    teacher = seeded(Net)
    student = hurt(teacher)
    task = task_of(teacher, augment=lambda features, _generator: features * torch.inf)

    with pytest.raises(ExportError, match=r"fine-tuning: the loss is nan in epoch 1 of 3"):
        distill(task, teacher, epochs=3, seed=1, progress=quiet)(student)

    assert isinstance(teacher.front_end, FrontEnd)
    assert isinstance(student.front_end, FrontEnd)
