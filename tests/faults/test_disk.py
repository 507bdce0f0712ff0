"""A disk that is full, read-only, or gives back something else than was written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from broker import Broker, until
from oracle import Verdict
from trial import Trial

pytestmark = pytest.mark.broker

DISK_MB = 2
SMALL = "log_mb = 1"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of DISK_MB in memory, mounted there; skips where that is not permitted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    done = subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"remounting as {mode} is not permitted here: {done.stderr.strip()}")


def fill(folder: Path) -> Path:
    """Take all that is free on the disk."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 512, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def wait_for(trial: Trial, event: str) -> None:
    until(lambda: bool(trial.node.events(event)), what=f"{event}: {trial.node.log[-1500:]}")


def killed_when_recovered(trial: Trial) -> Verdict:
    wait_for(trial, "store_recovered")
    trial.live(0.2)
    trial.node.kill()
    trial.node.start()
    verdict = trial.finish()
    trial.node.close()
    return verdict


def test_a_full_disk_degrades_the_store_and_nothing_else_and_it_recovers_by_itself(
    keeping_broker: Broker, make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "trial0" / "state") as disk:
        trial = make_trial(keeping_broker, count=400, rate=150, more=f"[latency]\n{SMALL}")
        trial.begin()
        trial.live(0.3)
        ballast = fill(disk)
        wait_for(trial, "store_degraded")
        before = trial.sink.results()
        until(lambda: trial.sink.results() > before + 30, what="results while the disk is full")
        ballast.unlink()
        verdict = killed_when_recovered(trial)

    assert verdict.problems == []


def test_a_disk_that_is_read_only_at_the_start_degrades_the_store_and_nothing_else(
    keeping_broker: Broker, make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "trial0" / "state") as disk:
        trial = make_trial(keeping_broker, count=350, rate=150, more=f"[latency]\n{SMALL}")
        remount(disk, "ro")
        trial.begin()
        wait_for(trial, "store_degraded")
        until(lambda: trial.sink.results() > 30, what="results while the disk is read-only")
        remount(disk, "rw")
        verdict = killed_when_recovered(trial)

    assert verdict.problems == []


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def flip(path: Path) -> None:
    """One bit in every 512 bytes after the header."""
    body = bytearray(path.read_bytes())
    for at in range(600, len(body), 512):
        body[at] ^= 1 << (at % 8)
    path.write_bytes(body)


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(max(4_096, path.stat().st_size)))


DAMAGES: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("store.db", cut_off),
    ("store.db", flip),
    ("store.db", garbage),
    ("store.db-wal", cut_off),
    ("store.db-wal", flip),
    ("store.db-wal", garbage),
)


def test_a_damaged_store_is_moved_aside_and_never_keeps_the_daemon_from_starting(
    keeping_broker: Broker, make_trial: Callable[..., Trial], tmp_path: Path
) -> None:
    trial = make_trial(keeping_broker, count=4000, rate=150)
    state = tmp_path / "trial0" / "state"
    trial.begin()
    for file, damage in DAMAGES:
        until(lambda: trial.sink.results() > 0, what="results")
        trial.live(0.3)
        before = damaged(trial, state / file, damage)
        trial.node.start()
        trial.node.wait_connected()
        trial.sink.forget()
        until(lambda: trial.sink.results() > 0, what=f"results after {file} {damage.__name__}: {trial.node.log}")
        moved = len(list(state.glob("store.db.corrupt-*"))) - before
        assert moved or file != "store.db", f"{file} {damage.__name__} was not noticed"
        assert bool(trial.node.events("store_quarantined")) == bool(moved)
        assert "Traceback" not in trial.node.log
    summary = trial.node.stop()

    assert summary["balanced"]


def damaged(trial: Trial, path: Path, damage: Callable[[Path], None]) -> int:
    """End the node and damage its store; how many were moved aside before.

    The log is only there after a kill. SQLite takes a bad end of it for its end, and writes the good part over a bad
    file: so the file is damaged after an end in order, which leaves no log.
    """
    if path.name == "store.db":
        trial.node.stop()
    else:
        trial.node.kill()
    damage(path)
    return len(list(path.parent.glob("store.db.corrupt-*")))
