"""Work that is done, kept beside the checkout: what was finished before an interruption is not done again.

A unit of work is a name and a key, the digest of all that it follows from. Its lines are written when it is over, after
the files it made; so a unit with lines is whole, and one with another key, or none, is done anew.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.compression.records import Line
from export.artifact import Artifact

Arrays = dict[str, npt.NDArray[np.generic]]


class _Unit(msgspec.Struct, frozen=True):
    key: str
    lines: tuple[Line, ...]


class _Facts(msgspec.Struct, frozen=True):
    """An artifact but for its graph and its network."""

    name: str
    precision: str
    input: str
    output: str
    steps: tuple[str, ...]
    front_end: str
    session: dict[str, str]


class Finished:
    """Of one family. folder: may be deleted at any time, and everything is done anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def unit(self, name: str, key: str, make: Callable[[], Iterable[Line]]) -> tuple[Line, ...]:
        """The unit's lines, made now unless they were before."""
        found = self.lines(name, key)
        if found is None:
            found = tuple(make())
            self._write(f"{name}.json", msgspec.json.encode(_Unit(key, found)))
        return found

    def lines(self, name: str, key: str) -> tuple[Line, ...] | None:
        """None when the unit was not finished, or with another key."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        unit = msgspec.json.decode(path.read_bytes(), type=_Unit)
        return unit.lines if unit.key == key else None

    def forget(self, *patterns: str) -> None:
        """Delete the files and folders of these names, so that they are made again."""
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save_artifact(self, name: str, artifact: Artifact) -> None:
        facts = _Facts(**{field: getattr(artifact, field) for field in _Facts.__struct_fields__})
        self._write(f"{name}.onnx", artifact.model)
        self._write(f"{name}.facts", msgspec.json.encode(facts))

    def artifact(self, name: str) -> Artifact:
        """Without its network."""
        facts = msgspec.json.decode((self.folder / f"{name}.facts").read_bytes(), type=_Facts)
        return Artifact(model=(self.folder / f"{name}.onnx").read_bytes(), **msgspec.structs.asdict(facts))

    def save_arrays(self, name: str, arrays: Arrays) -> None:
        path = self.folder / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    def arrays(self, name: str) -> Arrays:
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as found:
            return {field: found[field] for field in found.files}

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_bytes(content)
        partial.replace(path)


def key_of(*parts: object) -> str:
    """Digest of what a unit follows from."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
