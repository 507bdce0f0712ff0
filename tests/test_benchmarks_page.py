from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks import render, results, show
from benchmarks.failures import guarded
from benchmarks.figures import Figures, ratio, rounds
from benchmarks.generator import GeneratorError
from benchmarks.results import Bare, Closed, Failed, Footprint, Line, Machine, Measured, Open, Skipped, Start

ROOT = Path(__file__).parents[1]
WHERE: dict[str, Any] = {"device": "d", "git": "g"}
FACTS: dict[str, Any] = {
    **WHERE,
    "n": 10,
    "timed": 10,
    "warm_up": 1,
    "p50_ms": 0.2,
    "p99_ms": 0.4,
    "max_ms": 0.5,
    "subject_cores": 0.5,
    "broker_cores": 0.1,
    "generator_cores": 0.1,
    "machine_cores": 0.7,
    "others_cores": 0.0,
    "cores": 2,
    "missing": 0,
    "repeated": 0,
    "wrong": 0,
    "burst": 1.5,
}
PACED = {"paced_p50_us": 130.0, "paced_p99_us": 160.0, "paced_n": 9}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    ordered = [float(i) for i in range(1, 201)]

    assert [results.percentile(ordered, q) for q in (0, 50, 99, 100)] == [1.0, 100.0, 198.0, 200.0]


def lines(*, lane: float, p50_ms: float, start_ms: float, rss_mb: float) -> list[Line]:
    """Three rounds of feat64 at QoS 0: naive has 1000 msg/s in the first, 2000 in the second, 3000 in the third."""
    machine = Machine(
        **WHERE,
        cpu="c",
        cores=2,
        memory_gb=4.0,
        kernel="k",
        system="s",
        versions={"python": "3"},
        date="2026-11-01",
        load=0.1,
        busy=0.0,
        quick=False,
    )
    found: list[Line] = [machine]
    for number in (1, 2, 3):
        for name, rate, cpu_us in (("naive", 1000, 100.0), ("lane", lane, 10.0), ("broker", 90_000, None)):
            cell = {"subject": name, "workload": "feat64", "qos": 0, "broker": "nodelay", "round": number}
            found.append(Closed(**{**FACTS, **cell, "cpu_us": cpu_us}, outstanding=100, msg_s=rate * number))
        for name, ms in (("echo", 0.1), ("lane", p50_ms)):
            cell |= {"subject": name, "cpu_us": 9.0, "p50_ms": ms, "p99_ms": ms}
            found.append(Open(**{**FACTS, **cell}, rate_hz=1000, late=1, late_p99_ms=0.01, late_max_ms=0.2))
        found.append(Bare(**WHERE, workload="feat64", round=number, p50_us=100.0, p99_us=150.0, n=9, **PACED))
        cell = {"workload": "feat64", "qos": 0, "broker": "nodelay", "round": number}
        found.append(Skipped(**WHERE, **cell, subject="naive", rate_hz=1000, reason="too slow"))
        found.append(Footprint(**WHERE, **cell, subject="lane", rss_mb=rss_mb, peak_mb=rss_mb, messages=9))
        for name, ms in (("lane", start_ms), ("naive", 100.0)):
            found.append(Start(**WHERE, subject=name, workload="feat64", round=number, start_ms=ms))
    return found


def test_the_page_says_what_was_met() -> None:
    page = render.page(lines(lane=6000, p50_ms=0.3, start_ms=120.0, rss_mb=70.04))

    assert "| 64 features, max msg/s against naive | 6.00x (6.00 to 6.00) | 5x | 7x | yes |" in page
    assert "| feat64 1.50x (1.50 to 1.50) / win - | 2.5x | 1.8x | yes, and the aim / not measured |" in page
    assert "| 70.0 MB (70.0 to 70.0) / 1.20x (1.20 to 1.20) | 80 MB / 1.2x | 72 MB / 0.9x |" in page
    assert "| yes, and the aim / yes |" in page
    assert "| JSON window, max msg/s against naive | - | 4x | 5.5x | not measured |" in page
    assert "| max msg/s | 180,000 (90,000 to 270,000) | - | 2,000 (1,000 to 3,000) | 12,000 (6,000 to 18,000) |" in page
    assert "- (above its max, 3x)" in page
    assert "| feat64 | 100.0 (100.0 to 100.0) | 130.0 (130.0 to 130.0) | 160.0 (160.0 to 160.0) |" in page


def test_the_page_says_what_was_missed() -> None:
    page = render.page(lines(lane=4900, p50_ms=0.62, start_ms=121.0, rss_mb=80.1))

    assert page.count("**no**") == 4


def test_a_generator_that_was_full_is_named() -> None:
    found = lines(lane=6000, p50_ms=0.3, start_ms=1, rss_mb=1)
    full = [msgspec.structs.replace(line, generator_cores=0.97) if isinstance(line, Closed) else line for line in found]

    assert "The generator held nobody back" in render.page(found)
    assert "**The generator was full, and may have held back: naive script, feat64" in render.page(full)


def test_a_machine_that_others_used_is_not_trusted() -> None:
    found = lines(lane=6000, p50_ms=0.3, start_ms=1, rss_mb=1)
    used = [
        msgspec.structs.replace(line, others_cores=0.11, machine_cores=1.91) if isinstance(line, Measured) else line
        for line in found
    ]

    assert "Others used 0.0% of the cores meanwhile.\n" in render.page(found)
    assert "not to be trusted" not in render.page(found)
    page = render.page(used)
    assert "**Others used 5.5% of the cores meanwhile" in page
    assert page.index("**Others used") < page.index("| 64 features, max msg/s")
    assert "| 5x | 7x | yes, not to be trusted |" in page
    assert "| naive script | max | 0.50 | 0.10 | 0.10 | 0.11 | 1.91 | machine | 1.5 (1.5 to 1.5) | - |" in page


def test_a_measurement_that_fails_is_named_and_leaves_the_others(tmp_path: Path) -> None:
    found = lines(lane=6000, p50_ms=0.3, start_ms=1, rss_mb=1)
    machine = found[0]
    assert isinstance(machine, Machine)

    def broken() -> Iterator[Line]:
        yield found[1]
        raise GeneratorError("in/lane stalled for 5 s: 9 messages, 3 results")

    file = tmp_path / "lines.jsonl"
    made = []
    for line in results.append(file, guarded("lane, round 2", broken(), machine)):
        made.append(line)
        assert results.read(tmp_path) == made

    failed = Failed(**WHERE, what="lane, round 2", reason="in/lane stalled for 5 s: 9 messages, 3 results")
    assert made == [found[1], failed]
    assert "**Failed: lane, round 2: in/lane stalled for 5 s" in render.page([*found, failed])


def test_a_ratio_says_in_how_many_rounds_the_script_could_not_do_the_rate() -> None:
    assert "- (left out, above naive's max: 3 rounds of 3)" in render.page(
        lines(lane=6000, p50_ms=0.3, start_ms=1, rss_mb=1)
    )


SUBJECTS_RATES = {  # msg/s at max and CPU µs a message, by case and subject
    ("feat64", 0, "nodelay"): {
        "naive": (1000, 100.0),
        "lane": (6000, 10.0),
        "echo": (5000, 1.0),
        "echo-batch": (10_000, 1.0),
        "on": (5700, 10.0),
        "off": (6000, 10.0),
    },
    ("win", 0, "nodelay"): {"naive": (1000, 100.0), "lane": (4500, 10.0), "echo": (9000, 1.0)},
    ("feat64", 1, "nodelay"): {"naive": (100, 100.0), "lane": (1300, 10.0), "normal": (870, 12.0)},
    ("samp-1", 0, "nodelay"): {"naive": (1000, 130.0), "lane": (6000, 10.0)},
    ("samp-16", 0, "nodelay"): {"naive": (1000, 200.0), "lane": (6000, 10.0)},
}
AT_RATES = {  # p50 and p99 in ms, by case, subject and rate
    ("feat64", 0, "nodelay", 1000): {"echo": (0.1, 0.2), "lane": (0.46, 0.87), "naive": (9.0, 9.0)},
    ("win", 0, "nodelay", 1000): {"echo": (0.1, 0.2), "lane": (0.42, 0.81), "naive": (9.0, 9.0)},
    ("feat64", 1, "stock", 50): {"lane": (0.7, 0.9), "echo": (0.1, 0.1), "naive": (40.0, 41.0)},
    ("feat64", 1, "nodelay", 50): {"lane": (0.2, 0.3)},
}
SHOWN = [
    ("64 features, max msg/s against naive", "6.00x", "5x", "7x", "yes"),
    ("JSON window, max msg/s against naive", "4.50x", "4x", "5.5x", "yes"),
    ("QoS 1 (memory tier), max msg/s against naive", "13.00x", "8x", "15x", "yes"),
    ("QoS 1, `normal` against `memory`, max msg/s", "0.67x", "0.6x", "0.8x", "yes"),
    ("QoS 1, `normal` against naive, max msg/s", "8.70x", "8x", "15x", "yes"),
    (
        "max msg/s against the C echo, message by message / batching (64 features)",
        "1.20x / 0.60x",
        "1x / 0.5x",
        "1.4x / 0.8x",
        "yes",
    ),
    ("p50 at 1000 msg/s against floor (echo + bare run)", "feat64 2.30x / win 2.10x", "2.5x", "1.8x", "yes"),
    ("p99 at 1000 msg/s against floor", "feat64 2.90x / win 2.70x", "3x", "2x", "yes"),
    ("sliding window hop 1 / hop 16, CPU per sample against naive", "13.00x / 20.00x", "10x / 15x", "16x / 30x", "yes"),
    ("QoS 1, 50 msg/s, stock mosquitto, p50", "0.70 ms", "1 ms", "0.3 ms", "yes"),
    (
        "everything in this issue switched on (stages, log, metrics) against switched off, max msg/s",
        "0.95x",
        "0.9x",
        "0.97x",
        "yes",
    ),
    (
        "RSS with small model; start to subscribed (golden vectors run, gate already passed) against naive",
        "75.0 MB / 1.10x",
        "80 MB / 1.2x",
        "72 MB / 0.9x",
        "yes",
    ),
]


def shown_lines() -> list[Line]:
    """One round in which every row of the first table lies between what is wanted and the aim, no two alike."""
    found: list[Line] = []
    for (name, qos, broker), by_subject in SUBJECTS_RATES.items():
        for subject, (msg_s, cpu_us) in by_subject.items():
            cell = {"subject": subject, "workload": name, "qos": qos, "broker": broker, "round": 1}
            found.append(Closed(**{**FACTS, **cell, "cpu_us": cpu_us}, outstanding=100, msg_s=msg_s))
            found.append(Closed(**{**FACTS, **cell, "cpu_us": 7.0}, outstanding=1, msg_s=7.0))
            found.append(
                Footprint(**WHERE, **cell, rss_mb=75.0 if subject == "lane" else 60.0, peak_mb=99.0, messages=9)
            )
    for (name, qos, broker, rate_hz), at in AT_RATES.items():
        for subject, (p50_ms, p99_ms) in at.items():
            cell = {"subject": subject, "workload": name, "qos": qos, "broker": broker, "round": 1}
            facts = {**FACTS, **cell, "cpu_us": 7.0, "p50_ms": p50_ms, "p99_ms": p99_ms}
            found.append(Open(**facts, rate_hz=rate_hz, late=0, late_p99_ms=0.0, late_max_ms=0.0))
    found += [Bare(**WHERE, workload=name, round=1, p50_us=100.0, p99_us=900.0, n=9) for name in ("feat64", "win")]
    found += [
        Start(**WHERE, subject=name, workload="feat64", round=1, start_ms=ms)
        for name, ms in (("lane", 110.0), ("naive", 100.0))
    ]
    return found


@pytest.mark.parametrize("row", range(len(SHOWN)), ids=[shown[0] for shown in SHOWN])
def test_a_promised_row_is_read_from_its_own_lines_and_limits(row: int) -> None:
    cells = [cell.strip() for cell in show.table(shown_lines()).splitlines()[2 + row].strip("|").split("|")]

    cells[1] = re.sub(r" \([^)]*\)", "", cells[1])
    assert tuple(cells) == SHOWN[row]


def test_ratios_are_of_the_same_round_and_of_the_median_within_it() -> None:
    found = Figures(lines(lane=6000, p50_ms=0.3, start_ms=1, rss_mb=1) * 2).most(("feat64", 0, "nodelay"), "lane")
    doubled = [msgspec.structs.replace(line, msg_s=line.msg_s * 3) for line in found[:1]]

    assert rounds([*found, *doubled, *doubled], "msg_s") == {1: 12_000, 2: 12_000, 3: 18_000}
    assert ratio({1: 6.0, 2: 8.0, 4: 1.0}, {1: 3.0, 2: 2.0, 3: 5.0}) == [2.0, 4.0]


def test_the_committed_page_is_made_from_the_committed_lines() -> None:
    written = (ROOT / "docs" / "benchmarks.md").read_text()

    assert written == render.page(results.read(ROOT / "benchmarks" / "results"))
