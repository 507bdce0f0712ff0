"""ONNX Runtime, fenced in: telemetry off, one thread, no spinning, the provider asked for or an error."""

from __future__ import annotations

import importlib
import os
import platform
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import BundleError, DependencyError, ModelError, ProviderError
from edge_runtime.model.bundle import Bundle
from edge_runtime.model.manifest import ERROR_KINDS
from edge_runtime.records import Floats

if TYPE_CHECKING:
    import onnxruntime

WARM_UP_RUNS = 30
WARM_UP_NS = 300_000_000
FIXED_ENTRIES = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}
EXACT_INT8 = {"session.x64quantprecision": "1"}
CPUINFO = Path("/proc/cpuinfo")
VNNI_FLAGS = {"avx512_vnni", "avx_vnni"}


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model runs here. max_batch: windows per run. intra_op_threads: threads inside one operator."""

    provider: str = "CPUExecutionProvider"
    intra_op_threads: int = 1
    max_batch: int = 64


def load_onnxruntime() -> ModuleType:
    """Import ONNX Runtime with its telemetry switched off (it is on by default since 1.29).

    Raises DependencyError when it is not installed or the platform is 32-bit.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # noqa: TID251  written for onnxruntime, never read
    if struct.calcsize("P") * 8 == 32:
        raise DependencyError(
            f"{platform.machine()} with 32-bit Python: ONNX Runtime has no 32-bit build; install a 64-bit system"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise DependencyError(
            f"onnxruntime cannot be imported ({error}); install it with: pip install 'edge-runtime[cpu]' "
            "(or [gpu] on a machine with an NVIDIA GPU, not both)"
        ) from error


def create(model: bytes, *, settings: SessionSettings, entries: dict[str, str]) -> onnxruntime.InferenceSession:
    """An inference session for ONNX bytes. entries: session config entries of the bundle.

    Raises ProviderError when the provider is not the one asked for, ModelError when the model is refused.
    """
    ort = load_onnxruntime()
    available = ort.get_available_providers()
    if settings.provider not in available:
        hint = (
            "" if settings.provider.startswith("CPU") else "; GPU providers come with: pip install 'edge-runtime[gpu]'"
        )
        raise ProviderError(settings.provider, available, hint)
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    exact_int8 = {} if has_vnni() else EXACT_INT8
    try:
        for key, value in {**exact_int8, **entries, **FIXED_ENTRIES}.items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(model, options, providers=[settings.provider])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error
    if session.get_providers()[0] != settings.provider:
        raise ProviderError(settings.provider, session.get_providers())
    return session


def has_vnni(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this x86 multiplies int8 without saturating; False where that is not known.

    Without VNNI int8 products are added in saturating 16 bit, unless ONNX Runtime is told to be exact; with it
    exactness costs nothing, and the option only makes convolutions slower.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return not VNNI_FLAGS.isdisjoint(flags)


class Session:
    """One model, loaded, checked against its manifest and proven on its golden vectors."""

    def __init__(
        self, bundle: Bundle, settings: SessionSettings, *, now_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        """Raises BundleError when the model is not what the manifest says, ProviderError, DependencyError."""
        self.manifest = bundle.manifest
        self.settings = settings
        self.model_id = bundle.manifest.model_id
        try:
            self._session = create(bundle.model, settings=settings, entries=bundle.manifest.session)
        except ProviderError:
            raise
        except ModelError as error:
            raise BundleError(bundle.path, f"model.onnx: {error}") from error
        self._input = bundle.manifest.input.name
        self._outputs = [bundle.manifest.output.name]
        self.dynamic_batch = _check_signature(bundle, self._session)
        self._largest_batch = settings.max_batch if self.dynamic_batch else 1
        self._run = self._session.run
        self.golden_error = self._check_golden(bundle)
        self.infer_ns = self._measure(bundle.golden.inputs[:1], now_ns)

    def predict(self, inputs: Floats) -> Floats:
        """Scores of a batch.

        inputs: (batch, ...) float32 in the model's layout, contiguous. Returns (batch, labels) in [0, 1], or
        (batch, 1) reconstruction error.
        """
        if len(inputs) <= self._largest_batch:
            raw = self._run(self._outputs, {self._input: inputs})[0]
        else:
            raw = self._run_in_parts(inputs, self._largest_batch)
        return self._scores(inputs, raw)

    def _run_in_parts(self, inputs: Floats, step: int) -> Floats:
        parts = [self._run(self._outputs, {self._input: inputs[i : i + step]})[0] for i in range(0, len(inputs), step)]
        joined: Floats = np.concatenate(parts)
        return joined

    def _scores(self, inputs: Floats, raw: Floats) -> Floats:
        kind = self.manifest.output.kind
        if kind == "logits":
            return softmax(raw)
        if kind == "reconstruction":
            return reconstruction_error(inputs, raw)
        return raw.reshape(len(inputs), -1)

    def _check_golden(self, bundle: Bundle) -> float:
        """Run the golden vectors alone, in pairs and together; the largest deviation.

        Raises BundleError when it exceeds the tolerance, or the model does not run.
        """
        wanted = bundle.golden.outputs
        deviation = 0.0
        for step in sorted({1, min(2, self._largest_batch), self._largest_batch}):
            try:
                found = self._run_in_parts(bundle.golden.inputs, step)
            except Exception as error:
                raise BundleError(bundle.path, f"golden vectors do not run: {_first_line(error)}") from error
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                shapes = f"{found.dtype} {found.shape} for the golden vectors, wanted {wanted.dtype} {wanted.shape}"
                raise BundleError(bundle.path, f"model returns {shapes}")
            deviation = float(np.maximum(deviation, np.max(np.abs(found - wanted))))
        _check_width(bundle, wanted)
        allowed = bundle.manifest.tolerances["default"].absolute
        if not deviation <= allowed:
            raise BundleError(bundle.path, f"golden vectors: outputs differ by {deviation:.3g}, allowed {allowed:.3g}")
        return deviation

    def _measure(self, one: Floats, now_ns: Callable[[], int]) -> int:
        """Median time of one window in ns, after the golden vectors have warmed the session up."""
        times: list[int] = []
        begun_ns = now_ns()
        while len(times) < WARM_UP_RUNS and (not times or now_ns() - begun_ns < WARM_UP_NS):
            start_ns = now_ns()
            self._run(self._outputs, {self._input: one})
            times.append(now_ns() - start_ns)
        return sorted(times)[len(times) // 2]


def softmax(logits: Floats) -> Floats:
    """Scores of raw logits along the last axis. logits: (batch, labels)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


def reconstruction_error(inputs: Floats, outputs: Floats) -> Floats:
    """Mean squared difference per window, (batch, 1), in squared units of the input."""
    difference = (outputs - inputs).reshape(len(inputs), -1)
    error: Floats = np.mean(np.square(difference), axis=1, keepdims=True)
    return error


def _check_signature(bundle: Bundle, session: onnxruntime.InferenceSession) -> bool:
    """Hold the graph against the manifest; whether the batch axis is dynamic."""
    manifest = bundle.manifest
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    if list(inputs) != [manifest.input.name]:
        raise BundleError(bundle.path, f"graph inputs are {list(inputs)}, manifest says [{manifest.input.name!r}]")
    if manifest.output.name not in outputs:
        raise BundleError(bundle.path, f"graph outputs are {list(outputs)}, manifest says {manifest.output.name!r}")
    node = inputs[manifest.input.name]
    shape = tuple(node.shape[1:])
    wanted = manifest.input.shape()
    fits = len(shape) == len(wanted) and all(
        found == want or not isinstance(found, int) for found, want in zip(shape, wanted, strict=True)
    )
    if node.type != "tensor(float)" or not fits:
        raise BundleError(bundle.path, f"graph input is {node.type} {shape}, manifest says tensor(float) {wanted}")
    batch = node.shape[0]
    if isinstance(batch, int) and batch != 1:
        raise BundleError(bundle.path, f"graph has a fixed batch of {batch}, wanted a dynamic one or 1")
    return not isinstance(batch, int)


def _check_width(bundle: Bundle, found: Floats) -> None:
    manifest = bundle.manifest
    width = found.reshape(len(found), -1).shape[1]
    labels = len(manifest.labels)
    if manifest.output.kind not in ERROR_KINDS and width != labels:
        raise BundleError(bundle.path, f"model returns {width} {manifest.output.kind} for {labels} labels")
    if manifest.output.kind == "error" and width != 1:
        raise BundleError(bundle.path, f"model returns {width} errors a window, wanted 1")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
