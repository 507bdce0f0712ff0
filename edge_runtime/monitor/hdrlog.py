"""The latency log on the device: HdrHistogram's interval log, version 1.3, readable by its public tools.

One line per pipeline, stage and interval: `Tag=pipeline/stage,start,length,max,histogram`, times in seconds after the
header's StartTime, max in ms, values in ns. The histogram is HdrHistogram's V2 compressed encoding in base64:
zlib over a header and the counts as ZigZag LEB128 numbers, where -n stands for n zeros.
"""

from __future__ import annotations

import base64
import logging
import re
import zlib
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.monitor.hdrformat import (
    COMPRESSED_COOKIE,
    COMPRESSED_HEADER,
    COOKIE,
    PAYLOAD_HEADER,
    WORD_SIZE_WRITTEN,
)
from edge_runtime.monitor.latency import (
    HIGHEST_NS,
    LOWEST_NS,
    SIGNIFICANT_DIGITS,
    Histogram,
    LatencySettings,
    StageRecorder,
)
from edge_runtime.monitor.lock import FileLock
from edge_runtime.monitor.rotation import RotatedFile
from edge_runtime.monitor.slowest import SlowLine

log = logging.getLogger(__name__)

LOG_NAME = "latency.hlog"
SLOWEST_NAME = "slowest.jsonl"
LOCK_NAME = "latency.lock"
CLOCK_STEP_NS = 1_000_000_000

_TAG = re.compile(r"[^\s,]+")


def encode(histogram: Histogram) -> str:
    """A histogram in HdrHistogram's V2 compressed encoding, base64."""
    counts = _encode_counts(histogram)
    layout = (SIGNIFICANT_DIGITS, LOWEST_NS, HIGHEST_NS)
    compressed = zlib.compress(PAYLOAD_HEADER.pack(COOKIE | WORD_SIZE_WRITTEN, len(counts), 0, *layout, 1.0) + counts)
    head = COMPRESSED_HEADER.pack(COMPRESSED_COOKIE | WORD_SIZE_WRITTEN, len(compressed))
    return base64.b64encode(head + compressed).decode()


def header(start_unix_ns: int) -> str:
    """The lines a log, a restart and a step of the clock in it begin with; the lines after it count from this time."""
    seconds = start_unix_ns / 1e9
    date = datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        "#[Histogram log format version 1.3]\n"
        f"#[StartTime: {seconds:.3f} (seconds since epoch), {date}]\n"
        f"#[BaseTime: {seconds:.3f} (seconds since epoch)]\n"
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
    )


def line(tag: str, start_s: float, length_s: float, histogram: Histogram) -> str:
    """One interval. tag: no comma, no white space. start_s: seconds after the header's StartTime."""
    if not _TAG.fullmatch(tag):
        raise ValueError(f"tag {tag!r}, wanted one without commas and white space")
    return f"Tag={tag},{start_s:.3f},{length_s:.3f},{histogram.max_ns / 1e6:.3f},{encode(histogram)}\n"


class LatencyLog:
    """Writes the intervals of all pipelines, and their slowest windows, to bounded files; outlives a full disk.

    Of `log_mb` three quarters are for the histograms and one for the slowest windows; the current file and the rotated
    one have half of that each. problem: why the last write failed, empty when it did not; what was to be written then
    is lost to the log (not to the totals). A folder has one writer: the first to write, until it closes or ends.
    """

    def __init__(self, directory: Path, settings: LatencySettings, *, now_ns: int) -> None:
        """now_ns: monotonic; the first interval begins then."""
        self.path = directory / LOG_NAME
        self.problem = ""
        self._lock = FileLock(directory / LOCK_NAME)
        self._histograms = RotatedFile(self.path, limit_bytes=int(settings.log_mb * 1e6 * 3 / 8))
        self._slowest = RotatedFile(directory / SLOWEST_NAME, limit_bytes=int(settings.log_mb * 1e6 / 8))
        self._interval_ns = int(settings.interval_s * 1e9)
        self._from_ns = now_ns
        self._base_ns: int | None = None
        self._wall_ahead_ns = 0

    def due(self, now_ns: int) -> bool:
        """Whether the interval is over."""
        return now_ns - self._from_ns >= self._interval_ns

    def write(
        self,
        recorders: Iterable[StageRecorder],
        *,
        now_ns: int,
        unix_ns: int,
        temperature_c: float | None = None,
        throttled: tuple[str, ...] | None = None,
    ) -> None:
        """End the interval of every recorder and append it; call when due and once at the end.

        now_ns: monotonic. unix_ns: wall clock at the same moment. temperature_c, throttled: of the device, None when
        unknown. A failure to write is kept in `problem`.
        """
        ended: dict[str, Histogram] = {}
        slow: list[SlowLine] = []
        for recorder in recorders:
            ended |= {f"{recorder.pipeline}/{stage}": found for stage, found in recorder.end_interval().items()}
            slow += [
                window.line(now_ns=now_ns, unix_ns=unix_ns, temperature_c=temperature_c, throttled=throttled)
                for window in recorder.end_slowest()
            ]
        from_ns, self._from_ns = self._from_ns, now_ns
        if not ended:
            return
        failed = self._shut_out()
        if not failed:
            failed += self._append(self._histograms, lambda fresh: self._render(ended, from_ns, now_ns, unix_ns, fresh))
            if slow:
                failed += self._append(self._slowest, lambda _: b"".join(msgspec.json.encode(s) + b"\n" for s in slow))
        if failed:
            self._base_ns = None
        self._turn("; ".join(failed))

    def close(self) -> None:
        """Let another write here. A write after it takes the folder again."""
        self._lock.release()

    def _shut_out(self) -> list[str]:
        """Why this may not write here, if so."""
        try:
            self._lock.take()
        except BlockingIOError:
            return [f"{self._lock.path}: another process holds it and writes its latency log here"]
        except OSError as error:
            return [f"{self._lock.path}: {error.strerror or error}"]
        return []

    def _append(self, file: RotatedFile, render: Callable[[bool], bytes]) -> list[str]:
        """What went wrong, if anything did."""
        try:
            file.append(render)
        except OSError as error:
            return [f"{file.path}: {error.strerror or error}"]
        return []

    def _render(self, ended: dict[str, Histogram], from_ns: int, now_ns: int, unix_ns: int, fresh: bool) -> bytes:
        """The interval's lines, under a header of their own in a fresh file, at a process's first write, after a step.

        A step: the wall clock was set, as on a board without a clock of its own when the network's time arrives.
        """
        parts = []
        wall_ahead_ns = unix_ns - now_ns
        if fresh or self._base_ns is None or abs(wall_ahead_ns - self._wall_ahead_ns) > CLOCK_STEP_NS:
            self._base_ns, self._wall_ahead_ns = from_ns, wall_ahead_ns
            parts.append(header(max(unix_ns - (now_ns - from_ns), 0)))
        start_s, length_s = (from_ns - self._base_ns) / 1e9, (now_ns - from_ns) / 1e9
        parts += [line(tag, start_s, length_s, histogram) for tag, histogram in ended.items()]
        return "".join(parts).encode()

    def _turn(self, problem: str) -> None:
        """Remember how the last write went; say so once when that changes."""
        if problem and not self.problem:
            log.warning("latency_log_failing", extra={"problem": problem})
        elif self.problem and not problem:
            log.info("latency_log_recovered", extra={"path": str(self.path)})
        self.problem = problem


def _encode_counts(histogram: Histogram) -> bytes:
    """Each count n up to the last in use as 2n, each run of n > 1 zeros as 2n - 1; 7 bits a byte, lowest first."""
    used, counts = histogram.used()
    zeros = np.diff(used, prepend=-1) - 1
    pairs = np.column_stack((np.where(zeros > 1, 2 * zeros - 1, 0), 2 * counts))
    numbers = pairs[np.column_stack((zeros > 0, counts > 0))]
    shifts = np.arange(0, max(int(numbers.max(initial=0)).bit_length(), 1), 7)
    septets = numbers[:, np.newaxis] >> shifts
    octets = septets & 0x7F | (septets > 0x7F) * 0x80
    return bytes(octets[(septets > 0) | (shifts == 0)].astype(np.uint8))
