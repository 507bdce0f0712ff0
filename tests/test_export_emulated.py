"""Instructions as a search's cost: said to be that and no time; and which variants of an example are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.arm64.variants import variants
from edge_runtime.errors import ExportError
from export import report, space
from export.candidate import Measured
from export.choose import Verdict
from export.emulated import Emulated
from export.measure import Cost, Instructions, Latency
from export.recipe import Budget
from export.search import Outcome, search
from export.space import Move

pytestmark = pytest.mark.torch

PRUNED = Move("prune", {"ratio": 0.3, "scope": "layer", "epochs": 1})


def took(speedup: float) -> Latency:
    return Latency(1, 1, 1, 1, speedup, speedup, speedup, 900)


def outcome(*measured: Measured, rejected: int = -1) -> Outcome:
    task: Any = SimpleNamespace(metric=None, recipe=None, validation=SimpleNamespace(targets=range(7)))
    verdicts = tuple(Verdict(m.name, "rejected" if number == rejected else "fits") for number, m in enumerate(measured))
    return Outcome(task, "emulated:a72", "quick", measured, verdicts, measured[-1], 1.0)


def of(chain: tuple[Move, ...], cost: Cost | None) -> Measured:
    return Measured(chain, cost=cost)


def test_of_each_kind_the_fastest_is_counted_and_of_the_pruned_only_what_keeps_the_budget() -> None:
    int8, other = space.int8("u8s8"), space.int8("s8s8")
    measured = (
        of((), took(1.0)),
        of((int8,), took(1.2)),
        of((other,), took(1.4)),
        of((PRUNED,), took(3.0)),
        of((PRUNED, PRUNED), took(2.0)),
        of((PRUNED, int8), took(2.5)),
    )

    found = variants(outcome(*measured, rejected=3))

    assert found == {"float32": measured[0], "int8": measured[2], "pruned": measured[4], "chosen": measured[5]}


def test_what_there_is_none_of_is_left_out() -> None:
    float32 = of((), took(1.0))

    assert variants(outcome(float32, of((space.int8("u8s8"),), None))) == {
        "float32": float32,
        "chosen": of((space.int8("u8s8"),), None),
    }


def test_a_report_says_that_instructions_were_counted() -> None:
    found = outcome(of((), Instructions(3000, 3000, 3000, 3000)), of((PRUNED,), Instructions(3000, 999, 1000, 1001)))

    assert report.header(found)[-4:-2] == ["instructions (least-most)", "times fewer than float32"]
    assert report.row(found.measured[1], found.verdicts[1])[-4:-2] == ["1,000 (999-1,001)", "3.00"]


def test_a_budget_in_milliseconds_is_refused_where_no_time_is_taken() -> None:
    task: Any = SimpleNamespace(budget=Budget(p95_ms=5))
    cache: Any = None

    with pytest.raises(ExportError, match="target emulated:a72 counts instructions, and tells nothing of the 5 ms"):
        search(task, target=Emulated("a72"), cache=cache, effort="quick", progress=print)
