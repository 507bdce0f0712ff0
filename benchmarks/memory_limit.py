"""A memory cgroup for one process and its children, of either version, in which swapping does not count as fitting.

Counted are the pages that its processes were the first to touch: anonymous ones, file pages with the page cache, and
what the kernel keeps for them. Pages of libraries that others have in use already are on their account.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

MIB = 1 << 20
REMOVE_S, POLL_S = 5.0, 0.01
ENTER = 'echo $$ > "$0" && exec "$@"'
PROC, MOUNT = Path("/proc"), Path("/sys/fs/cgroup")


class NoCgroupError(Exception):
    """No memory cgroup can be made here; the message says why."""


class Version(msgspec.Struct, frozen=True):
    """File names of the memory controller (Linux Documentation: cgroup-v1/memory, cgroup-v2) and keys of memory.stat.

    swap_is_total: the limit of swap holds for memory and swap together.
    """

    name: str
    limit: str
    swap: str
    swap_is_total: bool
    usage: str
    peak: str
    events: str
    anonymous: str
    file: str
    mapped: str
    faults: str


V1 = Version(
    "v1", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", True, "memory.usage_in_bytes",
    "memory.max_usage_in_bytes", "memory.oom_control", "total_rss", "total_cache", "total_mapped_file",
    "total_pgmajfault",
)  # fmt: skip
V2 = Version(
    "v2", "memory.max", "memory.swap.max", False, "memory.current", "memory.peak", "memory.events", "anon", "file",
    "file_mapped", "pgmajfault",
)  # fmt: skip


class Usage(msgspec.Struct, frozen=True):
    """What is charged now. MiB; file: page cache, mapped: of it what is mapped. major_faults: so far, each a read."""

    anonymous_mib: float
    file_mib: float
    mapped_mib: float
    major_faults: int


class MemoryCgroup:
    """One that exists. version: its files."""

    def __init__(self, folder: Path, version: Version) -> None:
        self.folder, self.version = folder, version

    def inside(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command as one of this cgroup; its process id is that of the process that is started."""
        return ("/bin/sh", "-c", ENTER, str(self.folder / "cgroup.procs"), *command)

    @property
    def limit_mib(self) -> float:
        """What the kernel has made of the limit that was asked for."""
        said = (self.folder / self.version.limit).read_text().strip()
        return float("inf") if said == "max" else int(said) / MIB

    @property
    def peak_mib(self) -> float:
        return int((self.folder / self.version.peak).read_text()) / MIB

    @property
    def oom_kills(self) -> int:
        """How many of its processes were killed because the limit was met."""
        return _counts(self.folder / self.version.events)["oom_kill"]

    def usage(self) -> Usage:
        counts, version = _counts(self.folder / "memory.stat"), self.version
        return Usage(
            anonymous_mib=counts[version.anonymous] / MIB,
            file_mib=counts[version.file] / MIB,
            mapped_mib=counts[version.mapped] / MIB,
            major_faults=counts[version.faults],
        )


@contextmanager
def memory_cgroup(limit_mib: float | None = None, *, proc: Path = PROC, mount: Path = MOUNT) -> Iterator[MemoryCgroup]:
    """A new one below that of this process or, where version 2 wants that, beside it; it is removed with the block.

    All that was started in it must have ended and been waited for by then. Raises NoCgroupError.
    """
    made = _make(proc, mount)
    try:
        _enter(made)
        if limit_mib is not None:
            _limit(made, round(limit_mib * MIB), proc)
        yield made
    finally:
        _remove(made.folder)


def _make(proc: Path, mount: Path) -> MemoryCgroup:
    reasons = []
    for parent, version in _parents(proc, mount):
        folder = parent / f"edge-runtime-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        missing = [name for name in (version.limit, version.peak, version.events) if not (folder / name).exists()]
        if not missing:
            return MemoryCgroup(folder, version)
        folder.rmdir()
        reasons.append(f"{parent}: no {', '.join(missing)}")
    raise NoCgroupError("; ".join(reasons) or "no memory cgroup that may have others below it")


def _enter(made: MemoryCgroup) -> None:
    """Raises NoCgroupError where a cgroup can be made, but no process may be put into it."""
    done = subprocess.run(made.inside(["true"]), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCgroupError(f"{made.folder}: {done.stderr.strip()}")


def _parents(proc: Path, mount: Path) -> Iterator[tuple[Path, Version]]:
    """Where a cgroup with a memory controller can be (cgroups(7), /proc/pid/cgroup)."""
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                own = mount / "memory" / path.lstrip("/")
                yield (own if own.is_dir() else mount / "memory"), V1
            elif number == "0":
                own = mount / path.lstrip("/")
                yield from ((place, V2) for place in (own, own.parent) if _hands_on_memory(place))


def _hands_on_memory(parent: Path) -> bool:
    """Whether cgroups of version 2 below this one have a memory controller."""
    with contextlib.suppress(OSError):
        return "memory" in (parent / "cgroup.subtree_control").read_text().split()
    return False


def _limit(made: MemoryCgroup, limit_bytes: int, proc: Path) -> None:
    """Raises NoCgroupError where it could be met by swapping, or the kernel refuses it."""
    version = made.version
    try:
        (made.folder / version.limit).write_text(str(limit_bytes))
        if (made.folder / version.swap).exists():
            (made.folder / version.swap).write_text(str(limit_bytes if version.swap_is_total else 0))
        elif len((proc / "swaps").read_text().splitlines()) > 1:
            raise NoCgroupError(f"{made.folder}: swap is in use here, and no {version.swap} limits it")
    except OSError as error:
        raise NoCgroupError(f"{made.folder}: {error.strerror}") from error


def _counts(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in path.read_text().splitlines())}


def _remove(folder: Path) -> None:
    """A process that has just ended may be charged for a moment longer. Raises OSError."""
    deadline_s = time.monotonic() + REMOVE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            return folder.rmdir()
        time.sleep(POLL_S)
    return folder.rmdir()
