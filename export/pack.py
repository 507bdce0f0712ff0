"""The chosen candidate as a bundle: golden vectors with a derived tolerance, reference histograms, card, provenance.

`edge-export run` and `compress` end here. `edge-export pack`, for an ONNX file from elsewhere, is export/pack_onnx.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.manifest import (
    DEFAULT,
    ERROR_KINDS,
    SCHEMA,
    Manifest,
    OutputSpec,
    Provenance,
    Reference,
)
from edge_runtime.model.session import softmax
from edge_runtime.records import InputSpec
from export import card, trial, weight_only
from export.artifact import Artifact, outputs_of
from export.contents import float32_tolerance, int8_tolerance, proves_nothing, reference, tools
from export.evaluate import comparable
from export.families import Certificate, certify
from export.recipe import Labels
from export.search import Outcome
from export.task import Task

GOLDEN_MIN, GOLDEN_MAX = 8, 16
GOLDEN_BYTES, GOLDEN_LEAST = 128 * 1024, 4
"""Of large windows there are fewer: they shall not outweigh the model."""


def pack(path: Path, outcome: Outcome) -> Manifest:
    """Write the chosen candidate to path; the manifest without the file list.

    Raises ExportError when nothing was chosen, nobody said what the input is, the float32 graph does not give what
    torch gives, or the golden windows prove nothing.
    """
    task = outcome.task
    if outcome.chosen is None or outcome.chosen.artifact is None:
        raise ExportError(f"{path}: no candidate keeps the budget, nothing to pack")
    if task.input is None:
        raise ExportError(f"{path}: a bundle says what its input is; wanted input=InputSpec(...)")
    artifact = outcome.chosen.artifact
    proven = golden_vectors(task, artifact, is_original=not outcome.chosen.chain)
    if doubt := proves_nothing(proven.golden.outputs, proven.tolerances[DEFAULT].absolute):
        raise ExportError(f"{path}: {doubt}; the windows of the validation split differ too little")
    manifest = Manifest(
        schema=SCHEMA,
        name=task.name,
        version=task.version,
        precision=artifact.precision,
        input=task.input,
        output=OutputSpec(artifact.output, "scores" if task.output == "logits" else task.output),
        labels=task.labels,
        tolerances=proven.tolerances,
        parity=proven.parity,
        files={},
        provenance=Provenance(task.source, task.seed, tools("onnxscript", "torch"), artifact.steps),
        threshold=task.threshold,
        session=artifact.session,
        budgets=task.budget,
    )
    described = card.card(outcome, manifest)
    training = reference_of(task, task.input, artifact)
    bundle.write(path, manifest, model=artifact.model, golden=proven.golden, reference=training, card=described)
    return manifest


def golden_vectors(task: Task, artifact: Artifact, *, is_original: bool) -> Certificate:
    """Validation windows, spread over the labels, with what the shipped graph returns on every family measured here.

    is_original: the graph is to give what torch gives.
    """
    split, torch_raw = task.validation, task.reference["validation"]
    affordable = max(GOLDEN_LEAST, GOLDEN_BYTES // split.inputs[0].nbytes)
    picked = spread(split.targets, count=min(max(len(task.labels), GOLDEN_MIN), GOLDEN_MAX, affordable))
    inputs = split.inputs[picked]
    request = trial.Request(artifact.input, artifact.output, session=artifact.session)
    golden = Golden(inputs, trial.run(artifact.model, inputs, request, name=task.name).outputs)
    wanted = softmax(torch_raw[picked]) if task.output == "logits" else torch_raw[picked]
    computes_float32 = artifact.precision in ("float32", weight_only.PRECISION)  # whose weights are float32 again
    if computes_float32:
        allowed = float32_tolerance(golden.outputs)
    else:
        allowed = int8_tolerance(torch_raw, torch_raw[picked], is_logits=task.output == "logits")
    difference = float(np.abs(golden.outputs - wanted).max())
    if is_original and not difference <= allowed:
        raise ExportError(f"golden vectors: graph and torch differ by {difference:.3g}, allowed {allowed:.3g}")
    return certify(artifact.model, golden, allowed, request, computes_float32=computes_float32, float32=wanted)


def spread(targets: Labels, *, count: int) -> npt.NDArray[np.int64]:
    """Indices of at most count windows, taking the labels in turn, each label's windows in order."""
    queues = [list(np.flatnonzero(targets == label)) for label in np.unique(targets)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(targets)):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(int(queue.pop(0)))
    return np.asarray(sorted(chosen), dtype=np.int64)


def reference_of(task: Task, spec: InputSpec, artifact: Artifact) -> Reference:
    """What the training data looks like to the shipped graph; the calibration windows where there is none."""
    inputs = task.calibrate if task.train is None else task.train.inputs
    outputs = outputs_of(artifact, inputs)
    scores = comparable(task, inputs, outputs) if task.output in ERROR_KINDS else outputs
    return reference(spec, task.labels, inputs, scores)
