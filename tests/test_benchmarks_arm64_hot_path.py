"""Instructions per message: the guests run here, and are counted on an emulated Raspberry Pi 4."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import workloads
from benchmarks.arm64 import hot_path
from benchmarks.arm64.far_end import Report
from benchmarks.arm64.hot_path import Counts
from benchmarks.workloads import Workload
from export.arm64.userland import Userland

ROOT = Path(hot_path.__file__).parents[2]
APART = 0.0001
"""Of the instructions of two runs; most are equal to the last one, and why not all has not been found."""
FEW = 32


@pytest.fixture(autouse=True)
def _few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_path, "WARM_UP", FEW)
    monkeypatch.setattr(hot_path, "COUNTED", FEW)
    monkeypatch.setattr(hot_path, "READ_MESSAGES", (1, 16))


@pytest.fixture
def pump(tmp_path: Path) -> Workload:
    return workloads.build(tmp_path, ["pump"])["pump"]


def reported(subject: str, workload: Workload, place: Path) -> Report:
    """What a guest reports that runs natively."""
    place.mkdir()
    program = hot_path.prepare(subject, workload, 1, place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *program], cwd=place, env=environment, check=True, timeout=60)
    return Report.load(place)


@pytest.mark.parametrize("subject", hot_path.SUBJECTS)
def test_each_window_is_answered_once_and_rightly(subject: str, pump: Workload, tmp_path: Path) -> None:
    report = reported(subject, pump, tmp_path / subject)

    assert len(report.results) == pump.cut.completed(4 * FEW)
    assert hot_path.is_right(report, pump)
    swapped = msgspec.structs.replace(report, results=report.results[::-1])
    assert not hot_path.is_right(swapped, pump)
    assert not hot_path.is_right(report, msgspec.structs.replace(pump, expected=pump.expected[1:]))


def spent(counts: Counts) -> int:
    return sum(read.instructions for read in counts.reads)


def test_two_runs_take_the_same_instructions_and_the_daemon_takes_fewer_than_the_script(
    where: Userland, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_path, "READ_MESSAGES", (16,))
    workload = workloads.build(tmp_path, ["feat64"])["feat64"]

    def counted(subject: str) -> Counts:
        return hot_path.run(subject, workload, 0, where=where, core="a72")

    daemon, naive = ([counted(subject) for _ in range(2)] for subject in hot_path.SUBJECTS)

    assert all(counts.is_right for counts in (*daemon, *naive))
    for one, other in (daemon, naive):
        assert spent(one) == pytest.approx(spent(other), rel=APART)
    assert 2 * spent(daemon[0]) < spent(naive[0])


def test_a_result_at_qos_1_is_acknowledged_in_a_read_of_its_own(pump: Workload, tmp_path: Path) -> None:
    windows = [read.windows for read in hot_path._reads(pump) if read.is_counted]

    rounds = reported("daemon", pump, tmp_path / "daemon").rounds

    assert [number - 1 for number in rounds] == [min(1, count) for count in windows]
