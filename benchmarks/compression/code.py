"""The code that figures follow from: what it is called in a line, and its digest in the keys of finished work."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks import machine
from export import fingerprint

PATHS = ("edge_runtime", "export", "benchmarks", ":!benchmarks/results", "pyproject.toml", "constraints.txt")
CHANGED = "-changed"
DIRTY = ("-dirty", CHANGED)
"""What ends the name of code that no commit holds."""
FOLDER = Path(__file__).parent
MAKERS = ("child.py", "judging.py", "peers.py", "timing.py", "work.py")
"""Of this package: what makes lines, not what reads them."""


class Code:
    """As it is when this is made, before any work: modules are loaded once, whatever is edited or committed later."""

    def __init__(self) -> None:
        self.digest = digest()
        self._commit = machine.commit(PATHS)

    @property
    def name(self) -> str:
        """The commit; changed when the files are others by now, which child processes and late imports load."""
        return self._commit if digest() == self.digest else self._commit + CHANGED


def digest() -> str:
    """Of everything that makes, judges and times variants."""
    found = hashlib.sha256(fingerprint.own_code())
    for name in MAKERS:
        found.update((FOLDER / name).read_bytes())
    return found.hexdigest()
