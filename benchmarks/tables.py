"""The page's tables: ratios, one table a case, what limited whom. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.figures import Case, Figures, added, of, ratio, rounds, spread
from benchmarks.results import PACED_HZ, Bare, Closed, Footprint, Line, Open

TITLES = {
    "broker": "broker alone",
    "echo": "echo",
    "echo-batch": "echo, batching",
    "naive": "naive script",
    "callbacks": "daemon, callbacks",
    "lane": "daemon, lane",
    "normal": "lane, `normal`",
    "full": "lane, `full`",
    "on": "lane, on",
    "off": "lane, off",
    "http": "HTTP",
}
WORKLOADS = {
    "feat64": "64 JSON features, MLP 64-32-8",
    "win": "JSON window of 128 x 6, 1-D CNN",
    "win-raw": "the same window as raw float32",
    "samp-1": "JSON samples of 6 into a sliding window of 128, hop 1, 1-D CNN",
    "samp-16": "the same, hop 16",
    "pump": "the demo's bundle and messages: raw int16 of 320 x 2 into windows of 1024 x 2, hop 512, int8 CNN",
}
LIMITS = (
    *("", "subject", "load", "its cores", "broker's", "generator's", "others'", "all"),
    *("full", "a write", "written late"),
)
FULL_CORE, FULL_MACHINE = 0.9, 0.95
MACHINE = (
    "Where the machine was full, subject, broker and generator shared its cores as the table says, and the subject's "
    "max is that of the three together. All: what was not idle, interrupts included. Others: neither the three nor "
    "interrupts. A write: messages the generator had due at once, and wrote in one go."
)
PACED = (
    f"At {PACED_HZ}/s the process sleeps until each call is due, and finds its caches cold and its core idle, as the "
    "daemon does at that rate. The floor has the hot call: the difference counts against the daemon."
)
LEAST_FOR_P99 = 1000


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ratios(figures: Figures) -> str:
    """Case by case the lane beside the script, the callbacks and the floor, echo and model; above 1 is in its favour
    but against the floor.
    """
    rows = []
    for case in figures.cases():
        most = {name: figures.most(case, name) for name in ("lane", "naive", "callbacks", "echo")}
        msg_s = {name: rounds(found, "msg_s") for name, found in most.items()}
        cpu_us = {name: rounds(found, "cpu_us") for name, found in most.items()}
        at_1000 = {name: figures.at(case, name, 1000) for name in most}
        left_out = figures.left_out(case, 1000, "naive", "lane")
        by_naive = figures.left_out(case, 1000, "naive", "echo")
        floors = {key: added(rounds(at_1000["echo"], key), figures.bare_ms(case[0])) for key in ("p50_ms", "p99_ms")}
        rows.append(
            (
                _name(case),
                spread(ratio(msg_s["lane"], msg_s["naive"]), 2, "x"),
                spread(ratio(msg_s["lane"], msg_s["callbacks"]), 2, "x"),
                spread(ratio(cpu_us["naive"], cpu_us["lane"]), 1, "x"),
                spread(ratio(rounds(at_1000["naive"], "cpu_us"), rounds(at_1000["lane"], "cpu_us")), 1, "x") + left_out,
                *(spread(ratio(rounds(at_1000["lane"], key), floors[key]), 2, "x") for key in floors),
                *(spread(ratio(rounds(at_1000["naive"], key), floors[key]), 2, "x") + by_naive for key in floors),
            )
        )
    head = (
        "",
        "msg/s: lane / naive",
        "msg/s: lane / callbacks",
        "CPU at max: naive / lane",
        "CPU at 1000/s: naive / lane",
        "p50 at 1000/s: lane / floor",
        "p99: lane / floor",
        "p50: naive / floor",
        "p99: naive / floor",
    )
    return f"## Ratios\n\n{table(head, rows)}" if rows else ""


def case(figures: Figures, found: Case) -> str:
    """Every subject of a case beside the others."""
    names = [name for name in TITLES if name in figures.subjects(found)]
    most = {name: figures.most(found, name) for name in names}
    one = {name: figures.one(found, name) for name in names}
    rows = [
        _row("max msg/s", most, "msg_s"),
        _row("CPU µs per message at max", most, "cpu_us", 1),
        _row("round trip p50 ms", one, "p50_ms", 3),
        _p99("round trip p99 ms", one),
        _n("messages at max", most, "n"),
        _n("round trips", one, "timed"),
    ]
    for rate_hz in figures.rates_hz(found):
        at = {name: figures.at(found, name, rate_hz) for name in names}
        title = f"at {rate_hz:.0f}/s"
        rows += [_n(f"results {title}", at, "timed"), _row(f"p50 ms {title}", at, "p50_ms", 3)]
        rows.append(_p99(f"p99 ms {title}", at))
        rows.append(_row(f"CPU µs per message {title}", at, "cpu_us", 0))
        for i, name in enumerate(names, 1):
            if times := figures.skipped(found, name, rate_hz):
                for row in rows[-3:]:
                    row[i] += f" (above its max, {times}x)"
    rows.append(_row("RSS MB", {name: figures.footprints(found, name) for name in names}, "rss_mb", 1))
    filled = [row for row in rows if any(cell != "-" for cell in row[1:])]
    return f"### {_name(found)}\n\n{WORKLOADS[found[0]]}\n\n{table(('', *(TITLES[name] for name in names)), filled)}"


def _row(
    title: str,
    found: dict[str, list[Closed]] | dict[str, list[Open]] | dict[str, list[Footprint]],
    key: str,
    digits: int = 0,
) -> list[str]:
    return [title, *(spread(rounds(lines, key).values(), digits) for lines in found.values())]


def _p99(title: str, found: dict[str, list[Closed]] | dict[str, list[Open]]) -> list[str]:
    """None of fewer results than LEAST_FOR_P99 a round."""
    cells = (
        spread(rounds(lines, "p99_ms").values(), 3)
        if min((line.timed for line in lines), default=0) >= LEAST_FOR_P99
        else "-"
        for lines in found.values()
    )
    return [title, *cells]


def _n(title: str, found: dict[str, list[Closed]] | dict[str, list[Open]], key: str) -> list[str]:
    """Of all rounds together."""
    return [title, *(f"{sum(getattr(line, key) for line in lines):,}" if lines else "-" for lines in found.values())]


def bare(figures: Figures, lines: Sequence[Line]) -> str:
    """The call that the floor has, and what it costs at a rate."""
    names = sorted({line.workload for line in of(lines, Bare)})
    keys = ("p50_us", "paced_p50_us", "paced_p99_us")
    rows = [(name, *(spread(rounds(figures.bare(name), key).values(), 1) for key in keys)) for name in names]
    head = ("µs of a `session.run`", "p50, hot loop", *(f"{q} at {PACED_HZ}/s" for q in ("p50", "p99")))
    return f"## The model alone\n\n{table(head, rows)}\n{PACED}\n" if rows else ""


def bottleneck(figures: Figures) -> str:
    """Who was full under each load: subject, broker, machine, or the generator, which must not be."""
    rows, busiest = [], []
    for found in figures.cases():
        for name in [name for name in TITLES if name in figures.subjects(found)]:
            loads: dict[str, Sequence[Closed] | Sequence[Open]] = {"max": figures.most(found, name)}
            loads |= {f"{rate_hz:.0f}/s": figures.at(found, name, rate_hz) for rate_hz in figures.rates_hz(found)}
            for load, lines in loads.items():
                if not lines:
                    continue
                rows.append((_name(found), TITLES[name], load, *_limits(lines)))
                if name != "broker":
                    busiest.append((_cores(lines, "generator"), f"{TITLES[name]}, {_name(found)}, {load}"))
    if not rows:
        return ""
    echoes = [
        max(rounds(figures.most(found, name), "subject_cores").values(), default=0.0)
        for found in figures.cases()
        for name in ("echo", "echo-batch")
    ]
    return f"## What limited whom\n\n{table(LIMITS, rows)}\n{_generator(busiest)} {_echo(max(echoes))} {MACHINE}\n"


def _limits(lines: Sequence[Closed] | Sequence[Open]) -> list[str]:
    """A subject's cells under LIMITS."""
    cores = {who: _cores(lines, who) for who in ("subject", "broker", "generator", "others", "machine")}
    full = _full(cores, max(line.cores for line in lines))
    burst = spread(rounds(lines, "burst").values(), 1)
    late = _lateness([line for line in lines if isinstance(line, Open)])
    return [*(f"{value:.2f}" for value in cores.values()), full, burst, late]


def _cores(lines: Sequence[Closed] | Sequence[Open], who: str) -> float:
    return statistics.median(rounds(lines, f"{who}_cores").values() or [0.0])


def _full(cores: dict[str, float], n_cores: int) -> str:
    found = [
        f"**{who}**" if who == "generator" else who
        for who in ("subject", "broker", "generator")
        if cores[who] >= FULL_CORE
    ]
    found += ["machine"] if cores["machine"] >= FULL_MACHINE * n_cores else []
    return ", ".join(found) or "none"


def _lateness(lines: Sequence[Open]) -> str:
    """Share of messages that count from when they were due; 99th percentile (median of rounds) and maximum."""
    if not lines:
        return "-"
    share = sum(line.late for line in lines) / max(sum(line.n for line in lines), 1)
    p99_ms, max_ms = statistics.median(line.late_p99_ms for line in lines), max(line.late_max_ms for line in lines)
    return f"{share:.1%}; p99 {p99_ms:.3f}, max {max_ms:.2f} ms"


def _generator(busiest: Sequence[tuple[float, str]]) -> str:
    full = [name for cores, name in busiest if cores >= FULL_CORE]
    if full:
        return f"**The generator was full, and may have held back: {'; '.join(full)}.**"
    return f"The generator held nobody back: it never used more than {max(busiest)[0]:.2f} of a core beside a subject."


def _echo(cores: float) -> str:
    if cores >= FULL_CORE:
        return f"**The echo was full itself: {cores:.2f} of a core.**"
    return f"Nor was the echo at its own limit: {cores:.2f} of a core at most."


def _name(found: Case) -> str:
    workload, qos, broker = found
    return f"{workload}, QoS {qos}, {broker}"
