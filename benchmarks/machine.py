"""The machine a benchmark ran on."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import broker, programs
from benchmarks.results import Machine

PACKAGES = (
    "paho-mqtt", "onnxruntime", "numpy", "msgspec", "pysimdjson", "cbor2", "fastapi", "uvicorn", "httptools", "uvloop",
)  # fmt: skip
CODE = ("edge_runtime", "benchmarks/*.py", "benchmarks/*.[ch]", "pyproject.toml", "constraints.txt")
IDLE_S = 2.0


def describe(*, quick: bool, code: Sequence[str] = CODE, versions: dict[str, str] | None = None) -> Machine:
    """Look at this machine; takes IDLE_S, in which it only watches what others do.

    code: that is measured. versions: of what took part, None for those of the main job.
    """
    load = os.getloadavg()[0]
    return Machine(
        device=device(),
        git=commit(code),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        kernel=platform.release(),
        system=platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        versions=_versions() if versions is None else versions,
        date=dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        load=round(load, 2),
        busy=round(_busy(IDLE_S), 3),
        quick=quick,
    )


def _versions() -> dict[str, str]:
    own = {"python": platform.python_version(), "mosquitto": broker.version(), "cc": programs.compiler()}
    return own | packages(PACKAGES)


def packages(names: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed; httptools and uvloop make uvicorn faster where they are."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def device() -> str:
    return f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}"


def commit(code: Sequence[str] = CODE) -> str:
    """The commit checked out, with -dirty when the code that is measured differs from it; "unknown" outside of git."""
    root = Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        return f"{head}-dirty" if _git(root, "status", "--porcelain", "--", *code) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    """The model as /proc/cpuinfo (x86) or the device tree (boards) names it."""
    board = Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text().strip("\0\n ")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _busy(seconds: float) -> float:
    """Share of all cores in use (proc(5), stat) while this process sleeps."""
    idle_before, all_before = ticks()
    time.sleep(seconds)
    idle, total = ticks()
    return 1.0 - (idle - idle_before) / max(total - all_before, 1)


def ticks() -> tuple[int, int]:
    """Of all cores since the machine started: idle ones, and all."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)
