"""Which candidate is chosen, and what speaks against the others.

Chosen is, among the candidates that keep the budget and are better than float32 in something asked for, the fastest;
candidates within NOISE of the fastest count as equally fast, and the smallest of them wins, the earlier one where
sizes are equal. Where nothing is better, float32 is chosen; where it does not keep the budget, what keeps it is better.

A budget is kept when the drop on validation, and its standard error on top, are within it: among many candidates
some are lucky. Asked for are speed with p95_ms, size with size_kb, and both where neither was said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from export.candidate import Measured
from export.measure import Latency
from export.recipe import Budget

NOISE = 0.10
EPSILON = 1e-9
SMALLER = 0.99
"""Of float32's size: what is not below it is not smaller."""


class Verdict(msgspec.Struct, frozen=True):
    """What became of a candidate. reasons: what speaks against it."""

    name: str
    status: Literal["chosen", "fits", "rejected"]
    reasons: tuple[str, ...] = ()


def choose(measured: Sequence[Measured], budget: Budget) -> tuple[Verdict, ...]:
    """One verdict a candidate, by the rule in this file's docstring. measured: float32 first."""
    float32 = measured[0]
    is_kept = not excess(float32, budget)  # else whatever keeps it is a gain
    objections = [list(excess(m, budget)) or (useless(m, float32, budget) if is_kept else []) for m in measured]
    better = [m for m, against in zip(measured, objections, strict=True) if not against and m is not float32]
    fitting = better or [m for m, against in zip(measured, objections, strict=True) if not against]
    if not fitting:
        return tuple(Verdict(m.name, "rejected", tuple(o)) for m, o in zip(measured, objections, strict=True))
    fastest = max(_speedup(m) for m in fitting)
    equal = [m for m in fitting if _speedup(m) >= fastest * (1 - NOISE)]
    chosen = min(equal, key=lambda m: m.size_kb)
    verdicts = []
    for m, against in zip(measured, objections, strict=True):
        if against:
            verdicts.append(Verdict(m.name, "rejected", tuple(against)))
        elif m is chosen:
            verdicts.append(Verdict(m.name, "chosen"))
        else:
            verdicts.append(Verdict(m.name, "fits", (_beaten(m, chosen, is_equal=m in equal),)))
    return tuple(verdicts)


def _beaten(m: Measured, chosen: Measured, *, is_equal: bool) -> str:
    if m.cost is None:
        return ""
    return f"not smaller, {m.cost.same}" if is_equal else f"{m.cost.more} than {chosen.name}"


def keeps_accuracy(m: Measured, budget: Budget) -> bool:
    """Whether its drop on validation, and the standard error on top, are within the budget."""
    if m.validation is None:
        return False
    drop = m.validation.drop
    return budget.max_drop is None or not m.chain or drop.value + drop.error <= budget.max_drop + EPSILON


def excess(m: Measured, budget: Budget) -> dict[str, float]:
    """What speaks against a candidate, each with how far it is beyond what was allowed, as a share of that."""
    if m.failure or m.validation is None:
        return {m.failure or "was not judged": float("inf")}
    found: dict[str, float] = {}
    if not keeps_accuracy(m, budget) and budget.max_drop is not None:
        drop = m.validation.drop
        text = f"drops {100 * drop.value:.2f} ± {100 * drop.error:.2f} points, budget {100 * budget.max_drop:g}"
        found[text] = (drop.value + drop.error - budget.max_drop) / max(budget.max_drop, 0.01)
    if m.cost is None:
        return found or {"was not timed": float("inf")}
    if budget.p95_ms is not None and (late_ms := _late_ms(m, budget.p95_ms)):
        found[f"p95 {late_ms:.3g} ms, budget {budget.p95_ms:g} ms"] = late_ms / budget.p95_ms - 1
    if budget.size_kb is not None and m.size_kb > budget.size_kb:
        found[f"{m.size_kb:.1f} KB, budget {budget.size_kb:g} KB"] = m.size_kb / budget.size_kb - 1
    return found


def useless(m: Measured, float32: Measured, budget: Budget) -> list[str]:
    """Why a candidate is no gain over float32 in what was asked for; nothing when it is one, or is float32.

    float32 keeps the budget. Slower (three rounds of four) is allowed only to who asks for size and not for speed.
    """
    if m is float32 or m.cost is None:
        return []
    asks_speed = budget.p95_ms is not None or budget.size_kb is None
    asks_size = budget.size_kb is not None or budget.p95_ms is None
    if asks_speed and m.cost.speedup_q3 < 1:
        return [f"{m.cost.more} than float32 ({_below_one(m.cost.speedup)}x)"]
    is_faster, is_smaller = m.cost.speedup_q1 > 1, m.size_kb < SMALLER * float32.size_kb
    if (asks_speed and is_faster) or (asks_size and is_smaller):
        return []
    asked = " nor ".join(word for word, wanted in ((m.cost.less, asks_speed), ("smaller", asks_size)) if wanted)
    return [f"not {asked} than float32"]


def nearest(measured: Sequence[Measured], budget: Budget, *, count: int = 3) -> list[Measured]:
    """The candidates that miss the budget by least, judged by their worst excess."""
    running = [m for m in measured if not m.failure and m.cost is not None]
    return sorted(running, key=lambda m: max(excess(m, budget).values(), default=0.0))[:count]


def relaxed(m: Measured, budget: Budget) -> str:
    """The budget that a candidate keeps: what to relax, as options of the command line."""
    if m.validation is None or m.cost is None:
        return ""
    drop = m.validation.drop
    asked = []
    if not keeps_accuracy(m, budget):
        asked.append(f"--max-drop {_up(100 * (drop.value + drop.error), 2)}%")
    if budget.p95_ms is not None and (late_ms := _late_ms(m, budget.p95_ms)):
        asked.append(f"--p95 {_up(late_ms, 3)}ms")
    if budget.size_kb is not None and m.size_kb > budget.size_kb:
        asked.append(f"--size {_up(m.size_kb, 1)}kB")
    return " ".join(asked)


def _up(value: float, digits: int) -> str:
    return f"{math.ceil(value * 10**digits) / 10**digits:g}"


def _late_ms(m: Measured, limit_ms: float) -> float:
    """The p95 where it is above the limit, else 0. Raises TypeError where no time was taken: search refuses that."""
    if not isinstance(m.cost, Latency):
        raise TypeError(f"{m.name} was not timed")
    p95_ms = m.cost.p95_us / 1e3
    return p95_ms if p95_ms > limit_ms else 0.0


def _speedup(m: Measured) -> float:
    return m.cost.speedup if m.cost else 0.0


def _below_one(speedup: float) -> str:
    """Two decimals, or as many as it takes not to read 1.00."""
    return f"{speedup:.2f}" if speedup < 0.995 else f"{speedup:.4f}"
