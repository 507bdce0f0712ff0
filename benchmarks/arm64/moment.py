"""What differs from one process to the next, made the same in all: its clocks and its random bytes."""

from __future__ import annotations

import itertools
import os
import time

TICK_NS = 10_000
NS = 1_000_000_000
MONOTONIC_S, UNIX_S = 1_000, 1_790_000_000


def fix() -> None:
    """To be called before anything is imported that takes a clock when imported.

    Clocks move by TICK_NS whenever they are read: what is due, and how many digits a time has, never varies. To read
    one is no system call, as it is none on a board, where Linux answers without one (vDSO); the emulator has no vDSO.
    """
    for name, start_s in (("monotonic", MONOTONIC_S), ("perf_counter", MONOTONIC_S), ("time", UNIX_S)):
        setattr(time, f"{name}_ns", itertools.count(start_s * NS, TICK_NS).__next__)
        setattr(time, name, itertools.count(float(start_s), TICK_NS / NS).__next__)
    os.urandom = bytes  # so many zeros
