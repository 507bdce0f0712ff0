"""What this process writes to the storage: flash wears out by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_runtime.device.board import text_of

HOUR_NS, DAY_NS = 3600 * 10**9, 86_400 * 10**9
LEAST_APART_NS = 60 * 10**9
"""Readings closer than this are not kept, which bounds how many are."""
JUDGED_AFTER_NS = 600 * 10**9
"""A shorter time says too little about a day."""
BYTES_PER_MB = 1e6


class Wear(msgspec.Struct, frozen=True):
    """written_bytes: since the start. last_hour_bytes: of that, in the last hour, or the last 61 minutes at most.

    mb_per_day: at that rate; None in the first ten minutes. budget_mb_per_day: what it was meant to be, 0 for none.
    """

    written_bytes: int
    last_hour_bytes: int
    mb_per_day: float | None
    budget_mb_per_day: float = 0.0


def written_bytes(io: Path = Path("/proc/self/io")) -> int | None:
    """Bytes this process made the kernel write to block devices (proc(5), io), less what was cut off before; or None.

    Whole pages of files: the file system's own journal, and what flash has to move to write a page, come on top.
    """
    facts = dict(line.partition(": ")[::2] for line in text_of(io).splitlines())
    written, cancelled = facts.get("write_bytes", ""), facts.get("cancelled_write_bytes", "")
    return int(written) - int(cancelled) if written.isdecimal() and cancelled.isdecimal() else None


class WearMeter:
    """Knows of the last hour what was written when."""

    def __init__(
        self, *, now_ns: int, budget_mb_per_day: float = 0.0, read: Callable[[], int | None] = written_bytes
    ) -> None:
        """now_ns: the start. read: bytes written by the process so far, None where that cannot be learned."""
        self._read, self._budget_mb_per_day = read, budget_mb_per_day
        self._first = read()
        self._readings = deque([(now_ns, self._first or 0)])

    def wear(self, now_ns: int) -> Wear | None:
        """As of now; None where it cannot be learned."""
        written = self._read()
        if written is None or self._first is None:
            return None
        while len(self._readings) > 1 and self._readings[1][0] <= now_ns - HOUR_NS:
            self._readings.popleft()
        since_ns, before = self._readings[0]
        recent = max(0, written - before)
        if now_ns - self._readings[-1][0] >= LEAST_APART_NS:
            self._readings.append((now_ns, written))
        known_ns = now_ns - since_ns
        per_day = round(recent / BYTES_PER_MB * DAY_NS / known_ns, 3) if known_ns >= JUDGED_AFTER_NS else None
        return Wear(max(0, written - self._first), recent, per_day, self._budget_mb_per_day)


def over_budget(wear: Wear | None) -> str:
    """One sentence when more is written than was meant to be, else ""."""
    if wear is None or wear.mb_per_day is None or not 0 < wear.budget_mb_per_day < wear.mb_per_day:
        return ""
    return (
        f"{wear.mb_per_day:,.0f} MB a day are written to the storage at the rate of the last hour, "
        f"store.budget_mb_per_day = {wear.budget_mb_per_day:g}"
    )
