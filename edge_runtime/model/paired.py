"""Two models timed in turn, so that what disturbs one disturbs the other: the rounds that every comparison rests on."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

PROCESSES = 3
"""The placement of memory differs from process to process, and with it the time: rounds of several are pooled."""
ROUNDS = 300
MIN_ROUNDS = 20
ROUNDS_S = 5.0
WARM_UP = 20


Times = Annotated[list[Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]], msgspec.Meta(min_length=1)]


class Rounds(msgspec.Struct, frozen=True):
    """One entry a round, nanoseconds."""

    baseline_ns: Times
    candidate_ns: Times

    def __post_init__(self) -> None:
        if len(self.baseline_ns) != len(self.candidate_ns):
            counts = f"{len(self.baseline_ns)} of the baseline, {len(self.candidate_ns)} of the candidate"
            raise ValueError(f"as many rounds of both are wanted: {counts}")


def time_in_turn(
    baseline: Callable[[], object], candidate: Callable[[], object], *, seed: int, most: int = ROUNDS
) -> Rounds:
    """Time one run of each a round, in shuffled order, after WARM_UP runs of each.

    most: rounds; fewer, but MIN_ROUNDS, when they take longer than ROUNDS_S.
    """
    runs = (baseline, candidate)
    for _ in range(WARM_UP):
        for run in runs:
            run()
    times: tuple[list[int], list[int]] = ([], [])
    shuffled = random.Random(seed)  # noqa: S311  (the order of two timings, not a secret)
    order = [0, 1]
    gc.disable()
    try:
        stop_ns = time.perf_counter_ns() + int(ROUNDS_S * 1e9)
        while len(times[0]) < most and (len(times[0]) < MIN_ROUNDS or time.perf_counter_ns() < stop_ns):
            shuffled.shuffle(order)
            for which in order:
                start_ns = time.perf_counter_ns()
                runs[which]()
                times[which].append(time.perf_counter_ns() - start_ns)
    finally:
        gc.enable()
    return Rounds(*times)


def pooled(rounds: Sequence[Rounds]) -> Rounds:
    """The rounds of several processes as one."""
    return Rounds([ns for r in rounds for ns in r.baseline_ns], [ns for r in rounds for ns in r.candidate_ns])
