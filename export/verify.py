"""A bundle proven against the model it is said to come from: what it says of itself, how it answers, what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.errors import BundleError
from edge_runtime.model import bundle as bundles
from edge_runtime.model.bundle import Bundle
from edge_runtime.model.gate import GateReport, gate
from edge_runtime.model.manifest import ERROR_KINDS, OutputKind
from edge_runtime.model.session import Session, SessionSettings, scores_of
from edge_runtime.records import Floats, InputSpec
from export.compress import DEFAULT_DROP
from export.evaluate import Drop, evaluate, snr_db
from export.pack_onnx import GATE
from export.recipe import Metric, Split
from export.same_weights import Weights, found_again
from export.task import Task

MIN_AGREEMENT = 0.9
"""Share of windows that both must answer alike when the weights are the source's."""
ALIKE, FOUND = 0.9, 0.3
"""Shares of the weights: with ALIKE of the same sizes nothing was pruned, and FOUND of them must be the source's; a
fused attention keeps more than that."""
TRAINED = re.compile(r"fine-tuned|quantization-aware|\btrained\b")
"""In the steps of a bundle: its weights have changed since, and its answers with them, for the better perhaps."""
LEAST_SCORE = float(np.finfo(np.float32).tiny)
THRESHOLD_SLACK = 1e-6
POINTS = 100
COMPARED_FIELDS = ("channels", "units", "length", "rate_hz", "layout", "lead_in")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. detail: what was found and, when it is not ok, what was wanted."""

    name: str
    ok: bool
    detail: str


class Compared(msgspec.Struct, frozen=True):
    """Bundle and source on n windows of a split.

    agreement: share of windows decided alike. difference: largest, of scores or errors. snr_db: of the scores or errors
    against the source's. source, bundle: the metric with its 95 % interval.
    """

    split: str
    n: int
    agreement: float
    difference: float
    snr_db: float
    source: tuple[float, float, float]
    bundle: tuple[float, float, float]
    drop: Drop


class Verification(msgspec.Struct, frozen=True):
    """What was found about a bundle. digest: sha256 of the file. source: the model it was held against.

    size_kb: of the ONNX file inside; None when the bundle could not be read. p95_ms: of one window in the gate here.
    changed: what was done to the weights, so that the metric alone is judged; "" when they could be compared.
    """

    bundle: str
    digest: str
    model: str
    source: str
    findings: tuple[Finding, ...]
    compared: tuple[Compared, ...] = ()
    size_kb: float | None = None
    p95_ms: float | None = None
    changed: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not proven."""
        return tuple(f"{finding.name}: {finding.detail}" for finding in self.findings if not finding.ok)

    @property
    def proven(self) -> bool:
        return bool(self.compared) and not self.reasons

    def __str__(self) -> str:
        return text(self)


def verify(path: Path, task: Task) -> Verification:
    """Prove a bundle against a task's original on the windows of its validation and test splits.

    It is loaded here only after the gate's child process has survived it. Whatever is wrong with the bundle is a
    finding, not an error. The drop that is allowed is the task's; the bundle's own budget can only make it stricter.
    """
    report = gate(path, GATE)
    findings = [_gated(report)]
    told = Verification(str(path), report.digest, report.model, task.source or task.name, (), p95_ms=report.p95_ms)
    try:
        bundle = bundles.read(path)
    except BundleError as error:
        return msgspec.structs.replace(told, findings=(Finding("file", ok=False, detail=error.fact),))
    told = msgspec.structs.replace(told, model=bundle.manifest.model_id, size_kb=len(bundle.model) / 1000)
    described = list(_described(bundle, task))
    findings += [*described, _sized(bundle)]
    comparable = all(finding.ok for finding in described) and "session" in {c.name for c in report.checks if c.ok}
    if not comparable:
        return msgspec.structs.replace(told, findings=tuple(findings))
    weights = found_again(task.original, bundle.model)
    changed = _changed(weights, bundle)
    findings += [*_weighed(weights, changed, task)]
    told = msgspec.structs.replace(told, changed=changed)
    try:
        session = Session(bundle, SessionSettings())
    except BundleError as error:
        failed = Finding("session", ok=False, detail=error.fact)
        return msgspec.structs.replace(told, findings=(*findings, failed))
    splits = {name: split for name, split in task.splits().items() if name != "train"}
    compared = tuple(_compared(name, split, session, task) for name, split in splits.items())
    for found in compared:
        findings += [_agreed(found, is_wanted=not changed), _dropped(found, bundle, task)]
    return msgspec.structs.replace(told, findings=tuple(findings), compared=compared)


def _gated(report: GateReport) -> Finding:
    """The gate's own checks: hashes, policy, golden vectors, finite scores, latency within the bundle's budget here."""
    detail = report.reason if not report.ok else "; ".join(check.detail for check in report.checks)
    return Finding("gate", report.ok, detail)


def _described(bundle: Bundle, task: Task) -> Iterator[Finding]:
    """What the manifest says against what the source is."""
    manifest = bundle.manifest
    if manifest.states or manifest.scalars:
        yield Finding("inputs", ok=False, detail="carries a state or constant inputs, the source takes a window alone")
    yield _shape(manifest.input, task)
    if task.input is not None:
        for field in COMPARED_FIELDS:
            found, wanted = getattr(manifest.input, field), getattr(task.input, field)
            if found != wanted and not _is_unsaid(field, task):
                yield Finding(field, ok=False, detail=f"{found}, the source has {wanted}")
    yield _labels(manifest.labels, task)
    kind = manifest.output.kind
    fits = kind == task.output or (kind, task.output) == ("scores", "logits")
    yield Finding("output", fits, f"{kind}, of the source {task.output}")
    if task.threshold is not None and manifest.threshold is not None:
        close = abs(manifest.threshold - task.threshold) <= THRESHOLD_SLACK * abs(task.threshold)
        yield Finding("threshold", close, f"{manifest.threshold:.6g}, of the source {task.threshold:.6g}")


def _is_unsaid(field: str, task: Task) -> bool:
    """Whether it is only what packing an ONNX file puts where neither the file nor anybody says anything."""
    if task.original.module is not None or task.input is None:
        return False
    count = len(task.input.channels)
    defaults = {"channels": tuple(f"c{index}" for index in range(count)), "units": ("1",) * count, "rate_hz": None}
    return field in defaults and getattr(task.input, field) == defaults[field]


def _shape(spec: InputSpec, task: Task) -> Finding:
    found, wanted = spec.shape(), task.validation.inputs.shape[1:]
    return Finding("shape", found == wanted, f"windows of {found}, of the source {wanted}")


def _labels(found: tuple[str, ...], task: Task) -> Finding:
    """Names, or how many where nobody named them."""
    wanted = task.labels
    unnamed = wanted == tuple(f"class{index}" for index in range(len(wanted)))
    fits = len(found) == len(wanted) if unnamed else found == wanted
    return Finding("labels", fits, f"{', '.join(found) or 'none'}; of the source {', '.join(wanted) or 'none'}")


def _sized(bundle: Bundle) -> Finding:
    size_kb, allowed = len(bundle.model) / 1000, bundle.manifest.budgets.size_kb
    limit = "no budget" if allowed is None else f"budget {allowed:g} KB"
    return Finding("size", allowed is None or size_kb <= allowed, f"{size_kb:.1f} KB, {limit}")


def _changed(weights: Weights, bundle: Bundle) -> str:
    """What was done to the weights that leaves the metric alone to be judged; "" when nothing was."""
    if weights.elements and weights.alike < ALIKE:
        return "they were pruned"
    return "they were trained again" if any(TRAINED.search(step) for step in bundle.manifest.provenance.steps) else ""


def _weighed(weights: Weights, changed: str, task: Task) -> Iterator[Finding]:
    """Whether the weights are the source's, where they should be, and where the source has its own from."""
    found = f"{weights.found:.0%} of {weights.elements} weights of the source found again"
    ok = bool(changed) or not weights.elements or weights.found >= FOUND
    if changed:
        found = f"{found}: {changed}, so that the metric alone is judged"
    elif not ok:
        found = f"{found}, wanted at least {FOUND:.0%}: it has weights of the same sizes, but other ones"
    yield Finding("weights", ok, found)
    if task.trained_now:
        detail = "was trained here, now: the weights that the bundle was made from only where training repeats them"
        yield Finding("source", ok=True, detail=detail)


def _compared(name: str, split: Split, session: Session, task: Task) -> Compared:
    """What both make of a split, as the runtime sees it: scores in [0, 1], or errors."""
    wanted = scores_of(task.output, split.inputs, task.reference[name])
    found = session.predict(np.ascontiguousarray(split.inputs))
    judged = _judge(task)
    reference, outputs = (_as_judged(task.output, scores) for scores in (wanted, found))
    before, after = (evaluate(judged, split, given, reference) for given in (reference, outputs))
    return Compared(
        split=name,
        n=after.n,
        agreement=after.agreement,
        difference=float(np.abs(wanted - found).max()),
        snr_db=snr_db(wanted, found),
        source=(before.metric, before.low, before.high),
        bundle=(after.metric, after.low, after.high),
        drop=after.drop,
    )


def _judge(task: Task) -> Task:
    """The task, but that it judges what a bundle gives: errors, or scores of every label."""
    output: OutputKind = "error" if task.output in ERROR_KINDS else "scores"
    return msgspec.structs.replace(task, output=output, metric=_second(task.metric, task.output))


def _second(metric: Metric | None, kind: OutputKind) -> Metric | None:
    """A metric for probabilities gets those of the second label alone."""
    if metric is None or kind != "probability":
        return metric
    return lambda outputs, targets: metric(outputs[:, 1:], targets)


def _as_judged(kind: OutputKind, scores: Floats) -> Floats:
    """Logits again where the source gives logits, up to a constant in each window, for both in the same way."""
    if kind != "logits":
        return scores
    logits: Floats = np.log(np.maximum(scores, LEAST_SCORE))
    return logits


def _agreed(found: Compared, *, is_wanted: bool) -> Finding:
    ok = found.agreement >= MIN_AGREEMENT or not is_wanted
    wanted = "" if ok else f", wanted at least {MIN_AGREEMENT:.0%}"
    agreed = f"{found.agreement:.2%} of {found.n} windows are answered as the source answers them{wanted}"
    figures = f"largest difference {found.difference:.3g}, SNR {found.snr_db:.1f} dB"
    return Finding(f"agreement on {found.split}", ok, f"{agreed}; {figures}")


def _dropped(found: Compared, bundle: Bundle, task: Task) -> Finding:
    """The drop of the metric against what is allowed, and whether the windows are enough to say so."""
    drop, n = found.drop, found.n
    allowed, whose = _allowed(bundle.manifest.budgets.max_drop, task.budget.max_drop)
    interval = f"[{POINTS * drop.low:+.2f}, {POINTS * drop.high:+.2f}]"
    told = f"{POINTS * drop.value:+.2f} points {interval}, p {drop.p_value:.2g}, allowed {POINTS * allowed:g} {whose}"
    ok = drop.value <= allowed
    if drop.low > allowed:
        told = f"{told}: refuted"
    elif not drop.high <= allowed:  # an interval that nobody could find (NaN) too
        told = f"{told}: {n} windows cannot tell it from a {'larger' if ok else 'smaller'} one"
    return Finding(f"drop on {found.split}", ok, told)


def _allowed(own: float | None, asked: float | None) -> tuple[float, str]:
    """The drop that is allowed, and who says so: a bundle cannot set its own exam."""
    allowed, whose = (DEFAULT_DROP, "by default") if asked is None else (asked, "as asked")
    return (own, "by its own budget") if own is not None and own < allowed else (allowed, whose)


def text(told: Verification) -> str:
    """The verdict, every reason against it, then all that was looked at."""
    verdict = "proven" if told.proven else "not proven"
    alone = (
        f" by its metric alone: its weights cannot be compared, {told.changed}" if told.proven and told.changed else ""
    )
    size = "" if told.size_kb is None else f", {told.size_kb:.1f} KB"
    p95 = "" if told.p95_ms is None else f", p95 {told.p95_ms:.3g} ms here"
    width = max(len(finding.name) for finding in told.findings)
    lines = [
        f"{told.bundle}: {verdict} against {told.source}{alone}",
        f"{told.model or 'no model'}, sha256 {told.digest or 'unknown'}{size}{p95}",
        *(f"  {'ok' if f.ok else 'NO'}  {f.name:{width}}  {f.detail}" for f in told.findings),
    ]
    for found in told.compared:
        before, after = (f"{m:.4f} [{low:.4f}, {high:.4f}]" for m, low, high in (found.source, found.bundle))
        lines.append(f"  metric on {found.split} (n={found.n}, 95 %): source {before}, bundle {after}")
    return "\n".join(lines)
