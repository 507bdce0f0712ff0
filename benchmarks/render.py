"""The page made from the JSON lines: medians over rounds, their spread, and how they were taken. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from benchmarks.results import Decode, Demo, Footprint, Latency, Line, Machine, MaxRate, Skipped, Start

BASELINE, OURS, FLOOR = "naive", "daemon", "broker"
RATE_AT_LEAST, START_AT_MOST, RSS_AT_MOST_MB = 1.0, 1.3, 85.0
TITLES = {"feat64": "64 JSON features, MLP 64-32-8", "win": "JSON window of 128 x 6, 1-D CNN"}
Kind = TypeVar("Kind", bound=Line)
Case = tuple[str, int]

HEAD = """\
# Benchmarks

Made by `make bench` from `benchmarks/results/*.jsonl`; do not edit. What is compared: `benchmarks/naive.py`, which is
what one writes by hand (paho callback, `json`, `numpy`, `session.run`, publish), and the daemon with its plain paho
client. Same broker, same ONNX bytes, same messages, one interleaved run.
"""

METHOD = """\
## How it was measured

- One generator process with raw sockets publishes and reads the results; one clock (CLOCK_MONOTONIC). Every message
  has a number, every result is checked for it and for its label: missing, repeated and wrong ones are counted, and
  any of them fails the run.
- A process of its own for each variant of each round; the order within a round is shuffled. Warm-up is dropped, all
  samples after it are kept. Cells: median over rounds (lowest to highest).
- *max msg/s*: closed loop, {outstanding} messages outstanding. *p50, p99*: open loop on an absolute schedule, from the
  message's write to its result's read; a message written more than 1 ms late counts from when it was due.
- *CPU per message*: user + system time of the subject's process by messages; *start*: from spawning the process to the
  broker's log line of its subscription.
- *broker alone*: the generator's messages come straight back through the broker; what the rest is to be held against,
  and the highest rate the generator and broker could have given.
- Broker: mosquitto on loopback, `set_tcp_nodelay true`, no persistence. Daemon: MQTT 5, its default; the script:
  paho's default, 3.1.1. ONNX Runtime's telemetry is off for both.
"""


PAYLOADS_BEGIN, PAYLOADS_END = "<!-- python -m benchmarks payloads: begin -->", "<!-- end -->"


def page(lines: Sequence[Line]) -> str:
    """Markdown. Raises ValueError when there are no lines of a machine."""
    machines = _of(lines, Machine)
    if len(machines) != 1:
        raise ValueError(f"{len(machines)} machines in the results, wanted 1: run python -m benchmarks")
    parts = [HEAD, _machine(machines[0]), _targets(lines)]
    parts += [_case(lines, case) for case in _cases(lines)]
    parts += [_starts(lines), _memory(lines), _generator(lines), METHOD.format(outstanding=_outstanding(lines))]
    return "\n".join(part for part in parts if part)


def with_payloads(text: str, lines: Sequence[Line]) -> str:
    """The page about payloads with its table made anew. Raises ValueError when it has no place for it, or no lines."""
    before, begin, rest = text.partition(PAYLOADS_BEGIN)
    _, end, after = rest.partition(PAYLOADS_END)
    if not end:
        raise ValueError(f"no {PAYLOADS_BEGIN} ... {PAYLOADS_END} in the page about payloads")
    return f"{before}{begin}\n{_payloads(lines)}{end}{after}"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median (lowest to highest)."""
    if not values:
        return "-"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _of(lines: Sequence[Line], kind: type[Kind]) -> list[Kind]:
    return [line for line in lines if isinstance(line, kind)]


def _cases(lines: Sequence[Line]) -> list[Case]:
    return sorted({(line.workload, line.qos) for line in _of(lines, MaxRate)}, key=lambda case: (case[1], case[0]))


def _outstanding(lines: Sequence[Line]) -> int:
    return max((line.outstanding for line in _of(lines, MaxRate)), default=0)


def _machine(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rows = [
        ("machine", f"{machine.device}, {machine.memory_gb} GB, {machine.system}, kernel {machine.kernel}"),
        ("versions", versions),
        ("commit", machine.git),
        ("date", machine.date),
        ("before the run", f"load average {machine.load}, {machine.busy:.0%} of the cores in use by others"),
    ]
    warning = (
        "\n**A quick run: it shows that the benchmark works, its numbers mean nothing.**\n" if machine.quick else ""
    )
    return "".join(f"- {name}: {value}\n" for name, value in rows) + warning


def _targets(lines: Sequence[Line]) -> str:
    rows = [_rate_target(lines, case) for case in _cases(lines)]
    starts = [statistics.median(_start_ms(lines, name)) for name in (OURS, BASELINE) if _start_ms(lines, name)]
    if len(starts) == 2:
        ratio = starts[0] / starts[1]
        rows.append(
            _verdict("start to subscribed", f"{ratio:.2f}x", f"at most {START_AT_MOST}x", ratio <= START_AT_MOST)
        )
    if found := [line.rss_mb for line in _of(lines, Demo)]:
        worst = max(found)
        limit = f"at most {RSS_AT_MOST_MB:.0f} MB"
        rows.append(_verdict("memory of the demo's daemon", f"{worst:.1f} MB", limit, worst <= RSS_AT_MOST_MB))
    return f"## Daemon against script\n\n{table(('', 'measured', 'wanted', 'met'), rows)}\n{_checked(lines)}\n"


def _checked(lines: Sequence[Line]) -> str:
    """What became of the messages."""
    found = [*_of(lines, MaxRate), *_of(lines, Latency)]
    counts = [sum(getattr(line, key) for line in found) for key in ("n", "missing", "repeated", "wrong")]
    return "{:,} measured messages: {} missing, {} repeated, {} wrong results, warm-up included.".format(*counts)


def _verdict(what: str, measured: str, wanted: str, met: bool) -> tuple[str, str, str, str]:
    return what, measured, wanted, "yes" if met else "**no**"


def _rate_target(lines: Sequence[Line], case: Case) -> tuple[str, str, str, str]:
    ours, theirs = _rates(lines, case, OURS), _rates(lines, case, BASELINE)
    ratio = statistics.median(ours) / statistics.median(theirs)
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    measured = f"{ratio:.2f}x (rounds {min(pairs):.2f} to {max(pairs):.2f})"
    return _verdict(f"max msg/s, {_name(case)}", measured, f"at least {RATE_AT_LEAST:.0f}x", ratio >= RATE_AT_LEAST)


def _name(case: Case) -> str:
    return f"{case[0]} at QoS {case[1]}"


def _in(lines: Sequence[Line], kind: type[Kind], case: Case, subject: str) -> list[Kind]:
    """By round."""
    wanted = (*case, subject)
    found = [line for line in _of(lines, kind) if (line.workload, line.qos, line.subject) == wanted]  # type: ignore[union-attr]
    return sorted(found, key=lambda line: line.round)  # type: ignore[union-attr]


def _rates(lines: Sequence[Line], case: Case, subject: str) -> list[float]:
    return [line.msg_s for line in _in(lines, MaxRate, case, subject)]


def _start_ms(lines: Sequence[Line], subject: str) -> list[float]:
    return [line.start_ms for line in _of(lines, Start) if line.subject == subject]


def _case(lines: Sequence[Line], case: Case) -> str:
    columns = (BASELINE, OURS, FLOOR)
    most = {name: _in(lines, MaxRate, case, name) for name in columns}
    rows = [
        ["max msg/s", *(spread([line.msg_s for line in most[name]]) for name in columns)],
        ["CPU µs per message at max", *(spread(_cpu_us(most[name])) for name in columns)],
    ]
    for rate_hz in sorted({line.rate_hz for line in _of(lines, Latency)}):
        rows += _latency_rows(lines, case, rate_hz)
    rows.append(["RSS MB", *(spread([u.rss_mb for u in _in(lines, Footprint, case, name)], 1) for name in columns)])
    theirs, ours = (sum(line.n for line in most[name]) for name in (BASELINE, OURS))
    about = f"Rounds: {len(most[OURS])}. Messages at max: {theirs:,} of the script, {ours:,} of the daemon.\n"
    head = ("", "naive script", "daemon", "broker alone")
    return f"### {TITLES.get(case[0], case[0])} (`{case[0]}`), QoS {case[1]}\n\n{table(head, rows)}\n{about}"


def _latency_rows(lines: Sequence[Line], case: Case, rate_hz: float) -> list[list[str]]:
    rows = []
    columns = {name: _at(lines, case, name, rate_hz) for name in (BASELINE, OURS, FLOOR)}
    for title, key in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms")):
        cells = [
            spread([getattr(line, key) for line in found], 2) + _skipped(lines, case, name, rate_hz)
            for name, found in columns.items()
        ]
        rows.append([f"{title} at {rate_hz:.0f}/s", *cells])
    rows.append([f"CPU µs per message at {rate_hz:.0f}/s", *(spread(_cpu_us(found)) for found in columns.values())])
    return rows


def _at(lines: Sequence[Line], case: Case, subject: str, rate_hz: float) -> list[Latency]:
    return [line for line in _in(lines, Latency, case, subject) if line.rate_hz == rate_hz]


def _skipped(lines: Sequence[Line], case: Case, subject: str, rate_hz: float) -> str:
    count = sum(line.rate_hz == rate_hz for line in _in(lines, Skipped, case, subject))
    return f" (above its max, {count}x)" if count else ""


def _cpu_us(lines: Iterable[MaxRate | Latency]) -> list[float]:
    return [line.cpu_us for line in lines if line.cpu_us is not None]


def _payloads(lines: Sequence[Line]) -> str:
    """Shape by shape: bytes, median and quartiles, and how often faster than the first subject."""
    found = {(line.subject, line.shape): line for line in _of(lines, Decode)}
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
    machine, rounds = _of(lines, Machine)[0], max(line.rounds for line in found.values())
    return (
        f"{table(head, rows)}\nCPU time a message: median and quartiles of {rounds} interleaved rounds in one process, "
        "each over about 2 ms of messages; speed against the first line. By hand nothing is checked.\n\n"
        f"{_machine(machine)}"
    )


def _starts(lines: Sequence[Line]) -> str:
    rows = [
        (title, spread(found), str(len(found)))
        for title, name in (("naive script", BASELINE), ("daemon", OURS))
        if (found := _start_ms(lines, name))
    ]
    return "## Start to subscribed\n\n" + table(("", "ms", "n"), rows) if rows else ""


def _memory(lines: Sequence[Line]) -> str:
    found = _of(lines, Demo)
    if not found:
        return ""
    messages = " and ".join(f"{line.messages:,}" for line in found)
    rows = [
        ("resident", spread([line.rss_mb for line in found], 1)),
        ("highest", spread([line.peak_mb for line in found], 1)),
    ]
    title = "## Memory of the daemon in the demo\n\n"
    return f"{title}{table(('', 'MB (10^6 bytes)'), rows)}\nAfter {messages} messages of its three pumps.\n"


def _generator(lines: Sequence[Line]) -> str:
    """Whether the generator or the broker held a subject back."""
    loaded = [line for line in _of(lines, MaxRate) if line.subject != FLOOR]
    if not loaded:
        return ""
    rows = []
    for case in _cases(lines):
        ceiling = statistics.median(_rates(lines, case, FLOOR))
        fastest = max(line.msg_s for line in loaded if (line.workload, line.qos) == case)
        rows.append((_name(case), f"{ceiling:,.0f}", f"{fastest:,.0f}", f"{ceiling / fastest:.1f}x"))
    busiest = max(line.generator_cores for line in loaded)
    broker = max(line.broker_cores for line in loaded)
    timed = _of(lines, Latency)
    late = sum(line.late for line in timed) / max(sum(line.n for line in timed), 1)
    head = ("", "generator's own max msg/s", "fastest subject", "room")
    return (
        f"## Was the generator fast enough?\n\n{table(head, rows)}\n"
        f"At a subject's max the generator used at most {busiest:.0%} of a core and the broker {broker:.0%}. "
        f"{late:.2%} of the timed messages were written more than 1 ms late.\n"
    )
