"""The folder for what the daemon keeps: whether it can be written, by whom else, and whether it lasts."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge_runtime.findings import Finding, fail, ok, warn

LEAST_FREE_BYTES = 256 * 1024 * 1024
IN_MEMORY = {"tmpfs", "ramfs"}
LAYERED = {"overlay", "overlayfs", "aufs"}
MOUNTS = Path("/proc/mounts")

_OCTAL = re.compile(r"\\([0-7]{3})")


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def state_folder(
    folder: Path, *, mounts: Path = MOUNTS, free_bytes: Callable[[Path], int] = _free_bytes
) -> list[Finding]:
    """Findings `state_dir`, `disk` and `mount`; the last two only when the first is no failure."""
    try:
        existing = _nearest_existing(folder)
        finding = _existing(folder) if existing == folder else _to_be_made(folder, existing)
        if finding.status == "fail":
            return [finding]
        return [finding, _disk(existing, free_bytes), _mount(existing, mounts)]
    except OSError as error:
        advice = "make it a folder that this user can reach and write, or name another in node.state_dir"
        return [fail("state_dir", f"{folder}: {error.strerror}", advice)]


def _nearest_existing(folder: Path) -> Path:
    """The folder itself, or what there is above it. Raises OSError when something on the way is no folder."""
    for path in (folder, *folder.parents):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder")
        return path
    raise FileNotFoundError(errno.ENOENT, "no such folder")


def _to_be_made(folder: Path, existing: Path) -> Finding:
    if os.access(existing, os.W_OK | os.X_OK):
        return ok("state_dir", f"{folder} is not there yet and can be made in {existing}")
    found = f"{folder} is not there, and {_user(os.geteuid())} cannot make it in {existing}"
    return fail("state_dir", found, f"sudo install -d -o {_user(os.geteuid())} -m 700 {folder}")


def _existing(folder: Path) -> Finding:
    facts = folder.stat()
    mode = stat.S_IMODE(facts.st_mode)
    us = _user(os.geteuid())
    found = f"{folder}, of {_user(facts.st_uid)}, mode {mode:04o}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"edge-runtime")
            file.flush()
    except OSError as error:
        advice = f"sudo chown {us} {folder}, free some space, or name another folder in node.state_dir"
        return fail("state_dir", f"{found}: {us} cannot write there: {error.strerror}", advice)
    if mode & stat.S_IWOTH:
        return warn("state_dir", f"{found}: every user may write there", f"chmod o-w {folder}")
    return ok("state_dir", f"{found}, writable by {us}")


def _disk(existing: Path, free_bytes: Callable[[Path], int]) -> Finding:
    free = free_bytes(existing)
    found = f"{free / 1e6:,.0f} MB free"
    if free < LEAST_FREE_BYTES:
        advice = f"free some: below {LEAST_FREE_BYTES / 1e6:.0f} MB an update or a full log may not fit"
        return warn("disk", found, advice)
    return ok("disk", found)


def _mount(existing: Path, mounts: Path) -> Finding:
    try:
        point, kind = _mount_of(existing.resolve(), mounts.read_text(errors="replace"))
    except OSError as error:
        return warn("mount", f"{mounts} cannot be read: {error.strerror}", "see yourself that the folder is on a disk")
    found = f"{kind} at {point}"
    if kind in IN_MEMORY:
        return warn("mount", f"{found}: lost at every restart", "name a folder on a disk in node.state_dir")
    if kind in LAYERED:
        advice = "put it on a volume of its own"
        return warn("mount", f"{found}: lost with the container, or at a restart of a read-only system", advice)
    return ok("mount", found)


def _mount_of(folder: Path, mounts: str) -> tuple[str, str]:
    """Mount point and type of the file system a folder is on. mounts: lines of proc(5), the last of equals wins."""
    best = ("/", "unknown")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[1])
        if folder.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, fields[2])
    return best


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
