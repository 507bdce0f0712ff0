"""Candidates kept by content: what was made, tuned and measured before is not made, tuned and measured again.

A key is the digest of everything that a candidate follows from: the original, the data, the code that judges and
varies it, the versions of the tools, and the chain of moves. Weights are kept as .npz, never as a pickle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from edge_runtime.errors import ExportError
from export import fingerprint
from export.artifact import Artifact
from export.recipe import Progress
from export.space import TRAINS, Chain, step
from export.task import FineTune, Task
from export.weights import tuned

T = TypeVar("T", bound=msgspec.Struct)


class _Made(msgspec.Struct, frozen=True):
    """An artifact but for its graph and network; or why there is none."""

    name: str = ""
    precision: str = ""
    input: str = ""
    output: str = ""
    steps: tuple[str, ...] = ()
    front_end: str = ""
    session: dict[str, str] = {}
    refused: str = ""


class Cache:
    """Of one task. folder: None to keep everything in memory only."""

    def __init__(self, task: Task, folder: Path | None, progress: Progress) -> None:
        self._task = task
        self._folder = folder
        self._progress = progress
        self._task_digest = fingerprint.of_task(task)
        self._known: dict[str, Artifact] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def perform(self, chain: Chain, *, with_module: bool = False) -> Artifact:
        """The artifact of a chain; whatever of it is known is not made again.

        with_module: its torch network is wanted too. Raises ExportError when a step refuses, now or when it was tried.
        """
        if not chain:
            return self._task.original
        key = self.key(chain)
        known = self._known.get(key) or (None if with_module else self._read(key))
        if known is None or (with_module and known.module is None):
            move = chain[-1]
            before = self.perform(chain[:-1], with_module=move.kind in TRAINS)
            known = self._made(key, lambda: step(self._task, move, self._tuned(key), self._progress)(before))
        self._known[key] = known
        return known

    def key(self, chain: Chain) -> str:
        """Of a candidate: 32 hexadecimal digits."""
        return hashlib.sha256(self._task_digest + msgspec.json.encode(chain, order="deterministic")).hexdigest()[:32]

    def remembered(self, chain: Chain, what: str, kind: type[T]) -> T | None:
        """What was kept of a candidate under that name."""
        path = self._path(self.key(chain), f"{what}.json")
        return msgspec.json.decode(path.read_bytes(), type=kind) if path and path.is_file() else None

    def remember(self, chain: Chain, what: str, value: msgspec.Struct) -> None:
        self._write(self._path(self.key(chain), f"{what}.json"), msgspec.json.encode(value))

    def _made(self, key: str, make: Callable[[], Artifact]) -> Artifact:
        try:
            artifact = make()
        except ExportError as error:
            self._write(self._path(key, "made.json"), msgspec.json.encode(_Made(refused=str(error))))
            raise
        self._write(self._path(key, "onnx"), artifact.model)
        fields = {name: getattr(artifact, name) for name in _Made.__struct_fields__ if name != "refused"}
        self._write(self._path(key, "made.json"), msgspec.json.encode(_Made(**fields)))
        return artifact

    def _read(self, key: str) -> Artifact | None:
        told, graph = self._path(key, "made.json"), self._path(key, "onnx")
        if told is None or graph is None or not told.is_file():
            return None
        made = msgspec.json.decode(told.read_bytes(), type=_Made)
        if made.refused:
            raise ExportError(made.refused)
        fields = {name: getattr(made, name) for name in _Made.__struct_fields__ if name != "refused"}
        return Artifact(model=graph.read_bytes(), **fields)

    def _tuned(self, key: str) -> Callable[[FineTune], FineTune]:
        path = self._path(key, "npz")
        if path is None:
            return lambda finetune: finetune
        return lambda finetune: lambda module: tuned(module, path, finetune)

    def _path(self, key: str, kind: str) -> Path | None:
        return self._folder / f"{key}.{kind}" if self._folder else None

    def _write(self, path: Path | None, content: bytes) -> None:
        if path is not None:
            partial = path.with_name(f"{path.name}.part")
            partial.write_bytes(content)
            partial.replace(path)
