"""A board's processor as a target, without the board: instructions are counted, and no time is taken."""

from __future__ import annotations

from edge_runtime.model.session import CPU
from edge_runtime.records import Floats
from export.arm64.cores import core
from export.arm64.counter import version
from export.arm64.runs import Model, instructions
from export.arm64.userland import SUITE, userland
from export.artifact import Artifact
from export.machine import machine
from export.measure import Instructions
from export.probe import Failure


class Emulated:
    """One of arm64.cores.CORES, under QEMU."""

    provider, is_time = CPU, False

    def __init__(self, name: str) -> None:
        """Raises ExportError for a processor that is not known."""
        self._board, self._core = core(name), name

    @property
    def name(self) -> str:
        return f"emulated:{self._core}"

    @property
    def place(self) -> str:
        return f"{self.name}: {self._board.name} under {version()}, {machine()}"

    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Instructions | Failure:  # noqa: ARG002  nothing is left to chance
        """As targets.Target says. Raises ExportError when nothing can be emulated here."""
        models = [Model(each.model, candidate.input, each.session) for each in (baseline, candidate)]
        where = userland(SUITE, progress=lambda _text: None)
        found = instructions(models, window, where=where, core=self._core)
        if isinstance(found, Failure):
            return found
        before, after = found
        return Instructions(before.median, after.least, after.median, after.most)
