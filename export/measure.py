"""How fast a candidate is beside float32: paired rounds in a child process, so that a crash is only a result.

Run as a program it is that child: `python -m export.measure INPUT SEED ENTRIES ENTRIES [PROVIDER]`, the session entries
of the baseline and of the candidate, in a folder that holds both models and the window; JSON on stdout.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from edge_runtime.model.paired import PROCESSES, Rounds, pooled, time_in_turn
from edge_runtime.model.session import CPU, SessionSettings, create
from edge_runtime.records import Floats
from export.artifact import Artifact
from export.probe import Failure, child

BASELINE, CANDIDATE, WINDOW = "baseline.onnx", "candidate.onnx", "window.npy"


class Latency(msgspec.Struct, frozen=True, tag=True):
    """One window at a time, one thread, on this machine.

    p50_us, p95_us: of the candidate, microseconds. q1_us, q3_us: its quartiles. speedup: median of the per-round
    ratios float32 time / candidate time, above 1 is faster; speedup_q1, speedup_q3: their quartiles.
    """

    p50_us: float
    p95_us: float
    q1_us: float
    q3_us: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    rounds: int

    more: ClassVar[str] = "slower"
    less: ClassVar[str] = "faster"
    same: ClassVar[str] = "equally fast"


class Instructions(msgspec.Struct, frozen=True, tag=True):
    """One window at a time, one thread, on an emulated processor: no time.

    float32, least, median, most: of the runs of float32 (its median) and of the candidate.
    """

    float32: int
    least: int
    median: int
    most: int

    more: ClassVar[str] = "more instructions"
    less: ClassVar[str] = "fewer instructions"
    same: ClassVar[str] = "hardly fewer instructions"

    @property
    def speedup(self) -> float:
        """How many times fewer than float32 takes."""
        return self.float32 / self.median

    @property
    def speedup_q1(self) -> float:
        return self.speedup

    @property
    def speedup_q3(self) -> float:
        return self.speedup


Cost = Latency | Instructions
"""What a target finds out about a candidate."""


def latency(
    baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int, provider: str = CPU
) -> Latency | Failure:
    """Time a candidate beside the baseline in PROCESSES child processes, rounds interleaved, order shuffled.

    window: (1, ...) float32 in the model's layout.
    """
    measured: list[Rounds] = []
    with tempfile.TemporaryDirectory(prefix="edge-export-") as name:
        folder = Path(name)
        (folder / BASELINE).write_bytes(baseline.model)
        (folder / CANDIDATE).write_bytes(candidate.model)
        np.save(folder / WINDOW, window)
        entries = [msgspec.json.encode(artifact.session).decode() for artifact in (baseline, candidate)]
        for process in range(PROCESSES):
            told = child("export.measure", [candidate.input, str(seed + process), *entries, provider], folder)
            if isinstance(told, Failure):
                return told
            measured.append(msgspec.json.decode(told, type=Rounds))
    return summarize(pooled(measured))


def summarize(rounds: Rounds) -> Latency:
    """Percentiles of paired rounds."""
    times = np.asarray(rounds.candidate_ns) / 1e3
    ratios = np.asarray(rounds.baseline_ns) / 1e3 / times
    q1, p50, q3, p95 = (float(value) for value in np.percentile(times, [25, 50, 75, 95]))
    low, middle, high = (float(value) for value in np.percentile(ratios, [25, 50, 75]))
    return Latency(p50, p95, q1, q3, middle, low, high, len(times))


def main(arguments: list[str]) -> None:
    """The child: time both models in turn on one window and print the rounds."""
    input_name, seed, before, after, *providers = arguments
    settings = SessionSettings(provider=providers[0] if providers else CPU)
    inputs = {input_name: np.load(WINDOW)}
    sessions = [
        create(Path(path).read_bytes(), settings=settings, entries=msgspec.json.decode(told, type=dict[str, str]))
        for path, told in ((BASELINE, before), (CANDIDATE, after))
    ]
    baseline, candidate = (partial(session.run, None, inputs) for session in sessions)
    sys.stdout.buffer.write(msgspec.json.encode(time_in_turn(baseline, candidate, seed=int(seed))))


if __name__ == "__main__":
    main(sys.argv[1:])
