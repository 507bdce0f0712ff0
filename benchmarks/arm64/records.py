"""What is counted, as JSON lines: counts hold for the versions and the processor models of the line `where`."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference


class Where(msgspec.Struct, frozen=True, tag="where"):
    """git: commit, with -dirty when the code differed from it. qemu, suite: that emulated. versions: of the wheels.

    debian: of the suite's packages that have most to do with counts.
    """

    git: str
    date: str
    qemu: str
    suite: str
    versions: dict[str, str]
    debian: dict[str, str]


Line = Where | Inference | PerMessage


PACKAGES = ("python3.11", "libc6")
CHANGES = "changelog.Debian.gz"


def debian(root: Path) -> dict[str, str]:
    """The versions of PACKAGES in a userland, by what they say of themselves: none is installed there, only unpacked.

    Raises OSError when a package is not there.
    """
    found = {}
    for name in PACKAGES:
        with gzip.open(root / "usr/share/doc" / name / CHANGES, "rt", encoding="utf-8") as lines:
            found[name] = next(lines).split("(")[1].split(")")[0]
    return found


def write(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read(path: Path) -> list[Line]:
    return msgspec.json.Decoder(Line).decode_lines(path.read_bytes())
