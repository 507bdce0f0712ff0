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
from export import fingerprint, kept, space
from export.artifact import Artifact
from export.recipe import Progress
from export.space import TRAINS, Chain
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
        self._progress = progress
        self._task_digest = fingerprint.of_task(task)
        is_known_again = folder is None or self._task_digest == fingerprint.of_task(task)
        self._folder = folder if is_known_again else None
        if not is_known_again:
            progress(f"{task.name}: its metric, augment or training cannot be told from others; nothing is kept")
        self._known: dict[str, Artifact] = {}

    def perform(self, chain: Chain, *, with_module: bool = False) -> Artifact:
        """The artifact of a chain; whatever of it is known is not made again.

        with_module: its torch network is wanted too. Raises ExportError when a step refuses, now or when it was tried.
        """
        if not chain:
            return self._task.original
        key = self.key(chain)
        known = self._known.get(key) or (None if with_module else self._artifact(key))
        if known is None or (with_module and known.module is None):
            move = chain[-1]
            before = self.perform(chain[:-1], with_module=move.kind in TRAINS)
            known = self._made(key, lambda: space.step(self._task, move, self._tuned(key), self._progress)(before))
        self._known[key] = known
        return known

    def is_made(self, chain: Chain) -> bool:
        """Whether its artifact, or why there is none, is known."""
        key = self.key(chain)
        try:
            return key in self._known or self._artifact(key) is not None
        except ExportError:
            return True

    def key(self, chain: Chain) -> str:
        """Of a candidate: 32 hexadecimal digits."""
        return hashlib.sha256(self._task_digest + msgspec.json.encode(chain, order="deterministic")).hexdigest()[:32]

    def remembered(self, chain: Chain, what: str, kind: type[T]) -> T | None:
        """What was kept of a candidate under that name."""
        raw = self._read(self.key(chain), f"{what}.msgpack")
        return None if raw is None else msgspec.msgpack.decode(raw, type=kind)

    def remember(self, chain: Chain, what: str, value: msgspec.Struct) -> None:
        self._write(self.key(chain), f"{what}.msgpack", msgspec.msgpack.encode(value))  # JSON has no infinity

    def _made(self, key: str, make: Callable[[], Artifact]) -> Artifact:
        try:
            artifact = make()
        except ExportError as error:
            self._write(key, "made.json", msgspec.json.encode(_Made(refused=str(error))))
            raise
        self._write(key, "onnx", artifact.model)
        fields = {name: getattr(artifact, name) for name in _Made.__struct_fields__ if name != "refused"}
        self._write(key, "made.json", msgspec.json.encode(_Made(**fields)))
        return artifact

    def _artifact(self, key: str) -> Artifact | None:
        told, graph = self._read(key, "made.json"), self._read(key, "onnx")
        made = None if told is None else msgspec.json.decode(told, type=_Made)
        if made is not None and made.refused:
            raise ExportError(made.refused)
        if made is None or graph is None:
            return None
        fields = {name: getattr(made, name) for name in _Made.__struct_fields__ if name != "refused"}
        return Artifact(model=graph, **fields)

    def _tuned(self, key: str) -> Callable[[FineTune], FineTune]:
        if self._folder is None:
            return lambda finetune: finetune
        path = self._folder / f"{key}.npz"
        return lambda finetune: lambda module: tuned(module, path, finetune)

    def _read(self, key: str, kind: str) -> bytes | None:
        return kept.read(self._folder / f"{key}.{kind}") if self._folder else None

    def _write(self, key: str, kind: str, content: bytes) -> None:
        if self._folder is not None:
            kept.write(self._folder / f"{key}.{kind}", content)
