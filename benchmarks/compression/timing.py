"""Float32 and every variant in turn, in child processes that take turns too: what disturbs one disturbs all."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import machine
from benchmarks.compression.records import Times
from edge_runtime.model.paired import Rounds, pooled
from edge_runtime.records import Floats
from export.artifact import Artifact
from export.measure import BASELINE, CANDIDATE, WINDOW
from export.probe import Failure, child

PROCESSES, QUICK_PROCESSES = 9, 2
SEED = 0
SURE = 0.95
Found = list[Rounds] | Failure


def rounds(original: Artifact, variants: dict[str, Artifact], window: Floats, *, processes: int) -> dict[str, Found]:
    """Rounds of each process by variant; a variant whose process fails is not timed again.

    window: (1, ...) float32 in the model's layout.
    """
    found: dict[str, list[Rounds]] = {name: [] for name in variants}
    failed: dict[str, Failure] = {}
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as place:
        folders = {name: Path(place) / str(number) for number, name in enumerate(variants)}
        for name, folder in folders.items():
            folder.mkdir()
            (folder / BASELINE).write_bytes(original.model)
            (folder / CANDIDATE).write_bytes(variants[name].model)
            np.save(folder / WINDOW, window)
        for process, name in _turns(processes, list(variants)):
            if name in failed:
                continue
            entries = [msgspec.json.encode(each.session).decode() for each in (original, variants[name])]
            told = child("export.measure", [original.input, str(SEED + process), *entries], folders[name])
            if isinstance(told, Failure):
                failed[name] = told
            else:
                found[name].append(msgspec.json.decode(told, type=Rounds))
    return {**found, **failed}


def _turns(processes: int, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Every variant once before any is timed again."""
    return ((process, name) for process in range(processes) for name in names)


def summary(found: Sequence[Rounds]) -> Times:
    """Percentiles over all rounds; of the ratios of each round the median, by process, and of those the interval."""
    together = pooled(found)
    ratios = [float(np.median(np.divide(r.baseline_ns, r.candidate_ns))) for r in found]
    low, high = interval(ratios)
    q1, p50, q3, p95 = (float(us) for us in np.percentile(together.candidate_ns, [25, 50, 75, 95]) / 1e3)
    before_q1, before_p50, before_q3 = (float(us) for us in np.percentile(together.baseline_ns, [25, 50, 75]) / 1e3)
    return Times(
        processes=len(found),
        rounds=len(together.candidate_ns),
        p50_us=p50,
        q1_us=q1,
        q3_us=q3,
        p95_us=p95,
        float32_p50_us=before_p50,
        float32_q1_us=before_q1,
        float32_q3_us=before_q3,
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The median's 95 % interval by ranks: it assumes nothing but that the values are drawn alike.

    Of 6 to 8 values it runs from the least to the largest, of 9 from the second to the last but one; of fewer than 6
    from the least to the largest too, which are then less than 95 % sure.
    """
    ordered, n = sorted(values), len(values)
    outside, rank = 2 / 2**n, 0
    while rank + 1 < n - 1 - rank and outside + 2 * math.comb(n, rank + 1) / 2**n <= 1 - SURE:
        rank += 1
        outside += 2 * math.comb(n, rank) / 2**n
    return ordered[rank], ordered[n - 1 - rank]


class Others:
    """How much of the machine others used since this was made."""

    def __init__(self) -> None:
        self._begun = (*machine.ticks(), _own_s())

    def share(self) -> float:
        """Of all cores."""
        idle_before, all_before, own_before_s = self._begun
        idle, total = machine.ticks()
        own = (_own_s() - own_before_s) * os.sysconf("SC_CLK_TCK")
        return max(0.0, (total - all_before) - (idle - idle_before) - own) / max(total - all_before, 1)


def _own_s() -> float:
    """CPU time of this process and its children that have ended, seconds."""
    return sum(os.times()[:4])
