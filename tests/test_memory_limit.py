"""The demo's daemon in 128 MiB: in a memory cgroup where one can be made, and by its peak resident set everywhere."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from broker import find_mosquitto, until

from benchmarks import demo_daemon, memory, memory_limit, memory_page, processes
from benchmarks.memory_limit import MIB, MemoryCgroup, NoCgroupError, Usage, memory_cgroup
from benchmarks.processes import SubjectError
from benchmarks.results import Confined, Machine
from edge_runtime.model.gate import GateReport

LIMIT_MIB = 128
CHUNKS = 120
HOG = "import sys; print(len(bytearray(int(sys.argv[1]) << 20)))"
WAITS = "import sys; sys.stdin.read()"
MACHINE = Machine(
    device="d", git="g", cpu="c", cores=1, memory_gb=1, kernel="k", system="s", versions={}, date="d", load=0, busy=0,
    quick=True,
)  # fmt: skip


class Ran(msgspec.Struct, frozen=True):
    """peak_mib: of the daemon's resident set, and of the gate's child. held_by: the cgroup, or why there is none.

    charged: to the cgroup, when all had been answered.
    """

    served: demo_daemon.Served
    peak_mib: float
    gate_peak_mib: float
    held_by: str
    charged: Usage | None = None
    cgroup_peak_mib: float = 0.0
    oom_kills: int = 0


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run, the first of a device: the gate's child proves the bundle beside the daemon."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    folder, peaks = tmp_path_factory.mktemp("demo"), [0.0]

    def look(pid: int) -> None:
        peaks.append(processes.memory(pid).peak_mb * 1e6 / MIB)

    with ExitStack() as stack:
        try:
            cgroup = stack.enter_context(memory_cgroup(LIMIT_MIB))
        except NoCgroupError as error:
            served, rest = demo_daemon.serve(demo_daemon.Place(folder), CHUNKS, look), (str(error),)
        else:
            served, rest = confined(cgroup, folder, look)
    kept = next((folder / demo_daemon.STATE / "gate").iterdir()).read_bytes()
    gate = msgspec.json.decode(kept, type=GateReport).peak_rss_mb
    return Ran(served, max(peaks), (gate or 0.0) * 1e6 / MIB, *rest)


def confined(
    cgroup: MemoryCgroup, folder: Path, look: Callable[[int], None]
) -> tuple[demo_daemon.Served, tuple[str, Usage, float, int]]:
    charged = []

    def look_at_both(pid: int) -> None:
        look(pid)
        charged.append(cgroup.usage())

    served = demo_daemon.serve(demo_daemon.Place(folder, cgroup.inside), CHUNKS, look_at_both)
    held_by = f"a memory cgroup ({cgroup.version.name})"
    return served, (held_by, charged[-1], cgroup.peak_mib, cgroup.oom_kills)


@pytest.mark.broker
def test_the_demo_answers_every_window_raises_its_alarm_and_balances_its_ledger(ran: Ran) -> None:
    served = ran.served

    assert served.published == served.summary.ledger.overall.received == 3 * CHUNKS
    assert served.results == served.results_wanted > 200
    assert served.alarms == ("pump-2",)
    assert served.summary.balanced
    assert demo_daemon.is_as_it_should_be(served)


@pytest.mark.broker
def test_resident_sets_of_the_daemon_and_of_the_gate_stay_below_128_mib(ran: Ran) -> None:
    assert 20 < ran.peak_mib < LIMIT_MIB
    assert 20 < ran.gate_peak_mib < LIMIT_MIB


@pytest.mark.broker
def test_a_memory_cgroup_of_128_mib_holds_the_daemon_and_the_gate_together(
    ran: Ran, record_property: Callable[[str, object], None]
) -> None:
    record_property("held_by", ran.held_by if ran.charged else "peak resident set")
    if ran.charged is None:
        pytest.skip(f"held by the peak resident set alone, no memory cgroup can be made here: {ran.held_by}")

    assert ran.oom_kills == 0
    assert 20 < ran.charged.anonymous_mib < ran.cgroup_peak_mib <= LIMIT_MIB


@pytest.fixture
def small() -> Iterator[MemoryCgroup]:
    try:
        with memory_cgroup(32) as cgroup:
            yield cgroup
    except NoCgroupError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")


def test_who_outgrows_a_cgroup_is_killed_and_counted_and_who_fits_is_not(small: MemoryCgroup) -> None:
    fits, outgrows = (
        subprocess.run(small.inside([sys.executable, "-S", "-c", HOG, mib]), capture_output=True, check=False)
        for mib in ("8", "64")
    )

    assert (fits.returncode, small.limit_mib) == (0, 32)
    assert outgrows.returncode == -9
    assert small.oom_kills == 1
    assert small.peak_mib <= 32


def test_a_cgroup_counts_its_own_processes_and_is_removed_with_its_block() -> None:
    try:
        with memory_cgroup() as cgroup:
            command = cgroup.inside([sys.executable, "-S", "-c", f"held = bytearray(16 << 20); {WAITS}"])
            with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
                until(lambda: cgroup.usage().anonymous_mib >= 16, what="16 MiB are charged")
                members = (cgroup.folder / "cgroup.procs").read_text().split()
                process.communicate(b"")
    except NoCgroupError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")

    assert members == [str(process.pid)]
    assert not cgroup.folder.exists()


def test_version_2_is_looked_for_where_a_parent_hands_memory_on(tmp_path: Path) -> None:
    """Of the unified hierarchy only the files are there: this shows where it looks and what it reads."""
    own = tmp_path / "cgroup" / "service" / "leaf"
    own.mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/service/leaf\n")
    (own / "cgroup.subtree_control").write_text("\n")
    (own.parent / "cgroup.subtree_control").write_text("cpu memory\n")
    files = {"memory.max": "134217728\n", "memory.peak": "41943040\n", "memory.events": "max 3\noom 1\noom_kill 2\n"}
    files["memory.stat"] = "anon 2097152\nfile 4194304\nfile_mapped 1048576\npgmajfault 7\n"
    for name, text in files.items():
        (own / name).write_text(text)

    found = MemoryCgroup(own, memory_limit.V2)

    assert list(memory_limit._parents(tmp_path, tmp_path / "cgroup")) == [(own.parent, memory_limit.V2)]
    assert (found.limit_mib, found.peak_mib, found.oom_kills) == (128, 40, 2)
    assert found.usage() == Usage(2, 4, 1, 7)
    assert found.inside(["true"])[3:] == (str(own / "cgroup.procs"), "true")


def test_where_no_cgroup_can_be_made_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("4:memory:/\n0::/\n")

    with pytest.raises(NoCgroupError, match="memory: No such file"), memory_cgroup(proc=tmp_path, mount=tmp_path / "x"):
        pass


def test_a_cgroup_that_takes_no_process_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoCgroupError, match=r"cgroup\.procs"):
        memory_limit._enter(MemoryCgroup(tmp_path / "cgroup", memory_limit.V2))


@pytest.mark.broker
def test_128_mib_hold_the_libraries_pages_too_when_nobody_has_read_them_before() -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    try:
        with memory.scratch() as folder:
            if not can_be_forgotten(folder / "pages"):
                pytest.skip("the checkout's file system holds its pages in memory")
            found = memory.Bench(folder, MACHINE).trial(LIMIT_MIB, first_start=True)
    except NoCgroupError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")

    assert (found.served, found.oom_kills, found.messages) == (True, 0, 3 * CHUNKS)
    assert 20 < found.mapped_mib < found.file_mib < found.peak_mib <= LIMIT_MIB


def can_be_forgotten(path: Path, pages: int = 64) -> bool:
    """Whether a file that was written to its disk leaves the page cache when that is asked for (mincore(2))."""
    size = pages * mmap.PAGESIZE
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
            held, first = (ctypes.c_ubyte * pages)(), ctypes.c_char.from_buffer(mapped)
            told = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), held)
            del first  # a mapping that is still pointed to is not closed
    return told == 0 and not any(page & 1 for page in held)


def trial(limit_mib: int | None, *, least_mib: int) -> Confined:
    return Confined(
        device="d", git="g", limit_mib=limit_mib, first_start=True, served=limit_mib is None or limit_mib >= least_mib,
        oom_kills=0, messages=3, start_s=1.0, peak_mib=1.0, anonymous_mib=1.0, file_mib=1.0, mapped_mib=1.0,
        rss_mib=1.0, major_faults=0,
    )  # fmt: skip


@pytest.mark.parametrize("least_mib", [5, 16, 17, 60, 64, 125, 128])
def test_the_search_finds_the_lowest_step_that_was_enough_twice(least_mib: int) -> None:
    tried = list(memory.search(lambda limit_mib: trial(limit_mib, least_mib=least_mib)))

    found = memory_page.least_mib([trial(None, least_mib=least_mib), *tried])
    assert found == max(16, -(-least_mib // 4) * 4)
    assert sum(line.limit_mib == found for line in tried) == 2
    assert len(tried) <= 12


def test_the_search_says_when_even_the_highest_limit_is_too_low() -> None:
    with pytest.raises(SubjectError, match="does not fit into 128 MiB"):
        list(memory.search(lambda limit_mib: trial(limit_mib, least_mib=200)))


def test_the_page_is_made_from_the_lines() -> None:
    lines = memory.results.read(memory.RESULTS)

    assert memory_page.page(lines) == memory.PAGE.read_text()
