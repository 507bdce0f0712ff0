"""What is measured: the script of naive.py and the daemon, each a process of its own, watched through /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.broker import Broker, BrokerError
from benchmarks.workloads import Workload

SCRIPT = Path(__file__).with_name("naive.py")
STOP_S = 10.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
KEEPS_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # would have the checkout compiled at every start, which no install is
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != KEEPS_NO_BYTECODE}
ENVIRONMENT["ORT_DISABLE_TELEMETRY"] = "1"
CONFIG = """\
[node]
id = "{node}"
state_dir = "{folder}/state"

[mqtt]
url = "mqtt://127.0.0.1:{port}"

[models.m]
bundle = "{bundle}"

[pipelines.p]
source = {{ topic = "{topic}", qos = {qos}, format = "json", path = "v", seq_field = "seq" }}
model = "m"
result_qos = {qos}
queue = {{ max = 1000 }}
"""


class Memory(msgspec.Struct, frozen=True):
    """Resident set now and at its highest, MB (10^6 bytes)."""

    rss_mb: float
    peak_mb: float


class SubjectError(Exception):
    """A subject did not start, stop, or account for its messages as it should."""


class Subject(msgspec.Struct, frozen=True):
    """How one subject is started for one workload. topic, results: where it reads and where it answers."""

    name: str
    command: tuple[str, ...]
    topic: str
    results: str
    log: Path


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

    def cpu_s(self) -> float:
        return cpu_s(self.process.pid)

    def memory(self) -> Memory:
        return memory(self.process.pid)

    def stop(self) -> None:
        """SIGTERM. The daemon must then exit with 0 and a ledger that balances. Raises SubjectError."""
        if self.process.poll() is not None:
            raise self.failure(f"ended by itself with {self.process.returncode}")
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_S)
        if self._subject.name == "naive":
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
    """The subject once the broker has its subscription, and the seconds that took; it ends with the block."""
    found = Running(subject)
    try:
        try:
            subscribed_ns = broker.wait_for_subscription(subject.topic, found.process)
        except BrokerError as error:
            raise found.failure(str(error)) from error
        yield found, (subscribed_ns - found.spawned_ns) / 1e9
        found.stop()
    finally:
        found.kill()


def naive(workload: Workload, *, port: int, qos: int, folder: Path) -> Subject:
    topic, results = f"in/naive/{workload.name}", f"out/naive/{workload.name}"
    options = {
        "--port": str(port),
        "--model": str(workload.model),
        "--labels": ",".join(workload.labels),
        "--topic": topic,
        "--results": results,
        "--qos": str(qos),
    }
    command = (sys.executable, str(SCRIPT), *(word for option in options.items() for word in option))
    return Subject("naive", command, topic, results, folder / f"naive-{workload.name}.log")


def daemon(workload: Workload, *, port: int, qos: int, folder: Path) -> Subject:
    node = f"bench-{workload.name}-{qos}"
    topic = f"in/daemon/{workload.name}-{qos}"
    config = folder / f"{node}.toml"
    config.write_text(CONFIG.format(node=node, folder=folder, port=port, bundle=workload.bundle, topic=topic, qos=qos))
    command = (sys.executable, "-m", "edge_runtime", "run", str(config), "--json")
    results = f"edge/v1/{node}/p/p/out/{topic.rsplit('/', 1)[1]}"
    return Subject("daemon", command, topic, results, folder / f"{node}.log")


SUBJECTS: dict[str, Callable[..., Subject]] = {"naive": naive, "daemon": daemon}


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat: utime + stime), in steps of 1 / TICKS_PER_S."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory(pid: int) -> Memory:
    """VmRSS and VmHWM (proc(5), status). Raises ProcessLookupError for a process that has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    if len(kb) < 2:
        raise ProcessLookupError(f"process {pid} has ended")
    return Memory(kb["VmRSS"] * 1024 / 1e6, kb["VmHWM"] * 1024 / 1e6)
