"""The story on one page: budget -> candidates -> measured -> chosen.

Chosen is, among the candidates that keep the budget on the validation split and are not slower than float32 on
this machine (in three rounds of four), the fastest; candidates within NOISE of the fastest count as equally fast, and
the smallest of them wins, the earlier one where sizes are equal. Float32 is a candidate like the others. The test
split is looked at once for each candidate, for the table, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import measure, quantize, to_onnx, weight_only
from export.artifact import Artifact, Step, ancestors, outputs_of, parse
from export.evaluate import Evaluation, evaluate, threshold_of
from export.measure import Latency
from export.probe import Failure
from export.recipe import Budget, Progress, Recipe, Splits
from export.train import deterministic, torch_outputs, trained

NOISE = 0.10
EPSILON = 1e-9


class Measured(msgspec.Struct, frozen=True):
    """A candidate and what was found out about it.

    artifact: as it would ship, None when the step failed. drop: of the metric against float32, on validation.
    failure: why it cannot run, "" when it does; everything measured is None then.
    """

    name: str
    artifact: Artifact | None = None
    latency: Latency | None = None
    validation: Evaluation | None = None
    test: Evaluation | None = None
    drop: float = 0.0
    failure: str = ""

    @property
    def size_kb(self) -> float:
        return self.artifact.size_kb if self.artifact else 0.0


class Verdict(msgspec.Struct, frozen=True):
    """What became of a candidate. reasons: what speaks against it."""

    name: str
    status: Literal["chosen", "fits", "rejected"]
    reasons: tuple[str, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """measured and verdicts run in parallel, float32 first. chosen: None when nothing keeps the budget."""

    measured: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...]
    chosen: Measured | None
    splits: Splits
    reference: dict[str, Floats]
    threshold: float | None


def search(recipe: Recipe, *, progress: Progress) -> Outcome:
    """Train, export, quantize, measure and choose. Raises ExportError when not even float32 can be had."""
    with deterministic(recipe.seed):
        progress("loading data")
        splits = recipe.data()
        windows = quantize.calibration(splits, seed=recipe.seed)
        model = trained(recipe, splits, progress)
        progress("exporting to ONNX")
        float32 = to_onnx.export(model, splits.train.inputs, input_name=recipe.input.name, output_name=recipe.output)
        reference = {name: torch_outputs(model, getattr(splits, name).inputs) for name in splits.__struct_fields__}
    threshold = threshold_of(recipe, splits.train.inputs, reference["train"])
    trial = Trial(recipe, splits, reference, threshold, float32, progress)
    measured = [trial.measure("float32", lambda artifact: artifact)]
    if measured[0].failure:
        raise ExportError(f"float32 does not run: {measured[0].failure}")
    measured += [trial.measure(name, step, measured[0]) for name, step in candidates(float32, windows).items()]
    verdicts = choose(measured, recipe.budget)
    chosen = next((m for m, v in zip(measured, verdicts, strict=True) if v.status == "chosen"), None)
    return Outcome(tuple(measured), verdicts, chosen, splits, reference, threshold)


def candidates(float32: Artifact, windows: Floats) -> dict[str, Step]:
    """The steps to try beside float32, by what the graph holds after its front-end, named by what they make.

    windows: for calibration. Static int8 knows no recurrent layer, dynamic int8 makes convolutions slow.
    """
    graph = parse(float32.model).graph
    front = ancestors(graph, float32.front_end)
    held = {node.op_type for node in graph.node if node.name not in front}
    has_conv, is_recurrent = "Conv" in held, not held.isdisjoint(quantize.RECURRENT)
    found: dict[str, Step] = {}
    if is_recurrent:
        found["int8-weights"] = weight_only.int8()
    if "LSTM" in held or ("MatMul" in held and not has_conv and not is_recurrent):
        found["int8-dynamic"] = quantize.dynamic()
    if has_conv or not is_recurrent:
        found["int8-u8s8"] = quantize.static_qdq(windows, scheme="u8s8")
        found["int8-s8s8"] = quantize.static_qdq(windows, scheme="s8s8")
    return found


class Trial(msgspec.Struct, frozen=True):
    """What every candidate is measured against. reference: torch's outputs on each split."""

    recipe: Recipe
    splits: Splits
    reference: dict[str, Floats]
    threshold: float | None
    float32: Artifact
    progress: Progress

    def measure(self, name: str, step: Step, baseline: Measured | None = None) -> Measured:
        """Make and measure one candidate; a step or a child process that fails is a result."""
        self.progress(f"{name}: making")
        try:
            artifact = step(self.float32)
        except ExportError as error:
            return Measured(name, failure=str(error))
        shipped = self._shipped(artifact)
        self.progress(f"{name}: timing beside float32")
        window = self.splits.validation.inputs[:1]
        latency = measure.latency(self._shipped(self.float32), shipped, window, seed=self.recipe.seed)
        if isinstance(latency, Failure):
            return Measured(name, artifact=shipped, failure=latency.reason)
        self.progress(f"{name}: evaluating")
        validation, test = self._evaluate(artifact, "validation"), self._evaluate(artifact, "test")
        drop = baseline.validation.metric - validation.metric if baseline and baseline.validation else 0.0
        return Measured(name, shipped, latency, validation, test, drop)

    def _shipped(self, artifact: Artifact) -> Artifact:
        return to_onnx.with_scores(artifact) if self.recipe.output == "logits" else artifact

    def _evaluate(self, artifact: Artifact, name: str) -> Evaluation:
        split = getattr(self.splits, name)
        outputs = outputs_of(artifact, split.inputs)
        return evaluate(self.recipe, split, outputs, self.reference[name], threshold=self.threshold)


def choose(measured: Sequence[Measured], budget: Budget) -> tuple[Verdict, ...]:
    """One verdict a candidate, by the rule in this file's docstring."""
    objections = {m.name: excess(m, budget) for m in measured}
    fitting = [m for m in measured if m.latency is not None and not objections[m.name]]
    if not fitting:
        return tuple(Verdict(m.name, "rejected", tuple(objections[m.name])) for m in measured)
    fastest = max(_speedup(m) for m in fitting)
    equal = [m for m in fitting if _speedup(m) >= fastest * (1 - NOISE)]
    chosen = min(equal, key=lambda m: m.size_kb)
    verdicts = []
    for m in measured:
        if objections[m.name]:
            verdicts.append(Verdict(m.name, "rejected", tuple(objections[m.name])))
        elif m is chosen:
            verdicts.append(Verdict(m.name, "chosen"))
        else:
            reason = "not smaller, equally fast" if m in equal else f"slower than {chosen.name}"
            verdicts.append(Verdict(m.name, "fits", (reason,)))
    return tuple(verdicts)


def excess(m: Measured, budget: Budget) -> dict[str, float]:
    """What speaks against a candidate, each with how far it is beyond what was allowed, as a share of that."""
    if m.failure or m.latency is None:
        return {m.failure: float("inf")}
    p95_ms = m.latency.p95_us / 1e3
    found: dict[str, float] = {}
    if m.latency.speedup_q3 < 1 and m.name != "float32":
        found[f"slower than float32 ({_below_one(m.latency.speedup)}x)"] = 1 / m.latency.speedup - 1
    if budget.max_drop is not None and m.drop > budget.max_drop + EPSILON:
        text = f"drops {100 * m.drop:.1f} points, budget {100 * budget.max_drop:.1f}"
        found[text] = (m.drop - budget.max_drop) / max(budget.max_drop, 0.01)
    if budget.p95_ms is not None and p95_ms > budget.p95_ms:
        found[f"p95 {p95_ms:.3g} ms, budget {budget.p95_ms:g} ms"] = p95_ms / budget.p95_ms - 1
    if budget.size_kb is not None and m.size_kb > budget.size_kb:
        found[f"{m.size_kb:.1f} KB, budget {budget.size_kb:g} KB"] = m.size_kb / budget.size_kb - 1
    return found


def nearest(measured: Sequence[Measured], budget: Budget, *, count: int = 2) -> list[Measured]:
    """The candidates that miss the budget by least, judged by their worst excess."""
    running = [m for m in measured if not m.failure]
    return sorted(running, key=lambda m: max(excess(m, budget).values(), default=0.0))[:count]


def _speedup(m: Measured) -> float:
    return m.latency.speedup if m.latency else 0.0


def _below_one(speedup: float) -> str:
    """Two decimals, or as many as it takes not to read 1.00."""
    return f"{speedup:.2f}" if speedup < 0.995 else f"{speedup:.4f}"
