"""An arm64 Debian as a device has it, unpacked into a folder: Python, mosquitto and the aarch64 wheels we depend on.

Nothing is emulated to build it: mmdebstrap extracts the packages, this machine's pip fetches the wheels. Built once
for each state of the dependencies, which are those installed here, to the version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from edge_runtime.errors import ExportError
from export.arm64.cores import CORES, CPUS, cpuinfo
from export.arm64.requirements import PROJECT, needed
from export.recipe import Progress

FOLDER = Path("~/.cache/edge-export/arm64")
SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases, which Raspberry Pi OS follows, and their Python."""
SUITE = "bookworm"
"""In which models are run and counted."""
TARGET = {
    "implementation_name": "cpython", "os_name": "posix", "platform_machine": "aarch64",
    "platform_python_implementation": "CPython", "platform_system": "Linux", "sys_platform": "linux",
}  # fmt: skip
"""By which markers of requirements are judged, with the suite's Python."""
PACKAGES = (
    "python3", "ca-certificates", "libstdc++6", "libgcc-s1", "libgomp1", "bash", "coreutils", "mosquitto",
    "mosquitto-clients",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
"""Of the wheels that glibc 2.36, the older one, can load, and that pip does not try by itself for a foreign target."""
SCRIPTED = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
"""What scripts of Debian's packages would have written: mosquitto wants the user, everybody localhost."""
LINKED = ("bin", "etc", "lib", "opt", "sbin", "usr", "var")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
LIMIT_S = 1200.0
UNUSED_S = 7 * 86_400.0
"""After which what was fetched for other dependencies is deleted when something new is."""
ABANDONED_S = 2 * LIMIT_S
"""After which what is still being built was left by a build that was killed."""
REASON_CHARACTERS = 300
UNREACHABLE = ("Failed to fetch", "NO_PUBKEY")
"""What apt says without the network, or without Debian's keys."""
PROBE_S = 20.0


class MissingError(ExportError):
    """This machine has not what it takes, be it root, a program or the network: nothing is wrong with the project."""


class Userland(msgspec.Struct, frozen=True):
    """folder/root is the system. folder/cpu/CORE is it, too, as seen on a board with that core: for QEMU's -L."""

    suite: str
    folder: Path

    @property
    def is_built(self) -> bool:
        return self.folder.is_dir()

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def python(self) -> Path:
        """Inside the root."""
        return Path(f"usr/bin/python{SUITES[self.suite]}")

    @property
    def site(self) -> Path:
        """What the project depends on, inside the root."""
        return Path("opt/site")

    @property
    def project(self) -> Path:
        """The project's own wheel, inside the root."""
        return Path("opt/project")

    def board(self, core: str) -> Path:
        return self.folder / "cpu" / core


def problem() -> str:
    """Why no userland can be built or entered here, "" when one can."""
    if os.geteuid() != 0:
        return "unpacking an arm64 system needs root"
    missing = [name for name in ("mmdebstrap", "qemu-aarch64") if shutil.which(name) is None]
    return f"{' and '.join(missing)} missing: scripts/install-system-packages arm64 installs it" if missing else ""


def userland(suite: str, *, folder: Path = FOLDER, progress: Progress) -> Userland:
    """The userland of a suite, built if it was not before. Raises MissingError, ExportError when it cannot be."""
    found = place_of(suite, folder=folder)
    if found.is_built:
        return found
    if reason := problem():
        raise MissingError(f"no arm64 userland: {reason}")
    within = found.folder.parent
    within.mkdir(parents=True, exist_ok=True)
    partial = Userland(suite, Path(tempfile.mkdtemp(dir=within, prefix=f".{suite}-")))
    try:
        _build(partial, requirements(suite), progress)
        partial.folder.replace(found.folder)
    except OSError:
        if not found.is_built:  # else somebody else was quicker
            raise
    finally:
        shutil.rmtree(partial.folder, ignore_errors=True)
        sweep(within, suite)
    return found


def sweep(within: Path, name: str) -> None:
    """Delete folders NAME-* that nobody has used for long, and .NAME-* that builds have left."""
    for pattern, limit_s in ((f"{name}-*", UNUSED_S), (f".{name}-*", ABANDONED_S)):
        for old in within.glob(pattern):
            if time.time() - old.stat().st_mtime > limit_s:
                shutil.rmtree(old, ignore_errors=True)


def place_of(suite: str, *, folder: Path = FOLDER) -> Userland:
    """Where the userland of a suite is, noted as used, or would be built. Raises ExportError for an unknown suite."""
    if suite not in SUITES:
        raise ExportError(f"suite {suite!r}, wanted {' or '.join(SUITES)}")
    how = b"".join(
        Path(__file__).with_name(name).read_bytes() for name in ("userland.py", "requirements.py", "cores.py")
    )
    key = hashlib.sha256(how + "\n".join([suite, *requirements(suite)]).encode()).hexdigest()[:12]
    found = folder.expanduser() / f"{suite}-{key}"
    with suppress(OSError):  # it is not there, or another user's
        os.utime(found)
    return Userland(suite, found)


def requirements(suite: str = SUITE) -> list[str]:
    """What the project with its extra [cpu] needs on a board, and that in turn, each at the version installed here.

    Raises ExportError when one of them is not.
    """
    python = SUITES[suite]
    target = {**TARGET, "python_version": python, "python_full_version": f"{python}.0"}
    try:
        found = {wanted.name: version for wanted, version in needed(target)}
    except importlib.metadata.PackageNotFoundError:
        found = {PROJECT: ""}
    if missing := sorted(name for name, version in found.items() if not version):
        raise ExportError(
            f"{', '.join(missing)} not installed; an arm64 userland gets the versions of edge-runtime[cpu]"
        )
    return sorted(f"{name}=={version}" for name, version in found.items())


def _build(made: Userland, wanted: list[str], progress: Progress) -> None:
    progress(f"{made.suite}: unpacking Debian")
    included = f"--include={','.join(PACKAGES)}"
    unpack = ("mmdebstrap", "--mode=root", "--variant=extract", "--architectures=arm64", included, made.suite)
    run(*unpack, str(made.root))
    shell = made.root / "bin/sh"  # which a script of the package would have linked
    if not shell.exists():
        shell.symlink_to("bash")
    for name, text in SCRIPTED.items():
        (made.root / name).write_text(text)
    progress(f"{made.suite}: fetching {len(wanted)} aarch64 wheels")
    fetch(made.suite, made.root / made.site, wanted)
    for name, core in CORES.items():
        board = made.board(name)
        cpu = board / "sys/devices/system/cpu"
        cpu.mkdir(parents=True)
        (cpu / "possible").write_text(f"0-{CPUS - 1}\n")
        (cpu / "present").write_text(f"0-{CPUS - 1}\n")
        (board / "proc").mkdir()
        (board / "proc/cpuinfo").write_text(cpuinfo(core))
        for linked in LINKED:
            (board / linked).symlink_to(f"../../root/{linked}")
    made.folder.chmod(0o755)


def fetch(suite: str, target: Path, wanted: Sequence[str], *options: str) -> None:
    """Put aarch64 wheels, and nothing that would have to be compiled, into a folder.

    wanted: of pip, and what that needs. Raises MissingError without the network, ExportError when there is no wheel.
    """
    binary = ["--only-binary=:all:", "--implementation=cp", f"--python-version={SUITES[suite]}"]
    platforms = [f"--platform={name}_aarch64" for name in PLATFORMS]
    try:
        run(*PIP, "install", *binary, *platforms, "--upgrade", "--target", str(target), *options, *wanted)
    except MissingError:
        raise
    except ExportError as error:
        if "--no-index" not in options and (reason := _index_problem()):
            raise MissingError(f"the package index cannot be reached: {reason}") from error
        raise


def _index_problem() -> str:
    """Why pip does not find what every index has, "" when it does."""
    probe = [*PIP, f"--timeout={PROBE_S:.0f}", "--retries=0", "index", "versions", "pip"]
    try:
        run(*probe, limit_s=4 * PROBE_S)
    except ExportError as error:
        return str(error)
    return ""


def run(*command: str, limit_s: float = LIMIT_S) -> None:
    """Raises ExportError with the last line of what a failing command said, MissingError when that is UNREACHABLE."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, check=False)
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        unreached = [line for line in lines if any(text in line for text in UNREACHABLE)]
        reason = f"{Path(command[0]).name} failed: {(unreached or lines)[-1][:REASON_CHARACTERS]}"
        raise MissingError(reason) if unreached else ExportError(reason)
