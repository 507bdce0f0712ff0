"""The story on one page: budget -> candidates -> measured -> chosen.

First what needs no training: int8 in the ways the graph allows. Then the network is made narrower, step by step, each
step fine-tuned to answer as the original does, for as long as it keeps the accuracy; every step is tried as it is and
with the int8 that did best, because compression does not compose: the winner is the one that measures best. What int8
spoils is repaired: the layers that it hurts most stay float32, or the network is trained to bear it.

A training that would end past the time limit is not begun; what needs none is tried all the same.

Validation decides; the test split is looked at once, at the end, for float32 and the chosen one. `choose` has the rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from edge_runtime.errors import ExportError
from edge_runtime.model.session import CPU
from export import choose, space
from export.cache import Cache
from export.candidate import Measured, Trial
from export.choose import Verdict
from export.recipe import Progress
from export.space import Chain, Held, Move
from export.targets import Target
from export.task import Task

TAILS = 2
"""Quantizations that are tried on every narrower network."""
ROUNDING = ("scheme", "reduce_range")
"""Settings of static int8 that training has to expect."""
KEPT_FLOAT = (1, 2, 4)
"""Layers left in float32, the most sensitive first."""


class Effort(msgspec.Struct, frozen=True):
    """How long to look. ratio: channels or units removed in each step. epochs: of training after each.

    time_limit_s: by which the last training ends; seconds of int8, its repair and the test split follow it.
    """

    prunes: bool
    ratio: float
    steps: int
    epochs: int
    aware_epochs: int
    time_limit_s: float = math.inf


EFFORTS = {
    "post-training": Effort(prunes=False, ratio=0, steps=0, epochs=0, aware_epochs=0),
    "quick": Effort(prunes=True, ratio=0.4, steps=3, epochs=4, aware_epochs=4, time_limit_s=360.0),
    "default": Effort(prunes=True, ratio=0.3, steps=7, epochs=10, aware_epochs=10, time_limit_s=1080.0),
    "thorough": Effort(prunes=True, ratio=0.2, steps=14, epochs=30, aware_epochs=30),
}


class Outcome(msgspec.Struct, frozen=True):
    """measured and verdicts run in parallel, float32 first. chosen: None when nothing keeps the budget.

    effort: one of EFFORTS. seconds: of the search. stopped: why it ended early, "" when it did not.
    """

    task: Task
    target: str
    effort: str
    measured: tuple[Measured, ...]
    verdicts: tuple[Verdict, ...]
    chosen: Measured | None
    seconds: float
    stopped: str = ""


def search(
    task: Task,
    *,
    target: Target,
    cache: Cache,
    effort: str,
    time_limit_s: float | None = None,
    progress: Progress,
    now_s: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Find the best candidate. time_limit_s: by default that of the effort, math.inf for none.

    Raises ExportError when float32 does not run, or the target cannot tell it by time.
    """
    if task.budget.p95_ms is not None and not target.is_time:
        raise ExportError(
            f"target {target.name} counts instructions, and tells nothing of the {task.budget.p95_ms:g} ms"
        )
    limit_s = EFFORTS[effort].time_limit_s if time_limit_s is None else time_limit_s
    begun_s = now_s()
    trial = Trial(task, target, cache, deadline_s=begun_s + limit_s, progress=progress, now_s=now_s)
    float32 = trial.measure(())
    if float32.failure:
        raise ExportError(f"{task.name}: float32 does not run: {float32.failure}")
    explore(trial, space.held(task.original), EFFORTS[effort], gpu=target.provider != CPU)
    stopped = f"time limit of {limit_s:g} s, not begun: {'; '.join(trial.left_out)}" if trial.left_out else ""
    measured, verdicts = trial.measured, choose.choose(trial.measured, task.budget)
    progress("judging on the test split")
    looked_at = [v.status == "chosen" or not m.chain for m, v in zip(measured, verdicts, strict=True)]
    final = tuple(trial.test(m) if wanted else m for m, wanted in zip(measured, looked_at, strict=True))
    chosen = next((m for m, v in zip(final, verdicts, strict=True) if v.status == "chosen"), None)
    return Outcome(task, target.name, effort, final, verdicts, chosen, now_s() - begun_s, stopped)


def explore(trial: Trial, held: Held, effort: Effort, *, gpu: bool) -> None:
    """Measure one candidate after the other, each because of those before it."""
    tails = quantize(trial, held, gpu=gpu)
    for narrower in space.prunings(trial.task, held) if effort.prunes else []:
        with trial.within_time():
            prune(trial, narrower, tails, effort)
    with trial.within_time():
        repair(trial, effort)


def quantize(trial: Trial, held: Held, *, gpu: bool) -> list[Chain]:
    """Everything that needs no training; the quantizations to go on with, the most promising first."""
    tried = [trial.measure(chain) for chain in space.post_training(held, gpu=gpu)]
    static = sorted((m for m in tried if m.chain[-1].kind == "int8"), key=lambda m: promise(trial, m), reverse=True)
    if static and not static[0].failure:
        tried += [trial.measure(chain) for chain in space.refined(static[0].chain[-1])]
    best: dict[tuple[str, ...], Measured] = {}
    for m in sorted((m for m in tried if not m.failure), key=lambda m: promise(trial, m), reverse=True):
        best.setdefault(tuple(move.kind for move in m.chain), m)
    return [m.chain for m in best.values()][:TAILS]


def prune(trial: Trial, narrower: Callable[[float, int], Move], tails: list[Chain], effort: Effort) -> None:
    """Make the network narrower until it is no longer accurate enough, then once more by half a step."""
    chain: Chain = ()
    ratio, epochs = effort.ratio, effort.epochs
    for _ in range(effort.steps):
        longer = (*chain, narrower(ratio, epochs))
        found = trial.measure(longer)
        if choose.keeps_accuracy(found, trial.task.budget):
            for tail in tails:
                trial.measure((*longer, *tail))
            chain = longer
        elif ratio < effort.ratio or found.failure:
            return
        else:
            ratio, epochs = ratio / 2, 2 * epochs


def repair(trial: Trial, effort: Effort) -> None:
    """Where static int8 alone misses the accuracy and would be the fastest: what it hurts most stays float32, then
    training that expects it.
    """
    budget = trial.task.budget
    fits = [m for m in trial.measured if not choose.excess(m, budget)]
    fastest = max((m.cost.speedup for m in fits if m.cost), default=0.0)
    spoiled = [
        m
        for m in trial.measured
        if m.chain
        and m.chain[-1].kind == "int8"
        and m.cost
        and m.cost.speedup > fastest
        and not choose.keeps_accuracy(m, budget)
        and choose.keeps_accuracy(trial.measure(m.chain[:-1]), budget)
    ]
    if not spoiled:
        return
    worst = max(spoiled, key=lambda m: m.cost.speedup if m.cost else 0.0)
    *before, move = worst.chain
    sensitive = trial.sensitive(worst.chain)
    for count in KEPT_FLOAT:
        kept = Move("int8", {**move.settings, "keep": sensitive[:count]})
        if count < len(sensitive) and choose.keeps_accuracy(trial.measure((*before, kept)), budget):
            break
    if effort.aware_epochs and trial.task.original.module is not None:
        rounding = {name: value for name, value in move.settings.items() if name in ROUNDING}
        aware = Move("qat", {**rounding, "epochs": effort.aware_epochs})
        trial.measure((*before, aware, move))


def promise(trial: Trial, m: Measured) -> tuple[bool, float, float]:
    """What to go on with: accurate, then fast in steps that are no noise, then close to the original."""
    if m.validation is None or m.cost is None:
        return False, 0.0, 0.0
    speed = round(math.log(m.cost.speedup) / math.log(1 + choose.NOISE))
    return choose.keeps_accuracy(m, trial.task.budget), speed, m.validation.snr_db
