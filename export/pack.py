"""The chosen candidate as a bundle: golden vectors with a derived tolerance, reference histograms, card, provenance.

`edge-export run` ends here. `edge-export pack`, for an ONNX file from elsewhere, is export/pack_onnx.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.manifest import (
    ERROR_KINDS,
    SCHEMA,
    Manifest,
    OutputSpec,
    Provenance,
    Reference,
    Tolerance,
)
from edge_runtime.model.session import softmax
from export import card, weight_only
from export.artifact import Artifact, outputs_of
from export.contents import float32_tolerance, int8_tolerance, proves_nothing, reference, tools
from export.evaluate import comparable
from export.recipe import Labels, Recipe
from export.search import Outcome

GOLDEN_MIN, GOLDEN_MAX = 8, 16


def pack(path: Path, recipe: Recipe, outcome: Outcome) -> Manifest:
    """Write the chosen candidate to path; the manifest without the file list.

    Raises ExportError when nothing was chosen, the float32 graph does not give what torch gives, or the golden
    windows prove nothing.
    """
    if outcome.chosen is None or outcome.chosen.artifact is None:
        raise ExportError(f"{path}: no candidate keeps the budget, nothing to pack")
    artifact = outcome.chosen.artifact
    golden, allowed = golden_vectors(recipe, outcome, artifact)
    if doubt := proves_nothing(golden.outputs, allowed):
        raise ExportError(f"{path}: {doubt}; the windows of the validation split differ too little")
    manifest = Manifest(
        schema=SCHEMA,
        name=recipe.name,
        version=recipe.version,
        precision=artifact.precision,
        input=recipe.input,
        output=OutputSpec(artifact.output, "scores" if recipe.output == "logits" else recipe.output),
        labels=recipe.labels,
        tolerances={"default": Tolerance(allowed)},
        files={},
        provenance=Provenance(
            "/".join(recipe.path.resolve().parts[-2:]), recipe.seed, tools("onnxscript", "torch"), artifact.steps
        ),
        threshold=outcome.threshold,
        session=artifact.session,
        budgets=recipe.budget,
    )
    described = card.card(recipe, outcome, manifest)
    training = reference_of(recipe, outcome, artifact)
    bundle.write(path, manifest, model=artifact.model, golden=golden, reference=training, card=described)
    return manifest


def golden_vectors(recipe: Recipe, outcome: Outcome, artifact: Artifact) -> tuple[Golden, float]:
    """Validation windows, spread over the labels, with the shipped graph's outputs and how exactly they must be met."""
    split, torch_raw = outcome.splits.validation, outcome.reference["validation"]
    chosen = spread(split.targets, count=min(max(len(recipe.labels), GOLDEN_MIN), GOLDEN_MAX))
    golden = Golden(split.inputs[chosen], outputs_of(artifact, split.inputs[chosen]))
    wanted = softmax(torch_raw[chosen]) if recipe.output == "logits" else torch_raw[chosen]
    if artifact.precision == weight_only.PRECISION:  # its weights are float32 again before it computes
        return golden, float32_tolerance(golden.outputs)
    if artifact.precision == "float32":
        allowed = float32_tolerance(wanted)
        difference = float(np.abs(golden.outputs - wanted).max())
        if not difference <= allowed:
            raise ExportError(f"golden vectors: graph and torch differ by {difference:.3g}, allowed {allowed:.3g}")
        return golden, allowed
    return golden, int8_tolerance(torch_raw, torch_raw[chosen], is_logits=recipe.output == "logits")


def spread(targets: Labels, *, count: int) -> npt.NDArray[np.int64]:
    """Indices of at most count windows, taking the labels in turn, each label's windows in order."""
    queues = [list(np.flatnonzero(targets == label)) for label in np.unique(targets)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(targets)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(int(queue.pop(0)))
    return np.asarray(sorted(chosen), dtype=np.int64)


def reference_of(recipe: Recipe, outcome: Outcome, artifact: Artifact) -> Reference:
    """What the training data looks like to the shipped graph."""
    inputs = outcome.splits.train.inputs
    outputs = outputs_of(artifact, inputs)
    scores = comparable(recipe, inputs, outputs) if recipe.output in ERROR_KINDS else outputs
    return reference(recipe.input, recipe.labels, inputs, scores)
