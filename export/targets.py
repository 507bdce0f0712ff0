"""Where candidates are timed: this machine, or a daemon on the device."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import measure
from export.artifact import Artifact
from export.machine import machine
from export.measure import Cost, Latency
from export.probe import Failure


class Target(Protocol):
    """Measures a candidate beside float32. gpu: whether it would run on a GPU. is_time: whether it tells time."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str:
        """What times taken there hold for: the processor, and what runs the models on it."""

    @property
    def gpu(self) -> bool: ...
    @property
    def is_time(self) -> bool: ...
    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Cost | Failure:
        """window: (1, ...) float32 in the model's layout."""


class Local:
    """This machine's CPU."""

    name = "local"
    gpu, is_time = False, True

    @property
    def place(self) -> str:
        return f"{self.name}: {machine()}"

    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Latency | Failure:
        return measure.latency(baseline, candidate, window, seed=seed)


def parse(text: str) -> Target:
    """`local`, `mqtt[s]://[user@]host[:port]/node`, or `emulated:CORE`. Raises ExportError for anything else."""
    if text == "local":
        return Local()
    if text.startswith(("mqtt://", "mqtts://")):
        from export.remote import Remote  # paho only when it is asked for

        return Remote.of(text)
    if text.startswith("emulated:"):
        from export.emulated import Emulated

        return Emulated(text.removeprefix("emulated:"))
    raise ExportError(f"target {text!r}, wanted {WANTED}")


WANTED = "local, mqtt://user@host/node or emulated:a72 (a53, a76)"
