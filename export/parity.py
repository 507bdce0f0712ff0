"""Two forms of one model must give the same outputs, at several batch sizes.

Several, because exporters have lost the batch axis (pytorch#171618) or broadcast a bias the wrong way at some sizes
only (pytorch#166797).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.quiet import one_line

BATCHES = (1, 2, 7)
TOLERANCE = 1e-4  # times the largest output where that is above 1
Outputs = Callable[[Floats], Floats]


def largest_difference(
    name: str, found: Outputs, wanted_name: str, wanted: Outputs, windows: Floats, *, batches: tuple[int, ...] = BATCHES
) -> float:
    """The largest absolute difference of two models over the first windows, in units of the output.

    windows: (n, ...) float32 in the model's layout. Raises ExportError when one does not run or TOLERANCE is exceeded.
    """
    worst = 0.0
    for batch in batches:
        inputs = windows[:batch]
        reference, outputs = _run(wanted_name, wanted, inputs), _run(name, found, inputs)
        if outputs.shape != reference.shape:
            raise ExportError(
                f"parity: at batch {batch} {name} returns {outputs.shape}, {wanted_name} {reference.shape}"
            )
        difference = float(np.max(np.abs(outputs - reference)))
        allowed = TOLERANCE * max(1.0, float(np.max(np.abs(reference))))
        if not difference <= allowed:
            raise ExportError(
                f"parity: at batch {batch} {name} differs from {wanted_name} by {difference:.3g}, allowed {allowed:.3g}"
            )
        worst = max(worst, difference)
    return worst


def _run(name: str, function: Outputs, inputs: Floats) -> Floats:
    try:
        return function(inputs)
    except Exception as error:
        raise ExportError(f"parity: {name} does not run at batch {len(inputs)}: {one_line(error)}") from error
