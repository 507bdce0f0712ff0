"""Memory of the daemon in the demo: its bundle, its three pumps, its process, after some hundred messages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks import processes
from benchmarks.results import Demo, Machine

FULL, QUICK = (2, 16), (1, 4)
CONFIG = "demo.toml"
EVERY_S = 0.1
END_S = 30.0


def run(rounds: int, seconds: int, folder: Path, machine: Machine) -> Iterator[Demo]:
    """What the kernel says of the demo's daemon shortly before its end. Raises SubjectError when the demo fails."""
    for number in range(1, rounds + 1):
        state = folder / f"demo-{number}"
        log = folder / f"demo-{number}.log"
        command = [sys.executable, "-m", "edge_runtime", "demo", "--seconds", str(seconds), "--state-dir", str(state)]
        with log.open("wb") as output:
            demo = subprocess.Popen(command, stdout=output, stderr=output, env=processes.ENVIRONMENT)
        try:
            used = _watch(demo, seconds + END_S)
        finally:
            if demo.poll() is None:
                demo.terminate()
            demo.wait(END_S)
        if demo.returncode != 0 or used is None:
            raise processes.SubjectError(
                f"the demo ended with {demo.returncode}: {log.read_text(errors='replace')[-800:]}"
            )
        summary = json.loads((state / "summary.json").read_bytes())
        yield Demo(
            device=machine.device,
            git=machine.git,
            round=number,
            rss_mb=used.rss_mb,
            peak_mb=used.peak_mb,
            messages=summary["ledger"]["overall"]["received"],
        )


def _watch(demo: subprocess.Popen[bytes], seconds: float) -> processes.Memory | None:
    """The last memory seen of the demo's daemon until the demo ends."""
    used: processes.Memory | None = None
    deadline_s = time.monotonic() + seconds
    while demo.poll() is None and time.monotonic() < deadline_s:
        time.sleep(EVERY_S)
        used = _daemon_memory(demo.pid) or used
    return used


def _daemon_memory(demo: int) -> processes.Memory | None:
    """Of the demo's child that runs the daemon; None before its start and after its end."""
    try:
        children = psutil.Process(demo).children(recursive=True)
        daemons = [child.pid for child in children if any(word.endswith(CONFIG) for word in child.cmdline())]
        return processes.memory(daemons[0]) if daemons else None
    except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
        return None
