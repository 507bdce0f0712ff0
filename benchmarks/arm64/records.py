"""What is counted, as JSON lines: counts hold for the versions and the processor models of the line `where`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.arm64.hot_path import PerMessage
from benchmarks.arm64.inference import Inference


class Where(msgspec.Struct, frozen=True, tag="where"):
    """git: commit, with -dirty when the code differed from it. qemu, suite: that emulated. versions: of packages."""

    git: str
    date: str
    qemu: str
    suite: str
    versions: dict[str, str]


Line = Where | Inference | PerMessage


def write(path: Path, lines: Iterable[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read(path: Path) -> list[Line]:
    return msgspec.json.Decoder(Line).decode_lines(path.read_bytes())
