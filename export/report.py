"""What was measured, as one table: for the terminal, for the model card, and as JSON."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from export.recipe import Recipe
from export.search import Measured, Outcome, Verdict, excess

POINTS = 100


def header(recipe: Recipe, outcome: Outcome) -> list[str]:
    metric = "accuracy" if recipe.metric is None else "metric"
    n = len(outcome.splits.test.targets)
    return [
        "variant",
        f"test {metric} [95 %] (n={n})",
        "drop (val)",
        "KB",
        "agree",
        "SNR dB",
        "McNemar p",
        "p50 us (IQR)",
        "x float32 (IQR)",
        "verdict",
    ]


def row(m: Measured, verdict: Verdict) -> list[str]:
    """One candidate as text cells; what could not be measured is a dash."""
    size = f"{m.size_kb:.1f}" if m.artifact else "-"
    if m.test is None or m.latency is None:
        return [m.name, "-", "-", size, "-", "-", "-", "-", "-", told(verdict)]
    test, latency = m.test, m.latency
    return [
        m.name,
        f"{test.metric:.4f} [{test.low:.4f}, {test.high:.4f}]",
        f"{POINTS * m.drop:+.2f}",
        size,
        f"{test.agreement:.4f}",
        f"{test.snr_db:.1f}" if math.isfinite(test.snr_db) else "inf",
        f"{test.p_value:.3g}",
        f"{latency.p50_us:.0f} ({latency.q1_us:.0f}-{latency.q3_us:.0f})",
        f"{latency.speedup:.2f} ({latency.speedup_q1:.2f}-{latency.speedup_q3:.2f})",
        told(verdict),
    ]


def told(verdict: Verdict) -> str:
    """The verdict in words: "chosen", "rejected: slower than float32 (0.83x)"."""
    status = {"chosen": "chosen", "fits": "not chosen", "rejected": "rejected"}[verdict.status]
    return f"{status}: {'; '.join(verdict.reasons)}" if verdict.reasons else status


def rows(recipe: Recipe, outcome: Outcome) -> list[list[str]]:
    body = [row(m, v) for m, v in zip(outcome.measured, outcome.verdicts, strict=True)]
    return [header(recipe, outcome), *body]


def plain(cells: list[list[str]]) -> str:
    """Cells in aligned columns."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(cells: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def as_json(recipe: Recipe, outcome: Outcome) -> bytes:
    """Everything measured, for programs; an infinite SNR is null."""
    variants: list[dict[str, Any]] = [
        {
            "variant": m.name,
            "status": verdict.status,
            "reasons": verdict.reasons,
            "size_kb": m.size_kb if m.artifact else None,
            "drop": m.drop if m.validation else None,
            "validation": m.validation,
            "test": m.test,
            "latency": m.latency,
            "steps": m.artifact.steps if m.artifact else (),
        }
        for m, verdict in zip(outcome.measured, outcome.verdicts, strict=True)
    ]
    return msgspec.json.encode(
        {
            "name": recipe.name,
            "version": recipe.version,
            "seed": recipe.seed,
            "budget": recipe.budget,
            "chosen": outcome.chosen.name if outcome.chosen else None,
            "variants": variants,
        }
    )


def missed(recipe: Recipe, near: list[Measured]) -> str:
    """One line for a budget that nothing keeps, naming the candidates that miss it by least."""
    told_of = [f"{m.name} ({'; '.join(excess(m, recipe.budget))})" for m in near]
    return f"no candidate keeps the budget; nearest: {', '.join(told_of)}"
