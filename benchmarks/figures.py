"""What the lines say of one subject in one case, round by round; ratios are of the same round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from benchmarks.plan import BARE_OF
from benchmarks.results import Bare, Closed, Footprint, Line, Measured, Open, Skipped

TRUSTED_SHARE = 0.05

Case = tuple[str, int, str]
Rounds = dict[int, float]
Kind = TypeVar("Kind", bound=Line)
OfSubject = TypeVar("OfSubject", Closed, Open, Skipped, Footprint)


def of(lines: Sequence[Line], kind: type[Kind]) -> list[Kind]:
    return [line for line in lines if isinstance(line, kind)]


def others(lines: Sequence[Line]) -> float:
    """Share of all cores that others used while it was measured."""
    found = of(lines, Closed) + of(lines, Open)
    return sum(line.others_cores for line in found) / max(sum(line.cores for line in found), 1)


def disturbed(lines: Sequence[Line]) -> bool:
    """Whether others used more than TRUSTED_SHARE of the cores, over the run or in a tenth of its measurements."""
    found = of(lines, Closed) + of(lines, Open)
    many = sum(line.others_cores > TRUSTED_SHARE * line.cores for line in found)
    return others(lines) > TRUSTED_SHARE or many > len(found) / 10


class Figures:
    """The lines of a run, by case and subject."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def cases(self) -> list[Case]:
        """Workload, QoS and broker of all that was measured."""
        found = {(line.workload, line.qos, line.broker) for line in of(self._lines, Closed) + of(self._lines, Open)}
        return sorted(found, key=lambda case: (case[2], case[1], case[0]))

    def subjects(self, case: Case) -> set[str]:
        return {line.subject for line in [*self._in(Closed, case), *self._in(Open, case)]}

    def most(self, case: Case, subject: str) -> list[Closed]:
        """With many messages outstanding, by round."""
        return [line for line in self._in(Closed, case, subject) if line.outstanding > 1]

    def one(self, case: Case, subject: str) -> list[Closed]:
        """With one message outstanding: the round trip."""
        return [line for line in self._in(Closed, case, subject) if line.outstanding == 1]

    def at(self, case: Case, subject: str, rate_hz: float) -> list[Open]:
        return [line for line in self._in(Open, case, subject) if line.rate_hz == rate_hz]

    def rates_hz(self, case: Case) -> list[float]:
        tried = {line.rate_hz for line in self._in(Open, case)}
        return sorted(tried | {line.rate_hz for line in self._in(Skipped, case)})

    def skipped(self, case: Case, subject: str, rate_hz: float) -> int:
        """In how many rounds a rate was above what the subject could do."""
        return sum(line.rate_hz == rate_hz for line in self._in(Skipped, case, subject))

    def left_out(self, case: Case, rate_hz: float, *subjects: str) -> str:
        """In words, the rounds in which one of the subjects was skipped at a rate."""
        skipped = {name: self.skipped(case, name, rate_hz) for name in subjects}
        tried = {name: len(self.at(case, name, rate_hz)) + times for name, times in skipped.items()}
        return "".join(
            f" (left out, above {name}'s max: {times} rounds of {tried[name]})"
            for name, times in skipped.items()
            if times
        )

    def footprints(self, case: Case, subject: str) -> list[Footprint]:
        return self._in(Footprint, case, subject)

    def bare(self, workload: str) -> list[Bare]:
        """A workload's model alone, by round."""
        name = BARE_OF.get(workload)
        return [line for line in of(self._lines, Bare) if line.workload == name]

    def bare_ms(self, workload: str) -> Rounds:
        """The median call of a workload's model alone, in a hot loop."""
        return {number: us / 1e3 for number, us in rounds(self.bare(workload), "p50_us").items()}

    def _in(self, kind: type[OfSubject], case: Case, subject: str = "") -> list[OfSubject]:
        found = [line for line in of(self._lines, kind) if (line.workload, line.qos, line.broker) == case]
        return sorted((line for line in found if subject in ("", line.subject)), key=lambda line: line.round)


def rounds(lines: Iterable[Measured | Footprint | Bare], key: str) -> Rounds:
    """A field of lines, the median of each round; without those that have no value."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if (value := getattr(line, key)) is not None:
            found.setdefault(line.round, []).append(value)
    return {number: statistics.median(values) for number, values in found.items()}


def ratio(over: Rounds, under: Rounds) -> list[float]:
    """Round by round, of the rounds that both have."""
    return [value / under[number] for number, value in over.items() if under.get(number)]


def added(first: Rounds, second: Rounds) -> Rounds:
    return {number: value + second[number] for number, value in first.items() if number in second}


def spread(values: Iterable[float], digits: int = 0, unit: str = "") -> str:
    """Median (lowest to highest)."""
    found = list(values)
    if not found:
        return "-"
    middle, least, largest = statistics.median(found), min(found), max(found)
    return f"{middle:,.{digits}f}{unit} ({least:,.{digits}f} to {largest:,.{digits}f})"
