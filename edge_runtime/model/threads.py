"""How many threads a model is worth on this device: measured at the pace of a sensor, not in a hot loop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edge_runtime.model.bundle import Bundle
from edge_runtime.model.session import CPU, Session, SessionSettings

log = logging.getLogger(__name__)

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
SECONDS_PER_COUNT = 0.5
LEAST_ROUNDS = 5
PAUSE_S = 0.002
WORTH_IT = 0.9

Run = Callable[[], object]


class ThreadChoice(msgspec.Struct, frozen=True):
    """threads: the number chosen. p50_ms: of one window, for each number that was tried."""

    threads: int
    p50_ms: dict[int, float]


def counts_here(settings: SessionSettings) -> tuple[int, ...]:
    """Numbers of threads to try: up to the cores this process may use, one where the CPU does not run the model."""
    cores = len(os.sched_getaffinity(0)) if settings.provider == CPU else 1
    return tuple(count for count in COUNTS if count <= cores)


def choose_threads(bundle: Bundle, settings: SessionSettings) -> ThreadChoice:
    """How many threads one window of that model is worth here.

    Takes SECONDS_PER_COUNT for each number tried, beside loading the model. Raises what Session raises.
    """
    window = bundle.golden.inputs[:1]

    def load(threads: int) -> Run:
        session = Session(bundle, msgspec.structs.replace(settings, intra_op_threads=threads))
        return lambda: session.predict(window)

    choice = fewest(counts_here(settings), load)
    log.info(
        "threads_chosen",
        extra={"model": bundle.manifest.model_id, "threads": choice.threads, "p50_ms": choice.p50_ms},
    )
    return choice


def fewest(
    counts: Sequence[int],
    load: Callable[[int], Run],
    *,
    now_ns: Callable[[], int] = time.perf_counter_ns,
    pause: Callable[[float], None] = time.sleep,
) -> ThreadChoice:
    """The fewest threads, of rising counts, than which more bring the median down by less than a tenth.

    load: what runs one window with so many threads. Each count runs in turns with the best one before it; the first
    that is slower ends the search. Runs lie PAUSE_S apart: threads that do not spin have to be woken.
    """
    best, best_run = counts[0], load(counts[0])
    p50_ms: dict[int, float] = {}
    for count in counts[1:]:
        run = load(count)
        p50_ms[best], p50_ms[count] = _medians_ms((best_run, run), now_ns, pause)
        if p50_ms[count] <= WORTH_IT * p50_ms[best]:
            best, best_run = count, run
        elif p50_ms[count] > p50_ms[best]:
            break
    return ThreadChoice(best, p50_ms)


def _medians_ms(runs: Sequence[Run], now_ns: Callable[[], int], pause: Callable[[float], None]) -> tuple[float, ...]:
    """Of runs in turns."""
    times_ns: list[list[int]] = [[] for _ in runs]
    end_ns = now_ns() + int(SECONDS_PER_COUNT * 1e9)
    while len(times_ns[0]) < LEAST_ROUNDS or now_ns() < end_ns:
        for run, own_ns in zip(runs, times_ns, strict=True):
            pause(PAUSE_S)
            start_ns = now_ns()
            run()
            own_ns.append(now_ns() - start_ns)
    return tuple(round(float(np.median(own_ns)) / 1e6, 4) for own_ns in times_ns)
