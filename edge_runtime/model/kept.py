"""A small file kept for the next start, in a folder of its own, and trusted only if nobody else can have written it."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def read(path: Path) -> bytes | None:
    """What was kept there; None when there is nothing, or not only this user and root can have written it."""
    try:
        folder = os.open(path.parent, FOLDER)
        try:
            file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            with os.fdopen(file, "rb") as opened:
                return opened.read() if _is_ours(folder) and _is_ours(file) else None
        finally:
            os.close(folder)
    except OSError:
        return None


def write(path: Path, raw: bytes) -> None:
    """Keep it, whole or not at all, in a folder that is made this user's alone. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path.parent, FOLDER)
    try:
        if os.fstat(folder).st_uid == os.geteuid():
            os.fchmod(folder, 0o700)
        if not _is_ours(folder):
            raise PermissionError(errno.EPERM, f"{path.parent} belongs to another user, or others may write there")
        partial = path.name + ".part"
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        created = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        with os.fdopen(created, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _is_ours(fd: int) -> bool:
    found = os.fstat(fd)
    return found.st_uid in (os.geteuid(), 0) and not found.st_mode & WRITTEN_BY_OTHERS
