from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from broker import find_mosquitto
from measurements import NO_CC

from benchmarks import payloads, results
from benchmarks.results import Bare, Closed, Decode, Demo, Line, Measured, Start

ROOT = Path(__file__).parents[1]
QUICK_S = 240


def quick(folder: Path, *words: str) -> list[Line]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    if shutil.which("cc") is None:
        pytest.skip(NO_CC)
    options = ["--quick", "--results", str(folder), "--page", str(folder / "page.md")]
    command = [sys.executable, "-m", "benchmarks", *words, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=QUICK_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return results.read(folder)


@pytest.mark.broker
def test_a_quick_run_answers_every_message_once_with_its_label_and_makes_the_page(tmp_path: Path) -> None:
    chosen = {"broker", "echo", "naive", "lane", "http", "bare"}

    found = quick(
        tmp_path, "--workloads", "feat64,samp-16,pump", "--brokers", "nodelay", "--subjects", ",".join(chosen)
    )

    measured = [line for line in found if isinstance(line, Measured)]
    assert all((line.missing, line.repeated, line.wrong) == (0, 0, 0) for line in measured)
    assert all(line.n > 0 for line in measured)
    most = {(line.subject, line.workload, line.qos) for line in measured if isinstance(line, Closed)}
    assert most == {
        *((name, "feat64", qos) for name in ("broker", "echo", "naive", "lane") for qos in (0, 1)),
        ("http", "feat64", 0),
        *((name, "samp-16", 0) for name in ("naive", "lane")),
        *((name, "pump", 1) for name in ("echo", "naive", "lane")),
    }
    assert sorted(line.workload for line in found if isinstance(line, Bare)) == ["feat64", "win"]
    text = (tmp_path / "page.md").read_text()
    assert "### feat64, QoS 0, nodelay" in text
    assert "A quick run" in text


@pytest.mark.broker
def test_a_quick_run_starts_both_and_runs_the_demo_and_the_decoders(tmp_path: Path) -> None:
    found = quick(tmp_path, "start", "demo", "payloads")

    assert {line.subject for line in found if isinstance(line, Start)} == {"naive", "lane"}
    assert [line.messages > 0 for line in found if isinstance(line, Demo)] == [True]
    decoded = [line for line in results.read(tmp_path / "payloads") if isinstance(line, Decode)]
    assert {line.subject for line in decoded} == set(payloads.VARIANTS)
    assert (tmp_path / "payloads.md").read_text().count("| `raw` | 24 |") == 1
    assert "memory of the daemon in the demo" in (tmp_path / "page.md").read_text().lower()
