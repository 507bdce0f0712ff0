from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.device.clock import EARLIEST_UNIX_S, KernelClock, kernel_clock, monotonic, time_of_day

NOW = 1_795_000_000.0
SYNCED = KernelClock(state=0, status=0x2001, max_error_us=12_345)
UNSYNCED = KernelClock(state=5, status=0x40, max_error_us=16_000_000)


def test_a_clock_from_before_2025_fails_even_if_the_kernel_calls_it_synchronised(tmp_path: Path) -> None:
    found = time_of_day(EARLIEST_UNIX_S - 1, SYNCED, timesync=tmp_path / "none")

    assert (found.name, found.status) == ("clock", "fail")
    assert "2024-12-31 23:59 UTC" in found.found
    assert "timedatectl" in found.advice


def test_a_synchronised_clock_is_ok_with_its_error(tmp_path: Path) -> None:
    found = time_of_day(NOW, SYNCED, timesync=tmp_path / "none")

    assert (found.status, found.advice) == ("ok", "")
    assert "off by at most 12 ms" in found.found


@pytest.mark.parametrize("kernel", [UNSYNCED, KernelClock(5, 0, 0), KernelClock(0, 0x40, 0), None])
def test_a_clock_that_nobody_vouches_for_is_a_warning(tmp_path: Path, kernel: KernelClock | None) -> None:
    found = time_of_day(NOW, kernel, timesync=tmp_path / "none")

    assert found.status == "warn"
    assert ("kernel says" in found.found) == (kernel is not None)
    assert "chrony" in found.advice


@pytest.mark.parametrize("kernel", [UNSYNCED, None])
def test_the_file_of_timesyncd_is_a_second_source(tmp_path: Path, kernel: KernelClock | None) -> None:
    (tmp_path / "synchronized").touch()
    found = time_of_day(NOW, kernel, timesync=tmp_path / "synchronized")

    assert found.status == "ok"
    assert "systemd-timesyncd" in found.found


def test_this_kernel_answers_an_unprivileged_question() -> None:
    found = kernel_clock()

    assert found is not None
    assert 0 <= found.state <= 5
    assert found.max_error_us >= 0


def test_a_coarse_monotonic_clock_is_a_warning() -> None:
    assert monotonic(1e-9).status == "ok"
    assert monotonic(4e-3).status == "warn"
    assert "4e+06 ns" in monotonic(4e-3).found
