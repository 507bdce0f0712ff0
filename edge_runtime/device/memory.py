"""Memory of this process, from the kernel."""

from __future__ import annotations

from pathlib import Path


def rss_mb(proc: Path = Path("/proc/self")) -> float:
    """Resident set size in MB (proc(5), status: VmRSS). Raises OSError where there is no /proc."""
    for line in (proc / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{proc}/status has no VmRSS")
