"""Python in a process of its own, which may die of what it does: how it is started, heard and ended.

It lies in an empty folder, so that no file of the current directory passes for a module. It reports through a pipe
that nothing but our code writes to; what else is printed there serves only to say what it died of.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, cast

import msgspec

REPORT_BYTES = 64 * 1024
"""What a child may report; the gate's has 2 kB."""
OUTPUT_BYTES = 4 * 1024
"""How much is kept of the end of what it printed."""
READ_BYTES = 64 * 1024
LAST_LINE_CHARACTERS = 300
INHERITED = ("LD_LIBRARY_PATH", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES")
"""The only variables of our environment that a child sees: which libraries it loads from where, and which GPU."""
PR_SET_PDEATHSIG = 1
LOWEST = 19


class Ended(NamedTuple):
    """How a child ended. code: exit status, or minus the signal. report: at most one read above the limit.

    cancelled: it was not waited for until its end, nor until time was up. cpu_s: processor time that it used, with
    those of its children that it waited for.
    """

    code: int
    report: bytes
    output: bytes
    timed_out: bool
    cancelled: bool = False
    cpu_s: float = 0.0

    @property
    def last_line(self) -> str:
        """The last line printed, "" without one; safe to show."""
        lines = self.output.decode(errors="replace").strip().splitlines()
        return printable(lines[-1][:LAST_LINE_CHARACTERS]) if lines else ""

    @property
    def signal_name(self) -> str:
        """What it was ended by, "" when it ended by itself."""
        if self.code >= 0:
            return ""
        return signal.Signals(-self.code).name if -self.code in list(signal.Signals) else f"signal {-self.code}"


def printable(text: str) -> str:
    """The text with everything that a terminal might obey, or that is no character, as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def run(
    command: Sequence[str],
    *arguments: str,
    timeout_s: float,
    stdin: IO[bytes] | None = None,
    yielding: bool = False,
    cancel: int = -1,
) -> Ended:
    """Run Python with a command as (-m, MODULE) and its arguments; nothing of it is left afterwards.

    yielding: it gets only the processor time that nobody else wants, and is the first to go when memory runs out.
    cancel: a descriptor; once it can be read, the child is ended. Raises OSError.
    """
    deadline_s = time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory(prefix="edge-runtime-", ignore_cleanup_errors=True) as folder:
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb", buffering=0) as report:
            with os.fdopen(write_fd, "wb", buffering=0):
                process = subprocess.Popen(
                    [sys.executable, "-B", *command, str(write_fd), str(os.getpid()), *arguments],
                    cwd=folder,
                    env=_environment(folder),
                    stdin=stdin or subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_fd,),
                    start_new_session=True,
                )
            try:
                with cast("IO[bytes]", process.stdout) as printed:
                    if yielding:
                        _give_way(process.pid)
                    found = _listen(report.fileno(), printed.fileno(), deadline_s, cancel)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: until then the number is its own
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
    return found._replace(code=process.returncode, cpu_s=used.ru_utime + used.ru_stime)


def _give_way(pid: int) -> None:
    """Raises OSError where priorities may not be changed. A session has a priority of its own among sessions, too."""
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, LOWEST)
        if sys.platform == "linux":
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    for name, value in (("autogroup", LOWEST), ("oom_score_adj", 1000)):
        with suppress(OSError):  # not every system has them
            Path(f"/proc/{pid}/{name}").write_text(str(value))


def _listen(report: int, printed: int, deadline_s: float, cancel: int) -> Ended:
    """What comes through both until they are closed, and whether that was too late; less when too much is reported.

    The code and the processor time are not known yet.
    """
    reported, output = b"", b""
    with selectors.DefaultSelector() as selector:
        for fd in (report, printed, cancel)[: 2 + (cancel >= 0)]:
            selector.register(fd, selectors.EVENT_READ)
        while len(selector.get_map()) > (cancel >= 0) and len(reported) <= REPORT_BYTES:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return Ended(0, reported, output, timed_out=True)
            for key, _ in selector.select(left_s):
                if key.fd == cancel:
                    return Ended(0, reported, output, timed_out=False, cancelled=True)
                chunk = os.read(key.fd, READ_BYTES)
                if not chunk:
                    selector.unregister(key.fd)
                elif key.fd == report:
                    reported += chunk
                else:
                    output = (output + chunk)[-OUTPUT_BYTES:]
    return Ended(0, reported, output, timed_out=False)


def _environment(folder: str) -> dict[str, str]:
    """Few threads keep the address space small; the modules are those that we ourselves import."""
    own = {name: os.environ[name] for name in INHERITED if name in os.environ}  # noqa: TID251  handed on, not read
    modules = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {
        **own,
        "HOME": folder,
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": modules,
    }


def begin(argv: Sequence[str]) -> tuple[Callable[[msgspec.Struct], None], Sequence[str]]:
    """In the child: what it tells its parent with, a struct a line, and its arguments. It ends when its parent does."""
    fd, parent = int(argv[1]), int(argv[2])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):
        Path.cwd().rmdir()  # a parent that is killed cannot
    return lambda line: _write(fd, msgspec.json.encode(line) + b"\n"), argv[3:]


def _write(fd: int, raw: bytes) -> None:
    while raw:
        raw = raw[os.write(fd, raw) :]
