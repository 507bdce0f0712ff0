"""The tables over all families: what was asked for, what others make, how long it took. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from benchmarks.compression.families import WANTED_S
from benchmarks.compression.figures import ASKED, Figures, Part
from benchmarks.compression.records import CHOSEN, DATE, FLOAT32, Judged, Repeated, Searched, Times
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
COMPARED = (CHOSEN, "dynamic", "dynamic-prepared", "static", "static-prepared", "static-told", "nncf", "nncf-told")
POINTS = 100
ACCURACY = "accuracy"
HEAD = ("", "asked for", "times smaller", "as a bundle", "drop [95 %]", "n", "p", "times faster [95 %]", "met")


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
        figures.family.form if wanted else "-",
        _size(figures) + (f" (at least {wanted.size:g}x)" if wanted else ""),
        size(figures.bundled()),
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
    """Yes, and whether whole intervals are; or no, and what was missed."""
    if figures.family.wanted is None:
        return "-"
    parts = figures.parts()
    if not parts:
        searched = figures.searched
        return "**no**: nothing better than float32 was found" if searched and not searched.chain else "not measured"
    faults = _faults(figures) + [_miss(part, figures.family.metric) for part in parts if not part.is_met]
    if faults:
        return f"**no**: {', '.join(faults)}"
    if len(parts) < ASKED:
        return "not all measured"
    unsure = [part.name for part in parts if not part.is_sure]
    return "yes" + (f"; the interval of {' and '.join(unsure)} reaches beyond" if unsure else "")


def _faults(figures: Figures) -> list[str]:
    """Where the chosen variant cannot be had, whatever its figures are elsewhere."""
    lost = figures.lost()
    found = ["does not run on fold 0"] if figures.failed_first(CHOSEN) else []
    folds = f"fold{'s' * (len(lost) > 1)} {', '.join(map(str, lost))}"
    return [*found, f"the chain fails on {folds}"] if lost else found


def _miss(part: Part, metric: str) -> str:
    if part.name == "drop":
        return f"drop {number(part.found, metric)}, wanted at most {number(part.wanted, metric, sign=False)}"
    return f"{part.name} {part.found:.2f}x, wanted {part.wanted:g}x"


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
    """Minutes of each family's search, why it ended, and what else was at work meanwhile."""
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
                    searched.effort,
                    searched.stopped or "-",
                    "; ".join(beside(figures, found)) or "-",
                    within,
                ]
            )
    limit = f"at most {WANTED_S / 60:g}"
    head = ("", "candidates", "minutes", "the longest, s", "effort", "stopped", "on the same cores meanwhile", limit)
    return (
        f"{markdown(head, rows)}\nTraining of the original excluded. The time of each step stands in the family's "
        "table. Where another family was at work on the same cores, the minutes are more than the search needs by "
        "itself, and a time limit ended it earlier.\n"
    )


def beside(figures: Figures, found: Sequence[Figures]) -> list[str]:
    """Titles of the families whose search, or whose chosen chain on another fold, was worked on during this search."""
    spans = {other.family.title: [*map(_span, other.of(Searched)), *map(_span, other.of(Repeated))] for other in found}
    begin, end = spans[figures.family.title][0]
    return [
        title
        for title, times in spans.items()
        if title != figures.family.title and any(b < end and e > begin for b, e in times)
    ]


def _span(line: Searched | Repeated) -> tuple[dt.datetime, dt.datetime]:
    """When it was worked on, to the minute at which its line was made."""
    end = dt.datetime.strptime(line.date, DATE).replace(tzinfo=dt.timezone.utc)
    return end - dt.timedelta(seconds=line.seconds), end


def size(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value >= 1.05 else f"{value:.2f}x"


def number(value: float, metric: str, *, sign: bool = True) -> str:
    """A difference in the metric: points of 100 for accuracy, else as it is."""
    plus = "+" if sign else ""
    if metric == ACCURACY:
        return f"{_not_minus_zero(POINTS * value, 2):{plus}.2f} pt" if sign else f"{POINTS * value:g} pt"
    return f"{_not_minus_zero(value, 4):{plus}.4f}" if sign else f"{value:g}"


def _not_minus_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0


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
