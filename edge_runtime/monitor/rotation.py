"""A log that cannot fill the disk: a file of lines and its predecessor, each kept to a number of bytes."""

from __future__ import annotations

from collections.abc import Callable
from os import SEEK_END
from pathlib import Path
from typing import IO

_BLOCK_BYTES = 64 * 1024


class RotatedFile:
    """Lines, appended a block at a time; between blocks nothing is open, and the file may vanish."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        """limit_bytes: of the file, and of the rotated one beside it, whose name has .1 appended."""
        self.path = path
        self._rotated = path.with_name(path.name + ".1")
        self._limit = limit_bytes
        self._sound = False

    def append(self, render: Callable[[bool], bytes]) -> None:
        """Append whole lines. render: makes them, told whether the file is empty; called again for a fresh file.

        Raises OSError when they cannot be written, or are more than the limit; nothing of them is kept then.
        """
        sound, self._sound = self._sound, False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not sound:
            self._mend()
        size = self.path.stat().st_size if self.path.exists() else 0
        text = render(size == 0)
        if size and size + len(text) > self._limit:
            self.path.replace(self._rotated)
            text = render(True)
        if len(text) > self._limit:
            raise OSError(f"one interval takes {len(text)} bytes, latency.log_mb leaves {self._limit}")
        with self.path.open("ab") as file:
            file.write(text)
        self._sound = True

    def _mend(self) -> None:
        """Cut off a line that a crash or a full disk left unfinished, and drop files above the present limit."""
        for path in (self.path, self._rotated):
            if path.exists() and path.stat().st_size > self._limit:
                path.unlink()
        if self.path.exists():
            with self.path.open("r+b") as file:
                file.truncate(_end_of_last_line(file))


def _end_of_last_line(file: IO[bytes]) -> int:
    """Where the last whole line of a file ends, in bytes; 0 when it has none."""
    start = file.seek(0, SEEK_END)
    while start:
        end, start = start, max(start - _BLOCK_BYTES, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0
