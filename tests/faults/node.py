"""The daemon over its lives: started, ended in every way there is, and started again on the same folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from broker import until

SUBJECT = str(Path(__file__).with_name("subject.py"))
PLAIN = ("-m", "edge_runtime")
STOP_S = 15.0


class Node:
    """One configured node. lives: how often it was started; kills: how often it ended without being asked to."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.lives = self.kills = 0
        self.stops_s: list[float] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *faults: str) -> None:
        """Begin a life. faults: of subject.py; without any it is the program that users run."""
        assert self.process is None or self.process.poll() is not None
        self.lives += 1
        program = (SUBJECT, *(word for fault in faults for word in ("--fault", fault))) if faults else PLAIN
        with self._log_path.open("wb") as log, self._out_path.open("wb") as out:
            command = [sys.executable, *program, "run", str(self.config), "--json"]
            self.process = subprocess.Popen(command, stdout=out, stderr=log)

    @property
    def _log_path(self) -> Path:
        return self.config.parent / f"life{self.lives}.log"

    @property
    def _out_path(self) -> Path:
        return self.config.parent / f"life{self.lives}.json"

    @property
    def log(self) -> str:
        """What this life has said so far."""
        return self._log_path.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Lines of this life's log, those that are whole."""
        lines = [line for line in self.log.splitlines() if line.startswith("{") and line.endswith("}")]
        found: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [line for line in found if not name or line["event"] == name]

    def wait_connected(self, times: int = 1, timeout_s: float = 10.0) -> None:
        assert self.process is not None
        process = self.process
        until(
            lambda: process.poll() is not None or len(self.events("mqtt_connected")) >= times,
            what=f"the daemon is connected: {self.log[-2000:]}",
            timeout_s=timeout_s,
        )
        assert process.poll() is None, self.log[-2000:]

    @property
    def rss_mb(self) -> float:
        return float(psutil.Process(self.pid).memory_info().rss) / 2**20

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.await_death()

    def await_death(self, timeout_s: float = 20.0) -> None:
        """Until it has ended by SIGKILL, its own or ours."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not die within {timeout_s} s: {self.log[-2000:]}") from None
        assert code == -signal.SIGKILL, f"exit code {code}: {self.log[-2000:]}"
        self.kills += 1

    def stop(self) -> dict[str, Any]:
        """SIGTERM; the summary it prints. stops_s: how long each took."""
        assert self.process is not None
        begun_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_S)
        self.stops_s.append(time.monotonic() - begun_s)
        assert code == 0, f"exit code {code}: {self.log[-3000:]}"
        summary: dict[str, Any] = json.loads(self._out_path.read_text())
        return summary

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(60)
