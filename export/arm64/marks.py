"""In the guest: where its instructions are noted. Imports nothing of ours, so that clocks can be changed after it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

WARM_UP, RUNS = 10, 11


def mark() -> None:
    """Note how many instructions were executed until here."""
    os.getppid()


def counted(run: Callable[[], object]) -> None:
    """RUNS of it, each between two marks, once it is warm."""
    for _ in range(WARM_UP):
        run()
    gc.collect()
    gc.disable()
    mark()
    for _ in range(RUNS):
        run()
        mark()
    gc.enable()
