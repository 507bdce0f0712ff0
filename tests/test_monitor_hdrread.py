from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader, HistogramLogWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import LatencyLogError
from edge_runtime.monitor import hdrlog, hdrread
from edge_runtime.monitor.hdrread import HISTOGRAM_BYTES, LINE_BYTES, Distribution, HistogramError, LogReader, decode
from edge_runtime.monitor.latency import HIGHEST_NS, LOWEST_NS, SLOTS, Histogram, upper_bound_ns

MS = 1_000_000
WANTED = (50, 90, 95, 99, 99.9, 100)
V2, V2_COMPRESSED = 0x1C849313, 0x1C849314
OURS = (2, LOWEST_NS, HIGHEST_NS)
LAYOUTS = [OURS, (1, 1, 2), (2, 1, 10**9), (3, 1, 3_600_000), (3, 1000, 3_600_000_000), (4, 7, 10**5)]

durations = st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 62).map(lambda bits: 2**bits))
recorded = st.lists(st.tuples(durations, st.sampled_from([1, 2, 63, 64, 2**20, 2**45])), max_size=30)


def of_the_package(layout: tuple[int, int, int], values: list[tuple[int, int]]) -> HdrHistogram:
    digits, lowest_ns, highest_ns = layout
    histogram = HdrHistogram(lowest_ns, highest_ns, digits)
    for value, count in values:
        assert histogram.record_value(min(value, highest_ns), count)
    return histogram


def counted(histogram: HdrHistogram) -> dict[int, int]:
    """The highest duration of each step in use, and its count, by the public implementation."""
    counts = [histogram.get_count_at_index(i) for i in range(histogram.counts_len)]
    places = [i for i, count in enumerate(counts) if count]
    return {histogram.get_highest_equivalent_value(histogram.get_value_from_index(i)): counts[i] for i in places}


def percentiles(histogram: HdrHistogram) -> list[int]:
    found = histogram.get_percentile_to_value_dict(list(WANTED))
    return [found[q] for q in WANTED]


def added(*encoded: bytes) -> Distribution:
    distribution = Distribution()
    for histogram in encoded:
        distribution.add(decode(histogram))
    return distribution


def steps(distribution: Distribution) -> dict[int, int]:
    highest_ns, counts = distribution.steps()
    return dict(zip(highest_ns.tolist(), counts.tolist(), strict=True))


def packed(
    counts: bytes,
    *,
    cookie: int = V2,
    outer: int = V2_COMPRESSED,
    length: int | None = None,
    offset: int = 0,
    layout: tuple[int, int, int] = OURS,
) -> bytes:
    """An encoded histogram, made by hand."""
    header = struct.pack(">IIIIQQd", cookie, len(counts) if length is None else length, offset, *layout, 1.0)
    compressed = zlib.compress(header + counts)
    return base64.b64encode(struct.pack(">II", outer, len(compressed)) + compressed)


def intervals(path: Path) -> list[tuple[str, float, float, int]]:
    """Tag, start, length and count of each."""
    found = LogReader(path).intervals(lambda _: True)
    return [(interval.tag, interval.start_unix_s, interval.length_s, sum(steps.counts)) for interval, steps in found]


def line(tag: str = "vibration/infer", start_s: float = 0.0, values: tuple[int, ...] = (MS,)) -> str:
    histogram = Histogram()
    histogram.record_all(values)
    return hdrlog.line(tag, start_s, 10.0, histogram)


def log(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "latency.hlog"
    path.write_bytes(b"".join(part.encode() if isinstance(part, str) else part for part in lines))
    return path


@settings(deadline=None)
@given(layout=st.sampled_from(LAYOUTS), values=recorded)
def test_what_the_public_implementation_encodes_is_decoded_count_by_count(
    layout: tuple[int, int, int], values: list[tuple[int, int]]
) -> None:
    theirs = of_the_package(layout, values)

    ours = added(theirs.encode())

    assert steps(ours) == counted(theirs)
    assert ours.count == theirs.get_total_count()
    if values:
        assert ours.percentiles(WANTED) == percentiles(theirs)


@settings(deadline=None)
@given(values=st.lists(st.integers(0, HIGHEST_NS), max_size=100))
def test_what_the_latency_log_encodes_is_decoded_count_by_count(values: list[int]) -> None:
    histogram = Histogram()
    histogram.record_all(values)

    found = added(hdrlog.encode(histogram).encode())

    assert steps(found) == {upper_bound_ns(p): n for p, n in zip(*histogram.used(), strict=True)}
    assert found.percentiles(WANTED) == histogram.percentiles(WANTED)


@settings(deadline=None)
@given(parts=st.lists(recorded, min_size=1, max_size=4), layout=st.sampled_from(LAYOUTS))
def test_histograms_of_one_layout_add_up_as_the_public_implementation_has_it(
    parts: list[list[tuple[int, int]]], layout: tuple[int, int, int]
) -> None:
    theirs = [of_the_package(layout, part) for part in parts]
    ours = added(*(histogram.encode() for histogram in theirs))
    total = of_the_package(layout, [])
    for histogram in theirs:
        total.decode_and_add(histogram.encode())

    assert len(ours.resolutions) == 1
    assert ours.percentiles(WANTED) == ([0] * len(WANTED) if not ours.count else percentiles(total))


@settings(deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(LAYOUTS), recorded), min_size=1, max_size=4), together=st.booleans())
def test_histograms_of_several_layouts_add_up_each_value_as_exact_as_its_own(
    parts: list[tuple[tuple[int, int, int], list[tuple[int, int]]]], together: bool
) -> None:
    theirs = [of_the_package(*part) for part in parts]
    expected: dict[int, int] = {}
    for histogram in theirs:
        for highest_ns, count in counted(histogram).items():
            expected[highest_ns] = expected.get(highest_ns, 0) + count

    ours = Distribution()
    for histogram in theirs:
        ours.add(decode(histogram.encode())) if together else ours.merge(added(histogram.encode()))

    assert steps(ours) == dict(sorted(expected.items()))
    assert ours.count == sum(expected.values())


def test_percentiles_of_a_thousand_intervals_are_those_of_all_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdrread, "FOLD_STEPS", 7)
    ours, total = Distribution(), Histogram()
    for i in range(1000):
        part, values = Histogram(), [i * MS % 977_000_000, i * 1000]
        part.record_all(values)
        total.record_all(values)
        ours.add(decode(hdrlog.encode(part).encode()))

    assert ours.count == 2000
    assert ours.percentiles(WANTED) == total.percentiles(WANTED)


def test_nothing_has_no_percentiles() -> None:
    assert added(HdrHistogram(1, 1000, 3).encode()).percentiles(WANTED) == [0] * 6


def test_numbers_take_up_to_nine_bytes_and_negative_ones_skip_steps() -> None:
    three, skip_four, skip_one = b"\x06", b"\x07", b"\x00"
    largest_kept = b"\xfe" + b"\xff" * 7 + b"\x3f"
    found = decode(packed(three + skip_four + skip_one + three + largest_kept))

    assert found.places == [0, 6, 7]
    assert found.counts == [3, 3, (2**62 - 2) // 2]


@pytest.mark.parametrize(
    ("encoded", "fact"),
    [
        (packed(b"\x02", outer=0x1C849309), "encoding V0 .cookie 0x1c849309., wanted V2"),
        (packed(b"\x02", outer=0x1C849302 | 0x40), "encoding V1 .cookie 0x1c849342., wanted V2"),
        (packed(b"\x02", outer=0x0C72124F), "encoding of a double histogram"),
        (packed(b"\x02", outer=0x12345678), "encoding unknown"),
        (packed(b"\x02", cookie=0x1C849301), "cookie 0x1c849301 in the histogram, wanted 0x1c849313"),
        (packed(b"\x02", length=2), "1 bytes of counts, its header says 2"),
        (packed(b"\x02", offset=3), "shifted by 3 steps"),
        (packed(b"\x02", layout=(6, 1, 100)), "6 digits from 1 to 100 is no layout"),
        (packed(b"\x02", layout=(2**32 - 1, 1, 100)), "is no layout"),
        (packed(b"\x02", layout=(2, 0, 100)), "is no layout"),
        (packed(b"\x02", layout=(2, 100, 199)), "is no layout"),
        (packed(b"\x02", layout=(2, 1, 2**63)), "is no layout"),
        (packed(b"\x02", layout=(5, 2**50, 2**62)), "is no layout"),
        (packed(b"\x02\x82"), "counts that are cut off"),
        (packed(b"\x00" * (SLOTS + 1)), f"counts of {SLOTS + 1:,} steps, its layout has {SLOTS:,}"),
        (packed(b"\xff" * 9), "counts of 9,223,372,036,854,775,808 steps"),
        (packed(b"\x02")[:-8], "bytes of compressed histogram, its header says"),
        (b"HIST=AAA", "no base64"),
        (b"AAAA", "a compressed histogram of 3 bytes"),
        (base64.b64encode(struct.pack(">II", V2_COMPRESSED, 4) + b"zlib"), "does not decompress"),
        (base64.b64encode(struct.pack(">II", V2_COMPRESSED, 11) + zlib.compress(b"123")), "3 bytes, wanted 40"),
        (base64.b64encode(struct.pack(">II", V2_COMPRESSED, 9) + zlib.compress(b"123")[:9]), "is cut off"),
        (packed(b"\x00" * HISTOGRAM_BYTES), f"more than {HISTOGRAM_BYTES:,} bytes"),
    ],
)
def test_what_is_no_v2_histogram_is_refused_with_the_fact(encoded: bytes, fact: str) -> None:
    with pytest.raises(HistogramError, match=fact):
        decode(encoded)


def test_a_histogram_that_decompresses_without_end_takes_no_memory() -> None:
    bomb = packed(b"\x00" * (200 * HISTOGRAM_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(HistogramError, match="more than"):
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 4 * HISTOGRAM_BYTES


def test_more_durations_than_can_be_counted_are_refused() -> None:
    most = packed(b"\xfe" + b"\xff" * 7 + b"\x7f")
    found = added(most, packed(b"\x02"))

    assert found.count == 2**62
    with pytest.raises(HistogramError, match="more than 4,611,686,018,427,387,904 durations"):
        found.add(decode(packed(b"\x02")))


def test_every_restart_in_a_log_has_a_time_of_its_own(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        hdrlog.header(1_700_000_000 * 10**9),
        line(start_s=0.0),
        line(tag="digits/e2e", start_s=10.0, values=(MS, MS)),
        hdrlog.header(1_700_003_600 * 10**9),
        line(start_s=5.0),
    )

    assert intervals(path) == [
        ("vibration/infer", 1_700_000_000.0, 10.0, 1),
        ("digits/e2e", 1_700_000_010.0, 10.0, 2),
        ("vibration/infer", 1_700_003_605.0, 10.0, 1),
    ]


def test_restarts_that_say_only_when_they_began_have_times_of_their_own(tmp_path: Path) -> None:
    starts = [f"#[StartTime: {unix_s}.000 (seconds since epoch)]\n" for unix_s in (1_700_000_000, 1_700_003_600)]

    found = intervals(log(tmp_path, starts[0], line(start_s=1.0), starts[1], line(start_s=2.0)))

    assert [start_s for _, start_s, _, _ in found] == [1_700_000_001.0, 1_700_003_602.0]


@pytest.mark.parametrize(
    "head",
    [
        "",
        "#[StartTime: 1441812279.474 (seconds since epoch), Wed Sep 09 08:24:39 PDT 2015]\n",
        "#[StartTime: 1000.5 (seconds since epoch)]\n",
        "#[BaseTime: 1441812279.474 (seconds since epoch)]\n",
        "#[StartTime: 1441812279.474 (seconds since epoch)]\n#[BaseTime: 1441812000.000 (seconds since epoch)]\n",
    ],
    ids=["none", "start, relative", "start, absolute", "base", "both"],
)
def test_a_log_of_the_public_writer_has_the_times_that_the_public_reader_finds(tmp_path: Path, head: str) -> None:
    text = io.StringIO()
    writer = HistogramLogWriter(text)
    writer.output_comment("by somebody else")
    writer.output_log_format_version()
    text.write(head)
    writer.output_legend()
    for start_s, values in ((0.127, [(70, 3)]), (1.134, [(80, 2), (10**8, 1)])):
        writer.output_interval_histogram(of_the_package((3, 1, 3_600_000_000), values), start_s, start_s + 1.25)
    path = log(tmp_path, text.getvalue())

    reader = HistogramLogReader(str(path), HdrHistogram(1, 3_600_000_000, 3))
    theirs = list(iter(lambda: reader.get_next_interval_histogram(-2e9), None))
    reader.close()

    assert intervals(path) == [
        ("", pytest.approx(h.get_start_time_stamp() / 1000), 1.25, h.get_total_count()) for h in theirs
    ]
    assert len(theirs) == 2


@pytest.mark.parametrize("lost", range(1, 80, 6))
def test_a_last_line_that_is_cut_off_is_left_out_and_told(tmp_path: Path, lost: int) -> None:
    whole = line(start_s=10.0, values=(MS, 2 * MS, 3 * MS))
    reader = LogReader(log(tmp_path, hdrlog.header(0), line(), whole[:-lost]))

    found = [interval.line for interval, _ in reader.intervals(lambda _: True)]

    complete = lost == 1  # only its end of line is missing
    assert found == ([5, 6] if complete else [5])
    assert reader.unfinished_bytes == (0 if complete else len(whole) - lost)


def test_zeros_that_a_power_loss_left_at_the_end_are_left_out_and_told(tmp_path: Path) -> None:
    reader = LogReader(log(tmp_path, line(), b"\0" * 4096))

    assert len(list(reader.intervals(lambda _: True))) == 1
    assert reader.unfinished_bytes == 4096


@pytest.mark.parametrize("zeros", [b"\0\n", b"\0" * 4096 + b"\r\n", b"\0" * LINE_BYTES])
def test_lines_of_zeros_that_a_power_loss_left_are_skipped_and_counted(tmp_path: Path, zeros: bytes) -> None:
    path = log(tmp_path, hdrlog.header(0), line(), zeros, zeros, line(start_s=10.0))
    reader = LogReader(path)

    assert [interval.start_unix_s for interval, _ in reader.intervals(lambda _: True)] == [0.0, 10.0]
    assert (reader.skipped.count, reader.skipped.first_line, reader.skipped.fact) == (2, 6, "nothing but NUL bytes")
    assert reader.unfinished_bytes == 0


@pytest.mark.parametrize(
    ("third", "fact"),
    [
        ("12:00:01 started\n", "no comment, legend or interval of a HdrHistogram log"),
        (b"\x89PNG\r\n", "no comment, legend or interval"),
        (b"\0" * 100 + b"0,1.0\n", "no comment, legend or interval"),
        ("Tag=a/b,0.000,10.000,AAAA\n", "no comment, legend or interval"),
        ("Tag=a/b,0.000,10.000,nan,AAAA\n", "no comment, legend or interval"),
        ("Tag=a/b,0.000,10.000,1.000,AAAA\n", "a compressed histogram of 3 bytes"),
        (b"0.0,1.0,1.0," + packed(b"\x02", outer=0x1C849302) + b"\n", "encoding V1"),
        (b"0.0,-1.0,1.0," + packed(b"\x02") + b"\n", "an interval from 0 to -1 s after 1970"),
        (b"1" * 400 + b",1.0,1.0," + packed(b"\x02") + b"\n", "an interval from inf"),
        (b"#" * LINE_BYTES + b"\n", f"a line of {LINE_BYTES:,} bytes or more"),
    ],
)
def test_a_line_that_is_none_of_a_log_is_named(tmp_path: Path, third: str | bytes, fact: str) -> None:
    path = log(tmp_path, "# a comment\n", line(), third, line())

    with pytest.raises(LatencyLogError, match=fact) as raised:
        intervals(path)

    assert (raised.value.path, raised.value.line) == (str(path), 3)
    assert str(raised.value).startswith(f"{path}, line 3: ")


def test_what_is_not_wanted_is_not_decoded(tmp_path: Path) -> None:
    path = log(tmp_path, line(tag="a/infer"), "Tag=b/infer,0.000,10.000,1.000,AAAA\n")

    found = LogReader(path).intervals(lambda interval: interval.tag == "a/infer")

    assert [interval.tag for interval, _ in found] == ["a/infer"]


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LatencyLogError, match="gone.hlog: cannot be read: No such file or directory"):
        intervals(tmp_path / "gone.hlog")


@settings(deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_log_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    whole = bytearray((hdrlog.header(0) + line(values=tuple(range(0, 50 * MS, 100_000)))).encode())
    for place, octet in flips:
        whole[place % len(whole)] = octet
    path = tmp_path_factory.getbasetemp() / "damaged.hlog"
    path.write_bytes(whole)

    with suppress(LatencyLogError):
        assert len(intervals(path)) <= 1


@settings(deadline=None)
@given(counts=st.binary(max_size=60), header=st.binary(min_size=40, max_size=40))
def test_any_bytes_are_a_histogram_or_refused(counts: bytes, header: bytes) -> None:
    anything = zlib.compress(header + counts)
    for encoded in (packed(counts), base64.b64encode(struct.pack(">II", V2_COMPRESSED, len(anything)) + anything)):
        try:
            found = decode(encoded)
        except HistogramError:
            continue
        assert found.places == sorted(set(found.places))
        assert all(count > 0 for count in found.counts)
        assert all(place < SLOTS for place in found.places)
