"""The Pareto plot: where candidates stand, which of them are on the front, and what a page or picture shows."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_runtime.errors import DependencyError, ExportError
from export import pareto
from export.artifact import Artifact
from export.candidate import Measured
from export.choose import choose
from export.evaluate import Drop, Evaluation
from export.measure import Latency
from export.recipe import Budget, Split
from export.search import Outcome
from export.space import Chain, Move, int8
from export.task import Task

WINDOWS = Split(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
PNG = b"\x89PNG\r\n\x1a\n"


def measured(chain: Chain, *, speedup: float = 1.0, drop: float = 0.0, kb: float = 100.0) -> Measured:
    """A candidate as if it had been measured: 1 ms for float32, an interval of one point around the drop."""
    ms = 1000 / speedup
    latency = Latency(ms, 1.2 * ms, 0.9 * ms, 1.1 * ms, speedup, 0.95 * speedup, 1.05 * speedup, 900)
    lost = Drop(drop, 0.0025, drop - 0.005, drop + 0.005, 0.5)
    artifact = Artifact("a", "float32", bytes(int(kb * 1000)), "x", "y", ())
    return Measured(chain, artifact, latency, Evaluation(400, 0.9 - drop, 0.8, 0.95, 0.99, 30.0, lost))


FLOAT32 = measured(())
FAST = measured((int8("u8s8"),), speedup=2.0, drop=0.004, kb=30)
SLOW = measured((Move("int8-dynamic"),), speedup=0.25, drop=0.0, kb=30)
WORSE = measured((int8("u8s8", "entropy"),), speedup=1.9, drop=0.02, kb=31)
CRASHED = Measured((Move("fp16"),), failure="crashed with SIGSEGV")


def outcome(*candidates: Measured, budget: Budget = Budget(max_drop=0.01), name: str = "digits") -> Outcome:  # noqa: B008
    verdicts = choose(candidates, budget)
    chosen = next((m for m, v in zip(candidates, verdicts, strict=True) if v.status == "chosen"), None)
    task = Task(
        name, "1.0.0", "r", 0, None, ("a", "b"), "logits", None, None, budget,
        None, WINDOWS.inputs, WINDOWS, None, Artifact("", "", b"", "x", "y", ()), {},
    )  # fmt: skip
    return Outcome(task, "local", "default", candidates, verdicts, chosen, 1.0)


ALL = (FLOAT32, FAST, SLOW, WORSE, CRASHED)


def test_a_candidate_stands_by_its_speed_and_its_drop_in_points() -> None:
    point = pareto.chart(outcome(*ALL)).points[1]

    assert (point.number, point.x, point.x_low, point.x_high) == (2, 2.0, 1.9, 2.1)
    assert (point.drop, point.low, point.high) == pytest.approx((0.4, -0.1, 0.9))
    assert (point.size_kb, point.status, point.verdict) == (30.0, "chosen", "chosen")


def test_the_front_holds_what_nothing_else_beats_in_speed_accuracy_and_size() -> None:
    points = pareto.chart(outcome(*ALL)).points

    # SLOW is smaller than float32 and loses nothing; WORSE is slower, less accurate and larger than FAST
    assert [(p.name, p.is_front) for p in points] == [
        ("float32", True),
        ("int8 u8s8 minmax", True),
        ("int8-dynamic", True),
        ("int8 u8s8 entropy", False),
    ]


def test_of_two_equal_candidates_both_are_on_the_front() -> None:
    points = pareto.chart(outcome(FLOAT32, FAST, FAST)).points

    assert [p.is_front for p in points] == [True, True, True]


def test_a_candidate_that_is_only_slower_than_another_is_not_on_the_front() -> None:
    slower = measured((int8("s8s8"),), speedup=1.5, drop=0.004, kb=30)

    points = pareto.chart(outcome(FLOAT32, FAST, slower)).points

    assert [p.is_front for p in points] == [True, True, False]


def test_rejected_candidates_stay_visible_with_their_reason() -> None:
    point = pareto.chart(outcome(*ALL)).points[3]

    assert point.verdict == "rejected: drops 2.00 ± 0.25 points, budget 1"
    assert "drop +2.00 points [+1.50 to +2.50], 31.0 KB; rejected" in str(point)


def test_a_candidate_that_could_not_be_measured_is_named_beside_the_plot() -> None:
    assert pareto.chart(outcome(*ALL)).left_out == ("5 fp16: crashed with SIGSEGV",)


def test_with_a_time_budget_x_is_milliseconds_and_less_stands_further_right() -> None:
    drawn = pareto.chart(outcome(*ALL, budget=Budget(max_drop=0.01, p95_ms=0.7)))

    frame = pareto.Frame(drawn)

    assert (drawn.axis, drawn.x_limit, drawn.drop_limit) == ("p95 of one window, ms", 0.7, 1.0)
    assert drawn.points[1].x == pytest.approx(0.6)
    assert frame.x(0.6) > frame.x(1.2)


def test_without_one_faster_stands_further_right_and_a_smaller_drop_higher() -> None:
    frame = pareto.Frame(pareto.chart(outcome(*ALL)))

    assert frame.x(2.0) > frame.x(1.0) > frame.x(0.25) > 0
    assert frame.y(0.0) < frame.y(2.0)
    assert frame.radius(100) == pareto.LARGEST
    assert frame.radius(25) == pytest.approx(pareto.LARGEST / 2)


def test_a_drop_far_beyond_the_budget_stands_at_the_edge_and_does_not_squeeze_the_rest() -> None:
    lost = measured((int8("s8s8"),), speedup=3.0, drop=0.6)
    frame = pareto.Frame(pareto.chart(outcome(FLOAT32, FAST, lost)))

    assert frame.y_range[1] < 5
    assert frame.y(60.0) == frame.y(frame.y_range[1]) == pareto.HEIGHT - pareto.BOTTOM


def test_ticks_are_round_numbers_within_the_plot() -> None:
    frame = pareto.Frame(pareto.chart(outcome(*ALL)))

    assert frame.x_ticks() == [0.2, 0.5, 1.0, 2.0]
    assert all(frame.y_range[0] <= tick <= frame.y_range[1] for tick in frame.y_ticks())
    assert 0.0 in frame.y_ticks()
    assert pareto.Frame(pareto.chart(outcome(FLOAT32, measured((), speedup=1.1)))).x_ticks() == [
        0.95,
        1.0,
        1.05,
        1.1,
        1.15,
    ]


class Shapes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.circles: list[dict[str, str | None]] = []
        self.limits = 0
        self.titles: list[str] = []
        self._in_title = False
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.circles += [found] if tag == "circle" else []
        self.limits += found.get("class") == "limit"
        self._in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        self.titles += [data] if self._in_title else []
        self._in_title = False


def shapes(page: str) -> Shapes:
    found = Shapes()
    found.feed(page)
    found.close()
    return found


def test_the_page_has_a_bubble_with_a_title_for_each_candidate_and_lines_for_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "pareto.html"

    pareto.plot(outcome(*ALL, budget=Budget(max_drop=0.01, p95_ms=0.7)), path)

    page = path.read_text(encoding="utf-8")
    found = shapes(page)
    assert len(found.circles) == 4
    assert sorted(title.partition(":")[0] for title in found.titles[1:]) == [
        "1 float32",
        "2 int8 u8s8 minmax",
        "3 int8-dynamic",
        "4 int8 u8s8 entropy",
    ]
    assert found.limits == 2
    assert sum("front" in str(circle["class"]) for circle in found.circles) == 3
    assert sum("c-chosen" in str(circle["class"]) for circle in found.circles) == 1
    assert sum("c-float32" in str(circle["class"]) for circle in found.circles) == 1
    assert all(0 < float(str(circle["cx"])) < pareto.WIDTH for circle in found.circles)
    assert "5 fp16: crashed with SIGSEGV" in page
    assert "://" not in page
    assert "script" not in found.tags


def test_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    path = tmp_path / "pareto.html"

    pareto.plot(outcome(*ALL, measured((int8("<b>&"),)), name="<script>x</script>"), path)

    page = path.read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>" not in page
    assert page.count("int8 &lt;b&gt;&amp; minmax") == 2


def test_a_png_is_a_picture_of_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "pareto.png"

    pareto.plot(outcome(*ALL, budget=Budget(max_drop=0.01, p95_ms=0.7)), path)

    raw = path.read_bytes()
    assert raw.startswith(PNG)
    assert len(raw) > 20_000
    assert int.from_bytes(raw[16:20], "big") > 1000


def test_without_matplotlib_a_png_says_what_to_install_and_html_needs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(DependencyError, match=r"edge-runtime\[plot\]"):
        pareto.plot(outcome(*ALL), tmp_path / "pareto.png")
    pareto.plot(outcome(*ALL), tmp_path / "pareto.html")

    assert (tmp_path / "pareto.html").stat().st_size > 5000


@pytest.mark.parametrize("name", ["pareto.svg", "pareto", "pareto.HTML.txt"])
def test_another_suffix_is_an_error_that_names_both(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=r"written as \.html or \.png, got '(\.svg|no suffix|\.txt)'"):
        pareto.plot(outcome(*ALL), tmp_path / name)


def test_a_folder_that_is_missing_and_an_empty_search_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written: No such file or directory"):
        pareto.plot(outcome(*ALL), tmp_path / "missing" / "pareto.html")
    untimed = msgspec.structs.replace(FLOAT32, cost=None)
    with pytest.raises(ExportError, match="no candidate was judged and timed"):
        pareto.plot(outcome(untimed), tmp_path / "pareto.html")
