"""A subject's process: started, seen to be ready, watched through /proc, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks import judge
from benchmarks.broker import Broker, BrokerError
from benchmarks.generator import WHOLE, Run
from benchmarks.judge import Verdict
from benchmarks.workloads import Workload
from edge_runtime.demo.broker import HOST

STOP_S, LISTEN_S, POLL_S = 10.0, 20.0, 0.02
KEEPS_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # would have the checkout compiled at every start, which no install is
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != KEEPS_NO_BYTECODE}
ENVIRONMENT["ORT_DISABLE_TELEMETRY"] = "1"


class Memory(msgspec.Struct, frozen=True):
    """Resident set now and at its highest, MB (10^6 bytes)."""

    rss_mb: float
    peak_mb: float


class SubjectError(Exception):
    """A subject did not start, stop, or account for its messages as it should."""


class Subject(msgspec.Struct, frozen=True):
    """How one subject is started for one workload. topic, results: where it reads and where it answers.

    workload: as it treats it. keeps: a ledger that must balance at its end. port: of its own, when it is a server.
    judge: what holds its results against the workload. keep: bytes of each result that are kept.
    """

    name: str
    command: tuple[str, ...]
    topic: str
    results: str
    log: Path
    workload: Workload
    keeps_ledger: bool = False
    port: int = 0
    judge: Callable[[Run, Workload], Verdict] = judge.results
    keep: int = WHOLE


class Running:
    """A started subject. spawned_ns: monotonic, when its process was asked for."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.spawned_ns = time.monotonic_ns()
        with subject.log.open("wb") as log, self._output.open("wb") as output:
            self.process = subprocess.Popen(subject.command, stdout=output, stderr=log, env=ENVIRONMENT)

    @property
    def _output(self) -> Path:
        return self._subject.log.with_suffix(".out")

    def memory(self) -> Memory:
        return memory(self.process.pid)

    def stop(self) -> None:
        """SIGTERM. One that keeps a ledger must then exit with 0 and have it balanced. Raises SubjectError."""
        if self.process.poll() is not None:
            raise self.failure(f"ended by itself with {self.process.returncode}")
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise self.failure(f"did not stop in {STOP_S:.0f} s") from error
        if not self._subject.keeps_ledger:
            return
        if code != 0:
            raise self.failure(f"exit code {code}")
        summary = json.loads(self._output.read_bytes())
        if not (summary["balanced"] and summary["drained"]):
            raise self.failure(f"balanced: {summary['balanced']}, drained: {summary['drained']}")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)

    def failure(self, fact: str) -> SubjectError:
        said = self._subject.log.read_text(errors="replace").strip()[-800:]
        return SubjectError(f"{self._subject.name}: {fact}; its log ends: {said}")


@contextmanager
def running(subject: Subject, broker: Broker) -> Iterator[tuple[Running, float]]:
    """The subject once it is ready, and the seconds that took; it ends with the block. Raises SubjectError."""
    found = Running(subject)
    try:
        try:
            ready_ns = _listening(subject, found) if subject.port else _subscribed(subject, found, broker)
        except BrokerError as error:
            raise found.failure(str(error)) from error
        yield found, (ready_ns - found.spawned_ns) / 1e9
        found.stop()
    finally:
        found.kill()


def _subscribed(subject: Subject, found: Running, broker: Broker) -> int:
    return broker.wait_for_subscription(subject.topic, found.process)


def _listening(subject: Subject, found: Running) -> int:
    """Monotonic ns when the server took a connection."""
    deadline_s = time.monotonic() + LISTEN_S
    while time.monotonic() < deadline_s and found.process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((HOST, subject.port), LISTEN_S):
            return time.monotonic_ns()
        time.sleep(POLL_S)
    raise found.failure(f"nothing listens on port {subject.port}")


def memory(pid: int) -> Memory:
    """VmRSS and VmHWM (proc(5), status). Raises ProcessLookupError for a process that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    if len(kb) < 2:
        raise ProcessLookupError(f"process {pid} has ended")
    return Memory(kb["VmRSS"] * 1024 / 1e6, kb["VmHWM"] * 1024 / 1e6)
