"""What the benchmarks find out, as JSON lines: one struct a kind of line, each with the device and the commit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec


class _Line(msgspec.Struct, tag_field="name", kw_only=True, frozen=True, forbid_unknown_fields=True):
    """device: CPU, cores, architecture. git: commit, with -dirty when the code differed from it."""

    device: str
    git: str


class Machine(_Line, tag="machine", kw_only=True, frozen=True):
    """Where and when a run was made. load: 1-minute average before it. busy: share of all cores others used then.

    quick: too short to tell anything, made to see that it works.
    """

    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    system: str
    versions: dict[str, str]
    date: str
    load: float
    busy: float
    quick: bool


class _Measured(_Line, kw_only=True, frozen=True):
    """subject: naive, daemon, or broker (the generator's messages straight back, with nobody in between).

    n: messages measured, after warm_up others. late: of them, written too late and so timed from when they were due.
    cpu_us: of the subject, a message. *_cores: CPU seconds a second. missing, repeated, wrong: results, of all sent.
    """

    subject: str
    workload: str
    qos: int
    round: int
    n: int
    warm_up: int
    cpu_us: float | None
    subject_cores: float | None
    broker_cores: float
    generator_cores: float
    missing: int
    repeated: int
    wrong: int


class MaxRate(_Measured, tag="max_rate", kw_only=True, frozen=True):
    """Closed loop: so many messages outstanding, msg_s results a second."""

    outstanding: int
    msg_s: float


class Latency(_Measured, tag="latency", kw_only=True, frozen=True):
    """Open loop at rate_hz: from the message's write to its result's read."""

    rate_hz: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    late: int


class Skipped(_Line, tag="skipped", kw_only=True, frozen=True):
    """A rate that was not tried, and why."""

    subject: str
    workload: str
    qos: int
    round: int
    rate_hz: float
    reason: str


class Footprint(_Line, tag="footprint", kw_only=True, frozen=True):
    """Memory of a subject after so many messages, MB (10^6 bytes)."""

    subject: str
    workload: str
    qos: int
    round: int
    rss_mb: float
    peak_mb: float
    messages: int


class Start(_Line, tag="start", kw_only=True, frozen=True):
    """From asking for the process to the broker's log line of its subscription."""

    subject: str
    workload: str
    round: int
    start_ms: float


class Demo(_Line, tag="demo", kw_only=True, frozen=True):
    """Memory of the demo's daemon, under the demo's load."""

    round: int
    rss_mb: float
    peak_mb: float
    messages: int


class Decode(_Line, tag="decode", kw_only=True, frozen=True):
    """Quartiles over rounds of the CPU time of one message in a source's decoder; each round over so many messages."""

    subject: str
    shape: str
    payload_bytes: int
    rounds: int
    messages: int
    p25_us: float
    p50_us: float
    p75_us: float


Line = Machine | MaxRate | Latency | Skipped | Footprint | Start | Demo | Decode


def write(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read(folder: Path) -> list[Line]:
    """Every line of a folder's files."""
    decoder = msgspec.json.Decoder(Line)
    return [line for path in sorted(folder.glob("*.jsonl")) for line in decoder.decode_lines(path.read_bytes())]


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that q percent do not exceed (nearest rank). ordered: ascending, not empty."""
    return ordered[max(math.ceil(q / 100 * len(ordered)), 1) - 1]
