"""Draws latency logs: a curve for each stage over the percentiles, and end to end over time, a row a pipeline."""

from __future__ import annotations

import importlib
from datetime import timezone
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import DependencyError, EdgeRuntimeError
from edge_runtime.latency_report import END_TO_END, Latencies, Timeline
from edge_runtime.model.child import printable
from edge_runtime.monitor.hdrread import Distribution
from edge_runtime.monitor.latency import TIMED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PIPELINES = 12

_NS_PER_MS = 1e6
_LOWEST_MS = 1e-6
_ROW_INCHES = (14.0, 4.6)
_FEW_POINTS = 60
_GAP = 2.5
_MARGIN_WIDTHS = 5
_DAY_S = 86400
_NINES = (50, 90, 99, 99.9, 99.99, 99.999, 99.9999, 99.99999)


def load_matplotlib() -> dict[str, ModuleType]:
    """Raises DependencyError when it is not installed."""
    try:
        return {name: importlib.import_module(f"matplotlib.{name}") for name in ("dates", "figure", "ticker")}
    except ImportError as error:
        raise DependencyError("--plot needs matplotlib: pip install 'edge-runtime[plot]'") from error


def draw(latencies: Latencies, path: Path) -> None:
    """Write a picture; its format is the suffix's.

    Raises DependencyError without matplotlib, EdgeRuntimeError when there is too much to draw or it cannot be written.
    """
    figure = picture(latencies)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise EdgeRuntimeError(f"{path}: cannot be written: {error}") from error


def picture(latencies: Latencies) -> Figure:
    """Percentiles and timeline of each pipeline, a row each.

    Raises DependencyError without matplotlib, EdgeRuntimeError when there is too much to draw.
    """
    matplotlib = load_matplotlib()
    rows = [(pipeline, [stage for _, stage in names]) for pipeline, names in groupby(latencies.names(), lambda n: n[0])]
    if len(rows) > MOST_PIPELINES:
        raise EdgeRuntimeError(f"{len(rows)} pipelines to draw, at most {MOST_PIPELINES}: choose with --pipeline")
    width, height = _ROW_INCHES
    figure: Figure = matplotlib["figure"].Figure(figsize=(width, height * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 2, squeeze=False)
    for (pipeline, stages), (percentiles, timeline) in zip(rows, panels, strict=True):
        _draw_percentiles(percentiles, pipeline, {s: latencies.distributions[pipeline, s] for s in stages})
        _draw_timeline(timeline, pipeline, latencies.timelines[pipeline], matplotlib["dates"])
    for axes in panels.flat:
        axes.set_yscale("log")
        axes.set_ylabel("ms")
        axes.yaxis.set_major_locator(matplotlib["ticker"].LogLocator(subs=(1, 2, 5), numticks=20))
        axes.yaxis.set_major_formatter(matplotlib["ticker"].FormatStrFormatter("%g"))
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    return figure


def _draw_percentiles(axes: Axes, pipeline: str, stages: dict[str, Distribution]) -> None:
    """Over 1 / (1 - percentile): every further nine takes the same room. The last point of a curve is its maximum."""
    for place, (stage, found) in enumerate(stages.items()):
        highest_ns, counts = found.steps()
        ms = np.maximum(highest_ns / _NS_PER_MS, _LOWEST_MS)
        begins = found.count / (found.count - (np.cumsum(counts) - counts))
        x, y = np.append(begins, found.count), np.append(ms, ms[-1])
        color = f"C{TIMED.index(stage) if stage in TIMED else place}"
        (curve,) = axes.plot(x, y, drawstyle="steps-post", color=color, label=_text(stage))
        curve.set(marker="o", markersize=4, markevery=[-1])
        if stage == END_TO_END:
            curve.set(color="black", linewidth=2)
    axes.set_xscale("log")
    longest = max(10, *(found.count for found in stages.values()))
    ticks = {p: round(100 / (100 - p)) for p in _NINES}
    shown = [p for p, place in ticks.items() if place <= longest]
    axes.set_xlim(1, longest * 1.3)
    axes.set_xticks([ticks[p] for p in shown], [f"{p:g} %" for p in shown])
    axes.set_xlabel("percentile")
    axes.set_title(f"{_text(pipeline)}: by percentile", loc="left")
    axes.legend(loc="lower right", ncols=2, fontsize="small")


def _draw_timeline(axes: Axes, pipeline: str, timeline: Timeline, dates: ModuleType) -> None:
    points = timeline.points()
    unix_s = np.array([at_s for at_s, _ in points])
    ms = np.array([found.percentiles((100, 99, 50)) for _, found in points]).reshape(-1, 3) / _NS_PER_MS
    after = np.flatnonzero(np.diff(unix_s) > _GAP * timeline.width_s) + 1
    unix_s, ms = np.insert(unix_s, after, unix_s[after - 1]), np.insert(ms, after, np.nan, axis=0)
    days = unix_s / _DAY_S
    for column, name, color in ((0, "max", "C3"), (1, "p99", "C1"), (2, "p50", "C0")):
        marker = "." if len(points) <= _FEW_POINTS else ""
        axes.plot(days, np.maximum(ms[:, column], _LOWEST_MS), marker=marker, linewidth=1.2, color=color, label=name)
    if points:
        locator = dates.AutoDateLocator(tz=timezone.utc)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=timezone.utc))
        middle_s, span_s = (points[0][0] + points[-1][0]) / 2, points[-1][0] - points[0][0]
        half_s = span_s / 2 + _MARGIN_WIDTHS * timeline.width_s
        axes.set_xlim((middle_s - half_s) / _DAY_S, (middle_s + half_s) / _DAY_S)
    else:
        axes.set_xticks([])
    axes.set_xlabel(f"UTC, one point per {timeline.width_s:.0f} s" if points else "never timed")
    axes.set_title(f"{_text(pipeline)}: {_text(timeline.stage)} over time", loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize="small", frameon=False, borderaxespad=0.1)


def _text(name: str) -> str:
    """A name from a log as matplotlib shows it, without mathematics and never hidden."""
    return " " * name.startswith("_") + printable(name).replace("$", r"\$") or "-"
