"""The machine that measured."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")


def machine() -> str:
    """The CPU's name and kind, and the system."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown CPU'}, {platform.machine()}, {platform.system()}"


def gpus() -> str:
    """NVIDIA's names of its cards, as the driver tells them."""
    told = [line for path in sorted(GPUS.glob("*/information")) for line in path.read_text().splitlines()]
    return ", ".join(line.split(":", 1)[1].strip() for line in told if line.startswith("Model")) or "unknown GPU"


def _cpuinfo() -> list[str]:
    return CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
