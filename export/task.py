"""What a search works on, whether it came from a recipe, a Python call or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.model.manifest import OutputKind
from edge_runtime.records import Floats, InputSpec
from export.artifact import Artifact
from export.recipe import Augment, Budget, Metric, Split

if TYPE_CHECKING:
    from torch import nn

FineTune = Callable[["nn.Module"], None]


class Task(msgspec.Struct, frozen=True):
    """A model to make smaller and faster, the data to judge it by, and what it may lose.

    name: of the model; also says in errors where they come from. source: where the model comes from, for the bundle.
    input: None when nobody said; a bundle needs it. metric: (outputs, targets) to a number, higher is better, None for
    accuracy; outputs are (n, labels), or (n, 1) errors. threshold: the error above which a window is an anomaly.
    train: None where no training data is at hand, so that nothing can be fine-tuned. calibrate: (n, ...) windows that
    stand in neither validation nor test. original: float32, its outputs as `output` says, its module the trained
    network where torch has it. reference: what the original returns for each split there is.
    augment: (features, generator) to features of the same shape, for fine-tuning; features are what the front-end
    gives, or the input without one. code: of the files that they and the metric come from, a digest; "" where their own
    files are all there is. finetune: trains a network in place, instead of distillation. trained_now: the original was
    trained for this task, not read from weights that were kept.
    """

    name: str
    version: str
    source: str
    seed: int
    input: InputSpec | None
    labels: tuple[str, ...]
    output: OutputKind
    metric: Metric | None
    threshold: float | None
    budget: Budget
    train: Split | None
    calibrate: Floats
    validation: Split
    test: Split | None
    original: Artifact
    reference: dict[str, Floats]
    augment: Augment | None = None
    finetune: FineTune | None = None
    summary: str = ""
    code: str = ""
    trained_now: bool = False

    def splits(self) -> dict[str, Split]:
        """The splits there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}
