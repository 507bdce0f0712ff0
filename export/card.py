"""The model card: what the model is, what was measured under which conditions, and what that does not say."""

from __future__ import annotations

import numpy as np

from edge_runtime.model.manifest import Manifest
from edge_runtime.model.paired import PROCESSES, ROUNDS
from export import report
from export.contents import what_it_is
from export.machine import machine
from export.recipe import Split
from export.search import Outcome
from export.task import Task


def card(outcome: Outcome, manifest: Manifest) -> str:
    """Markdown. The only member of a bundle that differs between two runs: it holds measured times."""
    sections = [
        f"# {manifest.name} {manifest.version}",
        outcome.task.summary,
        what_it_is(manifest),
        _trained_on(outcome.task),
        _measured(outcome),
        _limits(manifest, outcome),
        _reproduce(outcome, manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _trained_on(task: Task) -> str:
    lines = "\n".join(f"- {name}: {_counts(task, split)}" for name, split in task.splits().items())
    return (
        f"## Data\n\n{lines}\n\n"
        f"No window stands in two splits (checked by hash). Calibration saw {len(task.calibrate)} windows, none of "
        "validation or test; validation chose among the variants; test was looked at once, for the table."
    )


def _counts(task: Task, split: Split) -> str:
    total = f"{len(split.targets)} windows"
    if not task.labels:
        return total
    counts = np.bincount(split.targets, minlength=len(task.labels))
    return f"{total} ({', '.join(f'{label} {count}' for label, count in zip(task.labels, counts, strict=True))})"


def _measured(outcome: Outcome) -> str:
    interval, paired = (
        ("Wilson", "McNemar's exact test") if outcome.task.metric is None else ("bootstrap", "a paired bootstrap")
    )
    return (
        f"## Measured\n\n{report.markdown(report.rows(outcome))}\n\n"
        f"Metric on validation with a 95 % {interval} interval; drop against float32 in points (hundredths) with its "
        f"standard error, p by {paired}; agreement and SNR against float32. {report.tested(outcome)}\n\n"
        f"Latency: one window, one thread, {PROCESSES} processes of up to {ROUNDS} rounds, each "
        "round float32 and the variant in shuffled order; x is the median of the per-round ratios; float32's row is "
        "float32 against itself, which shows the noise. "
        f"Target: {outcome.target}; searched on: {machine()}."
    )


def _limits(manifest: Manifest, outcome: Outcome) -> str:
    of_labels = ""
    if manifest.labels:
        split = outcome.task.test or outcome.task.validation
        named = "test" if outcome.task.test else "validation"
        rarest = int(np.bincount(split.targets, minlength=len(manifest.labels)).min())
        of_labels = (
            f"- The rarest label has {rarest} {named} windows.\n- Scores are a softmax, not calibrated probabilities.\n"
        )
    return (
        "## Limits\n\n"
        "- The numbers hold for data like the splits above; the interval covers chance in the test windows, not a\n"
        "  change of machine, sensor, mounting or surroundings.\n"
        f"{of_labels}"
        "- Latency is that of the machine named above, not of the device; `edge-runtime bench` measures there."
    )


def _reproduce(outcome: Outcome, manifest: Manifest) -> str:
    made = manifest.provenance
    tools = ", ".join(f"{name} {version}" for name, version in made.tools.items())
    command = "run" if outcome.effort == "post-training" else "compress"
    effort = "" if command == "run" else f" --effort {outcome.effort}"
    return (
        "## Reproduce\n\n"
        f"`edge-export {command} {made.recipe} -o {manifest.name}-{manifest.version}.edge{effort}`, seed {made.seed}. "
        "On the same machine model, golden vectors and reference come out the same to the byte; this card holds "
        f"measured times and does not.\n\nTools: {tools}."
    )
