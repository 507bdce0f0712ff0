"""The rule of choice, on measurements made by hand."""

from __future__ import annotations

import pytest

from export import report, space
from export.artifact import Artifact
from export.candidate import Measured
from export.choose import choose, nearest, relaxed
from export.evaluate import Drop, Evaluation
from export.measure import Latency
from export.recipe import Budget

pytestmark = pytest.mark.torch


def measured(
    name: str,
    *,
    speedup: float = 1.0,
    spread: float = 0.0,
    drop: float = 0.0,
    error: float = 0.0,
    kb: float = 10.0,
    p95_ms: float = 0.1,
    failure: str = "",
) -> Measured:
    """A candidate as if it had been measured: accuracy 0.9 less its drop. name: float32, or a made-up scheme."""
    chain = () if name == "float32" else (space.int8(name),)
    artifact = Artifact(name, "float32", bytes(int(kb * 1000)), "x", "scores", ())
    if failure:
        return Measured(chain, artifact=artifact, failure=failure)
    us = 1000 * p95_ms
    latency = Latency(us, us, us, us, speedup, speedup - spread, speedup + spread, 900)
    lost = Drop(drop, error, drop - 2 * error, drop + 2 * error, 1.0)
    return Measured(chain, artifact, latency, Evaluation(100, 0.9 - drop, 0.8, 0.95, 1.0, 40.0, lost))


def told(candidates: list[Measured], budget: Budget) -> list[str]:
    return [report.told(verdict) for verdict in choose(candidates, budget)]


def test_the_fastest_candidate_that_keeps_the_budget_is_chosen() -> None:
    verdicts = told([measured("float32"), measured("int8", speedup=1.8, drop=0.005)], Budget(max_drop=0.01))

    assert verdicts == ["not chosen: slower than int8 int8 minmax", "chosen"]


def test_a_candidate_slower_than_float32_is_rejected_with_the_figure() -> None:
    verdicts = told([measured("float32"), measured("int8", speedup=0.83, kb=1)], Budget(max_drop=0.01))

    assert verdicts == ["chosen", "rejected: slower than float32 (0.83x)"]


def test_a_candidate_whose_rounds_lie_on_both_sides_of_float32_is_equally_fast() -> None:
    verdicts = told([measured("float32", kb=40), measured("weights", speedup=0.997, spread=0.01)], Budget())

    assert verdicts == ["not chosen: slower than int8 weights minmax", "chosen"]


def test_a_candidate_a_hair_slower_than_float32_does_not_read_as_equally_fast() -> None:
    assert told([measured("float32"), measured("int8", speedup=0.9981)], Budget())[1].endswith("(0.9981x)")


def test_who_asks_for_size_alone_gets_a_slower_model_that_is_smaller() -> None:
    verdicts = told([measured("float32", kb=40), measured("int8", speedup=0.83, kb=9)], Budget(size_kb=10))

    assert verdicts == ["rejected: 40.0 KB, budget 10 KB", "chosen"]


@pytest.mark.parametrize(
    ("budget", "word"),
    [(Budget(), "faster nor smaller"), (Budget(p95_ms=5), "faster"), (Budget(size_kb=50), "smaller")],
)
def test_what_is_better_in_nothing_asked_for_is_never_chosen(budget: Budget, word: str) -> None:
    """As fast as float32 within its spread, and no smaller."""
    candidates = [measured("float32", kb=40), measured("int8", speedup=1.001, spread=0.02, kb=39.9)]

    assert told(candidates, budget) == ["chosen", f"rejected: not {word} than float32"]


def test_where_float32_misses_the_budget_what_keeps_it_is_a_gain_though_slower() -> None:
    candidates = [measured("float32", kb=100), measured("int8", speedup=0.97, kb=30)]

    assert told(candidates, Budget(0.01, 5, 40)) == ["rejected: 100.0 KB, budget 40 KB", "chosen"]


def test_a_gain_in_something_asked_for_beats_float32_though_both_keep_the_budget() -> None:
    candidates = [measured("float32", kb=40), measured("int8", speedup=1.3, spread=0.02, kb=41)]

    assert told(candidates, Budget(max_drop=0.01)) == ["not chosen: slower than int8 int8 minmax", "chosen"]


def test_a_drop_within_the_budget_is_not_enough_when_its_standard_error_reaches_beyond() -> None:
    lucky = measured("int8", speedup=2.0, drop=0.004, error=0.007)

    assert told([measured("float32"), lucky], Budget(max_drop=0.01)) == [
        "chosen",
        "rejected: drops 0.40 ± 0.70 points, budget 1",
    ]


def test_a_candidate_that_drops_more_than_the_budget_is_rejected_with_the_figure() -> None:
    verdicts = told([measured("float32"), measured("int8", speedup=2.0, drop=0.021)], Budget(max_drop=0.01))

    assert verdicts == ["chosen", "rejected: drops 2.10 ± 0.00 points, budget 1"]


def test_a_drop_of_exactly_the_budget_is_allowed() -> None:
    before, after = 0.83, 0.82  # 0.83 - 0.82 is a little above 0.01 in floating point
    assert before - after > 0.01

    assert told([measured("float32"), measured("int8", speedup=2.0, drop=before - after)], Budget(max_drop=0.01))[
        1
    ] == ("chosen")


def test_within_noise_of_the_fastest_the_smallest_is_chosen() -> None:
    candidates = [measured("float32", kb=40), measured("a", speedup=1.84, kb=12), measured("b", speedup=1.9, kb=13)]

    assert told(candidates, Budget()) == [
        "not chosen: slower than int8 a minmax",
        "chosen",
        "not chosen: not smaller, equally fast",
    ]


def test_beyond_noise_the_faster_one_is_chosen_though_it_is_larger() -> None:
    candidates = [measured("float32"), measured("a", speedup=1.5, kb=5), measured("b", speedup=1.9, kb=9)]

    assert [v.status for v in choose(candidates, Budget())] == ["fits", "fits", "chosen"]


def test_of_equal_size_and_speed_the_earlier_one_is_chosen() -> None:
    candidates = [measured("float32", kb=40), measured("u8s8", speedup=1.8), measured("s8s8", speedup=1.85)]

    assert [v.status for v in choose(candidates, Budget())] == ["fits", "chosen", "fits"]


def test_float32_is_rejected_too_when_it_is_too_large_or_too_slow_for_the_budget() -> None:
    candidates = [measured("float32", kb=350.0, p95_ms=4.0), measured("int8", speedup=2.0, kb=99.0, p95_ms=1.9)]

    assert told(candidates, Budget(size_kb=100, p95_ms=2)) == [
        "rejected: p95 4 ms, budget 2 ms; 350.0 KB, budget 100 KB",
        "chosen",
    ]


def test_when_nothing_keeps_the_budget_all_are_rejected_and_the_nearest_is_named_first() -> None:
    budget = Budget(size_kb=50)
    candidates = [
        measured("float32", kb=300),
        measured("a", kb=60, speedup=2),
        measured("b", kb=55, speedup=2),
        measured("c", kb=1, failure="crashed with SIGSEGV"),
    ]

    assert [v.status for v in choose(candidates, budget)] == ["rejected"] * 4
    assert [m.name for m in nearest(candidates, budget)] == ["int8 b minmax", "int8 a minmax", "float32"]


def test_what_to_relax_is_said_as_options_that_then_hold() -> None:
    candidate = measured("int8", speedup=2, kb=60.01, p95_ms=2.3, drop=0.012, error=0.003)
    budget = Budget(max_drop=0.01, p95_ms=2, size_kb=50)

    assert relaxed(candidate, budget) == "--max-drop 1.5% --p95 2.3ms --size 60.1kB"
    assert choose([measured("float32"), candidate], Budget(0.015, 2.3, 60.1))[1].status == "chosen"


def test_a_crash_is_the_reason_of_its_candidate_and_no_others() -> None:
    candidates = [measured("float32"), measured("fp16", failure="crashed with SIGSEGV")]

    assert told(candidates, Budget()) == ["chosen", "rejected: crashed with SIGSEGV"]
    assert report.row(candidates[1], choose(candidates, Budget())[1])[1] == "-"
