"""Every candidate of a search by speed, accuracy and size: one page of HTML, or a PNG. Up and right is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.errors import ExportError
from export import html_page
from export.html_page import Column, listing, paragraph, section, table
from export.measure import Instructions, Latency

if TYPE_CHECKING:
    from export.candidate import Measured
    from export.search import Outcome

Status = Literal["float32", "chosen", "fits", "rejected"]
FAR = 4.0
"""A drop of more than so many times the budget stands at the edge of the plot."""
MARGIN = 0.08
NARROW = 5.0
"""Ratio of the ends of the x axis below which its ticks are evenly spaced numbers."""
LARGEST, SMALLEST = 15.0, 3.0
"""Radius of bubbles; the area goes with the size."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 360, 48, 14, 14, 40
COLOURS: dict[Status, str] = {"float32": "#2563b8", "chosen": "#1a7f5a", "fits": "#8a94a3", "rejected": "#c2334d"}
WORDS: dict[Status, str] = {"float32": "the original", "chosen": "chosen", "fits": "not chosen", "rejected": "rejected"}
CSS = """
.bubble { fill-opacity: .35; stroke-width: 1; } .front { stroke-width: 2.5; }
.c-float32 { fill: var(--front-end); stroke: var(--front-end); } .c-fits { fill: var(--shape); stroke: var(--shape); }
.c-chosen { fill: var(--chosen); stroke: var(--chosen); }
.c-rejected { fill: var(--rejected); stroke: var(--rejected); }
.whisker { stroke: var(--soft); stroke-width: .8; } .grid { stroke: var(--line); stroke-width: .6; }
.limit { stroke: var(--rejected); stroke-dasharray: 5 3; } svg.plot { max-width: 52rem; }
svg.plot text { font-size: 12px; } svg.plot .number { font-size: 9px; text-anchor: middle; font-weight: 600; }
td:last-child { min-width: 14rem; }
"""


class Point(msgspec.Struct, frozen=True):
    """One candidate that was judged and timed.

    x: as Chart.axis says; x_low, x_high: its quartiles. drop: of the metric on validation, in points; low, high: 95 %
    interval. is_front: no other is at least as fast, accurate and small, and better in one of them.
    """

    number: int
    name: str
    x: float
    x_low: float
    x_high: float
    drop: float
    low: float
    high: float
    size_kb: float
    status: Status
    reasons: tuple[str, ...]
    is_front: bool = False

    def __str__(self) -> str:
        figures = f"{self.x:.3g}, drop {self.drop:+.2f} points [{self.interval}], {self.size_kb:.1f} KB"
        front = ", Pareto front" if self.is_front else ""
        return f"{self.number} {self.name}: {figures}{front}; {self.verdict}"

    @property
    def interval(self) -> str:
        return f"{self.low:+.2f} to {self.high:+.2f}"

    @property
    def verdict(self) -> str:
        """What became of it and why, in words."""
        return ": ".join([WORDS[self.status], *(["; ".join(self.reasons)] if self.reasons else [])])


class Chart(msgspec.Struct, frozen=True):
    """axis: what x is. is_time: x is milliseconds, less is better, else a speed-up. limits: of the budget, None where
    nothing was said. left_out: candidates without a place, each with why.
    """

    title: str
    axis: str
    is_time: bool
    points: tuple[Point, ...]
    x_limit: float | None
    drop_limit: float | None
    left_out: tuple[str, ...]


def plot(outcome: Outcome, path: Path) -> None:
    """Write the plot; .html is one file without network, .png needs matplotlib.

    Raises ExportError for another suffix or when nothing was measured, DependencyError without matplotlib.
    """
    if path.suffix not in (".html", ".png"):
        raise ExportError(f"{path}: a plot is written as .html or .png, got {path.suffix or 'no suffix'!r}")
    drawn = chart(outcome)
    if not drawn.points:
        raise ExportError(f"{path}: no candidate was judged and timed, so that there is nothing to plot")
    try:
        if path.suffix == ".html":
            path.write_text(page(drawn), encoding="utf-8")
        else:
            from export.pareto_png import draw  # matplotlib only when it is asked for

            draw(drawn, path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error


def chart(outcome: Outcome) -> Chart:
    """What is drawn, whatever the form."""
    budget = outcome.task.budget
    is_time = budget.p95_ms is not None
    points, left_out = [], []
    for number, (m, verdict) in enumerate(zip(outcome.measured, outcome.verdicts, strict=True), start=1):
        if m.cost is None or m.validation is None:
            left_out.append(f"{number} {m.name}: {'; '.join(verdict.reasons) or m.failure or 'not timed'}")
            continue
        status: Status = "float32" if not m.chain and verdict.status != "chosen" else verdict.status
        points.append(_point(number, m, status, verdict.reasons, is_time=is_time))
    on_front = front(points, is_time=is_time)
    return Chart(
        title=f"{outcome.task.name}: {len(outcome.measured)} candidates on {outcome.target}",
        axis=_axis(outcome, is_time=is_time),
        is_time=is_time,
        points=tuple(msgspec.structs.replace(p, is_front=p.number in on_front) for p in points),
        x_limit=budget.p95_ms,
        drop_limit=None if budget.max_drop is None else 100 * budget.max_drop,
        left_out=tuple(left_out),
    )


def _axis(outcome: Outcome, *, is_time: bool) -> str:
    if is_time:
        return "p95 of one window, ms"
    counted = isinstance(outcome.measured[0].cost, Instructions)
    return "times fewer instructions than float32" if counted else "times as fast as float32"


def _point(number: int, m: Measured, status: Status, reasons: tuple[str, ...], *, is_time: bool) -> Point:
    if m.cost is None or m.validation is None:
        raise ValueError(f"{m.name} was not measured")
    cost, drop = m.cost, m.validation.drop
    if is_time and isinstance(cost, Latency):
        x = (cost.p95_us / 1e3,) * 3
    else:
        x = (cost.speedup, cost.speedup_q1, cost.speedup_q3)
    low, high = (value if math.isfinite(value) else drop.value for value in (drop.low, drop.high))
    return Point(number, m.name, *x, 100 * drop.value, 100 * low, 100 * high, m.size_kb, status, reasons)


def front(points: Sequence[Point], *, is_time: bool) -> set[int]:
    """Numbers of the points that no other one dominates."""
    costs = {p.number: (p.x if is_time else -p.x, p.drop, p.size_kb) for p in points}
    return {
        number
        for number, cost in costs.items()
        if not any(other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for other in costs.values())
    }


class Frame:
    """Where values stand: x on a logarithmic scale, drops downwards; a drop far beyond the budget at the edge."""

    def __init__(self, drawn: Chart) -> None:
        limits = [] if drawn.x_limit is None else [drawn.x_limit]
        xs = [*limits, *(value for p in drawn.points for value in (p.x_low, p.x_high))]
        low, high = math.log(min(xs)), math.log(max(xs))
        wide = max(high - low, 0.2) * MARGIN
        self.x_range = (math.exp(low - wide), math.exp(high + wide))
        drops = [0.0, *(value for p in drawn.points for value in (p.low, p.drop, p.high))]
        bottom = max(drops)
        if drawn.drop_limit:
            bottom = max(min(bottom, FAR * drawn.drop_limit), drawn.drop_limit)
        top = min(drops)
        tall = max(bottom - top, 0.1) * MARGIN
        self.y_range = (top - tall, bottom + tall)
        self._is_time = drawn.is_time
        self._largest = max(p.size_kb for p in drawn.points)

    def x(self, value: float) -> float:
        low, high = (math.log(end) for end in self.x_range)
        share = (math.log(value) - low) / (high - low)
        return LEFT + (WIDTH - LEFT - RIGHT) * (1 - share if self._is_time else share)

    def y(self, drop: float) -> float:
        low, high = self.y_range
        return TOP + (HEIGHT - TOP - BOTTOM) * (min(max(drop, low), high) - low) / (high - low)

    def radius(self, size_kb: float) -> float:
        return max(SMALLEST, LARGEST * math.sqrt(size_kb / self._largest))

    def x_ticks(self) -> list[float]:
        low, high = self.x_range
        if high / low < NARROW:
            return _round(low, high, count=7)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
        return [tick for tick in found if low <= tick <= high]

    def y_ticks(self) -> list[float]:
        return _round(*self.y_range, count=8)


def _round(low: float, high: float, *, count: int) -> list[float]:
    """About so many round numbers between two values."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [round(step * index, 9) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def page(drawn: Chart) -> str:
    """The plot, a table of all candidates, and those without a place."""
    columns = [Column("no", is_number=True), Column("candidate")]
    columns += [Column(word, is_number=True) for word in (drawn.axis, "drop, points", "95 %", "KB")]
    rows = [
        [str(p.number), p.name, f"{p.x:.3g}", f"{p.drop:+.2f}", p.interval, f"{p.size_kb:.1f}", _mark(p), p.verdict]
        for p in drawn.points
    ]
    columns += [Column("Pareto front"), Column("verdict")]
    note = (
        "Up and right is better; the area of a bubble goes with the size of the file. Thick rings: the Pareto front "
        "(none is as fast, accurate and small, and better in one). Upright lines: 95 % interval of the paired drop on "
        "validation; level ones: quartiles. Dashed: the budget. Hover or tap a bubble for its figures."
    )
    return html_page.page(
        drawn.title,
        [
            f"<h1>{escape(drawn.title)}</h1>",
            svg(drawn),
            paragraph(note),
            section("Candidates", table(columns, rows)),
            section("Without a place in the plot", listing(drawn.left_out)),
        ],
        css=CSS,
    )


def _mark(point: Point) -> str:
    return "yes" if point.is_front else ""


def svg(drawn: Chart) -> str:
    """The plot alone, inline SVG."""
    frame = Frame(drawn)
    parts = [*_grid(drawn, frame), *_limits(drawn, frame)]
    for p in sorted(drawn.points, key=lambda point: -point.size_kb):
        x, y = frame.x(p.x), frame.y(p.drop)
        left, right, top, bottom = frame.x(p.x_low), frame.x(p.x_high), frame.y(p.low), frame.y(p.high)
        style = f"bubble c-{p.status}{' front' if p.is_front else ''}"
        parts.append(
            f"<g><title>{escape(str(p))}</title>"
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
            f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{frame.radius(p.size_kb):.1f}"/>'
            f'<text class="number" x="{x:.1f}" y="{y + 3:.1f}">{p.number}</text></g>'
        )
    label = escape(f"{drawn.title}, by {drawn.axis} and drop of the metric")
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _grid(drawn: Chart, frame: Frame) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in frame.x_ticks():
        x = frame.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    for tick in frame.y_ticks():
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(drawn.axis)}</text>')
    turned = f'transform="rotate(-90 12 {HEIGHT / 2})"'
    parts.append(f'<text x="12" y="{HEIGHT / 2}" text-anchor="middle" {turned}>drop of the metric, points</text>')
    return parts


def _limits(drawn: Chart, frame: Frame) -> list[str]:
    parts = []
    if drawn.drop_limit is not None:
        y = frame.y(drawn.drop_limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if drawn.x_limit is not None:
        x = frame.x(drawn.x_limit)
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return parts
