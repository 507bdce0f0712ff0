from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from broker import find_mosquitto
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import payloads, render, results, workloads  # noqa: E402
from benchmarks.loadgen import Run, cut, judge, publish_frame  # noqa: E402
from benchmarks.results import Decode, Demo, Latency, Line, Machine, MaxRate, Skipped, Start  # noqa: E402
from benchmarks.workloads import DIGITS, FIRST_NUMBER, PREFIX, Payload  # noqa: E402

QUICK_S = 240
PAYLOADS = (Payload(b'{"seq":1000000000}', "a"), Payload(b'{"seq":1000000000}', "b"))
WHERE: dict[str, Any] = {"device": "d", "git": "g"}
FACTS: dict[str, Any] = {
    **WHERE,
    "qos": 0,
    "n": 10,
    "warm_up": 1,
    "cpu_us": 9.0,
    "subject_cores": 0.5,
    "broker_cores": 0.1,
    "generator_cores": 0.1,
    "missing": 0,
    "repeated": 0,
    "wrong": 0,
}


def answer(number: int, label: str) -> bytes:
    return b'{"seq": %d, "label": "%s"}' % (FIRST_NUMBER + number, label.encode())


def run_of(first: int, stamps_ns: list[int], arrivals: list[tuple[int, bytes]]) -> Run:
    return Run(first, stamps_ns, arrivals, begin_ns=0, end_ns=10**9)


def test_a_result_is_timed_from_the_message_it_answers() -> None:
    run = run_of(6, [100, 200], [(350, answer(7, "b")), (400, answer(6, "a"))])

    verdict = judge(run, PAYLOADS)

    assert (verdict.faults, verdict.latencies_ns) == (0, [300, 150])


def test_what_was_sent_before_the_measured_time_is_checked_but_not_timed() -> None:
    run = run_of(0, [100, 200], [(350, answer(0, "a"))])
    run.begin_ns = 150

    verdict = judge(run, PAYLOADS)

    assert (verdict.missing, verdict.latencies_ns) == (1, [])


def test_a_window_over_other_messages_than_its_own_is_wrong() -> None:
    spans_two = b'{"label": "a", "seq": [%d, %d]}' % (FIRST_NUMBER, FIRST_NUMBER + 1)
    spans_one = b'{"label": "b", "seq": [%d, %d]}' % (FIRST_NUMBER + 1, FIRST_NUMBER + 1)

    verdict = judge(run_of(0, [0, 0], [(1, spans_two), (1, spans_one)]), PAYLOADS)

    assert (verdict.wrong, verdict.missing, verdict.repeated) == (1, 1, 0)


@pytest.mark.parametrize(
    ("arrivals", "missing", "repeated", "wrong"),
    [
        ([answer(0, "a")], 1, 0, 0),
        ([answer(0, "a"), answer(1, "b"), answer(1, "b")], 0, 1, 0),
        ([answer(0, "a"), answer(1, "a")], 1, 0, 1),
        ([answer(0, "a"), answer(1, "b"), answer(2, "a")], 0, 0, 1),
    ],
    ids=["lost", "twice", "wrong label", "never sent"],
)
def test_every_fault_of_a_subject_is_seen(arrivals: list[bytes], missing: int, repeated: int, wrong: int) -> None:
    verdict = judge(run_of(0, [0, 0], [(1, body) for body in arrivals]), PAYLOADS)

    assert (verdict.missing, verdict.repeated, verdict.wrong) == (missing, repeated, wrong)


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
    qos=st.integers(0, 1),
)
def test_packets_do_not_depend_on_how_the_stream_was_cut(bodies: list[bytes], cuts: list[int], qos: int) -> None:
    puback_between = b"\x40\x02\x00\x07"
    stream = puback_between.join(bytes(publish_frame("t/x", body, qos)) for body in bodies)
    edges = [0, *sorted(at for at in cuts if at < len(stream)), len(stream)]
    arrivals: list[tuple[int, bytes]] = []
    pubacks: list[bytes] = []
    rest = b""

    for number, (start, stop) in enumerate(pairwise(edges)):
        rest = cut(rest + stream[start:stop], number, arrivals, pubacks)

    assert ([body for _, body in arrivals], rest) == (bodies, b"")
    assert pubacks == [b"\x40\x02\x00\x00"] * (len(bodies) * qos)


def test_the_number_stands_where_the_generator_replaces_it(tmp_path: Path) -> None:
    for workload in workloads.build(tmp_path).values():
        at = len(PREFIX)
        assert {payload.body[at : at + DIGITS] for payload in workload.payloads} == {b"%d" % FIRST_NUMBER}
        assert {payload.body[at + DIGITS :][:5] for payload in workload.payloads} == {b',"v":'}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    ordered = [float(i) for i in range(1, 201)]

    assert [results.percentile(ordered, q) for q in (0, 50, 99, 100)] == [1.0, 100.0, 198.0, 200.0]


def lines(*, ours: float, theirs: float, start_ms: float, rss_mb: float) -> list[Line]:
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
    rates = {"daemon": ours, "naive": theirs, "broker": 9000.0}
    found: list[Line] = [machine]
    for name, rate in rates.items():
        case = {"subject": name, "workload": "win"}
        found += [MaxRate(**FACTS, **case, round=i, outstanding=100, msg_s=rate * i) for i in (1, 2, 3)]
    case = {"subject": "daemon", "workload": "win"}
    found.append(Latency(**FACTS, **case, round=1, rate_hz=100.0, p50_ms=1.25, p99_ms=2.5, max_ms=3.0, late=1))
    skipped = {"subject": "naive", "workload": "win", "qos": 0, "round": 1, "rate_hz": 100.0, "reason": "too slow"}
    found.append(Skipped(**WHERE, **skipped))
    for name, value in (("daemon", start_ms), ("naive", 100.0)):
        found.append(Start(**WHERE, subject=name, workload="win", round=1, start_ms=value))
    found.append(Demo(**WHERE, round=1, rss_mb=rss_mb, peak_mb=rss_mb, messages=300))
    return found


def test_the_page_says_what_was_met() -> None:
    page = render.page(lines(ours=1500.0, theirs=1000.0, start_ms=120.0, rss_mb=70.0))

    assert "| max msg/s, win at QoS 0 | 1.50x (rounds 1.50 to 1.50) | at least 1x | yes |" in page
    assert "| start to subscribed | 1.20x | at most 1.3x | yes |" in page
    assert "| memory of the demo's daemon | 70.0 MB | at most 85 MB | yes |" in page
    assert "| max msg/s | 2,000 (1,000 to 3,000) | 3,000 (1,500 to 4,500) | 18,000 (9,000 to 27,000) |" in page
    assert "| p50 ms at 100/s | - (above its max, 1x) | 1.25 (1.25 to 1.25) | - |" in page


def test_the_page_says_what_was_missed() -> None:
    page = render.page(lines(ours=900.0, theirs=1000.0, start_ms=131.0, rss_mb=85.1))

    assert page.count("**no**") == 3


def test_the_committed_page_is_made_from_the_committed_lines() -> None:
    written = (ROOT / "docs" / "benchmarks.md").read_text()

    assert written == render.page(results.read(ROOT / "benchmarks" / "results"))


@pytest.mark.broker
def test_a_quick_run_answers_every_message_once_with_its_label_and_makes_the_page(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), "--page", str(page)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=QUICK_S, check=False)

    assert done.returncode == 0, done.stderr
    found = results.read(tmp_path)
    measured = [line for line in found if isinstance(line, MaxRate | Latency)]
    assert all((line.missing, line.repeated, line.wrong) == (0, 0, 0) for line in measured)
    assert all(line.n > 0 for line in measured)
    rates = {(line.subject, line.workload, line.qos) for line in measured if isinstance(line, MaxRate)}
    cases = {("feat64", 0), ("win", 0), ("feat64", 1)}
    assert rates == {(subject, *case) for subject in ("naive", "daemon", "broker") for case in cases}
    tried = {line.subject for line in found if isinstance(line, Latency | Skipped)}
    assert tried == {"naive", "daemon", "broker"}
    assert {line.subject for line in found if isinstance(line, Start)} == {"naive", "daemon"}
    assert [line.messages > 0 for line in found if isinstance(line, Demo)] == [True]
    decoded = [line for line in results.read(tmp_path / "payloads") if isinstance(line, Decode)]
    assert {line.subject for line in decoded} == set(payloads.VARIANTS)
    assert (tmp_path / "payloads.md").read_text().count("| `raw` | 24 |") == 1
    text = page.read_text()
    assert all(f"(`{workload}`), QoS {qos}" in text for workload, qos in cases)
    assert "memory of the demo's daemon" in text
