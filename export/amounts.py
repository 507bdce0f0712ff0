"""Amounts with their units, as people write them on a command line: 0.5%, 5ms, 40kB, 20min."""

from __future__ import annotations

import re

from edge_runtime.errors import ExportError

UNITS: dict[str, dict[str, float]] = {
    "share": {"%": 0.01},
    "milliseconds": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "kilobytes": {"kB": 1.0, "KB": 1.0, "MB": 1e3},
    "seconds": {"s": 1.0, "min": 60.0, "h": 3600.0},
}
EXAMPLES = {"share": "0.5%", "milliseconds": "5ms", "kilobytes": "40kB", "seconds": "20min"}
FORM = re.compile(r"([0-9]*\.?[0-9]+) ?([A-Za-z%]*)")


def amount(text: str, kind: str) -> float:
    """The number in that kind's unit. Raises ExportError naming the units there are."""
    found = FORM.fullmatch(text.strip())
    units = UNITS[kind]
    if found is None or found[2] not in units:
        named = ", ".join(units)
        raise ExportError(f"{text!r}, wanted a number with a unit ({named}) such as {EXAMPLES[kind]}")
    return float(found[1]) * units[found[2]]
