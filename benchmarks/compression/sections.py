"""One family's part of the page. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from benchmarks.compression import show
from benchmarks.compression.figures import Figures, front
from benchmarks.compression.peers import NAMES
from benchmarks.compression.records import CHOSEN, FLOAT32, Candidate, Judged, Peer, Repeated, Searched, Timed, Trained
from benchmarks.compression.show import TITLES
from benchmarks.tables import table as markdown

VARIANTS = (
    *("", "KB", "times smaller", "KB gzip", "KB bundle", "accuracy", "drop [95 %]", "p", "times faster [95 %]"),
    *("µs (quartiles)", "float32 beside it, µs"),
)
STEPS = ("", "KB", "times smaller", "times faster", "drop on validation [95 %]", "s", "Pareto front", "verdict")
PARITY = "parity with torch"
REASON_CHARACTERS = 200


def section(figures: Figures) -> str:
    """Markdown: the original, what was chosen, the peers beside it, and every step of the search."""
    parts = [f"## {figures.family.title}\n", _original(figures), _chosen(figures), _variants(figures)]
    parts += [_failures(figures), _folds(figures), _search(figures)]
    return "\n".join(part for part in parts if part)


def _original(figures: Figures) -> str:
    first = next((line for line in figures.of(Trained) if line.fold == 0), None)
    if first is None:
        return ""
    windows = f"{first.train:,} windows to train, {first.validation:,} to validate, {first.test:,} to test"
    windows += " in each fold" if figures.family.folds > 1 else ""
    judged = figures.float32()
    accuracy = f" {_float32(judged, figures)}." if judged else ""
    return (
        f"`benchmarks/zoo/{figures.family.name}.py`, {first.parameters:,} parameters. Data: {figures.family.data}; "
        f"{windows}.{accuracy}\n"
    )


def _float32(found: Judged, figures: Figures) -> str:
    between = f"[{_share(found.verdict.before_low)}, {_share(found.verdict.before_high)}]"
    judged = figures.family.folds - len(figures.lost())
    where = "" if figures.family.folds == 1 else " on the first fold" if found.fold == 0 else f" on {judged} folds"
    return f"Float32 {found.metric} {_share(found.verdict.before)} {between}{where}, n = {found.verdict.n:,}"


def _chosen(figures: Figures) -> str:
    searched = figures.searched
    if searched is None:
        return ""
    if not searched.chosen:
        return "Nothing better than float32 keeps the budget.\n"
    steps = "".join(f"\n  {number}. {step}" for number, step in enumerate(_steps(searched.steps), 1))
    return f"Chosen: **{searched.chosen}**{_other_form(figures)}\n{steps}\n"


def _steps(steps: Sequence[str]) -> list[str]:
    """Parity, which is tried again after each, is told once, by the worst."""
    parity = [step for step in steps if step.startswith(PARITY)]
    others = [step for step in steps if not step.startswith(PARITY)]
    worst = max(parity, key=lambda step: float(step.rsplit(" ", 1)[1]), default="")
    return [*others, f"{worst} after any of them"] if worst else others


def _other_form(figures: Figures) -> str:
    """What was found in the form that was asked for, where another one was chosen."""
    found, searched = figures.other_form(), figures.searched
    if found is None or searched is None or found.drop is None or not found.speedup:
        return ""
    smaller = show.size(searched.candidates[0].size_kb / found.size_kb)
    return (
        f", which is faster than the fastest with int8 on top, {found.name}: {smaller} smaller, "
        f"{found.speedup:.2f}x, {show.number(found.drop, figures.family.metric)} on validation"
    )


def _variants(figures: Figures) -> str:
    metric = figures.family.metric
    head = [metric if cell == "accuracy" else cell for cell in VARIANTS]
    names = [name for name in (FLOAT32, CHOSEN, *NAMES) if figures.sized(name) or figures.failed(name)]
    text = markdown(head, [_variant(figures, name) for name in names])
    peers = {line.version for line in figures.of(Peer) if line.version}
    judged = f"Judged on the first fold alone, n = {show.tested(figures)}" if figures.family.is_judged else "Not judged"
    rounds = sorted({line.times.rounds for line in figures.of(Timed)})
    timed = f"each timed in {' or '.join(f'{n:,}' for n in rounds)} rounds" if rounds else "not timed"
    return f"{judged}; {timed}. Peers: {', '.join(sorted(peers)) or 'none'}.\n\n{text}"


def _variant(figures: Figures, name: str) -> list[str]:
    sized, times, judged = figures.sized(name), figures.times(name), figures.judged(name, 0)
    beside = figures.first() if name == FLOAT32 else None
    value = _share(judged.verdict.after) if judged else _share(beside.verdict.before) if beside else "-"
    return [
        TITLES[name],
        f"{sized.onnx / 1000:.1f}" if sized else "-",
        show.size(figures.smaller(name)),
        f"{sized.gzip / 1000:.1f}" if sized else "-",
        f"{sized.bundle / 1000:.1f}" if sized and sized.bundle else "-",
        value,
        show.drop(judged),
        show.probability(judged),
        "1" if name == FLOAT32 else show.speed(times),
        f"{times.p50_us:.0f} ({times.q1_us:.0f} to {times.q3_us:.0f})" if times else "-",
        f"{times.float32_p50_us:.0f} ({times.float32_q1_us:.0f} to {times.float32_q3_us:.0f})" if times else "-",
    ]


def _failures(figures: Figures) -> str:
    names = (FLOAT32, CHOSEN, *NAMES)
    failed = [line for name in (*names, *(f"{name}, bundle" for name in names)) for line in figures.failed(name)]
    return "".join(f"- {_titled(line.variant)}, fold {line.fold}: {_reason(line.reason)}\n" for line in failed)


def _reason(text: str) -> str:
    return textwrap.shorten(_flat(text), REASON_CHARACTERS, placeholder=" …")


def _titled(variant: str) -> str:
    name, _, what = variant.partition(",")
    return TITLES[name] + (f",{what}" if what else "")


def _how(fold: int | None, repeated: Repeated | None) -> str:
    if fold == 0:
        return " (searched)"
    count = len(repeated.left_out) if repeated else 0
    return f" ({count} pruning step{'s' * (count > 1)} left out: nothing more to remove)" if count else ""


def _folds(figures: Figures) -> str:
    """The chosen chain fold by fold."""
    found = [line for line in figures.of(Judged) if line.variant == CHOSEN and line.fold is not None]
    if len(found) < 2:
        return ""
    repeated = {line.fold: line for line in figures.of(Repeated)}
    rows = [
        [
            f"fold {line.fold}{_how(line.fold, repeated.get(line.fold or 0))}",
            str(line.verdict.n),
            _share(line.verdict.before),
            _share(line.verdict.after),
            show.drop(line),
            show.size(figures.smaller(CHOSEN, line.fold or 0)),
            f"{repeated[line.fold].seconds:.0f}" if line.fold in repeated else "-",
        ]
        for line in found
    ]
    return markdown(("", "n", "float32", "chosen", "drop [95 %]", "times smaller", "s"), rows)


def _search(figures: Figures) -> str:
    searched = figures.searched
    if searched is None:
        return ""
    best = front(searched.candidates)
    rows = [
        _step(candidate, searched, candidate.name in best, figures.family.metric) for candidate in searched.candidates
    ]
    noise = (
        "" if figures.family.is_judged else " Labels are float32's own on noise: a drop is disagreement, no accuracy."
    )
    limit = "none" if searched.max_drop is None else show.number(searched.max_drop, figures.family.metric, sign=False)
    told = (
        f"The search, in order, on {searched.windows:,} validation windows (budget: a drop of {limit}). "
        "●: on the Pareto front of size, of speed as the search timed it, and of that drop, rejected ones aside."
    )
    return f"{told}{noise}\n\n{markdown(STEPS, rows)}"


def _step(found: Candidate, searched: Searched, is_best: bool, metric: str) -> list[str]:
    first = searched.candidates[0]
    told = "; ".join(found.reasons).replace(searched.chosen or "\0", "the chosen one")
    reasons = f": {_reason(told)}" if told else ""
    lost = "-"
    if found.drop is not None and found.drop_low is not None and found.drop_high is not None:
        low, high = (show.number(value, metric).removesuffix(" pt") for value in (found.drop_low, found.drop_high))
        lost = f"{show.number(found.drop, metric)} [{low}, {high}]"
    return [
        _flat(found.name),
        f"{found.size_kb:.1f}" if found.size_kb else "-",
        show.size(first.size_kb / found.size_kb) if found.size_kb else "-",
        "-" if found.speedup is None else f"{found.speedup:.2f}x",
        lost if found is not first else "-",
        f"{found.seconds:.0f}",
        "●" if is_best else "",
        {"chosen": "**chosen**", "fits": "not chosen", "rejected": "rejected"}[found.status] + reasons,
    ]


def _share(value: float) -> str:
    return f"{value:.4f}"


def _flat(text: str) -> str:
    """In one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
