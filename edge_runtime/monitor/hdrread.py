"""Reads HdrHistogram's interval logs: what `hdrlog` writes, and V2 histograms of any other layout and tool.

A log is read line by line, and no line or histogram may be larger than the limits below. Durations are taken as ns.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import LatencyLogError
from edge_runtime.monitor.hdrformat import (
    COMPRESSED_COOKIE,
    COMPRESSED_HEADER,
    COOKIE,
    PAYLOAD_HEADER,
    WORD_SIZE_BITS,
    WORD_SIZE_WRITTEN,
)

Int64s: TypeAlias = npt.NDArray[np.int64]

LINE_BYTES = 2 * 2**20
HISTOGRAM_BYTES = 2**20
MOST_DURATIONS = 2**62
FOLD_STEPS = 4096
YEAR_10000_UNIX_S = 253_402_300_800

_OTHER_ENCODINGS = {0x1C849309: "V0", 0x1C849302: "V1", 0x0C72120F: "of a double histogram"}
_NINTH_BYTE_SHIFT = 56
_LARGEST_NS = 2**63 - 1
_MOST_BITS = 61

_TIME = rb"(-?\d+(?:\.\d*)?)"
_INTERVAL = re.compile(rb"(?:Tag=([^,]*),)?" + _TIME + rb"," + _TIME + rb"," + _TIME + rb",([A-Za-z0-9+/=]+)\r?\n?")
_START_TIME = re.compile(rb"#\[StartTime: *" + _TIME + rb" ")
_BASE_TIME = re.compile(rb"#\[BaseTime: *" + _TIME + rb" ")
_YEAR_S = 365 * 24 * 3600


class HistogramError(ValueError):
    """An encoded histogram or a line of a log is not what the format says."""


class Resolution(NamedTuple):
    """How finely durations are told apart: 2**half_bits steps to a doubling, none shorter than 2**unit_bits ns."""

    unit_bits: int
    half_bits: int


class Steps(NamedTuple):
    """The steps of a histogram that hold a duration: their places in its layout, ascending, and their counts."""

    places: list[int]
    counts: list[int]
    resolution: Resolution


class Interval(NamedTuple):
    """What stands before the histogram of an interval. tag: empty when it has none. line: its number, from 1."""

    tag: str
    start_unix_s: float
    length_s: float
    line: int

    @property
    def end_unix_s(self) -> float:
        return self.start_unix_s + self.length_s


class Distribution:
    """Histograms added up, exactly, whatever their layouts.

    A step counts with the highest duration it stands for: steps of equal layouts add up, those of others lie between.
    """

    def __init__(self) -> None:
        self.count = 0
        self.resolutions: set[Resolution] = set()
        self._pending: dict[Resolution, tuple[array[int], array[int]]] = {}
        self._folded = (np.zeros(0, np.int64), np.zeros(0, np.int64))

    def add(self, steps: Steps) -> None:
        """Raises HistogramError when there would be more than MOST_DURATIONS."""
        self._admit(sum(steps.counts), {steps.resolution})
        places, counts = self._pending.setdefault(steps.resolution, (array("q"), array("q")))
        places.fromlist(steps.places)
        counts.fromlist(steps.counts)
        if len(places) >= FOLD_STEPS:
            self.steps()

    def merge(self, other: Distribution) -> None:
        """Raises HistogramError when there would be more than MOST_DURATIONS."""
        self._admit(other.count, other.resolutions)
        self._folded = _added([self.steps(), other.steps()])

    def steps(self) -> tuple[Int64s, Int64s]:
        """The highest duration of each step, in ns, ascending, each once, and its count; both (n,)."""
        if self._pending:
            pending = [(_highest_ns(np.array(p), of), np.array(n)) for of, (p, n) in self._pending.items()]
            self._pending = {}
            self._folded = _added([self._folded, *pending])
        return self._folded

    def percentiles(self, wanted: Sequence[float]) -> list[int]:
        """Durations in ns that q percent do not exceed, each the highest of its step; 0 when empty.

        wanted: above 0, up to 100. The rank is q * count / 100, rounded, as HdrHistogram has it.
        """
        highest_ns, counts = self.steps()
        if not self.count:
            return [0] * len(wanted)
        ranks = [min(max(int(q * self.count / 100 + 0.5), 1), self.count) for q in wanted]
        return [int(ns) for ns in highest_ns[np.searchsorted(np.cumsum(counts), ranks)]]

    def _admit(self, count: int, resolutions: set[Resolution]) -> None:
        if self.count + count > MOST_DURATIONS:
            raise HistogramError(f"more than {MOST_DURATIONS:,} durations")
        self.count += count
        self.resolutions |= resolutions


class SkippedLines:
    """Lines that were passed over. first_line: number of the first of them, from 1. fact: what is wrong with it."""

    def __init__(self) -> None:
        self.count = self.first_line = 0
        self.fact = ""

    def add(self, line: int, fact: str) -> None:
        self.count += 1
        if self.count == 1:
            self.first_line, self.fact = line, fact


class LogReader:
    """One interval log. unfinished_bytes: length of a last line that was not written to its end, and is not read.

    skipped: lines of nothing but NUL bytes, which a power cut leaves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished_bytes = 0
        self.skipped = SkippedLines()

    def intervals(self, wanted: Callable[[Interval], bool]) -> Iterator[tuple[Interval, Steps]]:
        """The intervals that are wanted, in the order of the log; only these are decoded.

        Raises LatencyLogError for a file that cannot be read and for a line that is no interval with a V2 histogram.
        """
        clock = _Clock()
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                    whole = line.endswith(b"\n") or len(line) == LINE_BYTES
                    if whole and line.startswith(b"\0") and not line.strip(b"\0\r\n"):
                        self.skipped.add(number, "nothing but NUL bytes")
                        continue
                    try:
                        found = _interval(line, number, clock, wanted)
                    except HistogramError as error:
                        if whole:
                            raise LatencyLogError(str(self.path), number, str(error)) from error
                        self.unfinished_bytes = len(line)
                        return
                    if found is not None:
                        yield found
        except OSError as error:
            raise LatencyLogError(str(self.path), 0, f"cannot be read: {error.strerror or error}") from error


class _Clock:
    """What the header of a log, and of each restart in it, says about the times that follow."""

    def __init__(self) -> None:
        self._start_s: float | None = None
        self._base_s: float | None = None

    def read(self, comment: bytes) -> None:
        if found := _START_TIME.match(comment):
            self._start_s, self._base_s = float(found[1]), None
        elif found := _BASE_TIME.match(comment):
            self._base_s = float(found[1])

    def unix_s(self, stamp_s: float) -> float:
        """Without a BaseTime, a stamp a year or more before the StartTime counts from there, as HdrHistogram has it."""
        if self._base_s is None:
            start_s = self._start_s or 0.0
            self._base_s = start_s if stamp_s < start_s - _YEAR_S else 0.0
        return stamp_s + self._base_s


def _interval(
    line: bytes, number: int, clock: _Clock, wanted: Callable[[Interval], bool]
) -> tuple[Interval, Steps] | None:
    """None for a comment, a legend, an empty line and an interval that is not wanted."""
    if len(line) == LINE_BYTES:
        raise HistogramError(f"a line of {LINE_BYTES:,} bytes or more")
    if line.startswith(b"#"):
        clock.read(line)
        return None
    if line.startswith(b'"') or not line.strip():
        return None
    parts = _INTERVAL.fullmatch(line)
    if parts is None:
        raise HistogramError("no comment, legend or interval of a HdrHistogram log")
    tag, start, length, _, encoded = parts.groups()
    interval = Interval((tag or b"").decode(errors="replace"), clock.unix_s(float(start)), float(length), number)
    if not 0 <= interval.start_unix_s <= interval.end_unix_s < YEAR_10000_UNIX_S:
        raise HistogramError(f"an interval from {interval.start_unix_s:g} to {interval.end_unix_s:g} s after 1970")
    return (interval, decode(encoded)) if wanted(interval) else None


def decode(encoded: bytes) -> Steps:
    """A histogram from HdrHistogram's V2 compressed encoding in base64. Raises HistogramError."""
    payload = _decompressed(encoded)
    if len(payload) < PAYLOAD_HEADER.size:
        raise HistogramError(f"a histogram of {len(payload)} bytes, wanted {PAYLOAD_HEADER.size} or more")
    cookie, length, offset, digits, lowest_ns, highest_ns, _ = PAYLOAD_HEADER.unpack_from(payload)
    if cookie & ~WORD_SIZE_BITS != COOKIE:
        raise HistogramError(f"cookie {cookie:#010x} in the histogram, wanted {COOKIE | WORD_SIZE_WRITTEN:#010x} (V2)")
    if length != len(payload) - PAYLOAD_HEADER.size:
        raise HistogramError(f"{len(payload) - PAYLOAD_HEADER.size:,} bytes of counts, its header says {length:,}")
    if offset:
        raise HistogramError(f"shifted by {offset} steps, wanted a histogram that is not")
    resolution = Resolution(lowest_ns.bit_length() - 1, (2 * 10 ** min(digits, 6) - 1).bit_length() - 1)
    if digits > 5 or not 1 <= lowest_ns <= highest_ns // 2 or highest_ns > _LARGEST_NS or sum(resolution) > _MOST_BITS:
        raise HistogramError(f"{digits} digits from {lowest_ns} to {highest_ns} is no layout")
    doublings = max(highest_ns.bit_length() - resolution.half_bits - 1 - resolution.unit_bits, 0)
    places, counts = _counts(payload[PAYLOAD_HEADER.size :], (doublings + 2) << resolution.half_bits)
    return Steps(places, counts, resolution)


def _decompressed(encoded: bytes) -> bytes:
    try:
        packed = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise HistogramError(f"a histogram that is no base64: {error}") from error
    if len(packed) < COMPRESSED_HEADER.size:
        raise HistogramError(f"a compressed histogram of {len(packed)} bytes, wanted {COMPRESSED_HEADER.size} or more")
    cookie, length = COMPRESSED_HEADER.unpack_from(packed)
    if cookie & ~WORD_SIZE_BITS != COMPRESSED_COOKIE:
        kind = _OTHER_ENCODINGS.get(cookie & ~WORD_SIZE_BITS, "unknown")
        raise HistogramError(f"encoding {kind} (cookie {cookie:#010x}), wanted V2")
    compressed = packed[COMPRESSED_HEADER.size :]
    if length != len(compressed):
        raise HistogramError(f"{len(compressed):,} bytes of compressed histogram, its header says {length:,}")
    inflater = zlib.decompressobj()
    try:
        payload = inflater.decompress(compressed, HISTOGRAM_BYTES)
    except zlib.error as error:
        raise HistogramError(f"a histogram that does not decompress: {error}") from error
    if not inflater.eof:
        over = f"has more than {HISTOGRAM_BYTES:,} bytes" if inflater.unconsumed_tail else "is cut off"
        raise HistogramError(f"a histogram that {over}, decompressed")
    return payload


def _counts(encoded: bytes, slots: int) -> tuple[list[int], list[int]]:
    """Place and count of each step in use, from ZigZag LEB128 numbers, where -n stands for n steps not in use."""
    places, counts = [], []
    place = zigzag = shift = 0
    for octet in encoded:
        if octet & 0x80 and shift < _NINTH_BYTE_SHIFT:
            zigzag |= (octet & 0x7F) << shift
            shift += 7
            continue
        zigzag |= octet << shift
        if zigzag & 1:
            place += (zigzag + 1) >> 1
        else:
            if zigzag:
                places.append(place)
                counts.append(zigzag >> 1)
            place += 1
        zigzag = shift = 0
    if shift:
        raise HistogramError("counts that are cut off")
    if place > slots:
        raise HistogramError(f"counts of {place:,} steps, its layout has {slots:,}")
    return places, counts


def _highest_ns(places: Int64s, resolution: Resolution) -> Int64s:
    """The highest duration of each step. places: (n,) in the layout."""
    unit_bits, half_bits = resolution
    doubling = np.maximum((places >> half_bits) - 1, 0)
    width_bits = doubling + unit_bits
    highest_ns: Int64s = ((places - (doubling << half_bits)) << width_bits) + ((np.int64(1) << width_bits) - 1)
    return highest_ns


def _added(parts: Sequence[tuple[Int64s, Int64s]]) -> tuple[Int64s, Int64s]:
    """Durations, in ns, and counts; equal durations become one. In the parts they may stand in any order."""
    highest_ns, counts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not len(highest_ns):
        return highest_ns, counts
    order = np.argsort(highest_ns, kind="stable")
    highest_ns, counts = highest_ns[order], counts[order]
    first = np.flatnonzero(np.diff(highest_ns, prepend=-1))
    return highest_ns[first], np.add.reduceat(counts, first)
