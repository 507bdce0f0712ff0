"""What the long form writes down, one line of JSON each, and what docs/reliability.md is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from oracle import Verdict

RESULTS = Path(__file__).parent / "results" / "reliability.jsonl"


class _Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    pass


class Machine(_Line, tag="machine"):
    """Where and when. quick: too short to tell anything, made to see that it works."""

    device: str
    system: str
    kernel: str
    memory_gb: float
    versions: dict[str, str]
    commit: str
    date: str
    load: float
    quick: bool


class Run(_Line, tag="run"):
    """One trial. fault: what was done to it; times: how often; kills: how often the process was killed by it.

    changed: results and events that were not equal to those of the undisturbed run, or to their own duplicates, or not
    to come at all. alarms, ledger: what was wrong with them, sentences. recoveries_s: from the end of a fault to the
    first result. stops_s: from SIGTERM to the end. points: kills by named point.
    """

    fault: str
    delivery: str
    seed: int
    sent: int
    times: int
    kills: int
    expected: int
    lost: int
    changed: int
    duplicates: int
    inversions: int
    alarms: list[str]
    ledger: list[str]
    recoveries_s: list[float] = []
    stops_s: list[float] = []
    points: dict[str, int] = {}
    examples: list[str] = []


class Tested(_Line, tag="test"):
    """A test of the suite in its long form."""

    name: str
    outcome: str
    seconds: float
    reason: str = ""


class Growth(_Line, tag="growth"):
    """Resident memory of one process, sampled each second. slope: least squares over all but the first warm_up_s.

    spread: standard error of the slope.
    """

    what: str
    seconds: float
    samples: int
    warm_up_s: float
    first_mb: float
    last_mb: float
    most_mb: float
    slope_mb_per_min: float
    spread_mb_per_min: float


class Wear(_Line, tag="wear"):
    """What one node made the kernel write (/proc/PID/io, write_bytes) while it ran at a rate; the start left out."""

    workload: str
    profile: str
    seconds: float
    messages: int
    written_bytes: int

    @property
    def mb_per_hour(self) -> float:
        return self.written_bytes / 1e6 / self.seconds * 3600

    @property
    def bytes_per_message(self) -> float:
        return self.written_bytes / max(1, self.messages)


Line = Machine | Run | Tested | Growth | Wear


def run_of(
    fault: str, verdict: Verdict, *, delivery: str, seed: int, sent: int, times: int, kills: int, **more: Any
) -> Run:
    changed = [*verdict.unexpected, *verdict.unequal, *verdict.differing]
    return Run(
        fault=fault,
        delivery=delivery,
        seed=seed,
        sent=sent,
        times=times,
        kills=kills,
        expected=verdict.expected,
        lost=len(verdict.lost),
        changed=len(changed),
        duplicates=verdict.duplicates,
        inversions=verdict.inversions,
        alarms=verdict.alarms,
        ledger=verdict.ledger,
        examples=[*verdict.lost[:5], *changed[:5]],
        **more,
    )


def growth(what: str, samples: list[tuple[float, float]], *, warm_up_s: float) -> Growth:
    """samples: (seconds since the start, MB)."""
    kept = [one for one in samples if one[0] >= warm_up_s] or samples
    minutes, mb = np.array(kept).T[0] / 60, np.array(kept).T[1]
    slope, base = np.polyfit(minutes, mb, 1)
    rest = mb - (slope * minutes + base)
    error = np.sqrt((rest**2).sum() / max(1, len(kept) - 2) / ((minutes - minutes.mean()) ** 2).sum())
    return Growth(
        what=what,
        seconds=round(samples[-1][0], 1),
        samples=len(kept),
        warm_up_s=warm_up_s,
        first_mb=round(float(mb[0]), 2),
        last_mb=round(float(mb[-1]), 2),
        most_mb=round(float(mb.max()), 2),
        slope_mb_per_min=round(float(slope), 4),
        spread_mb_per_min=round(float(error), 4),
    )


def append(line: Line, path: Path) -> None:
    """Added at once, so that a run that is broken off leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")


def read(path: Path = RESULTS) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


def asked_for() -> Path | None:
    """Where tests are to write down what they found, None in a plain run."""
    path = os.environ.get("EDGE_CHAOS_RESULTS")
    return Path(path) if path else None


def of(lines: Iterable[Line], kind: type[Any]) -> list[Any]:
    return [line for line in lines if isinstance(line, kind)]
