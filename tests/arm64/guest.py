"""The arm64 system that these tests run commands in: the userland, this checkout's own wheel, and pytest."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from export.arm64 import chroot
from export.arm64.cores import CORES
from export.arm64.userland import FOLDER, PIP, SUITES, Userland, fetch, run, sweep, userland

T = TypeVar("T")

LONG = os.environ.get("EDGE_ARM64") == "long"
"""Every core, every test file, both of Debian's releases; else what takes two minutes."""
ROOT = Path(__file__).parents[2]
PROJECT, TOOLS, CHECKOUT, OUT = "/opt/project", "/opt/tools", "/opt/checkout", "/opt/out"
EVERY = [*(("bookworm", core) for core in CORES), ("trixie", "a72")]
"""Suite and core. Python 3.13 computes nothing differently: one core is enough for it."""
SYSTEMS = EVERY if LONG else EVERY[: len(CORES)]
LIMIT_S = 600
"""Of a command in the guest, many times what it takes here."""
TIMEOUT_S = 1800 + LIMIT_S
"""Of a test: the first one pays for the wheel, the userland and the tools, too."""
WANTED = (
    "pytest", "pytest-timeout", "hypothesis", "psutil", "mqtt5", "jsonschema", "cbor2", "pysimdjson", "onnx",
    "cryptography", "amqtt",
)  # fmt: skip
"""What the device's unit tests import. hdrhistogram has no aarch64 wheel."""


@dataclass(frozen=True)
class Guest:
    """A userland with the project and the tools, bound into it for each command.

    packages: to be where Debian's Python looks for what pip installed; says where the others are.
    """

    where: Userland
    project: Path
    tools: Path
    packages: Path

    def run(
        self,
        core: str,
        program: Sequence[str],
        *,
        limit_s: float,
        out: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Python with arguments. out: a folder of this machine to be OUT, writable."""
        arguments = [f"/{self.where.python}", *program]
        installed = f"/usr/local/lib/python{SUITES[self.where.suite]}/dist-packages"
        writable = {self.project: PROJECT, self.tools: TOOLS} | ({out: OUT} if out else {})
        binds = {ROOT: CHECKOUT, self.packages: installed}
        told = {"PYTHONPATH": ""}
        return chroot.ran(
            self.where, core, arguments, limit_s=limit_s, environment=told, binds=binds, writable=writable
        )


def once(run: Callable[..., T]) -> Callable[..., T]:
    """A function that is called once for each arguments, and then returns or raises the same again."""
    found: dict[tuple[str, ...], T] = {}
    failed: dict[tuple[str, ...], BaseException] = {}

    def call(*key: str) -> T:
        if key in failed:
            raise failed[key]
        if key not in found:
            try:
                found[key] = run(*key)
            except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
                failed[key] = error
                raise
        return found[key]

    return call


def problem() -> str:
    """Why there can be no guest here, "" when there can."""
    return "only x86-64 emulates it" if os.uname().machine != "x86_64" else chroot.problem()


def system(suite: str, wheel: Path, folder: Path, progress: Callable[[str], None]) -> Guest:
    """A guest with a wheel, unpacked into a folder of its own. Raises MissingError, ExportError when it cannot be."""
    chroot.enable()
    where, project = userland(suite, progress=progress), folder / f"{suite}-project"
    packages = folder / f"{suite}-packages"
    packages.mkdir()
    (packages / "edge.pth").write_text(f"{PROJECT}\n/{where.site}\n{TOOLS}\n")
    # for Python 3.13 it is the first command that compiles it
    compiling = [] if f"{sys.version_info.major}.{sys.version_info.minor}" == SUITES[suite] else ["--no-compile"]
    run(*PIP, "install", "--no-deps", "--no-index", *compiling, "--target", str(project), str(wheel))
    return Guest(where, project, _tools(suite, compiling), packages)


def built_wheel(folder: Path) -> Path:
    """The project's wheel, of this checkout's sources and not of what an earlier build left beside them.

    Raises ExportError when it cannot be built.
    """
    sources = folder / "sources"
    for name in ("edge_runtime", "export"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    # with the setuptools that torch brings: no network
    run(*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(sources))
    return next(folder.glob("*.whl"))


def _tools(suite: str, compiling: list[str]) -> Path:
    """WANTED and what that needs, at the versions of constraints.txt, fetched once for each state of them."""
    constraints = ROOT / "constraints.txt"
    key = hashlib.sha256(constraints.read_bytes() + repr(WANTED).encode()).hexdigest()[:12]
    folder = FOLDER.expanduser()
    found = folder / f"tools-{suite}-{key}"
    if not found.is_dir():
        sweep(folder, "tools")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tools-") as place:
            made = Path(place) / "tools"
            fetch(suite, made, WANTED, *compiling, "--constraint", str(constraints))
            with suppress(OSError):  # somebody else was quicker
                made.replace(found)
    os.utime(found)
    return found
