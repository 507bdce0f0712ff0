"""The latency log on the device: HdrHistogram's interval log, version 1.3, readable by its public tools.

One line per pipeline, stage and interval: `Tag=pipeline/stage,start,length,max,histogram`, times in seconds after the
header's StartTime, max in ms, values in ns. The histogram is HdrHistogram's V2 compressed encoding in base64:
zlib over a header and the counts as ZigZag LEB128 numbers, where -n stands for n zeros.
"""

from __future__ import annotations

import base64
import logging
import re
import struct
import zlib
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from edge_runtime.monitor.latency import (
    HIGHEST_NS,
    LOWEST_NS,
    SIGNIFICANT_DIGITS,
    Histogram,
    LatencySettings,
    StageRecorder,
)

log = logging.getLogger(__name__)

LOG_NAME = "latency.hlog"
ROTATED_NAME = LOG_NAME + ".1"

_V2_COOKIE = 0x1C849303 | 0x10
_V2_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_PAYLOAD_HEADER = struct.Struct(">IIIIQQd")
_COMPRESSED_HEADER = struct.Struct(">II")
_TAG = re.compile(r"[^\s,]+")
_TAIL_BYTES = 64 * 1024


def encode(histogram: Histogram) -> str:
    """A histogram in HdrHistogram's V2 compressed encoding, base64."""
    counts = _encode_counts(histogram.counts())
    header = _PAYLOAD_HEADER.pack(_V2_COOKIE, len(counts), 0, SIGNIFICANT_DIGITS, LOWEST_NS, HIGHEST_NS, 1.0)
    compressed = zlib.compress(header + counts)
    return base64.b64encode(_COMPRESSED_HEADER.pack(_V2_COMPRESSED_COOKIE, len(compressed)) + compressed).decode()


def header(start_unix_ns: int) -> str:
    """The lines a log, and each restart in it, begins with; the lines after it count from this time."""
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
    """Writes the intervals of all pipelines to one bounded file, and outlives a full or vanished disk.

    The current file and the rotated one are each kept to half of `log_mb`. Between writes nothing is open. problem: why
    the last write failed, empty when it did not; what was to be written then is lost to the log (not to the totals).
    """

    def __init__(self, directory: Path, settings: LatencySettings, *, now_ns: int) -> None:
        """now_ns: monotonic; the first interval begins then."""
        self.path = directory / LOG_NAME
        self.problem = ""
        self._rotated = directory / ROTATED_NAME
        self._interval_ns = int(settings.interval_s * 1e9)
        self._limit = int(settings.log_mb * 1e6 / 2)
        self._from_ns = now_ns
        self._base_ns: int | None = None

    def due(self, now_ns: int) -> bool:
        """Whether the interval is over."""
        return now_ns - self._from_ns >= self._interval_ns

    def write(self, recorders: Iterable[StageRecorder], *, now_ns: int, unix_ns: int) -> None:
        """End the interval of every recorder and append it; call when due and once at the end.

        now_ns: monotonic. unix_ns: wall clock, used for headers only. A failure to write is kept in `problem`.
        """
        ended = {
            f"{recorder.pipeline}/{stage}": histogram
            for recorder in recorders
            for stage, histogram in recorder.end_interval().items()
        }
        from_ns, self._from_ns = self._from_ns, now_ns
        if not ended:
            return
        try:
            self._append(ended, from_ns, now_ns, unix_ns)
        except OSError as error:
            self._base_ns = None
            self._turn(f"{self.path}: {error.strerror or error}")
        else:
            self._turn("")

    def _append(self, ended: dict[str, Histogram], from_ns: int, now_ns: int, unix_ns: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._base_ns is None:
            self._mend()
        size = self.path.stat().st_size if self.path.exists() else 0
        text = self._render(ended, from_ns, now_ns, unix_ns, fresh=size == 0)
        if size and size + len(text) > self._limit:
            self.path.replace(self._rotated)
            text = self._render(ended, from_ns, now_ns, unix_ns, fresh=True)
        if len(text) > self._limit:
            raise OSError(f"one interval takes {len(text)} bytes, latency.log_mb leaves {self._limit}")
        with self.path.open("ab") as file:
            file.write(text)

    def _render(self, ended: dict[str, Histogram], from_ns: int, now_ns: int, unix_ns: int, *, fresh: bool) -> bytes:
        """The interval's lines, under a header of their own in a fresh file and at the first write of a process."""
        parts = []
        if fresh or self._base_ns is None:
            self._base_ns = from_ns
            parts.append(header(max(unix_ns - (now_ns - from_ns), 0)))
        start_s, length_s = (from_ns - self._base_ns) / 1e9, (now_ns - from_ns) / 1e9
        parts += [line(tag, start_s, length_s, histogram) for tag, histogram in ended.items()]
        return "".join(parts).encode()

    def _mend(self) -> None:
        """Cut off a line that a crash or a full disk left unfinished, and drop files above the present limit."""
        for path in (self.path, self._rotated):
            if path.exists() and path.stat().st_size > self._limit:
                path.unlink()
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(_end_of_last_line(file))

    def _turn(self, problem: str) -> None:
        """Remember how the last write went; say so once when that changes."""
        if problem and not self.problem:
            log.warning("latency_log_failing", extra={"problem": problem})
        elif self.problem and not problem:
            log.info("latency_log_recovered", extra={"path": str(self.path)})
        self.problem = problem


def _end_of_last_line(file: IO[bytes]) -> int:
    """Where the last whole line of a file ends, in bytes; 0 when its last 64 KiB hold none."""
    size = file.seek(0, 2)
    start = max(size - _TAIL_BYTES, 0)
    file.seek(start)
    end = file.read(_TAIL_BYTES).rfind(b"\n") + 1
    return start + end if end else 0


def _encode_counts(counts: tuple[int, ...]) -> bytes:
    encoded = bytearray()
    zeros = 0
    for count in counts:
        if count == 0:
            zeros += 1
            continue
        if zeros:
            _put(encoded, 2 * zeros - 1 if zeros > 1 else 0)
            zeros = 0
        _put(encoded, 2 * count)
    return bytes(encoded)


def _put(encoded: bytearray, value: int) -> None:
    """Append one ZigZag number (2n for n, 2n - 1 for -n) as LEB128, 7 bits a byte, lowest first; below 2**56."""
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
