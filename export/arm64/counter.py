"""How many instructions a program executes on a board's processor: exact, the same every time, and no time.

QEMU's user mode runs it; a plugin adds up the instructions of each block it executes, and notes the sum whenever the
program calls `mark()`, that is getppid(), which nothing else does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edge_runtime.errors import ExportError
from export.arm64.cores import core
from export.arm64.userland import FOLDER, Userland, run
from export.probe import Failure, output_of

SOURCE = Path(__file__).with_name("counter.c")
LIMIT_S = 900.0
EMULATOR = "qemu-aarch64"
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONUTF8": "1",
}
"""All of it: what differs from run to run, from user to user or starts a thread is not let in."""
OURS = Path(__file__).parents[2]
"""Where our own packages are, in pure Python, the same for both processors."""


class Mark(NamedTuple):
    """instructions: executed until then. calls: of the system, made until then."""

    instructions: int
    calls: int

    def since(self, before: Mark) -> Mark:
        return Mark(self.instructions - before.instructions, self.calls - before.calls)


def mark() -> None:
    """In the guest: note how many instructions were executed until here."""
    os.getppid()


def plugin(folder: Path = FOLDER) -> Path:
    """The counter, compiled if it was not before. Raises ExportError without a compiler."""
    source = SOURCE.read_bytes()
    made = folder.expanduser() / f"counter-{hashlib.sha256(source).hexdigest()[:12]}.so"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as place:
            partial = Path(place) / made.name
            run("cc", "-O2", "-fPIC", "-shared", "-o", str(partial), str(SOURCE))
            partial.replace(made)
    return made


def emulator() -> str:
    """The path of QEMU. Raises ExportError when it is not here."""
    found = shutil.which(EMULATOR)
    if found is None:
        raise ExportError(f"{EMULATOR} missing: scripts/install-system-packages arm64 installs it")
    return found


def version() -> str:
    """Of QEMU, as "qemu-aarch64 version 7.2.22"; counts of another one may differ."""
    told = output_of([emulator(), "--version"], Path.cwd(), limit_s=LIMIT_S)
    if isinstance(told, Failure):
        raise ExportError(f"{EMULATOR} {told.reason}")
    return told.decode().split(" (")[0]


def python(where: Userland, core_name: str, *options: str) -> tuple[str, ...]:
    """The command that is a board's Python, with our packages to import and nothing of the environment.

    options: of QEMU. Raises ExportError when it is not here.
    """
    environment = {
        **ENVIRONMENT,
        "PYTHONHOME": str(where.root / "usr"),
        "PYTHONPATH": os.pathsep.join((str(where.root / where.site), str(OURS))),
    }
    clean = ("setarch", "-R", "env", "-i", *(f"{name}={value}" for name, value in environment.items()))
    board = ("-cpu", core(core_name).name, "-L", str(where.board(core_name)))
    return (*clean, emulator(), *board, *options, str(where.root / where.python))


def count(where: Userland, core_name: str, program: Sequence[str], *, folder: Path) -> list[Mark] | Failure:
    """The marks of a Python program, in order. Python's arguments, run in a folder.

    Raises ExportError when nothing can be counted here.
    """
    marks = folder / "marks.txt"
    marks.unlink(missing_ok=True)
    command = python(where, core_name, "-plugin", f"{plugin()},out={marks}")
    ran = output_of([*command, *program], folder, limit_s=LIMIT_S)
    if isinstance(ran, Failure):
        return ran
    return [Mark(*map(int, line.split())) for line in marks.read_text().splitlines()]
