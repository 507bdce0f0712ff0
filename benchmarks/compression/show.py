"""The tables over all families: what was asked for, what others make, how long it took. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.compression.families import WANTED_S
from benchmarks.compression.figures import ASKED, Figures, Part
from benchmarks.compression.records import CHOSEN, FLOAT32, Judged, Times
from benchmarks.tables import table as markdown

TITLES = {
    FLOAT32: "float32",
    CHOSEN: "`edge-export compress`",
    "dynamic": "`quantize_dynamic`",
    "dynamic-prepared": "`quantize_dynamic` after `quant_pre_process`",
    "static": "`quantize_static`",
    "static-prepared": "`quantize_static` after `quant_pre_process`",
    "static-told": "`quantize_static`, front-end excluded",
    "nncf": "NNCF",
    "nncf-told": "NNCF, front-end ignored",
}
COMPARED = (CHOSEN, "dynamic", "static", "static-told", "nncf", "nncf-told")
POINTS = 100
ACCURACY = "accuracy"
HEAD = ("", "times smaller", "drop [95 %]", "n", "p", "times faster [95 %]", "met")


def table(found: Sequence[Figures]) -> str:
    """One row a family: what was found of the chosen variant, what was wanted, and by how much it was met or missed."""
    return markdown(HEAD, [_row(figures) for figures in found])


def _row(figures: Figures) -> list[str]:
    wanted, judged, times = figures.family.wanted, figures.judged(CHOSEN, None), figures.times(CHOSEN)
    at_most = ""
    if wanted:
        limit = number(wanted.drop, figures.family.metric, sign=False)
        at_most = f" (at most {limit})"
    return [
        f"[{figures.family.title}](#{anchor(figures.family.title)})",
        _size(figures) + (f" (at least {wanted.size:g}x)" if wanted else ""),
        drop(judged) + at_most if figures.family.is_judged else "not judged",
        f"{judged.verdict.n:,}{_without(figures)}" if judged else "-",
        probability(judged),
        speed(times) + (f" (at least {wanted.speed:g}x)" if wanted else ""),
        met(figures),
    ]


def _without(figures: Figures) -> str:
    count = len(figures.lost())
    return f" (**without {count} fold{'s' * (count > 1)}, where the chain fails**)" if count else ""


def _size(figures: Figures) -> str:
    sizes = figures.sizes()
    if not sizes:
        return "-"
    low, high = (f"{size(value)}" for value in (min(sizes), max(sizes)))
    return size(sizes[0]) + ("" if low == high else f" ({low} to {high})")


def met(figures: Figures) -> str:
    """Yes or no, part by part by how much; of what was met, whether the whole interval was."""
    if figures.family.wanted is None:
        return "-"
    parts = figures.parts()
    if not parts:
        searched = figures.searched
        return "**no**: nothing better than float32 was found" if searched and not searched.chain else "not measured"
    missed = [part for part in parts if not part.is_met]
    margins = ", ".join(_margin(part, figures.family.metric) for part in (missed or parts))
    faults = [*_faults(figures), *([margins] if missed else [])]
    if faults:
        return f"**no**: {', '.join(faults)}"
    if len(parts) < ASKED:
        return f"not all measured: {margins}"
    unsure = [part.name for part in parts if not part.is_sure]
    beyond = f"; the interval of {' and '.join(unsure)} reaches beyond" if unsure else ""
    return f"yes: {margins}{beyond}"


def _faults(figures: Figures) -> list[str]:
    """Where the chosen variant cannot be had, whatever its figures are elsewhere."""
    lost = figures.lost()
    found = ["does not run on fold 0"] if figures.failed_first(CHOSEN) else []
    folds = f"fold{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
    return [*found, f"the chain fails on {folds}"] if lost else found


def _margin(part: Part, metric: str) -> str:
    if part.name == "drop":
        return f"drop {number(-part.margin, metric)} of the limit"
    return f"{part.name} {part.margin:+.2f}x"


def peers(found: Sequence[Figures]) -> str:
    """Times smaller, drop and times faster on the first fold; the families' own tables say more."""
    rows = [[figures.family.title, tested(figures), *(_peer(figures, name) for name in COMPARED)] for figures in found]
    return markdown(("smaller · drop [95 %] · faster", "n", *(TITLES[name] for name in COMPARED)), rows)


def tested(figures: Figures) -> str:
    """Test windows of the first fold."""
    first = figures.first()
    return f"{first.verdict.n:,}" if first else "-"


def _peer(figures: Figures, variant: str) -> str:
    failed, smaller, times = figures.failed_first(variant), figures.smaller(variant), figures.times(variant)
    if smaller is None and times is None:
        return "failed" if failed else "-"
    lost = drop(figures.judged(variant, 0))
    faster = "does not run" if failed else f"{times.ratio:.2f}x" if times else "-"
    return f"{size(smaller)} · {lost} · {faster}"


def searches(found: Sequence[Figures]) -> str:
    """Minutes of each family's search, on what, and of its repetition on another fold."""
    rows = []
    for figures in found:
        if searched := figures.searched:
            made = [c for c in searched.candidates if c.seconds]
            longest = max(made, key=lambda c: c.seconds, default=None)
            within = "**no**" if searched.seconds > WANTED_S else "not known: broken off" if searched.resumed else "yes"
            rows.append(
                [
                    figures.family.title,
                    str(len(searched.candidates)),
                    f"{'at least ' * searched.resumed}{searched.seconds / 60:.1f}",
                    f"{longest.seconds:.0f} ({longest.name})" if longest else "-",
                    searched.stopped or "-",
                    within,
                ]
            )
    limit = f"at most {WANTED_S / 60:g}"
    text = markdown(("", "candidates", "minutes", "the longest, s", "stopped", limit), rows)
    return f"{text}\nTraining of the original excluded. The time of each step stands in the family's table.\n"


def size(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value >= 1.05 else f"{value:.2f}x"


def number(value: float, metric: str, *, sign: bool = True) -> str:
    """A difference in the metric: points of 100 for accuracy, else as it is."""
    plus = "+" if sign else ""
    if metric == ACCURACY:
        return f"{POINTS * value:{plus}.2f} pt" if sign else f"{POINTS * value:g} pt"
    return f"{value:{plus}.4f}" if sign else f"{value:g}"


def drop(judged: Judged | None) -> str:
    if judged is None:
        return "-"
    metric, found = judged.metric, judged.verdict
    low, high = (number(value, metric).removesuffix(" pt") for value in (found.low, found.high))
    return f"{number(found.drop, metric)} [{low}, {high}]"


def probability(judged: Judged | None) -> str:
    if judged is None:
        return "-"
    p_value = judged.verdict.p_value
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def speed(times: Times | None) -> str:
    return "-" if times is None else f"{times.ratio:.2f}x [{times.ratio_low:.2f}, {times.ratio_high:.2f}]"


def anchor(title: str) -> str:
    """Of a heading, as GitHub makes it."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")
