"""Latency logs for tests, as the daemon and the public tools write them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hdrh.histogram import HdrHistogram

from edge_runtime.monitor.hdrlog import LOG_NAME, LatencyLog
from edge_runtime.monitor.latency import LatencySettings, StageRecorder
from edge_runtime.monitor.slowest import SlowLine, WindowTimes

S, MS = 1_000_000_000, 1_000_000
NOON = 1_790_000_000  # 2026-09-21 14:13:20 UTC

Intervals = list[dict[str, list[int]]]


def write(folder: Path, intervals: Intervals, *, start_s: int = NOON, name: str = LOG_NAME) -> Path:
    """A log with intervals of 10 s, as the daemon writes it. intervals: durations in ns by tag."""
    log = LatencyLog(folder, LatencySettings(), now_ns=0)
    for i, durations in enumerate(intervals, 1):
        recorders: dict[str, StageRecorder] = {}
        for tag, values in durations.items():
            pipeline, stage = tag.split("/")
            recorders.setdefault(pipeline, StageRecorder(pipeline)).record_all(stage, values)
        log.write(recorders.values(), now_ns=i * 10 * S, unix_ns=(start_s + i * 10) * S)
    log.close()
    return log.path.rename(folder / name)


def foreign(path: Path, *values: int, digits: int = 3, tag: str = "") -> Path:
    """A log with one interval, as the public tools write it."""
    histogram = HdrHistogram(1, 3_600_000_000_000, digits)
    for value in values:
        histogram.record_value(value)
    path.write_text(f"#[StartTime: {NOON}.000 (seconds since epoch)]\n{tag}0.5,1.0,2.0,{histogram.encode().decode()}\n")
    return path


def slow_line(e2e_ms: float, *, at: float = NOON + 5.0, pipeline: str = "vibration") -> bytes:
    times = WindowTimes(queue=0.1, decode=0.2, window=0.3, wait=0.4, infer=0.5, decide=0.6, publish=0.7, e2e=e2e_ms)
    found = SlowLine(
        at=at,
        pipeline=pipeline,
        stream="machine-1",
        id="0123456789abcdef",
        seq=(1, 2),
        batch=3,
        lat_ms=times,
        temperature_c=61.5,
        throttled=("throttled",),
    )
    return msgspec.json.encode(found) + b"\n"
