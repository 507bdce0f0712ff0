"""What the lines of one family say, and whether it is what was asked for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from benchmarks.compression.families import PRUNED_INT8, Family
from benchmarks.compression.records import (
    CHOSEN,
    FLOAT32,
    Candidate,
    Failed,
    Judged,
    Line,
    Searched,
    Sized,
    Timed,
    Times,
)

Kind = TypeVar("Kind", bound=Line)


class Part(msgspec.Struct, frozen=True):
    """One figure that was asked for. reach: the end of its interval that is worst for it. rises: more is better."""

    name: str
    found: float
    reach: float
    wanted: float
    rises: bool = True

    @property
    def is_met(self) -> bool:
        return self.found >= self.wanted if self.rises else self.found <= self.wanted

    @property
    def is_sure(self) -> bool:
        """Whether its whole interval is."""
        return self.reach >= self.wanted if self.rises else self.reach <= self.wanted


class Figures:
    """The lines of one family."""

    def __init__(self, family: Family, lines: Sequence[Line]) -> None:
        self.family = family
        self.lines = [line for line in lines if line.family == family.name]

    def of(self, kind: type[Kind]) -> list[Kind]:
        return [line for line in self.lines if isinstance(line, kind)]

    @property
    def searched(self) -> Searched | None:
        return next(iter(self.of(Searched)), None)

    def judged(self, variant: str, fold: int | None) -> Judged | None:
        """fold: None for all together; where there is but one, that one."""
        fold = 0 if fold is None and self.family.folds == 1 else fold
        return next((line for line in self.of(Judged) if (line.variant, line.fold) == (variant, fold)), None)

    def float32(self) -> Judged | None:
        """A line that says how good float32 is: over all folds where they were judged together, else on the first."""
        return self.judged(CHOSEN, None) or self.first()

    def first(self) -> Judged | None:
        """A line that says how good float32 is on the first fold."""
        return next((line for line in self.of(Judged) if line.fold == 0), None)

    def times(self, variant: str) -> Times | None:
        return next((line.times for line in self.of(Timed) if line.variant == variant), None)

    def sized(self, variant: str, fold: int = 0) -> Sized | None:
        return next((line for line in self.of(Sized) if (line.variant, line.fold) == (variant, fold)), None)

    def failed(self, variant: str) -> list[Failed]:
        return [line for line in self.of(Failed) if line.variant == variant]

    def failed_first(self, variant: str) -> bool:
        """Whether it was not made, or does not run, on the first fold."""
        return any(line.fold == 0 for line in self.failed(variant))

    def lost(self) -> list[int]:
        """The folds on which the chosen chain could not be repeated."""
        return sorted({line.fold for line in self.failed(CHOSEN)} - {0})

    def commits(self) -> list[str]:
        """Of the code that its lines were made by."""
        return sorted({line.git for line in self.lines})

    def smaller(self, variant: str, fold: int = 0) -> float | None:
        """Times smaller than float32, ONNX file against ONNX file as they ship."""
        before, after = self.sized(FLOAT32, fold), self.sized(variant, fold)
        return before.onnx / after.onnx if before and after else None

    def bundled(self) -> float | None:
        """Times smaller, bundle against bundle, on the first fold."""
        before, after = self.sized(FLOAT32), self.sized(CHOSEN)
        return before.bundle / after.bundle if before and after and before.bundle and after.bundle else None

    def other_form(self) -> Candidate | None:
        """Where pruned+int8 was asked for and another form chosen, the fastest of that form that keeps the budget."""
        searched = self.searched
        if searched is None or self.family.form != PRUNED_INT8 or {"prune", "int8"} <= {m.kind for m in searched.chain}:
            return None
        of_form = [c for c in searched.candidates if c.status == "fits" and "pruned" in c.name and "int8" in c.name]
        return max(of_form, key=lambda c: c.speedup or 0.0, default=None)

    def sizes(self) -> list[float]:
        """Times smaller, fold by fold."""
        found = (self.smaller(CHOSEN, fold) for fold in range(self.family.folds))
        return [value for value in found if value is not None]

    def parts(self) -> list[Part]:
        """What was asked for of the chosen variant and found; none where nothing was asked for or found."""
        wanted, sizes = self.family.wanted, self.sizes()
        judged, times = self.judged(CHOSEN, None), self.times(CHOSEN)
        if wanted is None:
            return []
        found = [Part("size", sizes[0], min(sizes), wanted.size)] if sizes else []
        if judged:
            found.append(Part("drop", judged.verdict.drop, judged.verdict.high, wanted.drop, rises=False))
        return found + ([Part("speed", times.ratio, times.ratio_low, wanted.speed)] if times else [])


ASKED = 3


def front(candidates: Iterable[Candidate]) -> set[str]:
    """Names of those on the Pareto front of size, speed and drop, rejected ones aside."""
    known = {
        c.name: (c.size_kb, -c.speedup, c.drop)
        for c in candidates
        if c.speedup is not None and c.drop is not None and c.status != "rejected"
    }

    def is_beaten(name: str) -> bool:
        mine = known[name]
        return any(theirs != mine and all(theirs[i] <= mine[i] for i in range(len(mine))) for theirs in known.values())

    return {name for name in known if not is_beaten(name)}
