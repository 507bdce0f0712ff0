"""The model card: what the model is, what was measured under which conditions, and what that does not say."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from edge_runtime.model.manifest import Manifest
from export import report
from export.contents import what_it_is
from export.measure import PROCESSES, ROUNDS
from export.quantize import CALIBRATION_WINDOWS
from export.recipe import Recipe, Split
from export.search import Outcome

CPUINFO = Path("/proc/cpuinfo")


def card(recipe: Recipe, outcome: Outcome, manifest: Manifest) -> str:
    """Markdown. The only member of a bundle that differs between two runs: it holds measured times."""
    sections = [
        f"# {manifest.name} {manifest.version}",
        recipe.summary,
        what_it_is(manifest),
        _trained_on(recipe, outcome),
        _measured(recipe, outcome),
        _limits(manifest, outcome),
        _reproduce(manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _trained_on(recipe: Recipe, outcome: Outcome) -> str:
    splits = outcome.splits
    lines = "\n".join(f"- {name}: {_counts(recipe, getattr(splits, name))}" for name in splits.__struct_fields__)
    return (
        f"## Data\n\n{lines}\n\n"
        f"No window stands in two splits (checked by hash). Calibration drew at most {CALIBRATION_WINDOWS} windows "
        "from train; validation chose among the variants; test was looked at once, for the table."
    )


def _counts(recipe: Recipe, split: Split) -> str:
    total = f"{len(split.targets)} windows"
    if not recipe.labels:
        return total
    counts = np.bincount(split.targets, minlength=len(recipe.labels))
    return f"{total} ({', '.join(f'{label} {count}' for label, count in zip(recipe.labels, counts, strict=True))})"


def _measured(recipe: Recipe, outcome: Outcome) -> str:
    interval = "Wilson" if recipe.metric is None else "bootstrap"
    return (
        f"## Measured\n\n{report.markdown(report.rows(recipe, outcome))}\n\n"
        f"Metric on the test split with a 95 % {interval} interval; drop of the metric against float32 on validation, "
        "in points (hundredths); agreement, SNR and McNemar's exact p-value against torch float32 on test. "
        f"Latency: one window, one thread, {PROCESSES} processes of up to {ROUNDS} rounds, each "
        "round float32 and the variant in shuffled order; x is the median of the per-round ratios; float32's row is "
        "float32 against itself, which shows the noise. "
        f"Machine: {machine()}."
    )


def _limits(manifest: Manifest, outcome: Outcome) -> str:
    of_labels = ""
    if manifest.labels:
        rarest = int(np.bincount(outcome.splits.test.targets, minlength=len(manifest.labels)).min())
        of_labels = (
            f"- The rarest label has {rarest} test windows.\n- Scores are a softmax, not calibrated probabilities.\n"
        )
    return (
        "## Limits\n\n"
        "- The numbers hold for data like the splits above; the interval covers chance in the test windows, not a\n"
        "  change of machine, sensor, mounting or surroundings.\n"
        f"{of_labels}"
        "- Latency is that of the machine named above, not of the device; `edge-runtime bench` measures there."
    )


def _reproduce(manifest: Manifest) -> str:
    made = manifest.provenance
    tools = ", ".join(f"{name} {version}" for name, version in made.tools.items())
    return (
        "## Reproduce\n\n"
        f"`edge-export run {made.recipe} -o {manifest.name}-{manifest.version}.edge`, seed {made.seed}. On the same "
        "machine model, golden vectors and reference come out the same to the byte; this card holds measured times and "
        f"does not.\n\nTools: {tools}."
    )


def machine() -> str:
    """The CPU's name and kind, and the system."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown CPU'}, {platform.machine()}, {platform.system()}"


def _cpuinfo() -> list[str]:
    return CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
