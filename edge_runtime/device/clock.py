"""The clocks: whether the time of day can be believed, and how finely the monotonic one counts."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import msgspec

from edge_runtime.findings import Finding, fail, ok, warn

EARLIEST_UNIX_S = 1_735_689_600  # 2025-01-01
COARSEST_MONOTONIC_S = 1e-6
TIMESYNC = Path("/run/systemd/timesync/synchronized")
TIME_ERROR = 5
STA_UNSYNC = 0x40
SYNC_ADVICE = (
    "start a time service and let it reach its server: timedatectl set-ntp true, or install chrony (with rtcsync in "
    "chrony.conf, without it the kernel is not told)"
)


class KernelClock(msgspec.Struct, frozen=True):
    """What adjtimex(2) says. state: its return value. max_error_us: bound of the clock's error."""

    state: int
    status: int
    max_error_us: int

    @property
    def synchronized(self) -> bool:
        return self.state != TIME_ERROR and not self.status & STA_UNSYNC


class _Timeval(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2) up to the time; what follows is only given room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("frequency", ctypes.c_long),
        ("max_error", ctypes.c_long),
        ("estimated_error", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", _Timeval),
        ("rest", ctypes.c_char * 256),
    )


def kernel_clock() -> KernelClock | None:
    """Ask the kernel, changing nothing; None where it cannot be asked."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None
    answer = _Timex(modes=0)
    state = int(adjtimex(ctypes.byref(answer)))
    return None if state < 0 else KernelClock(state, answer.status, answer.max_error)


def time_of_day(unix_s: float, kernel: KernelClock | None, *, timesync: Path = TIMESYNC) -> Finding:
    """timesync: the file by which systemd-timesyncd says that it has set the clock since the system started."""
    if unix_s < EARLIEST_UNIX_S:
        found = f"the clock says {_date(unix_s)}: results would carry that time, and certificates seem not valid yet"
        return fail("clock", found, f"{SYNC_ADVICE}; a board without a battery-backed clock starts in the past")
    if kernel is not None and kernel.synchronized:
        return ok("clock", f"{_date(unix_s)}, synchronised, off by at most {kernel.max_error_us / 1000:.0f} ms")
    try:
        set_once = timesync.exists()
    except OSError:
        set_once = False
    if set_once:
        return ok("clock", f"{_date(unix_s)}, set by systemd-timesyncd since the start")
    doubt = "the kernel says it is not synchronised" if kernel else "whether it is synchronised cannot be learned here"
    return warn("clock", f"{_date(unix_s)}, but {doubt}", SYNC_ADVICE)


def monotonic(resolution_s: float) -> Finding:
    found = f"counts in steps of {resolution_s * 1e9:g} ns"
    if resolution_s > COARSEST_MONOTONIC_S:
        advice = "latencies are no finer than that: see /sys/devices/system/clocksource/clocksource0 for a better one"
        return warn("monotonic", found, advice)
    return ok("monotonic", found)


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix_s))
