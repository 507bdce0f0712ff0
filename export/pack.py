"""The chosen candidate as a bundle: golden vectors with a derived tolerance, reference histograms, card, provenance."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.manifest import (
    ERROR_KINDS,
    SCHEMA,
    Histogram,
    Manifest,
    OutputSpec,
    Provenance,
    Reference,
    Tolerance,
)
from edge_runtime.model.session import load_onnxruntime, softmax
from edge_runtime.records import Floats
from export import card
from export.artifact import Artifact, outputs_of
from export.evaluate import comparable
from export.recipe import Labels, Recipe
from export.search import Outcome

GOLDEN_MIN, GOLDEN_MAX = 8, 16
FLOAT32_TOLERANCE = 1e-4
QUANTIZATION_LEVELS = 255
STEPS_ALLOWED = 2
BINS = 16
SCORE_EDGES = tuple(round(i / 10, 1) for i in range(1, 10))


def pack(path: Path, recipe: Recipe, outcome: Outcome) -> Manifest:
    """Write the chosen candidate to path; the manifest without the file list.

    Raises ExportError when nothing was chosen or the float32 graph does not give what torch gives.
    """
    if outcome.chosen is None or outcome.chosen.artifact is None:
        raise ExportError(f"{path}: no candidate keeps the budget, nothing to pack")
    artifact = outcome.chosen.artifact
    golden, allowed = golden_vectors(recipe, outcome, artifact)
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
        provenance=Provenance("/".join(recipe.path.resolve().parts[-2:]), recipe.seed, tools(), artifact.steps),
        threshold=outcome.threshold,
        budgets=recipe.budget,
    )
    described = card.card(recipe, outcome, manifest)
    reference = reference_of(recipe, outcome, artifact)
    bundle.write(path, manifest, model=artifact.model, golden=golden, reference=reference, card=described)
    return manifest


def golden_vectors(recipe: Recipe, outcome: Outcome, artifact: Artifact) -> tuple[Golden, float]:
    """Validation windows, spread over the labels, with the shipped graph's outputs and how exactly they must be met."""
    split, torch_raw = outcome.splits.validation, outcome.reference["validation"]
    chosen = spread(split.targets, count=min(max(len(recipe.labels), GOLDEN_MIN), GOLDEN_MAX))
    golden = Golden(split.inputs[chosen], outputs_of(artifact, split.inputs[chosen]))
    wanted = softmax(torch_raw[chosen]) if recipe.output == "logits" else torch_raw[chosen]
    if artifact.precision == "float32":
        allowed = FLOAT32_TOLERANCE * max(1.0, float(np.abs(wanted).max()))
        difference = float(np.abs(golden.outputs - wanted).max())
        if not difference <= allowed:
            raise ExportError(f"golden vectors: graph and torch differ by {difference:.3g}, allowed {allowed:.3g}")
        return golden, allowed
    return golden, int8_tolerance(torch_raw, torch_raw[chosen], is_logits=recipe.output == "logits")


def int8_tolerance(outputs: Floats, golden: Floats, *, is_logits: bool) -> float:
    """How far int8 outputs may be from the golden ones on another CPU.

    The int8 part is the same to the bit on every CPU we run on, but a float32 front-end before it differs in its last
    bits, which moves some activations by one quantization step. Allowed are STEPS_ALLOWED steps of the output, a step
    being the outputs' range over 255. Where the output is scores of logits: what the worst such change, the own logit
    up and all others down or the reverse, does to any score of the golden windows, at least FLOAT32_TOLERANCE.

    outputs: what torch gives on the validation split. golden: the same for the golden windows.
    """
    low, high = min(0.0, float(outputs.min())), max(0.0, float(outputs.max()))
    shift = STEPS_ALLOWED * (high - low) / QUANTIZATION_LEVELS
    if not is_logits:
        return max(shift, FLOAT32_TOLERANCE)
    scores = softmax(golden).astype(np.float64)
    up = scores * np.exp(shift) / (scores * np.exp(shift) + (1 - scores) * np.exp(-shift))
    down = scores * np.exp(-shift) / (scores * np.exp(-shift) + (1 - scores) * np.exp(shift))
    return max(float(np.max(up - scores)), float(np.max(scores - down)), FLOAT32_TOLERANCE)


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
    """What the training data looks like: "NAME.mean" and "NAME.std" of each channel's windows, and the scores.

    Features are cut at their own quantiles, so that every bin holds about the same share; scores at tenths;
    errors at their quantiles.
    """
    inputs = outcome.splits.train.inputs
    size = (len(inputs), recipe.input.length, len(recipe.input.channels))
    channels = inputs if recipe.input.layout == "NCT" else np.moveaxis(inputs.reshape(size), 2, 1)
    features = {}
    for index, name in enumerate(recipe.input.channels):
        windows = channels[:, index].astype(np.float64)
        features[f"{name}.mean"] = by_quantiles(windows.mean(axis=1))
        features[f"{name}.std"] = by_quantiles(windows.std(axis=1))
    outputs = outputs_of(artifact, inputs)
    if recipe.output in ERROR_KINDS:
        scores = {"error": by_quantiles(comparable(recipe, inputs, outputs)[:, 0].astype(np.float64))}
    else:
        scores = {label: counted(outputs[:, i], SCORE_EDGES) for i, label in enumerate(recipe.labels)}
    return Reference(features, scores, len(inputs))


def by_quantiles(values: npt.NDArray[np.float64]) -> Histogram:
    """BINS bins of about equal counts; fewer where values repeat."""
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    return counted(values, tuple(float(edge) for edge in edges))


def counted(values: npt.NDArray[np.floating], edges: tuple[float, ...]) -> Histogram:
    """Counts of values below the first edge, between the edges (the lower one included), and from the last one up."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return Histogram(edges, tuple(int(count) for count in counts))


def tools() -> dict[str, str]:
    """Versions of what made the bundle."""
    packages = ("edge-runtime", "numpy", "onnx", "onnxscript", "torch")
    found = {name: metadata.version(name) for name in packages}
    return {**found, "onnxruntime": load_onnxruntime().__version__, "python": platform.python_version()}
