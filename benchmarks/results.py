"""What the benchmarks find out, as JSON lines: one struct a kind of line, each with the device and the commit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

PACED_HZ = 1000


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


class _Cell(_Line, kw_only=True, frozen=True):
    """subject: a name of subjects.SUBJECTS, or broker (messages straight back, with nobody in between).

    broker: nodelay or stock. round: from 1.
    """

    subject: str
    workload: str
    qos: int
    broker: str
    round: int


class _Measured(_Cell, kw_only=True, frozen=True):
    """From a message's write to its result's read, and what became of all messages.

    n: messages answered in the measured time, timed: results that latencies are of, warm_up: messages before.
    cpu_us: of the subject, a message. *_cores: CPU seconds a second; machine: all that was not idle, interrupts
    included; others: of it neither subject, broker, generator nor interrupts; cores: there were. missing, repeated,
    wrong: results, of all sent. burst: messages the generator wrote at once, their mean (none in older runs).
    """

    n: int
    timed: int
    warm_up: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float | None
    subject_cores: float | None
    broker_cores: float
    generator_cores: float
    machine_cores: float
    others_cores: float
    cores: int
    missing: int
    repeated: int
    wrong: int
    burst: float | None = None


class Closed(_Measured, tag="closed", kw_only=True, frozen=True):
    """So many messages outstanding; msg_s messages answered a second. With more than one the generator gives way, and
    latencies have its wait for a core in them.
    """

    outstanding: int
    msg_s: float


class Open(_Measured, tag="open", kw_only=True, frozen=True):
    """rate_hz messages a second on an absolute schedule. late: of them, counted from when they were due. late_*_ms: of
    all, how long after they were due they were written.
    """

    rate_hz: float
    late: int
    late_p99_ms: float
    late_max_ms: float


class Skipped(_Cell, tag="skipped", kw_only=True, frozen=True):
    """A rate that was not tried, and why."""

    rate_hz: float
    reason: str


class Footprint(_Cell, tag="footprint", kw_only=True, frozen=True):
    """Memory of a subject after so many messages, MB (10^6 bytes)."""

    rss_mb: float
    peak_mb: float
    messages: int


class Failed(_Line, tag="failed", kw_only=True, frozen=True):
    """What could not be measured, and why."""

    what: str
    reason: str


class Bare(_Line, tag="bare", kw_only=True, frozen=True):
    """`session.run` alone, wall clock of a call: n in a hot loop; paced_n at PACED_HZ (none in older runs)."""

    workload: str
    round: int
    p50_us: float
    p99_us: float
    n: int
    paced_p50_us: float | None = None
    paced_p99_us: float | None = None
    paced_n: int = 0


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


class Confined(_Line, tag="confined", kw_only=True, frozen=True):
    """The demo's daemon in a memory cgroup, library files not cached before. Sizes are the highest seen, in MiB.

    limit_mib: of memory without swap, None for none. first_start: the gate's child proves the bundle in there, too.
    served: every window answered, ledger balanced, nobody killed. peak: of all that is counted; anonymous, file (page
    cache), mapped (of it): seen every so often; rss: of the daemon alone, shared pages included.
    """

    limit_mib: int | None
    first_start: bool
    served: bool
    oom_kills: int
    messages: int
    start_s: float | None
    peak_mib: float
    anonymous_mib: float
    file_mib: float
    mapped_mib: float
    rss_mib: float | None
    major_faults: int


class Imported(_Line, tag="imported", kw_only=True, frozen=True):
    """A fresh interpreter that imports. subject: libraries, those the daemon runs on, or run, what `edge-runtime run`
    does. rss, anonymous: added, MiB.
    """

    subject: str
    round: int
    ms: float
    cpu_ms: float
    rss_mib: float
    anonymous_mib: float
    modules: int


Measured = Closed | Open
Line = Machine | Closed | Open | Skipped | Failed | Footprint | Bare | Start | Demo | Decode | Confined | Imported


def write(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def append(path: Path, lines: Iterable[Line]) -> Iterator[Line]:
    """Each line, once it stands at the end of a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")
            yield line


def read(folder: Path) -> list[Line]:
    """Every line of a folder's files."""
    decoder = msgspec.json.Decoder(Line)
    return [line for path in sorted(folder.glob("*.jsonl")) for line in decoder.decode_lines(path.read_bytes())]


def percentile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that q percent do not exceed (nearest rank). ordered: ascending, not empty."""
    return ordered[max(math.ceil(q / 100 * len(ordered)), 1) - 1]
