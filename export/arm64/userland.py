"""An arm64 Debian as a device has it, unpacked into a folder: Python, mosquitto and the aarch64 wheels we depend on.

Nothing is emulated to build it: mmdebstrap extracts the packages, this machine's pip fetches the wheels. Built once
for each state of the dependencies, which are those installed here, to the version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from edge_runtime.errors import ExportError
from export.arm64.cores import CORES, CPUS, cpuinfo
from export.recipe import Progress

FOLDER = Path("~/.cache/edge-export/arm64")
SUITES = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases, which Raspberry Pi OS follows, and their Python."""
SUITE = "bookworm"
"""In which models are run and counted."""
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
LIMIT_S = 1200.0
UNUSED_S = 7 * 86_400.0
"""After which a userland of other dependencies is deleted when a new one is built."""
REASON_CHARACTERS = 300


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
    """The userland of a suite, built if it was not before. Raises ExportError when it cannot be."""
    found = place_of(suite, folder=folder)
    if found.is_built:
        os.utime(found.folder)
        return found
    if reason := problem():
        raise ExportError(f"no arm64 userland: {reason}")
    within = found.folder.parent
    within.mkdir(parents=True, exist_ok=True)
    outdated = [old for old in within.glob(f"{suite}-*") if time.time() - old.stat().st_mtime > UNUSED_S]
    partial = Userland(suite, Path(tempfile.mkdtemp(dir=within, prefix=f".{suite}-")))
    try:
        _build(partial, requirements(), progress)
        partial.folder.replace(found.folder)
    except OSError:
        if not found.is_built:  # else somebody else was quicker
            raise
    finally:
        for old in (partial.folder, *outdated):
            shutil.rmtree(old, ignore_errors=True)
    return found


def place_of(suite: str, *, folder: Path = FOLDER) -> Userland:
    """Where the userland of a suite is, or would be built. Raises ExportError for an unknown suite."""
    if suite not in SUITES:
        raise ExportError(f"suite {suite!r}, wanted {' or '.join(SUITES)}")
    how = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("userland.py", "cores.py"))
    key = hashlib.sha256(how + "\n".join([suite, *requirements()]).encode()).hexdigest()[:12]
    return Userland(suite, folder.expanduser() / f"{suite}-{key}")


def requirements() -> list[str]:
    """What the project with its extra [cpu] needs, and that in turn, each at the version that is installed here.

    Raises ExportError when one of them is not.
    """
    try:
        return _requirements()
    except importlib.metadata.PackageNotFoundError as error:
        raise ExportError(
            f"{error.name} is not installed; an arm64 userland gets the versions of edge-runtime[cpu]"
        ) from error


def _requirements() -> list[str]:
    found: dict[str, str] = {}
    names = ["edge-runtime[cpu]"]
    while names:
        name = names.pop()
        for needed in importlib.metadata.requires(re.split(r"[\[ ]", name)[0]) or ():
            bare, is_wanted = _needed(needed, extra="cpu" if "[cpu]" in name else "")
            if is_wanted and bare not in found:
                found[bare] = importlib.metadata.version(bare)
                names.append(bare)
    return sorted(f"{name}=={version}" for name, version in found.items())


def _needed(requirement: str, *, extra: str) -> tuple[str, bool]:
    """The name of a requirement as the metadata has it, and whether its marker holds."""
    from packaging.requirements import Requirement  # onnxruntime needs it, and pip brings its own

    parsed = Requirement(requirement)
    return parsed.name, parsed.marker is None or parsed.marker.evaluate({"extra": extra})


def _build(made: Userland, wanted: list[str], progress: Progress) -> None:
    progress(f"{made.suite}: unpacking Debian")
    included = f"--include={','.join(PACKAGES)}"
    run("mmdebstrap", "--mode=root", "--variant=extract", "--architectures=arm64", included, made.suite, str(made.root))
    shell = made.root / "bin/sh"  # which a script of the package would have linked
    if not shell.exists():
        shell.symlink_to("bash")
    for name, text in SCRIPTED.items():
        (made.root / name).write_text(text)
    progress(f"{made.suite}: fetching {len(wanted)} aarch64 wheels")
    install(made, made.site, wanted)
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


def install(into: Userland, place: Path, wanted: list[str]) -> None:
    """Put aarch64 wheels, and nothing that would have to be compiled, into a folder of the root.

    Raises ExportError when there is none of a version.
    """
    platforms = [f"--platform={name}_aarch64" for name in PLATFORMS]
    version = f"--python-version={SUITES[into.suite]}"
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--no-deps", "--implementation=cp"]
    target = ["--upgrade", "--target", str(into.root / place)]
    run(sys.executable, "-m", "pip", "install", *options, version, *platforms, *target, *wanted)


def run(*command: str) -> None:
    """Raises ExportError with the last line of what a failing command said."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise ExportError(f"{Path(command[0]).name} failed: {lines[-1][:REASON_CHARACTERS]}")
