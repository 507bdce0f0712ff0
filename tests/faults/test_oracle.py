"""The judge of the suite, on cases one can check by hand: it is worth what it can find."""

from __future__ import annotations

from typing import Any

import pytest
from oracle import Verdict, judge
from outcome import Growth, Machine, Run, growth
from reliability import render
from scene import Document, Expected

OUT, STATE, PLAIN = "edge/v1/n/p/hop/out/a", "edge/v1/n/p/hop/state/a", "edge/v1/n/p/plain/out/a"
COUNTS = ("received", "accepted", "duplicates", "windows", "results", "unchanged", "events", "confirmed")
ZEROS = ("dead_lettered", "queued", "in_flight", "waiting", "lost_before_us", "restarts")
REASONS = ("dropped", "windows_dropped", "results_dropped", "events_dropped")


def result(n: int, *, topic: str = OUT, **more: Any) -> Document:
    return Document(topic, {"id": f"id{n}", "seq": [n, n], "label": "still", "lat_ms": {"infer": n}, **more})


def change(n: int) -> Document:
    return Document(STATE, {"id": f"id{n}", "on": n % 2 == 1})


def account(**more: Any) -> dict[str, Any]:
    empty = {**dict.fromkeys((*COUNTS, *ZEROS), 0), **{name: {} for name in REASONS}}
    return {**empty, "pipeline": "hop", "received": 3, "accepted": 3, "results": 3, **more}


WANTED = Expected([result(0), change(0), result(1), change(1), result(2)], {"hop": account()})
RETAINED = {STATE: change(1).payload}


def verdict(*found: Document, retained: dict[str, Any] = RETAINED, **more: Any) -> Verdict:
    balanced = not more.pop("off", False)
    ledger = {"pipelines": [account(**more)], "imbalances": []}
    return judge(WANTED, found, retained=retained, summary={"balanced": balanced, "ledger": ledger})


def test_an_equal_run_has_no_problems_whatever_its_stages_cost() -> None:
    found = verdict(result(0), change(0), result(1, lat_ms={"infer": 9}), change(1), result(2))

    assert found.problems == []
    assert (found.expected, found.delivered, found.duplicates, found.inversions) == (3, 3, 0, 0)


@pytest.mark.parametrize(
    ("documents", "names"),
    [
        ((result(0), result(2), change(1)), ["lost"]),
        ((result(0), result(1), result(2), result(3), change(1)), ["unexpected"]),
        ((result(0), result(1, label="moving"), result(2), change(1)), ["unequal"]),
        ((result(0), result(1), result(1, label="moving"), result(2), change(1)), ["differing"]),
        ((result(0), result(1), result(2), change(1), change(0), change(1)), ["alarms"]),
    ],
)
def test_what_differs_is_named(documents: tuple[Document, ...], names: list[str]) -> None:
    assert [problem.split(":")[0] for problem in verdict(*documents).problems] == names


def test_what_comes_twice_or_late_is_counted_and_no_problem() -> None:
    found = verdict(result(0), result(2), result(1), result(1), change(0), change(1), change(1))

    assert found.problems == []
    assert (found.duplicates, found.inversions) == (1, 1)


def test_a_stale_retained_alarm_is_a_problem() -> None:
    found = verdict(result(0), result(1), result(2), change(1), retained={STATE: change(0).payload})

    assert [problem.split(":")[0] for problem in found.problems] == ["alarms"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"accepted": 2, "duplicates": 1},
        {"duplicates": 1},
        {"dropped": {"queue_full": 1}},
        {"waiting": 1},
        {"off": True},
    ],
)
def test_a_ledger_that_does_not_say_what_was_sent_is_a_problem(wrong: dict[str, Any]) -> None:
    found = verdict(result(0), result(1), result(2), change(1), **wrong)

    assert [problem.split(":")[0] for problem in found.problems] == ["ledger"]


def test_without_numbers_results_are_known_by_their_count_and_times_are_left_out() -> None:
    wanted = Expected([result(0, topic=PLAIN, t0=1.0), result(1, topic=PLAIN, t0=2.0)], {})
    found = [result(0, topic=PLAIN, t0=5.0, id="x"), result(1, topic=PLAIN, t0=6.0, id="y")]

    assert judge(wanted, found, retained={}, summary=None).problems == []


MACHINE = Machine(
    device="board", system="Linux", kernel="6", memory_gb=1.0, versions={}, commit="c", date="d", load=0.0, quick=False
)
RUN = Run(
    fault="SIGKILL", delivery="normal", seed=1, sent=100_000, times=200, kills=200, expected=10, lost=0, changed=0,
    duplicates=3, inversions=1, alarms=[], ledger=[], points={"after_ack": 1},
)  # fmt: skip


def test_the_page_says_no_to_a_loss_and_yes_to_none() -> None:
    assert "| 0 (200 kills, 100,000 messages) | yes |" in render([MACHINE, RUN])
    lossy = Run(**{**{name: getattr(RUN, name) for name in RUN.__struct_fields__}, "lost": 1})
    assert "| 1 (200 kills, 100,000 messages) | **no** |" in render([MACHINE, lossy])


def test_the_slope_of_a_leak_is_found_to_the_digit() -> None:
    found: Growth = growth("leak", [(float(s), 70.0 + s / 60 * 0.5) for s in range(120)], warm_up_s=10)

    assert (found.slope_mb_per_min, found.spread_mb_per_min, found.samples) == (0.5, 0.0, 110)
