from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_logs import MS, NOON, S, foreign, slow_line, write

from edge_runtime import latency_plot, latency_report
from edge_runtime.errors import EdgeRuntimeError, LatencyLogError
from edge_runtime.latency_report import Latencies, Moment, Selection, Skipped, StageLatency, Timeline, moment
from edge_runtime.monitor import hdrlog
from edge_runtime.monitor.hdrlog import LOG_NAME, SLOWEST_NAME
from edge_runtime.monitor.hdrread import Interval, decode
from edge_runtime.monitor.latency import HIGHEST_NS, LOWEST_NS, SIGNIFICANT_DIGITS, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROTATED = LOG_NAME + ".1"


def rows(*paths: Path, selection: Selection | None = None) -> dict[str, StageLatency]:
    return {f"{row.pipeline}/{row.stage}": row for row in Latencies(paths, selection or Selection()).report().stages}


def counts(*paths: Path, selection: Selection | None = None) -> dict[str, int]:
    return {tag: row.count for tag, row in rows(*paths, selection=selection).items()}


values_ns = st.lists(st.integers(0, HIGHEST_NS), min_size=1, max_size=20)


@settings(deadline=None)
@given(older=st.lists(values_ns, min_size=1, max_size=3), newer=st.lists(values_ns, max_size=3), other=values_ns)
def test_percentiles_over_files_are_those_the_public_tools_find_in_all_of_them(
    tmp_path_factory: pytest.TempPathFactory, older: list[list[int]], newer: list[list[int]], other: list[int]
) -> None:
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    files = [write(here, [{"a/infer": values} for values in older], name=ROTATED)]
    files += [write(here, [{"a/infer": values} for values in newer], start_s=NOON + 60)] if newer else []
    files += [write(there, [{"a/infer": other}])]
    total = HdrHistogram(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
    for file in files:
        reader = HistogramLogReader(str(file), total)
        while reader.add_next_interval_histogram():
            pass
        reader.close()

    (row,) = rows(here, there).values()

    found = total.get_percentile_to_value_dict([50, 90, 95, 99, 99.9, 100])
    assert row.count == total.get_total_count()
    assert [row.p50_ms, row.p90_ms, row.p95_ms, row.p99_ms, row.p999_ms, row.max_ms] == [
        ns / 1e6 for ns in found.values()
    ]


def test_stages_come_in_the_order_in_which_a_message_passes_them(tmp_path: Path) -> None:
    write(tmp_path, [{f"{pipeline}/{stage}": [MS] for pipeline in "ba" for stage in ("e2e", "infer", "queue")}])
    foreign(tmp_path / "other.hlog", 5, tag="Tag=A,")

    assert list(rows(tmp_path, tmp_path / "other.hlog")) == [
        "/A", "a/queue", "a/infer", "a/e2e", "b/queue", "b/infer", "b/e2e",
    ]  # fmt: skip


def test_a_folder_and_a_log_stand_for_the_rotated_log_too_and_no_file_counts_twice(tmp_path: Path) -> None:
    write(tmp_path, [{"a/infer": [MS]}], name=ROTATED)
    write(tmp_path, [{"a/infer": [MS, MS]}], start_s=NOON + 60)
    (tmp_path / "link").symlink_to(tmp_path / LOG_NAME)

    assert counts(tmp_path) == {"a/infer": 3}
    assert counts(tmp_path / LOG_NAME) == {"a/infer": 3}
    assert counts(tmp_path / ROTATED) == {"a/infer": 1}
    assert counts(tmp_path / ROTATED, tmp_path, tmp_path / LOG_NAME, tmp_path / "link") == {"a/infer": 3}


def test_the_files_are_told_with_the_time_they_cover_and_what_of_them_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path, [{"a/infer": [MS], "b/infer": [MS]}, {"a/infer": [MS]}])
    path.write_bytes(path.read_bytes() + b"Tag=a/infer,20.0")

    (found,) = Latencies([path], Selection()).report().files

    assert (found.path, found.histograms, found.unfinished_bytes) == (str(path), 3, 16)
    assert (found.start_unix_s, found.end_unix_s) == (NOON, NOON + 20)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, 4),
        (Moment(NOON + 10), None, 3),
        (Moment(NOON + 9.999), None, 4),
        (None, Moment(NOON + 10), 1),
        (None, Moment(NOON + 10.001), 2),
        (Moment(NOON + 12), Moment(NOON + 18), 1),
        (Moment(-10, relative=True), None, 1),
        (Moment(-25, relative=True), Moment(-10, relative=True), 2),
        (Moment(NOON + 5), Moment(-30, relative=True), 1),
    ],
)
def test_an_interval_is_taken_when_any_of_it_lies_in_the_range(
    tmp_path: Path, start: Moment | None, end: Moment | None, expected: int
) -> None:
    write(tmp_path, [{"a/infer": [MS]}] * 4)

    assert counts(tmp_path, selection=Selection(start, end)) == {"a/infer": expected}


def test_an_interval_without_length_is_taken_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.hlog"
    histogram = Histogram()
    histogram.record_all([MS])
    path.write_text(hdrlog.header(NOON * S) + hdrlog.line("a/infer", 5.0, 0.0, histogram))

    assert counts(path, selection=Selection(Moment(NOON + 5), Moment(NOON + 6))) == {"a/infer": 1}


def test_relative_times_count_from_the_end_of_the_youngest_log(tmp_path: Path) -> None:
    older = write(tmp_path / "older", [{"a/infer": [MS]}] * 3)
    younger = write(tmp_path / "younger", [{"a/infer": [MS]}] * 3, start_s=NOON + 10)

    assert counts(older, younger, selection=Selection(Moment(-20, relative=True))) == {"a/infer": 3}


def test_pipelines_and_stages_are_selected_by_name(tmp_path: Path) -> None:
    write(tmp_path, [{f"{pipeline}/{stage}": [MS] for pipeline in "abc" for stage in ("infer", "e2e")}])

    assert list(counts(tmp_path, selection=Selection(pipelines=("c", "a")))) == ["a/infer", "a/e2e", "c/infer", "c/e2e"]
    assert list(counts(tmp_path, selection=Selection(pipelines=("b",), stages=("e2e",)))) == ["b/e2e"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-09-21T14:13:20", Moment(NOON)),
        ("2026-09-21 14:13:20Z", Moment(NOON)),
        ("2026-09-21T16:13:20.500+02:00", Moment(NOON + 0.5)),
        ("2026-09-21", Moment(NOON - 51_200)),
        ("20260921", Moment(NOON - 51_200)),
        ("20240229", Moment(1_709_164_800)),
        ("1790000000", Moment(NOON)),
        ("100000000", Moment(100_000_000)),
        ("1790000000.25", Moment(NOON + 0.25)),
        ("-90s", Moment(-90, relative=True)),
        ("-1.5m", Moment(-90, relative=True)),
        ("-2h", Moment(-7200, relative=True)),
        ("-1d", Moment(-86400, relative=True)),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, expected: Moment) -> None:
    assert moment(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-10",
        "10m",
        "-10 m",
        "noon",
        "14:13",
        "2026-13-01",
        "nan",
        "-infs",
        "9" * 12,
        "20261301",
        "20250229",
        "20261122.5",
        "2026",
        "0",
    ],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  its text is the caller's
        moment(text)


def test_histograms_of_another_resolution_add_up_and_are_told(tmp_path: Path) -> None:
    ours = write(tmp_path, [{"a/infer": [70_000], "a/e2e": [MS]}])
    theirs = foreign(tmp_path / "theirs.hlog", 70_000, 70_000, tag="Tag=a/infer,")

    found = rows(ours, theirs)

    assert {tag: row.mixed for tag, row in found.items()} == {"a/infer": True, "a/e2e": False}
    row = found["a/infer"]
    assert (row.count, row.p50_ms, row.max_ms) == (3, 0.070015, 0.070143)


@pytest.mark.parametrize(
    ("selection", "fact"),
    [
        (Selection(Moment(NOON + 20)), "from 2026-09-21 14:13:20 to 2026-09-21 14:13:40 UTC"),
        (Selection(pipelines=("c",)), "the logs hold pipelines a, b with stages e2e, infer from"),
        (Selection(Moment(NOON + 5), Moment(NOON + 5)), "the range from .* 14:13:25 to .* 14:13:25 UTC is empty"),
    ],
)
def test_when_nothing_is_selected_what_there_is_is_told(tmp_path: Path, selection: Selection, fact: str) -> None:
    write(tmp_path, [{"a/infer": [MS]}, {"b/e2e": [MS]}])

    with pytest.raises(EdgeRuntimeError, match=fact):
        Latencies([tmp_path], selection)


def test_a_log_without_an_interval_and_a_folder_without_a_log_are_told(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / LOG_NAME).write_text(hdrlog.header(NOON * S))

    with pytest.raises(EdgeRuntimeError, match="the logs hold no interval yet"):
        Latencies([tmp_path / "new"], Selection(Moment(-60, relative=True)))
    with pytest.raises(LatencyLogError, match=f"{tmp_path}: no latency.hlog in it"):
        Latencies([tmp_path], Selection())
    with pytest.raises(LatencyLogError, match="cannot be read: File name too long"):
        Latencies([tmp_path / ("x" * 300)], Selection())


def test_more_tags_than_anybody_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_report, "MOST_STAGES", 3)
    path = write(tmp_path, [{f"{pipeline}/infer": [MS] for pipeline in "abcd"}])

    with pytest.raises(LatencyLogError, match=f"{path}, line 8: more than 3 tags"):
        Latencies([path], Selection(pipelines=("a",)))


def test_the_five_slowest_windows_of_all_files_in_the_range_are_shown(tmp_path: Path) -> None:
    write(tmp_path / "1", [{"vibration/infer": [MS]}] * 4)
    write(tmp_path / "2", [{"vibration/infer": [MS]}])
    (tmp_path / "1" / (SLOWEST_NAME + ".1")).write_bytes(slow_line(7.0) + slow_line(99.0, at=NOON - 1))
    (tmp_path / "1" / SLOWEST_NAME).write_bytes(b"".join(map(slow_line, (1.0, 9.0, 3.0))) + slow_line(9.9)[:-20])
    (tmp_path / "2" / SLOWEST_NAME).write_bytes(b"".join(map(slow_line, (8.0, 2.0))) + slow_line(50, pipeline="b"))

    found = Latencies([tmp_path / "1", tmp_path / "2"], Selection(Moment(NOON), pipelines=("vibration",))).report()

    assert [line.lat_ms.e2e for line in found.slowest] == [9.0, 8.0, 7.0, 3.0, 2.0]


def test_lines_that_are_no_slow_window_are_skipped_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path, [{"a/infer": [MS]}])
    slow = tmp_path / SLOWEST_NAME
    damaged = b"\0" * 4096 + b'\n\xff\n{"pipeline":"\xff"}\n'
    slow.write_bytes(slow_line(1.0) + b'{"at": 1}\n' + slow_line(2.0) + damaged + slow_line(3.0))

    found = Latencies([path], Selection()).report()

    assert [line.lat_ms.e2e for line in found.slowest] == [3.0, 2.0, 1.0]
    fact = "no slow window: Object missing required field `pipeline`"
    assert found.skipped == [Skipped(str(slow), lines=4, first_line=2, fact=fact)]


def test_lines_of_zeros_in_a_log_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, [{"a/infer": [MS]}])
    path.write_bytes(path.read_bytes() + b"\0" * 512 + b"\n" + hdrlog.header(NOON * S).encode())

    found = Latencies([path], Selection(Moment(-60, relative=True))).report()

    assert found.skipped == [Skipped(str(path), lines=1, first_line=6, fact="nothing but NUL bytes")]
    assert [row.count for row in found.stages] == [1]


def test_a_timeline_stays_bounded_and_loses_nothing() -> None:
    timeline, histogram = Timeline("e2e"), HdrHistogram(1, 10**6, 3)
    histogram.record_value(500)
    steps = decode(histogram.encode())
    for i in range(5000):
        timeline.add(Interval("a/e2e", NOON + 10.0 * i, 10.0, 1), steps)

    points = timeline.points()

    assert latency_report.MOST_POINTS / 2 <= len(points) <= latency_report.MOST_POINTS
    assert timeline.width_s == 160.0
    assert sum(found.count for _, found in points) == 5000
    assert [at_s for at_s, _ in points] == sorted(at_s for at_s, _ in points)
    assert {at_s % 160.0 for at_s, _ in points} == {80.0}


def test_timelines_are_of_end_to_end_or_of_the_first_stage_that_is_selected(tmp_path: Path) -> None:
    path = write(tmp_path, [{"a/infer": [MS], "a/e2e": [3 * MS]}])
    other = foreign(tmp_path / "other.hlog", 5)

    def timed(selection: Selection) -> dict[str, tuple[str, int]]:
        found = Latencies([path, other], selection, timelines=True).timelines
        return {pipeline: (t.stage, sum(p.count for _, p in t.points())) for pipeline, t in found.items()}

    assert timed(Selection()) == {"a": ("e2e", 1), "": ("", 1)}
    assert timed(Selection(stages=("infer",))) == {"a": ("infer", 1)}
    assert Latencies([path], Selection()).timelines == {}


def panels(*paths: Path, selection: Selection | None = None) -> list[Axes]:
    """Percentiles and timeline of each pipeline, laid out as they are written to the file."""
    figure = latency_plot.picture(Latencies(paths, selection or Selection(), timelines=True))
    figure.draw_without_rendering()
    return figure.axes


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(c.get_label()): (list(c.get_xdata()), list(c.get_ydata())) for c in axes.get_lines()}  # type: ignore[call-overload]


def test_the_timeline_draws_under_each_name_the_percentile_it_names(tmp_path: Path) -> None:
    first, second = [i * MS for i in range(1, 201)], [i * 2 * MS for i in range(1, 301)]
    write(tmp_path, [{"a/e2e": first}, {"a/e2e": second}])
    expected = []
    for values in (first, second):
        histogram = Histogram()
        histogram.record_all(values)
        expected.append([ns / 1e6 for ns in histogram.percentiles((50, 99, 100))])

    found = curves(panels(tmp_path)[1])

    assert set(found) == {"p50", "p99", "max"}
    for name, ms in zip(("p50", "p99", "max"), zip(*expected, strict=True), strict=True):
        assert found[name] == (pytest.approx([(NOON + 5) / 86400, (NOON + 15) / 86400], abs=1e-9), list(ms))
    assert expected[0] == pytest.approx([100, 198, 200], rel=0.02)


def test_the_percentile_axis_reads_at_each_tick_the_duration_of_that_percentile(tmp_path: Path) -> None:
    values = [i * MS for i in range(1, 1001)]
    write(tmp_path, [{"a/infer": values, "a/e2e": [3 * ns for ns in values]}])
    axes = panels(tmp_path)[0]
    distributions = Latencies([tmp_path], Selection()).distributions

    ticks = {label.get_text(): place for label, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}

    assert list(ticks) == ["50 %", "90 %", "99 %", "99.9 %"]
    assert axes.get_xscale() == "log"
    for (_, stage), distribution in distributions.items():
        x, ms = curves(axes)[stage]
        for label, place in ticks.items():
            step = int(np.searchsorted(x, place * (1 - 1e-9))) - 1
            (ns,) = distribution.percentiles([float(label.removesuffix(" %"))])
            assert ms[step] == ns / 1e6
        assert (x[0], x[-1], ms[-1]) == (1.0, 1000, distribution.percentiles([100])[0] / 1e6)


@pytest.mark.parametrize("intervals", [1, 2, 30])
def test_the_time_axis_spans_the_points_and_five_widths_either_side(tmp_path: Path, intervals: int) -> None:
    write(tmp_path, [{"a/e2e": [MS]}] * intervals)

    left, right = (days * 86400 for days in panels(tmp_path)[1].get_xlim())

    assert (left, right) == (pytest.approx(NOON - 45, abs=0.01), pytest.approx(NOON + intervals * 10 + 45, abs=0.01))


def test_a_stage_that_was_never_timed_has_a_time_axis_without_times(tmp_path: Path) -> None:
    write(tmp_path, [{"a/infer": [MS]}])
    axes = panels(tmp_path)[1]

    assert (list(axes.get_xticks()), axes.get_xlabel()) == ([], "never timed")
