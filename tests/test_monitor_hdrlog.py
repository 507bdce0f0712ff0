from __future__ import annotations

import base64
import logging
import random
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.monitor import hdrlog
from edge_runtime.monitor.hdrlog import LOG_NAME, ROTATED_NAME, LatencyLog
from edge_runtime.monitor.latency import (
    HIGHEST_NS,
    LOWEST_NS,
    SIGNIFICANT_DIGITS,
    TIMED,
    Histogram,
    LatencySettings,
    StageRecorder,
)

S = 1_000_000_000
MS = 1_000_000
NOON_UNIX_NS = 1_700_000_000 * S


def filled(pipeline: str = "vibration", stage: str = "infer", values: tuple[int, ...] = (MS, 2 * MS)) -> StageRecorder:
    recorder = StageRecorder(pipeline)
    for value in values:
        recorder.record(stage, value)
    return recorder


def spread(rng: random.Random, n: int) -> list[int]:
    """Durations all over the range, which compress badly."""
    return [int(10 ** rng.uniform(3, 10.7)) for _ in range(n)]


def record_everywhere(recorder: StageRecorder, values: list[int]) -> None:
    for stage in TIMED:
        for value in values:
            recorder.record(stage, value)


def read_back(path: Path) -> list[HdrHistogram]:
    """Every interval of a log, as the public reader sees it."""
    reader = HistogramLogReader(str(path), HdrHistogram(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS))
    try:
        return list(iter(reader.get_next_interval_histogram, None))
    finally:
        reader.close()


@pytest.fixture
def latency_log(tmp_path: Path) -> LatencyLog:
    return LatencyLog(tmp_path / "latency", LatencySettings(), now_ns=5 * S)


@given(
    values=st.lists(st.integers(0, HIGHEST_NS), max_size=100),
    doublings=st.integers(0, 45),
)
def test_an_encoded_histogram_is_decoded_by_the_public_implementation(values: list[int], doublings: int) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for _ in range(doublings):
        histogram.merge(histogram.snapshot())

    decoded = HdrHistogram.decode(hdrlog.encode(histogram))

    assert decoded.get_total_count() == histogram.count
    counts = histogram.counts()
    assert [decoded.get_count_at_index(i) for i in range(len(counts))] == list(counts)
    assert [decoded.get_value_at_percentile(q) for q in (50, 99, 100)] == histogram.percentiles((50, 99, 100))


def test_counts_are_written_as_zigzag_numbers_with_runs_of_zeros() -> None:
    step = 512
    histogram = Histogram()
    for index, count in ((0, 1), (2, 3), (7, 100)):
        for _ in range(count):
            histogram.record(index * step)

    payload = zlib.decompress(base64.b64decode(hdrlog.encode(histogram))[8:])

    one, no, three, four_zeros, hundred = b"\x02", b"\x00", b"\x06", b"\x07", b"\xc8\x01"
    assert payload[40:] == one + no + three + four_zeros + hundred
    assert payload[:8] == bytes.fromhex("1c849313") + (6).to_bytes(4, "big")


def test_the_log_reads_back_with_the_same_percentiles(latency_log: LatencyLog) -> None:
    rng = random.Random(7)
    values = {stage: [int(rng.lognormvariate(14, 1.5)) for _ in range(3000)] for stage in ("decode", "infer", "e2e")}
    recorder = StageRecorder("vibration")
    for stage, durations in values.items():
        for duration in durations:
            recorder.record(stage, duration)
    latency_log.write([recorder], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    read = {histogram.get_tag(): histogram for histogram in read_back(latency_log.path)}

    assert set(read) == {"vibration/decode", "vibration/infer", "vibration/e2e"}
    for stage in values:
        total = recorder.total(stage)
        found = [read[f"vibration/{stage}"].get_value_at_percentile(q) for q in (0, 50, 90, 95, 99, 99.9, 100)]
        assert found == total.percentiles((0, 50, 90, 95, 99, 99.9, 100))


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
    restarted = LatencyLog(latency_log.path.parent, LatencySettings(), now_ns=1 * S)
    restarted.write([filled()], now_ns=3 * S, unix_ns=NOON_UNIX_NS + 3600 * S)

    starts = [histogram.get_start_time_stamp() for histogram in read_back(latency_log.path)]

    assert starts == [(1_700_000_000 - 10) * 1000, (1_700_000_000 + 3598) * 1000]


@pytest.mark.parametrize("tail", [b"Tag=vibration/infer,10.000,10.0", b"\0" * 4096, b"#[Histogram log for"])
def test_what_a_crash_left_unfinished_is_cut_off(latency_log: LatencyLog, tail: bytes) -> None:
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)
    whole = latency_log.path.read_bytes()
    with latency_log.path.open("ab") as file:
        file.write(tail)
    restarted = LatencyLog(latency_log.path.parent, LatencySettings(), now_ns=0)
    restarted.write([filled(pipeline="digits")], now_ns=S, unix_ns=NOON_UNIX_NS)

    assert [h.get_tag() for h in read_back(latency_log.path)] == ["vibration/infer", "digits/infer"]
    assert latency_log.path.read_bytes().startswith(whole + b"#[Histogram log format version 1.3]\n")


def test_a_long_log_loses_only_its_unfinished_line(latency_log: LatencyLog) -> None:
    whole = b"# a line of a log written by an earlier run\n" * 5000
    latency_log.path.parent.mkdir()
    latency_log.path.write_bytes(whole + b"Tag=vibration/in")
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes().startswith(whole + b"#[Histogram log format version 1.3]\n")


def test_a_file_without_a_single_whole_line_is_begun_anew(latency_log: LatencyLog) -> None:
    latency_log.path.parent.mkdir()
    latency_log.path.write_bytes(b"\0" * 100_000)
    latency_log.write([filled()], now_ns=15 * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes().startswith(b"#[Histogram log format version 1.3]\n")
    assert len(read_back(latency_log.path)) == 1


def test_both_files_together_stay_within_the_limit_and_readable(tmp_path: Path) -> None:
    rng, recorder = random.Random(3), StageRecorder("vibration")
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    rotated, largest = tmp_path / ROTATED_NAME, 0
    for interval in range(1, 301):
        record_everywhere(recorder, spread(rng, 400))
        latency_log.write([recorder], now_ns=interval * S, unix_ns=NOON_UNIX_NS + interval * S)
        size = latency_log.path.stat().st_size + (rotated.stat().st_size if rotated.exists() else 0)
        largest = max(largest, size)

    assert latency_log.problem == ""
    assert 700_000 < largest <= 1_000_000
    older, newer = read_back(rotated), read_back(latency_log.path)
    assert older
    assert newer
    assert newer[-1].get_end_time_stamp() == (1_700_000_000 + 300) * 1000
    assert older[-1].get_end_time_stamp() == newer[0].get_start_time_stamp()


def test_files_above_a_lowered_limit_are_dropped_at_start(tmp_path: Path) -> None:
    for name in (LOG_NAME, ROTATED_NAME):
        (tmp_path / name).write_bytes(b"#\n" * 300_000)
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    latency_log.write([filled()], now_ns=S, unix_ns=NOON_UNIX_NS)

    assert not (tmp_path / ROTATED_NAME).exists()
    assert latency_log.path.stat().st_size < 1000


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
        recorder.record("infer", MS)
        with files_limited_to(len(whole) + 50):
            latency_log.write([recorder], now_ns=second * S, unix_ns=NOON_UNIX_NS)

    assert latency_log.path.read_bytes()[len(whole) :].count(b"\n") < 4
    assert latency_log.problem == f"{latency_log.path}: File too large"
    assert [record.message for record in caplog.records] == ["latency_log_failing"]
    assert recorder.total("infer").count == 4

    recorder.record("infer", MS)
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
    recorders = [StageRecorder(f"p{i}") for i in range(100)]
    for recorder in recorders:
        record_everywhere(recorder, spread(random.Random(3), 1000))
    latency_log = LatencyLog(tmp_path, LatencySettings(log_mb=1.0), now_ns=0)
    latency_log.write(recorders, now_ns=S, unix_ns=NOON_UNIX_NS)

    assert "latency.log_mb leaves 500000" in latency_log.problem
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
