from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.device.storage import IN_MEMORY, LAYERED, state_folder
from edge_runtime.device.wear import Wear, WearMeter, over_budget, written_bytes

MINUTE_NS, HOUR_NS = 60 * 10**9, 3600 * 10**9
MB = 1_000_000

Proc = Callable[[int, int], Path]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """Writes a file like /proc/self/io."""

    def write(written: int, cancelled: int) -> Path:
        path = tmp_path / "io"
        path.write_text(
            f"rchar: 1\nwchar: 99\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: {written}\n"
            f"cancelled_write_bytes: {cancelled}\n"
        )
        return path

    return write


def metered(rates: dict[int, int], *, minutes: int) -> list[Wear]:
    """What a meter says every 10 s. rates: from which minute on how many bytes a minute are written."""
    written, found = 5000, []
    meter = WearMeter(now_ns=7, read=lambda: written)
    for step in range(1, minutes * 6 + 1):
        rate = rates[max(minute for minute in rates if minute <= (step - 1) // 6)]
        written += rate // 6
        wear = meter.wear(7 + step * 10 * 10**9)
        assert wear is not None
        found.append(wear)
    return found


def test_what_was_truncated_before_it_was_written_does_not_count(proc: Proc) -> None:
    assert written_bytes(proc(12_288, 4096)) == 8192


def test_without_the_file_nothing_is_known(tmp_path: Path, proc: Proc) -> None:
    assert written_bytes(tmp_path / "none") is None
    garbled = proc(1, 1)
    garbled.write_text("write_bytes: many\n")
    assert written_bytes(garbled) is None
    assert WearMeter(now_ns=0, read=lambda: None).wear(HOUR_NS) is None


def test_what_was_written_before_the_start_does_not_count() -> None:
    assert metered({0: 6000}, minutes=1)[-1].written_bytes == 6000


def test_a_day_is_judged_by_ten_minutes_at_least_and_an_hour_at_most() -> None:
    found = metered({0: 6 * MB, 60: 0}, minutes=130)

    assert [wear.mb_per_day for wear in found[:59]] == [None] * 59
    assert found[59].mb_per_day == pytest.approx(6 * 1440)
    assert found[359].mb_per_day == pytest.approx(6 * 1440)
    assert found[539].last_hour_bytes == pytest.approx(30 * 6 * MB, abs=6 * MB)
    assert found[539].mb_per_day == pytest.approx(3 * 1440, rel=0.02)
    assert found[-1] == Wear(360 * MB, 0, 0.0)


def test_a_meter_keeps_an_hour_however_often_it_is_asked() -> None:
    meter = WearMeter(now_ns=0, read=lambda: 0)
    for tenths in range(3 * 36_000):
        meter.wear(tenths * 10**8)

    assert len(meter._readings) <= 62


def test_less_than_before_is_nothing_written() -> None:
    counts = iter([8192, 4096])
    wear = WearMeter(now_ns=0, budget_mb_per_day=9.0, read=lambda: next(counts)).wear(MINUTE_NS)

    assert wear == Wear(0, 0, None, 9.0)


@pytest.mark.parametrize(
    ("wear", "said"),
    [
        (Wear(0, 0, 1200.4, 1000.0), "1,200 MB a day"),
        (Wear(0, 0, 1000.0, 1000.0), ""),
        (Wear(10**12, 10**12, None, 1000.0), ""),
        (Wear(0, 0, 1200.0, 0.0), ""),
        (None, ""),
    ],
)
def test_more_than_the_budget_is_one_sentence(wear: Wear | None, said: str) -> None:
    sentence = over_budget(wear)

    assert sentence.startswith(said)
    assert ("store.budget_mb_per_day = 1000" in sentence) == bool(said)


PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
WRITES = f"""
import os, sys
from edge_runtime.device.wear import written_bytes
page = {PAGE_BYTES}
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
before = written_bytes()
for _ in range(100):
    os.pwrite(fd, os.urandom(page), 0)
    os.fsync(fd)
print(written_bytes() - before)
os.ftruncate(fd, 0)
before = written_bytes()
os.pwrite(fd, bytes(100 * page), 0)
os.ftruncate(fd, 0)
print(written_bytes() - before)
"""


def test_a_page_that_is_synced_counts_each_time_and_one_that_is_cut_off_before_does_not(tmp_path: Path) -> None:
    mount = {finding.name: finding for finding in state_folder(tmp_path)}["mount"].found
    if mount.split()[0] in IN_MEMORY | LAYERED or written_bytes() is None:
        pytest.skip(f"needs a file system on a disk and /proc/self/io, not {mount}")
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        check=True,
    )

    synced, cut_off = (int(line) / PAGE_BYTES for line in done.stdout.split())
    assert 100 <= synced < 200  # some file systems write pages of their own as well
    assert cut_off < 50
