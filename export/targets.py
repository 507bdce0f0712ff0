"""Where candidates are timed: this machine's CPU or GPU, or a daemon on the device."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.errors import ExportError
from edge_runtime.model.session import CPU, load_onnxruntime
from edge_runtime.records import Floats
from export import measure
from export.artifact import Artifact
from export.machine import gpus, machine
from export.measure import Cost, Latency
from export.probe import Failure

PROVIDERS = {"local": CPU, "local:cuda": "CUDAExecutionProvider"}


class Target(Protocol):
    """Measures a candidate beside float32. is_time: whether it tells time.

    provider: ONNX Runtime's execution provider there, by which candidates are judged here.
    """

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str:
        """What times taken there hold for: the processor, and what runs the models on it."""

    @property
    def provider(self) -> str: ...
    @property
    def is_time(self) -> bool: ...
    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Cost | Failure:
        """window: (1, ...) float32 in the model's layout."""


class Local:
    """This machine's CPU, or its NVIDIA GPU."""

    is_time = True

    def __init__(self, name: str = "local") -> None:
        """name: one of PROVIDERS. Raises ExportError when this ONNX Runtime does not have that provider."""
        self.name, self.provider = name, PROVIDERS[name]
        available = load_onnxruntime().get_available_providers()
        if self.provider not in available:
            raise ExportError(
                f"target {name}: ONNX Runtime has {', '.join(available)}, wanted {self.provider}: "
                "install it with pip install 'edge-runtime[gpu]', after pip uninstall onnxruntime"
            )

    @property
    def place(self) -> str:
        return f"{self.name}: {machine()}{'' if self.provider == CPU else f', {gpus()}'}"

    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Latency | Failure:
        return measure.latency(baseline, candidate, window, seed=seed, provider=self.provider)


def parse(text: str) -> Target:
    """`local[:cuda]`, `mqtt[s]://[user@]host[:port]/node`, or `emulated:CORE`. Raises ExportError for anything else."""
    if text in PROVIDERS:
        return Local(text)
    if text.startswith(("mqtt://", "mqtts://")):
        from export.remote import Remote  # paho only when it is asked for

        return Remote.of(text)
    if text.startswith("emulated:"):
        from export.emulated import Emulated

        return Emulated(text.removeprefix("emulated:"))
    raise ExportError(f"target {text!r}, wanted {WANTED}")


WANTED = "local, local:cuda, mqtt://user@host/node or emulated:a72 (a53, a76)"
