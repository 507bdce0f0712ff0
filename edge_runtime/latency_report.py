"""What latency logs say: percentiles per pipeline and stage, added up over files and a range of time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from heapq import nlargest
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_runtime.errors import MALFORMED, EdgeRuntimeError, LatencyLogError
from edge_runtime.model.child import printable
from edge_runtime.monitor.hdrlog import LOG_NAME, SLOWEST_NAME
from edge_runtime.monitor.hdrread import (
    LINE_BYTES,
    YEAR_10000_UNIX_S,
    Distribution,
    HistogramError,
    Interval,
    LogReader,
    SkippedLines,
    Steps,
)
from edge_runtime.monitor.latency import TIMED
from edge_runtime.monitor.slowest import SlowLine

END_TO_END = "e2e"
SLOWEST = 5
MOST_STAGES = 4096
MOST_POINTS = 600
MOST_NAMED = 20
UNIX_S_DIGITS = 9

_NS_PER_MS = 1e6
_AGO = re.compile(r"-(\d+(?:\.\d+)?)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNIX_S = re.compile(r"\d+(?:\.\d+)?")
_DATE = re.compile(r"\d{8}")


class Moment(NamedTuple):
    """Seconds since 1970, or, when relative, seconds after the end of the logs (so below 0)."""

    seconds: float
    relative: bool = False


class Selection(msgspec.Struct, frozen=True):
    """What is taken of the logs: intervals of which any part lies in the range. No names mean all."""

    start: Moment | None = None
    end: Moment | None = None
    pipelines: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


class LogRange(msgspec.Struct, frozen=True):
    """What was taken of one file. unfinished_bytes: of a last line that was not written to its end, and is not read."""

    path: str
    histograms: int
    start_unix_s: float | None
    end_unix_s: float | None
    unfinished_bytes: int


class Skipped(msgspec.Struct, frozen=True):
    """Lines of one file that were passed over. first_line: number of the first of them, from 1; fact: of that one."""

    path: str
    lines: int
    first_line: int
    fact: str


class StageLatency(msgspec.Struct, frozen=True):
    """Percentiles of one stage. mixed: its histograms have several resolutions; each counts with its own."""

    pipeline: str
    stage: str
    count: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    mixed: bool


class LatencyReport(msgspec.Struct, frozen=True):
    """start_unix_s, end_unix_s: the range asked for, None where it is open. slowest: windows, the slowest first."""

    start_unix_s: float | None
    end_unix_s: float | None
    files: list[LogRange]
    skipped: list[Skipped]
    stages: list[StageLatency]
    slowest: list[SlowLine]


class Timeline:
    """Distributions one after the other, at most MOST_POINTS.

    width_s: what each covers; as long as the first interval, and doubled when they become too many.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.width_s = 0.0
        self._points: dict[int, Distribution] = {}

    def add(self, interval: Interval, steps: Steps) -> None:
        """An interval counts where its middle lies."""
        self.width_s = self.width_s or max(interval.length_s, 1.0)
        place = int((interval.start_unix_s + interval.length_s / 2) // self.width_s)
        self._points.setdefault(place, Distribution()).add(steps)
        while len(self._points) > MOST_POINTS:
            self._double()

    def points(self) -> list[tuple[float, Distribution]]:
        """Seconds since 1970 of the middle of each, in order; none where nothing was timed."""
        return [((place + 0.5) * self.width_s, found) for place, found in sorted(self._points.items())]

    def _double(self) -> None:
        self.width_s *= 2
        narrow, self._points = self._points, {}
        for place, found in narrow.items():
            self._points.setdefault(place // 2, Distribution()).merge(found)


class Latencies:
    """Reads logs, and keeps what they add up to by pipeline and stage (both may be empty in the logs of others).

    timelines: by pipeline, of one stage: end to end, or the first that is selected. Only when they are asked for.
    """

    def __init__(self, paths: Iterable[Path], selection: Selection, *, timelines: bool = False) -> None:
        """paths: logs, and folders that hold one. A rotated log is read before its successor, no log twice.

        Raises LatencyLogError for a file that is no log, EdgeRuntimeError when nothing in the logs is selected.
        """
        self.distributions: dict[tuple[str, str], Distribution] = {}
        self.timelines: dict[str, Timeline] = {}
        self._timed_stage = (selection.stages or (END_TO_END,))[0] if timelines else None
        logs = _logs(paths)
        self._filter = _Filter(selection, *_range(selection, logs))
        self._skipped: list[Skipped] = []
        self._files = [self._read(LogReader(path)) for path in logs]
        if not self.distributions:
            raise EdgeRuntimeError(f"nothing is selected: {self._filter.seen()}")
        windows = (line for path in _slowest_logs(logs) for line in self._slow_lines(path) if self._filter.window(line))
        self._slowest = nlargest(SLOWEST, windows, key=lambda line: line.lat_ms.e2e)

    def names(self) -> list[tuple[str, str]]:
        """Pipelines by name, the stages of each in the order in which a message passes them."""
        places: dict[str, int] = {stage: place for place, stage in enumerate(TIMED)}
        return sorted(self.distributions, key=lambda name: (name[0], places.get(name[1], len(places)), name[1]))

    def report(self) -> LatencyReport:
        stages = [_stage_latency(*name, self.distributions[name]) for name in self.names()]
        return LatencyReport(
            self._filter.start_s, self._filter.end_s, self._files, self._skipped, stages, self._slowest
        )

    def _read(self, reader: LogReader) -> LogRange:
        histograms, start_s, end_s = 0, math.inf, 0.0
        for interval, steps in reader.intervals(self._filter.interval):
            try:
                self._add(interval, steps)
            except HistogramError as error:
                raise LatencyLogError(str(reader.path), interval.line, str(error)) from error
            histograms += 1
            start_s, end_s = min(start_s, interval.start_unix_s), max(end_s, interval.end_unix_s)
        self._skip(reader.path, reader.skipped)
        return LogRange(
            path=str(reader.path),
            histograms=histograms,
            start_unix_s=start_s if histograms else None,
            end_unix_s=end_s if histograms else None,
            unfinished_bytes=reader.unfinished_bytes,
        )

    def _slow_lines(self, path: Path) -> Iterator[SlowLine]:
        skipped = SkippedLines()
        yield from _slow_lines(path, skipped)
        self._skip(path, skipped)

    def _skip(self, path: Path, found: SkippedLines) -> None:
        if found.count:
            self._skipped.append(Skipped(str(path), found.count, found.first_line, found.fact))

    def _add(self, interval: Interval, steps: Steps) -> None:
        pipeline, stage = name = _name(interval.tag)
        self.distributions.setdefault(name, Distribution()).add(steps)
        if self._timed_stage is None:
            return
        ours = stage in TIMED
        timeline = self.timelines.setdefault(pipeline, Timeline(self._timed_stage if ours else stage))
        if timeline.stage == stage:
            timeline.add(interval, steps)


class _Filter:
    """Decides what is taken, and remembers what there was."""

    def __init__(self, selection: Selection, start_s: float | None, end_s: float | None) -> None:
        """start_s, end_s: since 1970, None where the range is open."""
        self.start_s, self.end_s = start_s, end_s
        self._pipelines, self._stages = selection.pipelines, selection.stages
        self._names: set[tuple[str, str]] = set()
        self._seen_s = (math.inf, 0.0)

    def interval(self, interval: Interval) -> bool:
        """Raises HistogramError when the logs have more than MOST_STAGES."""
        pipeline, stage = name = _name(interval.tag)
        self._names.add(name)
        if len(self._names) > MOST_STAGES:
            raise HistogramError(f"more than {MOST_STAGES:,} tags")
        self._seen_s = (min(self._seen_s[0], interval.start_unix_s), max(self._seen_s[1], interval.end_unix_s))
        return (
            (not self._pipelines or pipeline in self._pipelines)
            and (not self._stages or stage in self._stages)
            and (self.end_s is None or interval.start_unix_s < self.end_s)
            and (self.start_s is None or interval.end_unix_s > self.start_s or interval.start_unix_s >= self.start_s)
        )

    def window(self, line: SlowLine) -> bool:
        start_s, end_s = self.start_s or 0.0, math.inf if self.end_s is None else self.end_s
        return start_s <= line.at < end_s and (not self._pipelines or line.pipeline in self._pipelines)

    def seen(self) -> str:
        if not self._names:
            return "the logs hold no interval yet"
        pipelines, stages = (
            ", ".join(printable(name) or "-" for name in sorted(names)[:MOST_NAMED])
            for names in map(set, zip(*self._names, strict=True))
        )
        start, end = (utc(unix_s) for unix_s in self._seen_s)
        return f"the logs hold pipelines {pipelines} with stages {stages} from {start} to {end} UTC"


def moment(text: str) -> Moment:
    """A time as people write it: 2026-10-05T12:00 (UTC unless it says otherwise), seconds since 1970, or -10m.

    Eight digits are a date, 20261005; seconds since 1970 have UNIX_S_DIGITS or more. Raises ValueError.
    """
    if ago := _AGO.fullmatch(text):
        return Moment(-float(ago[1]) * _UNIT_S[ago[2]], relative=True)
    if _DATE.fullmatch(text):
        return Moment(datetime.strptime(text, "%Y%m%d").replace(tzinfo=timezone.utc).timestamp())
    if _UNIX_S.fullmatch(text):
        if len(text.partition(".")[0]) < UNIX_S_DIGITS:
            raise ValueError(f"{text} s after 1970, wanted {UNIX_S_DIGITS} digits or more")
        if float(text) >= YEAR_10000_UNIX_S:
            raise ValueError(f"{text} s after 1970, wanted less than {YEAR_10000_UNIX_S}")
        return Moment(float(text))
    found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    return Moment((found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp())


def utc(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(unix_s))


def _name(tag: str) -> tuple[str, str]:
    """Pipeline and stage; a tag of others is all stage."""
    pipeline, _, stage = tag.rpartition("/")
    return pipeline, stage


def _logs(paths: Iterable[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            log = path / LOG_NAME if path.is_dir() else path
            files = [file for file in (log.with_name(log.name + ".1"), log) if file.exists() or file == path]
            found |= {file.resolve(): file for file in files}
        except OSError as error:
            raise LatencyLogError(str(path), 0, f"cannot be read: {error.strerror or error}") from error
        if not files:
            raise LatencyLogError(str(path), 0, f"no {LOG_NAME} in it")
    return list(found.values())


def _slowest_logs(logs: Iterable[Path]) -> list[Path]:
    folders = {log.resolve().parent: log.parent for log in logs}
    files = (folder / name for folder in folders.values() for name in (SLOWEST_NAME + ".1", SLOWEST_NAME))
    return [file for file in files if file.exists()]


def _range(selection: Selection, logs: Iterable[Path]) -> tuple[float | None, float | None]:
    """Since 1970, not before. Raises EdgeRuntimeError when nothing can lie in it."""
    moments = (selection.start, selection.end)
    last_s = max(map(_end_unix_s, logs)) if any(found and found.relative for found in moments) else 0.0
    start_s, end_s = (found and max(found.seconds + (last_s if found.relative else 0.0), 0.0) for found in moments)
    if start_s is not None and end_s is not None and start_s >= end_s:
        raise EdgeRuntimeError(f"the range from {utc(start_s)} to {utc(end_s)} UTC is empty")
    return start_s, end_s


def _end_unix_s(log: Path) -> float:
    """When the last interval of a log ended; 0 when it has none."""
    last_s = 0.0

    def look(interval: Interval) -> bool:
        nonlocal last_s
        last_s = max(last_s, interval.end_unix_s)
        return False

    list(LogReader(log).intervals(look))
    return last_s


def _slow_lines(path: Path, skipped: SkippedLines) -> Iterator[SlowLine]:
    """The lines that are one; the others are added to skipped, but for a last one that is cut off."""
    decoder = msgspec.json.Decoder(SlowLine)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
                try:
                    found = decoder.decode(line)
                except MALFORMED as error:
                    if not line.endswith(b"\n") and len(line) < LINE_BYTES:
                        return
                    skipped.add(number, f"no slow window: {error}")
                    continue
                yield found
    except OSError as error:
        raise LatencyLogError(str(path), 0, f"cannot be read: {error.strerror or error}") from error


def _stage_latency(pipeline: str, stage: str, found: Distribution) -> StageLatency:
    p50, p90, p95, p99, p999, highest = (ns / _NS_PER_MS for ns in found.percentiles((50, 90, 95, 99, 99.9, 100)))
    return StageLatency(
        pipeline=pipeline,
        stage=stage,
        count=found.count,
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=highest,
        mixed=len(found.resolutions) > 1,
    )
