"""The first table: what was promised of the run, what was measured, and whether that is enough. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.figures import Case, Figures, Rounds, added, disturbed, of, ratio, rounds, spread
from benchmarks.results import Line, Start

FEAT64: Case = ("feat64", 0, "nodelay")
WIN: Case = ("win", 0, "nodelay")
QOS_1: Case = ("feat64", 1, "nodelay")
QOS_1_STOCK: Case = ("feat64", 1, "stock")
HOP_1: Case = ("samp-1", 0, "nodelay")
HOP_16: Case = ("samp-16", 0, "nodelay")
HEAD = ("", "measured", "at least", "aim", "met")


class Part(msgspec.Struct, frozen=True):
    """One figure. values: a round each. least: what must be reached, aim: what should be. rises: more is better."""

    values: Sequence[float]
    least: float
    aim: float
    unit: str = "x"
    digits: int = 2
    rises: bool = True
    label: str = ""
    note: str = ""

    def measured(self) -> str:
        return f"{self.label} {spread(self.values, self.digits, self.unit)}{self.note}".strip()

    def limit(self, value: float) -> str:
        return f"{value:.{self.digits}f}".rstrip("0").rstrip(".") + self.unit

    def met(self) -> str:
        if not self.values:
            return "not measured"
        middle = round(statistics.median(self.values), self.digits)
        if self._reaches(middle, self.aim):
            return "yes, and the aim"
        return "yes" if self._reaches(middle, self.least) else "**no**"

    def _reaches(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.rises else value <= wanted


Row = tuple[str, list[Part]]


def table(lines: Sequence[Line]) -> str:
    """Markdown: what, measured as median (lowest to highest round), wanted, met."""
    doubt = ", not to be trusted" if disturbed(lines) else ""
    rows = [HEAD, ("---", "---:", "---:", "---:", "---")]
    for what, parts in _rows(lines):
        measured = " / ".join(part.measured() for part in parts)
        least, aim = (_limits(part.limit(getattr(part, key)) for part in parts) for key in ("least", "aim"))
        rows.append((what, measured, least, aim, _verdicts(parts) + doubt))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _limits(found: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(found))


def _verdicts(parts: Sequence[Part]) -> str:
    found = [part.met() for part in parts]
    return found[0] if len(set(found)) == 1 else " / ".join(found)


def _rows(lines: Sequence[Line]) -> list[Row]:
    figures = Figures(lines)
    return [*_rates(figures), *_latencies(figures), *_costs(figures, lines)]


def _rates(figures: Figures) -> list[Row]:
    def msg_s(case: Case, subject: str) -> Rounds:
        return rounds(figures.most(case, subject), "msg_s")

    def against(case: Case, subject: str, ours: str = "lane") -> list[float]:
        return ratio(msg_s(case, ours), msg_s(case, subject))

    single, batch = Part(against(FEAT64, "echo"), 1.0, 1.4), Part(against(FEAT64, "echo-batch"), 0.5, 0.8)
    return [
        ("64 features, max msg/s against naive", [Part(against(FEAT64, "naive"), 5, 7)]),
        ("JSON window, max msg/s against naive", [Part(against(WIN, "naive"), 4, 5.5)]),
        ("QoS 1 (memory tier), max msg/s against naive", [Part(against(QOS_1, "naive"), 8, 15)]),
        ("QoS 1, `normal` against `memory`, max msg/s", [Part(against(QOS_1, "lane", "normal"), 0.6, 0.8)]),
        ("QoS 1, `normal` against naive, max msg/s", [Part(against(QOS_1, "naive", "normal"), 8, 15)]),
        ("max msg/s against the C echo, message by message / batching (64 features)", [single, batch]),
    ]


def _latencies(figures: Figures) -> list[Row]:
    def against_floor(case: Case, key: str) -> list[float]:
        floor = added(rounds(figures.at(case, "echo", 1000), key), figures.bare_ms(case[0]))
        return ratio(rounds(figures.at(case, "lane", 1000), key), floor)

    def parts(key: str, least: float, aim: float) -> list[Part]:
        return [
            Part(
                against_floor(case, key),
                least,
                aim,
                rises=False,
                label=case[0],
                note=figures.left_out(case, 1000, "lane", "echo"),
            )
            for case in (FEAT64, WIN)
        ]

    return [
        ("p50 at 1000 msg/s against floor (echo + bare run)", parts("p50_ms", 2.5, 1.8)),
        ("p99 at 1000 msg/s against floor", parts("p99_ms", 3, 2)),
    ]


def _costs(figures: Figures, lines: Sequence[Line]) -> list[Row]:
    def cpu(case: Case) -> list[float]:
        return ratio(rounds(figures.most(case, "naive"), "cpu_us"), rounds(figures.most(case, "lane"), "cpu_us"))

    stock_ms = rounds(figures.at(QOS_1_STOCK, "lane", 50), "p50_ms").values()
    on_off = ratio(rounds(figures.most(FEAT64, "on"), "msg_s"), rounds(figures.most(FEAT64, "off"), "msg_s"))
    rss_mb = rounds(figures.footprints(FEAT64, "lane"), "rss_mb").values()
    start = ratio(_start_ms(lines, "lane"), _start_ms(lines, "naive"))
    return [
        (
            "sliding window hop 1 / hop 16, CPU per sample against naive",
            [Part(cpu(HOP_1), 10, 16), Part(cpu(HOP_16), 15, 30)],
        ),
        ("QoS 1, 50 msg/s, stock mosquitto, p50", [Part(list(stock_ms), 1, 0.3, " ms", rises=False)]),
        (
            "everything in this issue switched on (stages, log, metrics) against switched off, max msg/s",
            [Part(on_off, 0.9, 0.97)],
        ),
        (
            "RSS with small model; start to subscribed (golden vectors run, gate already passed) against naive",
            [Part(list(rss_mb), 80, 72, " MB", 1, rises=False), Part(start, 1.2, 0.9, rises=False)],
        ),
    ]


def _start_ms(lines: Iterable[Line], subject: str) -> Rounds:
    return {line.round: line.start_ms for line in of(list(lines), Start) if line.subject == subject}
