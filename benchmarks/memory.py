"""python -m benchmarks.memory: what the demo's daemon needs at least, what it takes when it may, what imports cost.

Every trial is a daemon in a memory cgroup of its own, without swap, on a private copy of the libraries that is out of
the page cache: so that their file pages are counted, too. Writes lines and the page made from them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks import broker, demo_daemon, machine, memory_page, processes, results
from benchmarks.broker import BrokerError
from benchmarks.memory_limit import MIB, MemoryCgroup, NoCgroupError, Usage, memory_cgroup
from benchmarks.memory_page import REPEATS, STEP_MIB
from benchmarks.processes import SubjectError
from benchmarks.results import Confined, Imported, Line, Machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "memory"
PAGE = ROOT / "docs" / "memory.md"
BUILD = ROOT / "build"
LEAST_MIB, MOST_MIB = 16, 128
CHUNKS = 120
IMPORT_ROUNDS = 15
SAMPLE_S = 0.01
PACKAGES = ("edge_runtime", "msgspec", "numpy", "numpy.libs", "onnxruntime", "paho")
VERSIONS = ("paho-mqtt", "onnxruntime", "numpy", "msgspec")


def main() -> int:
    """0 done, 1 when it cannot be measured here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--render", action="store_true", help="only make the page anew, from the lines there are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON lines")
    parser.add_argument("--page", type=Path, default=PAGE, help="file for the page")
    options = parser.parse_args()
    try:
        if not options.render:
            results.write(options.results / "lines.jsonl", list(_told(_measure())))
    except (NoCgroupError, SubjectError, BrokerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.page.write_text(memory_page.page(results.read(options.results)))
    print(f"{options.page} written", file=sys.stderr)
    return 0


def _measure() -> Iterator[Line]:
    own = {"python": platform.python_version(), "mosquitto": broker.version()}
    where = machine.describe(quick=False, versions=own | machine.packages(VERSIONS))
    yield where
    yield from imports(where, IMPORT_ROUNDS)
    with scratch() as folder:
        bench = Bench(folder, where)
        for first_start in (True, False):
            yield bench.trial(None, first_start=first_start)
            yield from search(partial(bench.trial, first_start=first_start))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder beside the checkout's files and not where temporary ones are: files of a tmpfs have no page cache."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="memory-", dir=BUILD) as name:
        yield Path(name)


def search(trial: Callable[[int], Confined]) -> Iterator[Confined]:
    """Trials that narrow down the least limit that is enough, to STEP_MIB. Raises SubjectError when none is."""
    enough, too_little = MOST_MIB + STEP_MIB, LEAST_MIB - STEP_MIB
    limit_mib = MOST_MIB
    while enough - too_little > STEP_MIB:
        served = True
        for _ in range(REPEATS):
            found = trial(limit_mib)
            yield found
            served = found.served
            if not served:
                break
        enough, too_little = (limit_mib, too_little) if served else (enough, limit_mib)
        if too_little >= MOST_MIB:
            raise SubjectError(f"the demo's daemon does not fit into {MOST_MIB} MiB")
        limit_mib = (enough + too_little) // (2 * STEP_MIB) * STEP_MIB


class Bench:
    """A private copy of what the daemon loads, and the gate's report of an earlier start."""

    def __init__(self, folder: Path, where: Machine) -> None:
        self._folder, self._machine, self._trials = folder, where, 0
        self._modules, self._gate = folder / "modules", folder / "gate"
        for name in PACKAGES:
            source = _installed(name)
            if source is not None:
                shutil.copytree(source, self._modules / name)
        self._copies = [path for path in self._modules.rglob("*") if path.is_file()]
        for path in self._copies:
            _with_descriptor(path, os.fsync)

    def trial(self, limit_mib: int | None, *, first_start: bool) -> Confined:
        """One run of the daemon in a limit. Raises NoCgroupError, SubjectError when it fails without a limit."""
        self._trials += 1
        place = self._folder / f"trial-{self._trials}"
        if not first_start:
            shutil.copytree(self._gate, place / demo_daemon.STATE / "gate")
        place.mkdir(exist_ok=True)
        for path in self._copies:
            _with_descriptor(path, _forget)
        with memory_cgroup(limit_mib) as cgroup, _watched(cgroup) as watch:
            subject = demo_daemon.Place(place, cgroup.inside, self._modules)
            served, problem = self._serve(subject, watch)
            found = self._line(limit_mib, cgroup, watch, served, first_start=first_start)
        if not found.served:
            if limit_mib is None:
                raise problem or SubjectError(f"the demo's daemon served wrongly: {served}")
            print(f"{limit_mib} MiB: {problem or 'served wrongly'}", file=sys.stderr)
        elif first_start and limit_mib is None:
            shutil.copytree(place / demo_daemon.STATE / "gate", self._gate)
        return found

    def _serve(self, place: demo_daemon.Place, watch: Watch) -> tuple[demo_daemon.Served | None, SubjectError | None]:
        try:
            return demo_daemon.serve(place, CHUNKS, watch.look), None
        except SubjectError as error:
            return None, error

    def _line(
        self,
        limit_mib: int | None,
        cgroup: MemoryCgroup,
        watch: Watch,
        served: demo_daemon.Served | None,
        *,
        first_start: bool,
    ) -> Confined:
        right = served is not None and demo_daemon.is_as_it_should_be(served) and cgroup.oom_kills == 0
        return Confined(
            device=self._machine.device,
            git=self._machine.git,
            limit_mib=limit_mib,
            first_start=first_start,
            served=right,
            oom_kills=cgroup.oom_kills,
            messages=served.published if served else 0,
            start_s=round(served.start_s, 2) if served else None,
            peak_mib=round(cgroup.peak_mib, 1),
            anonymous_mib=round(watch.highest.anonymous_mib, 1),
            file_mib=round(watch.highest.file_mib, 1),
            mapped_mib=round(watch.highest.mapped_mib, 1),
            rss_mib=round(watch.rss_mib, 1) if watch.rss_mib else None,
            major_faults=watch.highest.major_faults,
        )


class Watch:
    """The highest of everything that a cgroup is charged with. rss_mib: of the daemon alone."""

    def __init__(self, cgroup: MemoryCgroup) -> None:
        self._cgroup = cgroup
        self.highest, self.rss_mib = Usage(0.0, 0.0, 0.0, 0), 0.0

    def look(self, pid: int) -> None:
        """One that has ended is looked at no more."""
        with suppress(ProcessLookupError, FileNotFoundError):
            self.rss_mib = processes.memory(pid).peak_mb * 1e6 / MIB

    def sample(self, ended: threading.Event) -> None:
        while not ended.wait(SAMPLE_S):
            now = self._cgroup.usage()
            pairs = zip(msgspec.structs.astuple(self.highest), msgspec.structs.astuple(now), strict=True)
            self.highest = Usage(*(max(pair) for pair in pairs))


@contextmanager
def _watched(cgroup: MemoryCgroup) -> Iterator[Watch]:
    """Looked at every SAMPLE_S until the block ends."""
    watch, ended = Watch(cgroup), threading.Event()
    thread = threading.Thread(target=watch.sample, args=[ended])
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def imports(where: Machine, rounds: int) -> Iterator[Imported]:
    """Each subject in an interpreter of its own, in turn, after one of each that fills the file cache."""
    for number in range(rounds + 1):
        for subject in ("libraries", "run"):
            cost = import_cost(subject)
            if number:
                names = cost.pop("modules")
                yield Imported(
                    device=where.device, git=where.git, subject=subject, round=number, modules=len(names), **cost
                )


def import_cost(subject: str) -> dict[str, Any]:
    """What benchmarks.import_cost says in an interpreter of its own."""
    command = [sys.executable, "-m", "benchmarks.import_cost", subject]
    environment = processes.ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _installed(name: str) -> Path | None:
    """Its folder; of what is no package, the one beside numpy's."""
    if "." in name:
        beside = Path(np.__file__).parents[1] / name
        return beside if beside.is_dir() else None
    found = importlib.util.find_spec(name)
    return None if found is None or found.origin is None else Path(found.origin).parent


def _with_descriptor(path: Path, use: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        use(descriptor)
    finally:
        os.close(descriptor)


def _forget(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _told(lines: Iterator[Line]) -> Iterator[Line]:
    """Each line to stderr as it is made."""
    for line in lines:
        print(msgspec.json.encode(line).decode(), file=sys.stderr, flush=True)
        yield line


if __name__ == "__main__":
    sys.exit(main())
