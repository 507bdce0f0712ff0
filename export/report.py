"""What was measured, as one table: for the terminal, for the model card, and as JSON."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from export.candidate import Measured
from export.choose import Verdict, nearest, relaxed
from export.evaluate import Evaluation
from export.measure import Cost, Instructions, Latency
from export.search import Outcome
from export.task import Task

POINTS = 100


def rows(outcome: Outcome) -> list[list[str]]:
    body = [row(m, v) for m, v in zip(outcome.measured, outcome.verdicts, strict=True)]
    return [header(outcome), *body]


def header(outcome: Outcome) -> list[str]:
    task, is_time = outcome.task, not isinstance(outcome.measured[0].cost, Instructions)
    return [
        "variant",
        f"validation {_metric(task)} [95 %] (n={len(task.validation.targets)})",
        "drop ± se",
        "p",
        "KB",
        "agree",
        "SNR dB",
        "p50 us (IQR)" if is_time else "instructions (least-most)",
        "x float32 (IQR)" if is_time else "times fewer than float32",
        "s",
        "verdict",
    ]


def row(m: Measured, verdict: Verdict) -> list[str]:
    """One candidate as text cells; what could not be measured is a dash."""
    size = f"{m.size_kb:.1f}" if m.artifact else "-"
    judged = ["-"] * 5
    if (v := m.validation) is not None:
        snr = f"{v.snr_db:.1f}" if math.isfinite(v.snr_db) else "inf"
        drop = f"{POINTS * v.drop.value:+.2f} ± {POINTS * v.drop.error:.2f}"
        judged = [_interval(v), drop, f"{v.drop.p_value:.2g}", f"{v.agreement:.4f}", snr]
    return [m.name, *judged[:3], size, *judged[3:], *_cost(m.cost), f"{m.seconds:.1f}", told(verdict)]


def _cost(found: Cost | None) -> list[str]:
    """What a window costs, and how much less than with float32."""
    if found is None:
        return ["-", "-"]
    if isinstance(found, Instructions):
        return [f"{found.median:,} ({found.least:,}-{found.most:,})", f"{found.speedup:.2f}"]
    return [
        f"{found.p50_us:.0f} ({found.q1_us:.0f}-{found.q3_us:.0f})",
        f"{found.speedup:.2f} ({found.speedup_q1:.2f}-{found.speedup_q3:.2f})",
    ]


def _interval(found: Evaluation) -> str:
    return f"{found.metric:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _metric(task: Task) -> str:
    return "accuracy" if task.metric is None else "metric"


def told(verdict: Verdict) -> str:
    """The verdict in words: "chosen", "rejected: slower than float32 (0.83x)"."""
    status = {"chosen": "chosen", "fits": "not chosen", "rejected": "rejected"}[verdict.status]
    return f"{status}: {'; '.join(verdict.reasons)}" if verdict.reasons else status


def tested(outcome: Outcome) -> str:
    """What the test split says of float32 and the chosen one, a sentence; why nothing, where there is no such split."""
    task, before = outcome.task, outcome.measured[0].test
    if task.test is None or before is None:
        return "No test split was given: the figures are those that chose, and flatter the chosen one."
    said = f"Test {_metric(task)} (n={before.n}, looked at once): float32 {_interval(before)}"
    after = outcome.chosen.test if outcome.chosen else None
    if after is None or outcome.chosen is None or not outcome.chosen.chain:
        return f"{said}."
    drop = after.drop
    return (
        f"{said}; {outcome.chosen.name} {_interval(after)}: drop {POINTS * drop.value:+.2f} points "
        f"[{POINTS * drop.low:+.2f}, {POINTS * drop.high:+.2f}], p {drop.p_value:.2g}."
    )


def plain(cells: list[list[str]]) -> str:
    """Cells in aligned columns."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(cells: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def page(outcome: Outcome) -> str:
    """The table and what follows from it, for a terminal."""
    return "\n".join(
        [plain(rows(outcome)), "", tested(outcome), *([f"Stopped: {outcome.stopped}."] * bool(outcome.stopped))]
    )


def as_json(outcome: Outcome) -> bytes:
    """Everything measured, for programs; an infinite SNR is null."""
    task = outcome.task
    variants: list[dict[str, Any]] = [
        {
            "variant": m.name,
            "chain": m.chain,
            "status": verdict.status,
            "reasons": verdict.reasons,
            "size_kb": m.size_kb if m.artifact else None,
            "drop": m.drop if m.validation else None,
            "validation": m.validation,
            "test": m.test,
            "latency": m.cost if isinstance(m.cost, Latency) else None,
            "instructions": m.cost if isinstance(m.cost, Instructions) else None,
            "seconds": m.seconds,
            "steps": m.artifact.steps if m.artifact else (),
        }
        for m, verdict in zip(outcome.measured, outcome.verdicts, strict=True)
    ]
    return msgspec.json.encode(
        {
            "name": task.name,
            "version": task.version,
            "seed": task.seed,
            "budget": task.budget,
            "target": outcome.target,
            "seconds": outcome.seconds,
            "stopped": outcome.stopped,
            "chosen": outcome.chosen.name if outcome.chosen else None,
            "variants": variants,
        }
    )


def missed(outcome: Outcome) -> str:
    """Lines for a budget that nothing keeps: the candidates that miss it by least, and what to relax for each."""
    near = nearest(outcome.measured, outcome.task.budget)
    told_of = [
        f"  {m.name}: {m.size_kb:.1f} KB, {m.cost.speedup:.2f}x, {POINTS * m.drop:+.2f} points; "
        f"relax to {relaxed(m, outcome.task.budget)}"
        for m in near
        if m.cost
    ]
    return "\n".join(["no candidate keeps the budget; nearest:", *told_of])
