"""Which layouts the axes of a graph's input can be read in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from edge_runtime.records import Layout

AXES: dict[Layout, tuple[int, int | None]] = {
    "NTC": (0, 1),
    "NCT": (1, 0),
    "NT": (0, None),
    "N1TC": (1, 2),
    "N1CT": (2, 1),
    "NTC1": (0, 1),
}  # length, channels; behind the batch axis
UNIT_AXES: dict[str, int] = {"N1TC": 0, "N1CT": 0, "NTC1": 2}
RANKS: dict[Layout, int] = {"NT": 1, "NF": 1, "NTC": 2, "NCT": 2, "N1TC": 3, "N1CT": 3, "NTC1": 3}


def axes_of(layout: Layout, rest: Sequence[int | None], channels: int | None) -> tuple[int | None, int | None]:
    """Length and channels as the graph's axes say them; None where an axis is open."""
    if layout == "NF":
        return (rest[0] // (channels or 1) if rest[0] else None), channels
    length, channel = AXES[layout]
    return rest[length], 1 if channel is None else rest[channel]


def fits(layout: Layout, rest: Sequence[int | None], channels: int | None, length: int | None) -> bool:
    """Whether a window's axes can be read so, with what is told of it."""
    if len(rest) != RANKS[layout]:
        return False
    if layout == "NF" and rest[0] is not None and rest[0] % (channels or 1):
        return False
    if layout in UNIT_AXES and rest[UNIT_AXES[layout]] not in (1, None):
        return False
    found = axes_of(layout, rest, channels)
    return all(a is None or b is None or a == b for a, b in zip(found, (length, channels), strict=True))


def likeliest(fitting: list[Layout], rest: Sequence[int | None], channels: int | None) -> Layout | None:
    """The layout to take: one channel is NT, an open axis the length, an axis of 1 where one is. None = not clear."""
    if "NT" in fitting:
        return "NT"
    if "NTC" in fitting and "NCT" in fitting:
        closed = [layout for layout in ("NTC", "NCT") if axes_of(layout, rest, channels)[1] is not None]
        return cast("Layout", closed[0]) if len(closed) == 1 else None
    exact = [layout for layout in fitting if layout not in UNIT_AXES or rest[UNIT_AXES[layout]] == 1]
    return (exact or fitting)[0]
