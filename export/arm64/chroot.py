"""A command inside an arm64 userland, with what it starts itself: each program is emulated as one of a board's.

Linux finds the emulator by itself (binfmt_misc). Mounts and processes are of namespaces of their own: they end with the
command, and what it has left running with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_runtime.errors import ExportError
from export.arm64.cores import core
from export.arm64.userland import MissingError, Userland, run

NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = "qemu-aarch64"
ENTRY = BINFMT / NAME
UNREGISTERED = f"{NAME} is not registered with binfmt_misc: scripts/install-system-packages arm64 installs it"
ENTER = """set -e
ulimit -n 1024
root=$1 board=$2 place=$3
shift 3
mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind "$board/proc/cpuinfo" "$root/proc/cpuinfo"
mount --bind /sys "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in null zero full random urandom; do
    : >"$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -m 1777 "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 3
done
shift
chroot "$root" sh -c 'cd "$0" && exec "$@"' "$place" "$@"
exit $?
"""
"""This machine's shell stays, as the first process: it reaps what is orphaned. An emulated one can miss a SIGCHLD."""
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "PYTHONUTF8": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


def problem() -> str:
    """Why no command can be run in a userland here, "" when one can. To ask changes nothing."""
    if os.geteuid() != 0:
        return "entering an arm64 system needs root"
    if not ENTRY.exists() and shutil.which("update-binfmts") is None:
        return UNREGISTERED
    try:
        run(*NAMESPACES, "true")
    except ExportError as error:
        return f"namespaces are refused: {error}"
    return ""


def enable() -> None:
    """Make Linux run aarch64 programs by the emulator until it is restarted. Raises MissingError when it cannot."""
    try:
        if not (BINFMT / "status").exists():
            run("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
        if not ENTRY.exists():
            run("update-binfmts", "--enable", NAME)
    except ExportError as error:
        raise MissingError(f"binfmt_misc: {error}") from error
    if not ENTRY.exists():
        raise MissingError(UNREGISTERED)
    flags = next((line for line in ENTRY.read_text().splitlines() if line.startswith("flags:")), "")
    if "F" not in flags.removeprefix("flags:"):
        raise MissingError(f"{ENTRY}: found {flags}, wanted F, an emulator that is found from inside another root")


def command(
    where: Userland,
    core_name: str,
    arguments: Sequence[str],
    *,
    binds: Mapping[Path, str] = {},
    writable: Mapping[Path, str] = {},
    place: str = "/tmp",  # noqa: S108  of the guest, a tmpfs of its own
    environment: Mapping[str, str] = {},
) -> tuple[list[str], dict[str, str]]:
    """What to start, and its whole environment. binds, writable: folders of this machine to where they are inside.

    binds can only be read. place: the folder inside that it is run in.
    """
    mounts = [
        part
        for how, folders in (("ro", binds), ("rw", writable))
        for here, inside in folders.items()
        for part in (str(here), inside, how)
    ]
    enter = [*NAMESPACES, "sh", "-c", ENTER, "enter", str(where.root), str(where.board(core_name)), place]
    told = {
        **ENVIRONMENT,
        "QEMU_CPU": core(core_name).name,
        "PYTHONPATH": f"/{where.project}:/{where.site}",
        **environment,
    }
    return [*enter, *mounts, "--", *arguments], told


def ran(
    where: Userland, core_name: str, arguments: Sequence[str], *, limit_s: float, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run it to its end. Raises MissingError where nothing can be run, subprocess.TimeoutExpired."""
    enable()
    start, told = command(where, core_name, arguments, **options)  # type: ignore[arg-type]
    return subprocess.run(start, env=told, capture_output=True, text=True, timeout=limit_s, check=False)
