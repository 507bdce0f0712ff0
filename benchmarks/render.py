"""The page made from the JSON lines: medians over rounds, their spread, and how they were taken. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import show, tables
from benchmarks.figures import TRUSTED_SHARE, Figures, disturbed, of, others, spread
from benchmarks.results import Closed, Decode, Demo, Failed, Line, Machine, Open, Start

HEAD = """\
# Benchmarks

Made by `make bench` from `benchmarks/results/*.jsonl`; do not edit. Same brokers, same ONNX bytes, same messages, one
interleaved run; every figure is the median over rounds (lowest to highest), every ratio is of subjects in one round.
"""

METHOD = """\
## How it was measured

- *Subjects.* **echo**: `benchmarks/echo.c`, an MQTT client in C that sends every payload back, one write a message;
  **echo, batching**: one write for all that a read brought. **naive**: `benchmarks/naive.py`, what one writes by hand
  (paho callback, `json`, `numpy`, `session.run`, publish). **callbacks**: the daemon with `client = "callbacks"`.
  **lane**: the daemon. **normal**, **full**: the daemon with that `delivery`, its store on the disk of the machine;
  all other daemons have `delivery = "memory"`. All daemons have `queue.max = 1000`, and for the pump's bundle
  `jitter_s = 86400` (its messages come at another rate than the sensor's); the rest as it comes. **on**: with metrics
  and latency log every second instead of every 10; **off**: with `[latency] enabled = false` and `metrics_interval_s
  = 0`. **HTTP**: FastAPI and uvicorn, one worker, keep-alive, {http} connections, one model thread, without uvloop
  and httptools unless the versions above name them (`benchmarks/http_peer.py`): another transport, with no broker in
  between, so an orientation. **broker alone**: messages straight back, nobody in between.
- *Floor*: the echo's percentile plus the median of `session.run` alone in a hot loop (`benchmarks/bare.py`). What the
  same call costs after a pause, as at 1000/s, is not in the floor; it stands under "The model alone".
- *Generator*: `benchmarks/loadgen.c`, one process with two MQTT 3.1.1 connections, TCP_NODELAY and TCP_QUICKACK, one
  clock (CLOCK_MONOTONIC); for HTTP `benchmarks/httpgen.c`. All samples are kept, the warm-up is dropped. With more than
  one message outstanding it runs as SCHED_BATCH: it takes a free core, or its turn, but never one from the subject or
  the broker because a result came. Otherwise it wakes for nearly every result, and on two cores what that costs
  would be missing to whom it measures. What has become due meanwhile goes out in one write (its size: "a write").
- *Results*: each is held against the window it answers, by number, label and score (ONNX's reference evaluator says
  what is right): missing, repeated and wrong ones are counted, warm-up included, and any of them fails the run. Raw
  messages carry no number; there the subject counts, and the label and score must be those of that message.
- *max msg/s*: closed loop, {outstanding} messages outstanding ({http} requests over HTTP). *Round trip*: one
  outstanding. *At a rate*: open loop on an absolute schedule, from the message's write to its result's read; one
  written 50 µs (`LATE_NS`) or more after it was due counts from when it was due; how many those were, and how late,
  stands in the table above. No p99 where a round has fewer than {least} results. *n*: of all rounds together.
- *CPU*: of the subject's process, by messages answered. *Start*: from asking for the process to the broker's log line
  of its subscription; golden vectors run, the gate's report is kept from before.
- A process of its own for each subject of each round; the order within a round is shuffled.
- *Brokers*: mosquitto on loopback without persistence; **nodelay**: `set_tcp_nodelay true`, `max_inflight_messages
  1000`, no queue limit met; **stock**: its defaults. The daemon speaks MQTT 5, its default; the script 3.1.1, paho's
  default. ONNX Runtime's telemetry is off for all.
"""

PAYLOADS_BEGIN, PAYLOADS_END = "<!-- python -m benchmarks payloads: begin -->", "<!-- end -->"


def page(lines: Sequence[Line]) -> str:
    """Markdown. Raises ValueError when there are no lines of a machine."""
    figures = Figures(lines)
    parts = [HEAD, machine(lines), "## What was promised\n", _others(lines), show.table(lines)]
    parts += [_checked(lines)]
    parts += [tables.ratios(figures), *(tables.case(figures, case) for case in figures.cases())]
    parts += [tables.bare(figures, lines), _starts(lines), _memory(lines), tables.bottleneck(figures), _method(lines)]
    return "\n".join(part for part in parts if part)


def with_payloads(text: str, lines: Sequence[Line]) -> str:
    """The page about payloads with its table made anew. Raises ValueError when it has no place for it, or no lines."""
    before, begin, rest = text.partition(PAYLOADS_BEGIN)
    _, end, after = rest.partition(PAYLOADS_END)
    if not end:
        raise ValueError(f"no {PAYLOADS_BEGIN} ... {PAYLOADS_END} in the page about payloads")
    return f"{before}{begin}\n{_payloads(lines)}{end}{after}"


def machine(lines: Sequence[Line]) -> str:
    """Where and when. Raises ValueError when that is not said once."""
    machines = of(lines, Machine)
    if len(machines) != 1:
        raise ValueError(f"{len(machines)} machines in the results, wanted 1: run python -m benchmarks")
    found = machines[0]
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    rows = [
        ("machine", f"{found.device}, {found.memory_gb} GB, {found.system}, kernel {found.kernel}"),
        ("versions", versions),
        ("commit", found.git),
        ("date", found.date),
        ("before the run", f"load average {found.load}, {found.busy:.0%} of the cores in use by others"),
    ]
    warning = "\n**A quick run: it shows that the benchmark works, its numbers mean nothing.**\n" if found.quick else ""
    return "".join(f"- {name}: {value}\n" for name, value in rows) + warning


def _checked(lines: Sequence[Line]) -> str:
    """What became of the messages."""
    found = [*of(lines, Closed), *of(lines, Open)]
    counts = [sum(getattr(line, key) for line in found) for key in ("n", "missing", "repeated", "wrong")]
    text = "{:,} measured messages: {} missing, {} repeated, {} wrong results, warm-up included.\n".format(*counts)
    numbers = {line.round for line in found}
    failed = "".join(f"\n**Failed: {line.what}: {' '.join(line.reason.split())}**\n" for line in of(lines, Failed))
    return f"{text}Rounds: {len(numbers)}.\n{failed}"


def _others(lines: Sequence[Line]) -> str:
    share = others(lines)
    if disturbed(lines):
        return (
            f"**Others used {share:.1%} of the cores meanwhile, more than {TRUSTED_SHARE:.0%} over the run or in "
            "a tenth of its measurements: the figures are not to be trusted.**\n"
        )
    return f"Others used {share:.1%} of the cores meanwhile.\n"


def _method(lines: Sequence[Line]) -> str:
    closed = of(lines, Closed)
    outstanding = {
        http: max((line.outstanding for line in closed if (line.subject == "http") == http), default=0)
        for http in (False, True)
    }
    return METHOD.format(outstanding=outstanding[False], http=outstanding[True], least=tables.LEAST_FOR_P99)


def _payloads(lines: Sequence[Line]) -> str:
    """Shape by shape: bytes, median and quartiles, and how often faster than the first subject."""
    found = {(line.subject, line.shape): line for line in of(lines, Decode)}
    names = list(dict.fromkeys(name for name, _ in found))
    shapes = list(dict.fromkeys(shape for _, shape in found))
    rows = []
    for name in names:
        cells = [name]
        for shape in shapes:
            line, by_hand = found[name, shape], found[names[0], shape]
            cost = f"{line.p50_us:.1f} ({line.p25_us:.1f} to {line.p75_us:.1f})"
            cells += [f"{line.payload_bytes:,}", cost, f"{by_hand.p50_us / line.p50_us:.1f}x"]
        rows.append(cells)
    head = ["", *(title for shape in shapes for title in (f"{shape}: bytes", "µs", "speed"))]
    n_rounds = max(line.rounds for line in found.values())
    return (
        f"{tables.table(head, rows)}\nCPU time a message: median and quartiles of {n_rounds} interleaved rounds in one "
        "process, each over about 2 ms of messages; speed against the first line. By hand nothing is checked.\n\n"
        f"{machine(lines)}"
    )


def _starts(lines: Sequence[Line]) -> str:
    by_subject: dict[str, list[float]] = {}
    for line in of(lines, Start):
        by_subject.setdefault(line.subject, []).append(line.start_ms)
    rows = [(tables.TITLES[name], spread(found), str(len(found))) for name, found in sorted(by_subject.items())]
    return "## Start to subscribed\n\n" + tables.table(("", "ms", "n"), rows) if rows else ""


def _memory(lines: Sequence[Line]) -> str:
    found = of(lines, Demo)
    if not found:
        return ""
    messages = " and ".join(f"{line.messages:,}" for line in found)
    rows = [
        ("resident", spread([line.rss_mb for line in found], 1)),
        ("highest", spread([line.peak_mb for line in found], 1)),
    ]
    title = "## Memory of the daemon in the demo\n\n"
    return f"{title}{tables.table(('', 'MB (10^6 bytes)'), rows)}\nAfter {messages} messages of its three pumps.\n"
