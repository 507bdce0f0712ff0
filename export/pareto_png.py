"""The Pareto plot as a PNG, by matplotlib: the plot, and beside it what its numbers stand for."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from edge_runtime.errors import DependencyError
from export.pareto import COLOURS, Chart, Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 40
LINE_CHARACTERS = 84


def draw(drawn: Chart, path: Path) -> None:
    """Raises DependencyError without matplotlib, OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            f"matplotlib not installed; a .png needs: pip install 'edge-runtime[plot]'; .html needs nothing ({error})"
        ) from error
    figure = Figure(figsize=(13, 6.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes, side = figure.subplots(1, 2, width_ratios=(3, 2))
    _bubbles(axes, drawn)
    _scales(axes, drawn)
    _names(side, drawn)
    figure.savefig(path)


def _bubbles(axes: Axes, drawn: Chart) -> None:
    frame = Frame(drawn)
    for p in sorted(drawn.points, key=lambda point: -point.size_kb):
        y = min(p.drop, frame.y_range[1])
        axes.plot([p.x, p.x], [p.low, p.high], color="#9aa3b0", linewidth=0.8, zorder=1)
        axes.plot([p.x_low, p.x_high], [y, y], color="#9aa3b0", linewidth=0.8, zorder=1)
        area, edge = (2 * frame.radius(p.size_kb)) ** 2, 2.2 if p.is_front else 0.8
        axes.scatter([p.x], [y], s=area, color=f"{COLOURS[p.status]}55", edgecolor=COLOURS[p.status], linewidth=edge)
        axes.annotate(str(p.number), (p.x, y), ha="center", va="center", fontsize=7, fontweight="bold")


def _scales(axes: Axes, drawn: Chart) -> None:
    frame = Frame(drawn)
    if drawn.drop_limit is not None:
        axes.axhline(drawn.drop_limit, color=COLOURS["rejected"], linestyle="--", linewidth=0.9)
    if drawn.x_limit is not None:
        axes.axvline(drawn.x_limit, color=COLOURS["rejected"], linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_xlim(*(reversed(frame.x_range) if drawn.is_time else frame.x_range))
    axes.set_ylim(*reversed(frame.y_range))
    axes.set_xticks(frame.x_ticks(), [f"{tick:g}" for tick in frame.x_ticks()])
    axes.minorticks_off()
    axes.grid(color="#e3e7ee", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"{drawn.axis} (bubble: size of the file; thick ring: Pareto front; dashed: budget)")
    axes.set_ylabel("drop of the metric on validation, points (95 %)")
    axes.set_title(drawn.title, fontsize=10)


def _names(side: Axes, drawn: Chart) -> None:
    """The candidates by number, as many as there is room for, then those without a place."""
    side.axis("off")
    lines = [(f"{p.number} {p.name}: {p.verdict}", COLOURS[p.status]) for p in drawn.points]
    lines += [(f"{told} (no place in the plot)", COLOURS["fits"]) for told in drawn.left_out]
    lines = [(part, colour) for line, colour in lines for part in wrap(line, LINE_CHARACTERS, subsequent_indent="    ")]
    hidden = len(lines) - ROWS
    if hidden > 0:
        lines = [*lines[: ROWS - 1], (f"and {hidden + 1} more lines: see the .html", COLOURS["fits"])]
    for row, (line, colour) in enumerate(lines):
        side.text(0, 1 - row / ROWS, line, color=colour, fontsize=7, va="top", transform=side.transAxes)
