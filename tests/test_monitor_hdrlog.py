from __future__ import annotations

import base64
import itertools
import json
import logging
import random
import resource
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from turns import TIMES, turn

from edge_runtime.monitor import hdrlog
from edge_runtime.monitor.hdrlog import LOCK_NAME, LOG_NAME, SLOWEST_NAME, LatencyLog
from edge_runtime.monitor.latency import (
    HIGHEST_NS,
    LOWEST_NS,
    SIGNIFICANT_DIGITS,
    SLOTS,
    TIMED,
    Histogram,
    LatencySettings,
    StageRecorder,
)

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

S = 1_000_000_000
MS = 1_000_000
NOON_UNIX_NS = 1_700_000_000 * S
HISTOGRAMS_SHARE, SLOWEST_SHARE = 3 / 4, 1 / 4


def filled(pipeline: str = "vibration", stage: str = "infer", values: tuple[int, ...] = (MS, 2 * MS)) -> StageRecorder:
    recorder = StageRecorder(pipeline)
    recorder.record_all(stage, list(values))
    return recorder


def spread(rng: random.Random, n: int) -> list[int]:
    """Durations all over the range, which compress badly."""
    return [int(10 ** rng.uniform(3, 10.7)) for _ in range(n)]


def record_everywhere(recorder: StageRecorder, values: list[int]) -> None:
    for stage in TIMED:
        recorder.record_all(stage, values)


def rotated(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def size(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def slow_lines(*paths: Path) -> list[dict[str, object]]:
    """Every line of the slowest windows' files, oldest first."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def read_back(path: Path) -> list[HdrHistogram]:
    """Every interval of a log, as the public reader sees it; there is no wheel of that for arm64."""
    pytest.importorskip("hdrh.histogram")
    from hdrh.histogram import HdrHistogram
    from hdrh.log import HistogramLogReader

    reader = HistogramLogReader(str(path), HdrHistogram(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS))
    try:
        return list(iter(reader.get_next_interval_histogram, None))
    finally:
        reader.close()


@pytest.fixture
def latency_log(tmp_path: Path) -> Iterator[LatencyLog]:
    found = LatencyLog(tmp_path / "latency", LatencySettings(), now_ns=5 * S)
    yield found
    found.close()


@given(
    values=st.lists(st.integers(0, HIGHEST_NS), max_size=100),
    doublings=st.integers(0, 45),
)
def test_an_encoded_histogram_is_decoded_by_the_public_implementation(values: list[int], doublings: int) -> None:
    counts = np.zeros(SLOTS, np.int64)
    histogram = Histogram(counts)
    histogram.record_all(values)
    counts <<= doublings

    decoded = pytest.importorskip("hdrh.histogram").HdrHistogram.decode(hdrlog.encode(histogram))

    assert decoded.get_total_count() == histogram.count == len(values) << doublings
    assert [decoded.get_count_at_index(i) for i in range(SLOTS)] == counts.tolist()
    assert [decoded.get_value_at_percentile(q) for q in (50, 99, 100)] == histogram.percentiles((50, 99, 100))


def test_counts_are_written_as_zigzag_numbers_with_runs_of_zeros() -> None:
    step = 512
    histogram = Histogram()
    for index, count in ((0, 1), (2, 3), (7, 100), (8, 63), (9, 64), (10, 9000)):
        histogram.record_all([index * step] * count)

    payload = zlib.decompress(base64.b64decode(hdrlog.encode(histogram))[8:])

    one, no, three, four_zeros, hundred = b"\x02", b"\x00", b"\x06", b"\x07", b"\xc8\x01"
    assert payload[40:] == one + no + three + four_zeros + hundred + b"\x7e" + b"\x80\x01" + b"\xd0\x8c\x01"
    assert payload[:8] == bytes.fromhex("1c849313") + (12).to_bytes(4, "big")


def test_the_log_reads_back_with_the_same_percentiles(latency_log: LatencyLog) -> None:
    rng = random.Random(7)
    values = {stage: [int(rng.lognormvariate(14, 1.5)) for _ in range(3000)] for stage in ("decode", "infer", "e2e")}
    recorder = StageRecorder("vibration")
    for stage, durations in values.items():
        recorder.record_all(stage, durations)
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    read = {histogram.get_tag(): histogram for histogram in read_back(latency_log.path)}

    assert set(read) == {"vibration/decode", "vibration/infer", "vibration/e2e"}
    for stage in values:
        total = recorder.total(stage)
        found = [read[f"vibration/{stage}"].get_value_at_percentile(q) for q in (0, 50, 90, 95, 99, 99.9, 100)]
        assert found == total.percentiles((0, 50, 90, 95, 99, 99.9, 100))


def test_every_pipeline_and_stage_has_a_tag_of_its_own_in_the_log(latency_log: LatencyLog) -> None:
    values = {tag: n * MS for n, tag in enumerate(itertools.product(("vibration", "digits-2"), TIMED), 1)}
    recorders = [StageRecorder("vibration"), StageRecorder("digits-2")]
    for recorder, stage in itertools.product(recorders, TIMED):
        recorder.record_all(stage, [values[recorder.pipeline, stage]] * 3)
    latency_log.write(recorders, now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    read = {histogram.get_tag(): histogram for histogram in read_back(latency_log.path)}

    assert set(read) == {f"{pipeline}/{stage}" for pipeline, stage in values}
    for (pipeline, stage), value in values.items():
        histogram = read[f"{pipeline}/{stage}"]
        assert (histogram.get_total_count(), histogram.get_max_value()) == (3, pytest.approx(value, rel=0.01))


def test_a_line_says_when_its_interval_began_and_how_long_it_was(latency_log: LatencyLog) -> None:
    for second in (15, 26):
        latency_log.write([filled()], now_ns=second * S, unix_ns=NOON_UNIX_NS + (second - 15) * S)

    lines = latency_log.path.read_text().splitlines()
    assert lines[1].startswith("#[StartTime: 1699999990.000 (seconds since epoch), 2023-11-14 22:13:10 UTC]")
    assert [line.rsplit(",", 1)[0] for line in lines if line.startswith("Tag=")] == [
        "Tag=vibration/infer,0.000,10.000,2.007",
        "Tag=vibration/infer,10.000,11.000,2.007",
    ]
    assert [h.get_start_time_stamp() for h in read_back(latency_log.path)] == [1699999990000, 1700000000000]


def test_an_interval_in_which_nothing_happened_writes_nothing(latency_log: LatencyLog) -> None:
    latency_log.write([StageRecorder("idle")], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert not latency_log.path.exists()


def test_the_log_is_due_once_an_interval(latency_log: LatencyLog) -> None:
    assert [latency_log.due(ns) for ns in (5 * S, 15 * S - 1, 15 * S)] == [False, False, True]

    latency_log.write([], now_ns=16 * S, unix_ns=NOON_UNIX_NS)

    assert [latency_log.due(ns) for ns in (25 * S, 26 * S)] == [False, True]


def test_a_restart_appends_under_a_header_of_its_own(latency_log: LatencyLog) -> None:
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    latency_log.close()
    restarted = LatencyLog(latency_log.path.parent, LatencySettings(), now_ns=1 * S)
    restarted.write([filled()], now_ns=3 * S, unix_ns=NOON_UNIX_NS + 3600 * S)

    starts = [histogram.get_start_time_stamp() for histogram in read_back(latency_log.path)]

    assert starts == [(1_700_000_000 - 10) * 1000, (1_700_000_000 + 3598) * 1000]


def starts_unix_s(path: Path) -> list[float]:
    return [histogram.get_start_time_stamp() / 1000 for histogram in read_back(path)]


@pytest.mark.parametrize("step_s", [86_400 * 365, -3600, 1.5, -1.5])
def test_after_a_step_of_the_wall_clock_intervals_count_from_a_header_of_their_own(
    latency_log: LatencyLog, step_s: float
) -> None:
    for second, stepped_s in ((15, 0.0), (25, 0.0), (35, step_s), (45, step_s)):
        unix_ns = NOON_UNIX_NS + second * S + int(stepped_s * S)
        latency_log.write([filled()], now_ns=second * S, unix_ns=unix_ns)

    noon = 1_700_000_000
    assert starts_unix_s(latency_log.path) == [noon + 5, noon + 15, noon + 25 + step_s, noon + 35 + step_s]
    assert latency_log.path.read_text().count("#[StartTime: ") == 2


def test_a_clock_that_is_slewed_by_less_than_a_second_needs_no_header(latency_log: LatencyLog) -> None:
    for second, slewed_ns in ((15, 0), (25, hdrlog.CLOCK_STEP_NS), (35, -hdrlog.CLOCK_STEP_NS)):
        latency_log.write([filled()], now_ns=second * S, unix_ns=NOON_UNIX_NS + second * S + slewed_ns)

    assert latency_log.path.read_text().count("#[StartTime: ") == 1


def test_of_two_logs_in_one_folder_the_first_to_write_writes_until_it_closes(
    latency_log: LatencyLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    second = LatencyLog(latency_log.path.parent, LatencySettings(), now_ns=5 * S)
    latency_log.write([filled("first")], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    for at_s in (15, 25):
        second.write([filled("second")], now_ns=at_s * S, unix_ns=NOON_UNIX_NS)

    lock = latency_log.path.with_name(LOCK_NAME)
    assert second.problem == f"{lock}: another process holds it and writes its latency log here"
    assert [record.message for record in caplog.records] == ["latency_log_failing"]
    assert [h.get_tag() for h in read_back(latency_log.path)] == ["first/infer"]

    latency_log.close()
    second.write([filled("second")], now_ns=35 * S, unix_ns=NOON_UNIX_NS + 20 * S)
    latency_log.write([filled("first")], now_ns=35 * S, unix_ns=NOON_UNIX_NS + 20 * S)
    second.close()

    assert (second.problem, latency_log.problem[: len(str(lock))]) == ("", str(lock))
    assert [h.get_tag() for h in read_back(latency_log.path)] == ["first/infer", "second/infer"]
    assert starts_unix_s(latency_log.path)[1] == 1_700_000_000 + 10


ANOTHER_DAEMON = """
import sys
from pathlib import Path
from edge_runtime.monitor.hdrlog import LatencyLog
from edge_runtime.monitor.latency import LatencySettings, StageRecorder

recorder = StageRecorder("other")
recorder.record_all("infer", [1_000_000])
log = LatencyLog(Path(sys.argv[1]), LatencySettings(), now_ns=0)
log.write([recorder], now_ns=10_000_000_000, unix_ns=1_700_000_000_000_000_000)
print(log.problem or "written", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_killed_leaves_the_folder_to_the_next(latency_log: LatencyLog) -> None:
    command = [sys.executable, "-c", ANOTHER_DAEMON, str(latency_log.path.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "written\n"
            latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
            assert "another process holds it" in latency_log.problem
        finally:
            other.kill()

    latency_log.write([filled()], now_ns=25 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.problem == ""
    assert [h.get_tag() for h in read_back(latency_log.path)] == ["other/infer", "vibration/infer"]


@pytest.mark.parametrize("tail", [b"Tag=vibration/infer,10.000,10.0", b"\0" * 4096, b"#[Histogram log for"])
def test_what_a_crash_left_unfinished_is_cut_off(latency_log: LatencyLog, tail: bytes) -> None:
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    whole = latency_log.path.read_bytes()
    latency_log.close()
    with latency_log.path.open("ab") as file:
        file.write(tail)
    restarted = LatencyLog(latency_log.path.parent, LatencySettings(), now_ns=0)
    restarted.write([filled(pipeline="digits")], now_ns=S, unix_ns=NOON_UNIX_NS)

    assert [h.get_tag() for h in read_back(latency_log.path)] == ["vibration/infer", "digits/infer"]
    assert latency_log.path.read_bytes().startswith(whole + b"#[Histogram log format version 1.3]\n")


@pytest.mark.parametrize("lost", [1, 16, 65_535, 65_536, 65_537, 131_072, 200_000])
def test_a_long_log_loses_only_its_unfinished_line(latency_log: LatencyLog, lost: int) -> None:
    whole = b"# a line of a log written by an earlier run\n" * 5000
    latency_log.path.parent.mkdir()
    latency_log.path.write_bytes(whole + b"\0" * lost)
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes().startswith(whole + b"#[Histogram log format version 1.3]\n")


def test_a_file_without_a_single_whole_line_is_begun_anew(latency_log: LatencyLog) -> None:
    latency_log.path.parent.mkdir()
    latency_log.path.write_bytes(b"\0" * 100_000)
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes().startswith(b"#[Histogram log format version 1.3]\n")
    assert len(read_back(latency_log.path)) == 1


def test_all_files_together_stay_within_the_limit_and_readable(tmp_path: Path) -> None:
    rng, recorder = random.Random(3), StageRecorder("vibration", slowest=20)
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    histograms, slow = latency_log.path, tmp_path / SLOWEST_NAME
    largest = largest_slow = 0
    for interval in range(1, 121):
        record_everywhere(recorder, spread(rng, 400))
        recorder.written(turn(received_ms=list(range(20)), decided_ms=30), 40 * MS)
        latency_log.write([recorder], now_ns=interval * S, unix_ns=NOON_UNIX_NS + interval * S)
        largest = max(largest, size(histograms, rotated(histograms)))
        largest_slow = max(largest_slow, size(slow, rotated(slow)))

    assert latency_log.problem == ""
    assert 0.7 < largest / (HISTOGRAMS_SHARE * 1e6) <= 1
    assert 0.7 < largest_slow / (SLOWEST_SHARE * 1e6) <= 1
    older, newer = read_back(rotated(histograms)), read_back(histograms)
    assert older
    assert newer
    assert newer[-1].get_end_time_stamp() == (1_700_000_000 + 120) * 1000
    assert older[-1].get_end_time_stamp() == newer[0].get_start_time_stamp()
    lines = slow_lines(rotated(slow), slow)
    assert len(lines) > 300
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)


def test_files_above_a_lowered_limit_are_dropped_at_start(tmp_path: Path) -> None:
    for name in (LOG_NAME, SLOWEST_NAME):
        (tmp_path / name).write_bytes(b"#\n" * 300_000)
        rotated(tmp_path / name).write_bytes(b"#\n" * 300_000)
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    recorder = StageRecorder("vibration")
    recorder.written(turn(received_ms=[0], decided_ms=1), 2 * MS)
    latency_log.write([recorder], now_ns=S, unix_ns=NOON_UNIX_NS)

    assert [path.name for path in sorted(tmp_path.iterdir())] == [LOG_NAME, LOCK_NAME, SLOWEST_NAME]
    assert size(*tmp_path.iterdir()) < 2000


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file can grow beyond size bytes, as on a disk that is full: a write stops half way, with an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_reported_once_and_the_log_recovers(
    latency_log: LatencyLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = filled()
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    whole = latency_log.path.read_bytes()
    for second in (25, 35):
        recorder.record_all("infer", [MS])
        with files_limited_to(len(whole) + 50):
            latency_log.write([recorder], now_ns=second * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes()[len(whole) :].count(b"\n") < 4
    assert latency_log.problem == f"{latency_log.path}: File too large"
    assert [record.message for record in caplog.records] == ["latency_log_failing"]
    assert recorder.total("infer").count == 4

    recorder.record_all("infer", [MS])
    latency_log.write([recorder], now_ns=45 * S, unix_ns=NOON_UNIX_NS + 30 * S)

    assert latency_log.problem == ""
    assert [record.message for record in caplog.records] == ["latency_log_failing", "latency_log_recovered"]
    before, after = read_back(latency_log.path)
    assert (before.get_total_count(), after.get_total_count()) == (2, 1)
    assert after.get_start_time_stamp() == (1_700_000_000 + 20) * 1000


def test_a_path_that_is_no_file_is_a_problem_not_a_crash(latency_log: LatencyLog) -> None:
    latency_log.path.parent.mkdir()
    latency_log.path.symlink_to("/dev/full")
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.problem.startswith(f"{latency_log.path}: ")


def test_a_directory_that_cannot_be_made_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a directory")
    latency_log = LatencyLog(tmp_path / "state" / "latency", LatencySettings(), now_ns=0)
    latency_log.write([filled()], now_ns=S, unix_ns=NOON_UNIX_NS)

    assert latency_log.problem.endswith("Not a directory")


def test_an_interval_too_large_for_the_limit_is_a_problem_and_leaves_the_bound_kept(tmp_path: Path) -> None:
    recorders = [StageRecorder(f"p{i}") for i in range(60)]
    for recorder in recorders:
        record_everywhere(recorder, spread(random.Random(3), 1000))
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    latency_log.write(recorders, now_ns=S, unix_ns=NOON_UNIX_NS)

    assert "latency.log_mb leaves 375000" in latency_log.problem
    assert not latency_log.path.exists()


def test_a_log_removed_while_the_daemon_runs_is_begun_anew(latency_log: LatencyLog) -> None:
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    latency_log.path.unlink()
    latency_log.write([filled()], now_ns=25 * S, unix_ns=NOON_UNIX_NS + 10 * S)

    (read,) = read_back(latency_log.path)
    assert read.get_start_time_stamp() == 1_700_000_000_000


@pytest.mark.parametrize("tag", ["", "a,b/infer", "a b/infer", "a\n/infer"])
def test_a_tag_that_would_break_a_line_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="wanted one without commas"):
        hdrlog.line(tag, 0.0, 10.0, Histogram())


def test_the_slowest_windows_are_logged_with_all_their_stages_the_slowest_first(latency_log: LatencyLog) -> None:
    recorder = StageRecorder("vibration", slowest=2)
    recorder.written(turn(received_ms=[0, 1, 2], decided_ms=9), 15 * MS)
    recorder.written(turn(received_ms=[20], decided_ms=21, stream="line/7"), 34 * MS + 150_000)
    latency_log.write(
        [recorder], now_ns=1034 * MS + 150_000, unix_ns=NOON_UNIX_NS, temperature_c=61.5, throttled=("throttled",)
    )

    first, second = slow_lines(latency_log.path.with_name(SLOWEST_NAME))
    stages = {name: getattr(TIMES, name) for name in TIMES.__struct_fields__}
    assert first == {
        "at": pytest.approx(1_700_000_000 - 1.01915, abs=1e-6),
        "pipeline": "vibration",
        "stream": "press",
        "id": "0",
        "seq": [1, 2],
        "batch": 3,
        "lat_ms": stages | {"commit": 0.0, "publish": 6.0, "e2e": 15.0},
        "temperature_c": 61.5,
        "throttled": ["throttled"],
    }
    assert (second["stream"], second["batch"], second["at"]) == ("line/7", 1, pytest.approx(1_699_999_999, abs=1e-6))
    assert second["lat_ms"] == stages | {"commit": 0.0, "publish": 13.15, "e2e": 14.15}


def test_what_is_not_known_of_the_device_is_null(latency_log: LatencyLog) -> None:
    recorder = StageRecorder("vibration")
    recorder.written(turn(received_ms=[0], decided_ms=1), 2 * MS)
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    (line,) = slow_lines(latency_log.path.with_name(SLOWEST_NAME))
    assert (line["temperature_c"], line["throttled"]) == (None, None)


def test_every_interval_and_pipeline_has_slowest_windows_of_its_own(latency_log: LatencyLog) -> None:
    recorders = [StageRecorder("fast", slowest=1), StageRecorder("slow", slowest=1)]
    for second, e2e_ms in ((15, 90), (25, 3)):
        for recorder, factor in zip(recorders, (1, 10), strict=True):
            for ms in (1, e2e_ms, 2):
                of = turn(received_ms=[0], decided_ms=0, pipeline=recorder.pipeline)
                recorder.written(of, factor * ms * MS)
        latency_log.write(recorders, now_ns=second * S, unix_ns=NOON_UNIX_NS)

    lines = slow_lines(latency_log.path.with_name(SLOWEST_NAME))
    found = [(line["pipeline"], line["lat_ms"]["e2e"]) for line in lines]
    assert found == [("fast", 90.0), ("slow", 900.0), ("fast", 3.0), ("slow", 30.0)]


@given(e2e_ms=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), max_size=20), most=st.integers(0, 4))
def test_the_windows_kept_are_the_slowest_of_all_that_were_written(e2e_ms: list[list[int]], most: int) -> None:
    recorder = StageRecorder("vibration", slowest=most)
    for of_turn in e2e_ms:
        recorder.written(turn(received_ms=[100 - ms for ms in of_turn], decided_ms=100), 100 * MS)

    kept = [window.e2e_ns // MS for window in recorder.end_slowest()]
    assert kept == sorted(itertools.chain.from_iterable(e2e_ms), reverse=True)[:most]
    assert recorder.end_slowest() == []


def test_no_file_is_made_where_no_slowest_windows_are_wanted(latency_log: LatencyLog) -> None:
    recorder = StageRecorder("vibration", slowest=0)
    recorder.written(turn(received_ms=[0], decided_ms=1), 2 * MS)
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert sorted(path.name for path in latency_log.path.parent.iterdir()) == [LOG_NAME, LOCK_NAME]


def test_when_one_file_cannot_be_written_the_other_is_and_the_problem_names_it(latency_log: LatencyLog) -> None:
    slow = latency_log.path.with_name(SLOWEST_NAME)
    slow.mkdir(parents=True)
    recorder = StageRecorder("vibration")
    recorder.written(turn(received_ms=[0], decided_ms=1), 2 * MS)
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.problem == f"{slow}: Is a directory"
    assert {h.get_tag() for h in read_back(latency_log.path)} == {"vibration/publish", "vibration/e2e"}
