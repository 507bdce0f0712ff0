"""How many instructions a program executes on a board's processor, and no time.

The same ones to a few in 100,000 from run to run; a kernel of ONNX Runtime that minds how its memory is aligned moves
by up to 1 in 1,000.

QEMU's user mode runs it; a plugin adds up the instructions of each block it executes, and notes the sum whenever the
program calls `marks.mark()`, that is getppid(), which nothing else does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
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
PACKAGES = ("edge_runtime", "export", "benchmarks")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "results", "zoo", "models")
FIXED_ADDRESSES = ("setarch", "-R")
REPEATABLE = ("-seed", "1", "-R", "0x1000000000")
"""The random bytes that a program is given at its start, and addresses that QEMU itself does not use."""
SECOND_THREAD = "thread"


class Mark(NamedTuple):
    """instructions: executed until then. calls: of the system, made until then."""

    instructions: int
    calls: int

    def since(self, before: Mark) -> Mark:
        return Mark(self.instructions - before.instructions, self.calls - before.calls)


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
    return told.decode().splitlines()[0].split(" (")[0]


@cache
def problem() -> str:
    """Why nothing can be counted here, "" when it can."""
    missing = [name for name in ("cc", "setarch", EMULATOR) if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} missing: scripts/install-system-packages arm64 installs it"
    try:
        run(*FIXED_ADDRESSES, "true")
        _load(plugin())
    except ExportError as error:
        return str(error)
    return ""


def _load(library: Path) -> None:
    """Let QEMU load the counter, which then makes its file, before it refuses to run what is no program.

    Raises ExportError.
    """
    with tempfile.TemporaryDirectory() as place:
        marks = Path(place) / "marks.txt"
        output_of([emulator(), *_plugin(library, marks), os.devnull], Path(place), limit_s=LIMIT_S)
        if not marks.exists():
            raise ExportError(f"{version()} does not load the counter, wanted one linked dynamically, of plugin API 1")


def _plugin(library: Path, marks: Path) -> tuple[str, ...]:
    return "-plugin", f"{library},out={marks}"


def python(where: Userland, core_name: str, *options: str, ours: Path = OURS) -> tuple[str, ...]:
    """The command that is a board's Python, with our packages to import and nothing of the environment.

    options: of QEMU. Raises ExportError when it is not here.
    """
    environment = {
        **ENVIRONMENT,
        "PYTHONHOME": str(where.root / "usr"),
        "PYTHONPATH": os.pathsep.join((str(where.root / where.site), str(ours))),
    }
    clean = ("env", "-i", *(f"{name}={value}" for name, value in environment.items()))
    board = ("-cpu", core(core_name).name, "-L", str(where.board(core_name)))
    return (*clean, emulator(), *board, *options, str(where.root / where.python))


@contextmanager
def workplace(where: Userland, *, folder: Path = FOLDER) -> Iterator[Path]:
    """A new folder to count in, always at the same path, for one process at a time: others wait.

    What a guest executes depends on the names of its files, and on whether its modules were compiled before: our
    packages are copied beside it and compiled there. Raises ExportError when they cannot be.
    """
    within = folder.expanduser()
    within.mkdir(parents=True, exist_ok=True)
    place = within / "counting"
    with (within / "counting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _copy_ours(where, _ours(folder))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _ours(folder: Path) -> Path:
    return folder.expanduser() / "ours"


def _copy_ours(where: Userland, copy: Path) -> None:
    """Make the copy anew unless it is of these sources and this userland."""
    state = hashlib.sha256(str(where.folder).encode())
    for path in sorted(path for name in PACKAGES for path in (OURS / name).rglob("*.py")):
        state.update(f"{path.relative_to(OURS)} {path.stat().st_size}\n".encode() + path.read_bytes())
    stamp = copy / "state"
    if stamp.exists() and stamp.read_text() == state.hexdigest():
        return
    shutil.rmtree(copy, ignore_errors=True)
    for name in PACKAGES:
        shutil.copytree(OURS / name, copy / name, ignore=NOT_COPIED)
    run(*python(where, "a72"), "-m", "compileall", "-q", str(copy))
    stamp.write_text(state.hexdigest())


def count(
    where: Userland, core_name: str, program: Sequence[str], *, folder: Path, home: Path = FOLDER
) -> list[Mark] | Failure:
    """The marks of a Python program, in order. Python's arguments, run in a workplace.

    Raises ExportError when nothing can be counted here, or a second thread runs where marks are made.
    """
    if reason := problem():
        raise ExportError(f"no instructions can be counted: {reason}")
    marks = folder / "marks.txt"
    marks.unlink(missing_ok=True)
    command = python(where, core_name, *REPEATABLE, *_plugin(plugin(), marks), ours=_ours(home))
    ran = output_of([*FIXED_ADDRESSES, *command, *program], folder, limit_s=LIMIT_S)
    if isinstance(ran, Failure):
        return ran
    lines = marks.read_text().splitlines()
    if SECOND_THREAD in lines:
        raise ExportError(f"{' '.join(program[:2])}: a second thread, whose instructions cannot be told apart")
    return [Mark(*map(int, line.split())) for line in lines]
