"""What is done for one family: search on the first fold, the peers beside it, the chosen chain on the others, times."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from benchmarks import machine
from benchmarks.compression import judging, peers, timing
from benchmarks.compression.code import PATHS, Code
from benchmarks.compression.families import Family
from benchmarks.compression.finished import Finished, key_of
from benchmarks.compression.judging import Seen
from benchmarks.compression.records import (
    CHOSEN,
    DATE,
    FLOAT32,
    Candidate,
    Failed,
    Judged,
    Line,
    Peer,
    Repeated,
    Searched,
    Sized,
    Timed,
    Trained,
    Where,
)
from edge_runtime.errors import ExportError
from edge_runtime.model.family import numeric_family
from edge_runtime.records import Floats
from export import originals, pack, search, to_onnx
from export.artifact import Artifact, outputs_of
from export.cache import Cache
from export.candidate import Measured, shipped
from export.choose import Verdict
from export.measure import Latency
from export.probe import Failure
from export.recipe import Progress
from export.search import Outcome
from export.space import NARROWER, Chain
from export.targets import Local
from export.task import Task

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "numpy")
PHASES = ("search", "peers", "folds", "timing")
CANDIDATES = "candidates"
FOLLOWS = ("fold-*.json", "pooled.json")
FORGOTTEN = {
    "search": ("search.json", CANDIDATES, *FOLLOWS),
    "peers": ("peer-*.json",),
    "folds": (f"{CANDIDATES}/fold-[!0]*", *FOLLOWS),
    "timing": ("timing.json",),
}
"""What is deleted to do a phase again."""
GZIP_LEVEL = 9


Kind = TypeVar("Kind")
_Unit = tuple[str, str, Callable[[], Iterable[Line]]]


class Effort(msgspec.Struct, frozen=True):
    """How much is done. search: of export.search. processes: that each variant is timed in."""

    search: str
    processes: int


FULL = Effort("default", timing.PROCESSES)
QUICK = Effort("quick", timing.QUICK_PROCESSES)


class Work:
    """One family's. folder: where what is finished is kept, weights and candidates included."""

    def __init__(self, family: Family, folder: Path, effort: Effort, progress: Progress) -> None:
        self._family = family
        self._effort = effort
        self._folder = folder
        self._finished = Finished(folder)
        self._progress: Progress = lambda text: progress(f"{family.name}: {text}")
        self._code = Code()
        self._source = key_of(family.source(), self._code.digest)
        self._task: tuple[int, Task] | None = None

    @property
    def _looks(self) -> str:
        """The search's effort: only what needs no training where nobody can say what training on noise is worth."""
        return self._effort.search if self._family.is_judged else "post-training"

    def forget(self, phase: str) -> None:
        """Do a phase again the next time, and what follows from it."""
        self._finished.forget(*FORGOTTEN[phase])

    def lines(self, phases: tuple[str, ...]) -> list[Line]:
        """Of all phases, in order; what is missing of those asked for is made now.

        Raises ExportError when a fold has no data or cannot be trained.
        """
        found: list[Line] = []
        for phase in PHASES:
            units = {"search": self._search, "peers": self._peers, "folds": self._folds, "timing": self._timing}[phase]
            for name, key, make in units(tuple(found)):
                made = self._finished.unit(name, key, make) if phase in phases else self._finished.lines(name, key)
                found += made or ()
        return found

    def _search(self, _before: tuple[Line, ...]) -> Iterator[_Unit]:
        yield "search", key_of(self._source, self._looks, search.EFFORTS[self._looks]), self._searched

    def _peers(self, _before: tuple[Line, ...]) -> Iterator[_Unit]:
        for name in peers.NAMES:
            yield f"peer-{name}", key_of(self._source, peers.version(name)), partial(self._peer, name)

    def _folds(self, before: tuple[Line, ...]) -> Iterator[_Unit]:
        """The folds without the first, which the search was on; then all of them together."""
        chain = next((line.chain for line in before if isinstance(line, Searched)), ())
        if not chain:
            return
        key = key_of(self._source, msgspec.json.encode(chain))
        for fold in range(1, self._family.folds):
            yield f"fold-{fold}", key, partial(self._repeated, fold, chain)
        if self._family.is_judged:
            yield "pooled", key_of(key, self._family.folds), self._pooled

    def _timing(self, before: tuple[Line, ...]) -> Iterator[_Unit]:
        failed = {line.variant for line in before if isinstance(line, Failed) and line.fold == 0}
        sized = [line.variant for line in before if isinstance(line, Sized) and line.fold == 0]
        names = [name for name in sized if name not in failed and name != FLOAT32]
        if FLOAT32 not in sized or not names:
            return
        original, *variants = (self._finished.artifact(f"shipped/{name}") for name in (FLOAT32, *names))
        digests = [hashlib.sha256(each.model).hexdigest() for each in (original, *variants)]
        key = key_of(self._code.digest, digests, self._effort.processes, machine.device())
        yield "timing", key, lambda: self._timed(original, dict(zip(names, variants, strict=True)))

    def _searched(self) -> Iterator[Line]:
        task = self._loaded(0)
        self._finished.forget(f"seen/{CHOSEN}-*.npz", *FOLLOWS)
        yield self._trained(task, 0)
        resumed = any((self._folder / CANDIDATES / "fold-0").glob("*"))
        cache = self._cache(task, 0)
        outcome = search.search(task, target=Local(), cache=cache, effort=self._looks, progress=self._progress)
        yield self._told(outcome, resumed=resumed)
        self._finished.save_arrays("window", {"window": task.validation.inputs[:1]})
        yield from self._shipped(FLOAT32, task, task.original, 0, outcome)
        if outcome.chosen is not None and outcome.chosen.chain:
            artifact = cache.perform(outcome.chosen.chain)
            yield from self._shipped(CHOSEN, task, artifact, 0, outcome)
            yield from self._judged(CHOSEN, task, outputs_of(artifact, _test(task)), 0)

    def _peer(self, name: str) -> Iterator[Line]:
        task = self._loaded(0)
        if name in peers.TOLD and not task.original.front_end:
            return
        self._progress(f"{name}: quantizing")
        begun_s = time.monotonic()
        made = peers.quantized(name, task.original, task.calibrate)
        if isinstance(made, Failure):
            yield self._line(Failed, variant=name, fold=0, reason=made.reason)
            return
        yield self._line(Peer, variant=name, version=peers.version(name), seconds=time.monotonic() - begun_s)
        yield from self._shipped(name, task, made, 0, None)
        self._progress(f"{name}: judging")
        outputs = peers.outputs(made, _test(task) if self._family.is_judged else task.validation.inputs[:1])
        if isinstance(outputs, Failure):
            yield self._line(Failed, variant=name, fold=0, reason=outputs.reason)
        elif not np.isfinite(outputs).all():
            yield self._line(Failed, variant=name, fold=0, reason="returns NaN or infinity")
        else:
            yield from self._judged(name, task, outputs, 0)

    def _repeated(self, fold: int, chain: Chain) -> Iterator[Line]:
        task = self._loaded(fold)
        self._finished.forget(f"seen/{CHOSEN}-{fold}.npz")
        yield self._trained(task, fold)
        self._progress(f"fold {fold}: the chosen chain")
        begun_s = time.monotonic()
        try:
            artifact, left_out = repeat(self._cache(task, fold), chain)
        except ExportError as error:
            yield self._line(Failed, variant=CHOSEN, fold=fold, reason=str(error))
            return
        yield self._line(Repeated, fold=fold, seconds=time.monotonic() - begun_s, left_out=left_out)
        yield from self._shipped(FLOAT32, task, task.original, fold, None)
        yield from self._shipped(CHOSEN, task, artifact, fold, None)
        yield from self._judged(CHOSEN, task, outputs_of(artifact, _test(task)), fold)

    def _pooled(self) -> Iterator[Line]:
        """Of the folds where the chain could be repeated."""
        names = [f"seen/{path.stem}" for path in sorted((self._folder / "seen").glob(f"{CHOSEN}-*.npz"))]
        yield self._verdict(CHOSEN, None, [judging.of_arrays(self._finished.arrays(name)) for name in names])

    def _timed(self, original: Artifact, variants: dict[str, Artifact]) -> Iterator[Line]:
        self._progress(f"timing {len(variants)} variants beside float32, {self._effort.processes} processes each")
        versions = machine.packages(PACKAGES)
        where = machine.describe(quick=self._effort == QUICK, code=PATHS, versions=versions)
        where = msgspec.structs.replace(where, git=self._code.name)
        others, window = timing.Others(), self._finished.arrays("window")["window"].astype(np.float32)
        found = timing.rounds(original, variants, window, processes=self._effort.processes)
        yield self._line(Where, machine=where, others=round(others.share(), 4))
        for name, rounds in found.items():
            if isinstance(rounds, Failure):
                yield self._line(Failed, variant=name, fold=0, reason=rounds.reason)
            else:
                yield self._line(Timed, variant=name, numerics=numeric_family(), times=timing.summary(rounds))

    def _loaded(self, fold: int) -> Task:
        """The fold's original, trained unless it was before; one fold at a time is kept in memory."""
        if self._task is None or self._task[0] != fold:
            self._task = None
            recipe = self._family.recipe(fold)
            self._task = fold, originals.of_recipe(recipe, folder=self._folder / "weights", progress=self._progress)
        return self._task[1]

    def _cache(self, task: Task, fold: int) -> Cache:
        return Cache(task, self._folder / CANDIDATES / f"fold-{fold}", self._progress)

    def _shipped(
        self, variant: str, task: Task, artifact: Artifact, fold: int, outcome: Outcome | None
    ) -> Iterator[Line]:
        """Keep what a device would get of a variant, and say how large it is. outcome: to make a bundle of."""
        ships = shipped(task, artifact) if variant in (FLOAT32, CHOSEN) else _with_scores(task, artifact)
        if fold == 0:
            self._finished.save_artifact(f"shipped/{variant}", ships)
        bundle = None
        if outcome is not None:
            measured = outcome.measured[0] if variant == FLOAT32 else outcome.chosen
            path = self._folder / f"{variant}.edge"
            try:
                pack.pack(path, msgspec.structs.replace(outcome, chosen=measured))
                bundle = path.stat().st_size
            except ExportError as error:
                yield self._line(Failed, variant=f"{variant}, bundle", fold=fold, reason=str(error))
        zipped = len(gzip.compress(ships.model, GZIP_LEVEL, mtime=0))
        yield self._line(Sized, variant=variant, fold=fold, onnx=len(ships.model), gzip=zipped, bundle=bundle)

    def _judged(self, variant: str, task: Task, outputs: Floats, fold: int) -> Iterator[Line]:
        """Keep what was returned for the test windows, and hold it against the original's."""
        if self._family.is_judged:
            seen = judging.seen(task, outputs)
            self._finished.save_arrays(f"seen/{variant}-{fold}", judging.arrays_of(seen))
            yield self._verdict(variant, fold, [seen])

    def _verdict(self, variant: str, fold: int | None, folds: list[Seen]) -> Judged:
        recipe = self._family.recipe(0)
        together = self._family.together
        verdict = judging.judged(folds, metric=recipe.metric, seed=recipe.seed, together=together)
        return self._line(Judged, variant=variant, fold=fold, metric=self._family.metric, verdict=verdict)

    def _trained(self, task: Task, fold: int) -> Trained:
        counts = {name: len(split.targets) for name, split in task.splits().items()}
        module = task.original.module
        parameters = sum(p.numel() for p in module.parameters()) if module else 0
        return self._line(Trained, fold=fold, parameters=parameters, **counts)

    def _told(self, outcome: Outcome, *, resumed: bool) -> Searched:
        chosen = outcome.chosen if outcome.chosen and outcome.chosen.chain else None
        measured = zip(outcome.measured, outcome.verdicts, strict=True)
        return self._line(
            Searched,
            effort=self._looks,
            seed=outcome.task.seed,
            max_drop=outcome.task.budget.max_drop,
            windows=len(outcome.task.validation.targets),
            seconds=max(outcome.seconds, sum(m.seconds for m in outcome.measured)),
            stopped=outcome.stopped,
            chosen=chosen.name if chosen else "",
            steps=chosen.artifact.steps if chosen and chosen.artifact else (),
            chain=chosen.chain if chosen else (),
            candidates=tuple(_candidate(m, verdict) for m, verdict in measured),
            resumed=resumed,
        )

    def _line(self, kind: Callable[..., Kind], **facts: object) -> Kind:
        today = dt.datetime.now(dt.timezone.utc).strftime(DATE)
        return kind(device=machine.device(), git=self._code.name, date=today, family=self._family.name, **facts)


def repeat(cache: Cache, chain: Chain) -> tuple[Artifact, tuple[str, ...]]:
    """A chain on other data, and why pruning steps of it were left out: one that finds nothing left to remove there.

    Raises ExportError when any other step refuses.
    """
    done: Chain = ()
    left_out: list[str] = []
    for move in chain:
        reason = _refusal(cache, (*done, move)) if move.kind in NARROWER else ""
        if reason:
            left_out.append(reason)
        else:
            done = (*done, move)
    return cache.perform(done), tuple(left_out)


def _refusal(cache: Cache, chain: Chain) -> str:
    try:
        cache.perform(chain)
    except ExportError as error:
        return str(error)
    return ""


def _candidate(m: Measured, verdict: Verdict) -> Candidate:
    drop = m.validation.drop if m.validation else None
    return Candidate(
        name=m.name,
        status=verdict.status,
        reasons=verdict.reasons,
        size_kb=m.size_kb,
        seconds=m.seconds,
        metric=m.validation.metric if m.validation else None,
        drop=drop.value if drop else None,
        drop_low=drop.low if drop else None,
        drop_high=drop.high if drop else None,
        p50_us=m.cost.p50_us if isinstance(m.cost, Latency) else None,
        speedup=m.cost.speedup if m.cost else None,
    )


def _with_scores(task: Task, artifact: Artifact) -> Artifact:
    """A peer's file but for the scores at its end, which ours have too."""
    return to_onnx.with_scores(artifact) if task.output == "logits" else artifact


def _test(task: Task) -> Floats:
    if task.test is None:
        raise ExportError(f"{task.name}: no test split, wanted one in the zoo's data()")
    return task.test.inputs
