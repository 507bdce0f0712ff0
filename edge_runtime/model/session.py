"""ONNX Runtime, fenced in: telemetry off, one thread, no spinning, the provider asked for or an error."""

from __future__ import annotations

import importlib
import os
import platform
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import BundleError, DependencyError, ModelError, ProviderError
from edge_runtime.model.bundle import Bundle
from edge_runtime.model.family import CPUINFO, UNKNOWN, numeric_family
from edge_runtime.model.manifest import OutputKind
from edge_runtime.model.signature import check_outputs, check_signature
from edge_runtime.records import Floats, State

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
INLINE_LIMIT_MS = 1.0
WARM_UP_RUNS = 30
WARM_UP_NS = 300_000_000
FIXED_ENTRIES = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
}
EXACT_INT8 = {"session.x64quantprecision": "1"}
"""Set but on VNNI, which is exact without it and whose convolutions it makes slower."""


class SessionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model runs here. max_batch: windows per run. intra_op_threads: threads inside one operator."""

    provider: str = CPU
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


def create(
    model: bytes, *, settings: SessionSettings, entries: dict[str, str], cpuinfo: Path = CPUINFO
) -> onnxruntime.InferenceSession:
    """An inference session for ONNX bytes. entries: session config entries of the bundle; none makes int8 inexact.

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
    exact_int8 = {} if numeric_family(cpuinfo) == "vnni" else EXACT_INT8
    try:
        for key, value in {**entries, **exact_int8, **FIXED_ENTRIES}.items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(model, options, providers=[settings.provider])
    except Exception as error:
        raise ModelError(f"ONNX Runtime refuses the model: {_first_line(error)}") from error
    if session.get_providers()[0] != settings.provider:
        raise ProviderError(settings.provider, session.get_providers())
    session.disable_fallback()  # a run that fails would be repeated on another provider, which stands nowhere
    return session


def family_of(settings: SessionSettings, cpuinfo: Path = CPUINFO) -> str:
    """The numeric family that golden outputs are of: this CPU's where it computes, UNKNOWN for other providers."""
    return numeric_family(cpuinfo) if settings.provider == CPU else UNKNOWN


class _SingleRun:
    """Runs of one window on arrays that were bound once, which neither look up names nor allocate.

    ONNX Runtime knows these arrays by their addresses alone: they live and stay where they are as long as this does.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, feed: tuple[str, Floats], fetch: tuple[str, Floats]
    ) -> None:
        """feed, fetch: names, and arrays like those a run of one window takes and returns."""
        self._window, self._output = np.empty_like(feed[1]), np.empty_like(fetch[1])
        binding = session.io_binding()
        for bind, name, array in (
            (binding.bind_input, feed[0], self._window),
            (binding.bind_output, fetch[0], self._output),
        ):
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._run = session.run_with_iobinding
        self._free = [binding]

    def run(self, window: Floats) -> Floats | None:
        """What the graph returns; None while another thread is here. window: (1, ...)."""
        try:
            binding = self._free.pop()  # one thread gets it: a lock costs six times as much
        except IndexError:
            return None
        try:
            self._window[...] = window
            self._run(binding)
            return self._output.copy()
        finally:
            self._free.append(binding)


class Session:
    """One model, loaded, checked against its manifest and proven on its golden vectors.

    is_streaming: the model carries a state from window to window of a stream: `step` does that. dynamic_batch: a run
    may have several windows. family: numeric family whose golden outputs it met, or "default". infer_ns: median time
    of one window. Threads may predict at the same time.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: SessionSettings,
        *,
        now_ns: Callable[[], int] = time.perf_counter_ns,
        cpuinfo: Path = CPUINFO,
    ) -> None:
        """Raises BundleError when the model is not what the manifest says, ProviderError, DependencyError."""
        manifest = self.manifest = bundle.manifest
        self.settings = settings
        self.model_id = manifest.model_id
        try:
            self._session = create(bundle.model, settings=settings, entries=manifest.session, cpuinfo=cpuinfo)
        except ProviderError:
            raise
        except ModelError as error:
            raise BundleError(bundle.path, f"model.onnx: {error}") from error
        self._input = manifest.input.name
        self._scalars = {s.name: np.full(s.shape, s.value, s.dtype) for s in manifest.scalars}
        self._outputs = [manifest.output.name, *(state.output for state in manifest.states)]
        self.dynamic_batch = check_signature(bundle, self._session.get_inputs(), self._session.get_outputs())
        self._largest_batch = settings.max_batch if self.dynamic_batch else 1
        self.is_streaming = bool(manifest.states)
        self._run = self._session.run
        self._single: _SingleRun | None = None
        self.runs = 0
        self._to_scores = SCORES[manifest.output.kind]
        self.family = manifest.certified(family_of(settings, cpuinfo))
        self.golden_error = self._check_golden(bundle)
        self.infer_ns = self._measure(bundle.golden.inputs[:1], now_ns)

    @property
    def longest_run_s(self) -> float:
        """What the largest batch should take at most, by the time of one window at warm-up."""
        return self.infer_ns * self._largest_batch / 1e9

    def predict(self, inputs: Floats) -> Floats:
        """Scores of a batch.

        inputs: (batch, ...) float32 in the model's layout, contiguous. Returns (batch, labels) in [0, 1], or
        (batch, 1) reconstruction error. To a streaming model each window is the first of a stream.
        """
        if self.is_streaming:
            return self.step(inputs, [self.initial()] * len(inputs))[0]
        size = self._largest_batch
        raw = self._run_once(inputs) if len(inputs) <= size else self._run_in_parts(inputs, size)
        return self._to_scores(inputs, raw)

    def initial(self) -> State:
        """The state a stream begins with: zeros."""
        return tuple(np.zeros(state.shape, state.dtype) for state in self.manifest.states)

    def step(self, inputs: Floats, states: Sequence[State]) -> tuple[Floats, list[State]]:
        """Scores of one window of each of several streams, and their states after it.

        inputs: (streams, ...) float32 in the model's layout. Returns scores as `predict` does.
        """
        raw, after = self._step_raw(inputs, states)
        return self._to_scores(inputs, raw), after

    def _step_raw(self, inputs: Floats, states: Sequence[State]) -> tuple[Floats, list[State]]:
        size = self._largest_batch
        parts = [self._step_once(inputs[i : i + size], states[i : i + size]) for i in range(0, len(inputs), size)]
        raw = parts[0][0] if len(parts) == 1 else np.concatenate([part for part, _ in parts])
        return raw, [state for _, after in parts for state in after]

    def _step_once(self, inputs: Floats, states: Sequence[State]) -> tuple[Floats, list[State]]:
        self.runs += 1
        specs = self.manifest.states
        feed = {self._input: inputs, **self._scalars}
        if len(states) == 1:
            feed |= {spec.input: array for spec, array in zip(specs, states[0], strict=True)}
            raw, *after = self._run(self._outputs, feed)
            return raw, [tuple(after)]
        for i, spec in enumerate(specs):
            feed[spec.input] = np.concatenate([state[i] for state in states], axis=spec.batch_axis)
        raw, *joined = self._run(self._outputs, feed)
        split = [
            np.split(array, len(states), axis=spec.batch_axis or 0) for spec, array in zip(specs, joined, strict=True)
        ]
        return raw, [tuple(array.copy() for array in of_stream) for of_stream in zip(*split, strict=True)]

    def _run_once(self, inputs: Floats) -> Floats:
        self.runs += 1
        if len(inputs) == 1 and self._single is not None and (raw := self._single.run(inputs)) is not None:
            return raw
        returned: Floats = self._run(self._outputs, {self._input: inputs, **self._scalars})[0]
        return returned

    def _run_in_parts(self, inputs: Floats, step: int) -> Floats:
        joined: Floats = np.concatenate([self._run_once(inputs[i : i + step]) for i in range(0, len(inputs), step)])
        return joined

    def _run_as_streams(self, streams: Sequence[Floats]) -> list[Floats]:
        """Streams of equally many windows, side by side, each from the initial state; what the graph returns."""
        states = [self.initial()] * len(streams)
        steps = []
        for windows in zip(*streams, strict=True):
            raw, states = self._step_raw(np.stack(windows), states)
            for spec, array in zip(self.manifest.states, states[0], strict=True):
                if array.shape != spec.shape:
                    raise ModelError(f"state {spec.output} has shape {array.shape}, manifest says {spec.shape}")
                if not np.isfinite(array).all():
                    raise ModelError(f"state {spec.output} becomes infinite or NaN, which is not carried on")
            steps.append(raw)
        together: Floats = np.stack(steps, axis=1)
        return list(together)

    def _check_golden(self, bundle: Bundle) -> float:
        """Run the golden vectors as they will be run here; the largest deviation.

        Raises BundleError when it exceeds the tolerance, or the model does not run.
        """
        inputs, wanted = bundle.golden.inputs, bundle.golden.expected(self.family)
        deviation = 0.0
        try:
            runs = self._golden_streams(inputs, wanted) if self.is_streaming else self._golden_batches(inputs, wanted)
        except Exception as error:
            raise BundleError(bundle.path, f"golden vectors do not run: {_first_line(error)}") from error
        for found, expected in runs:
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                shapes = f"{found.dtype} {found.shape} for the golden vectors, wanted {wanted.dtype} {wanted.shape}"
                raise BundleError(bundle.path, f"model returns {shapes}")
            deviation = float(np.maximum(deviation, np.max(np.abs(found - expected))))
        allowed = bundle.manifest.tolerances[self.family].absolute
        if not deviation <= allowed:
            differ = f"outputs differ by {deviation:.3g}, allowed {allowed:.3g} ({self.family})"
            raise BundleError(bundle.path, f"golden vectors: {differ}")
        check_outputs(bundle, wanted)
        return deviation

    def _golden_batches(self, inputs: Floats, wanted: Floats) -> list[tuple[Floats, Floats]]:
        """Alone, in pairs and together: what came out, and what was wanted."""
        one = inputs[:1]
        if self.settings.provider == CPU and not self._scalars:
            self._single = _SingleRun(self._session, (self._input, one), (self._outputs[0], self._run_once(one)))
        steps = sorted({1, min(2, self._largest_batch), self._largest_batch})
        return [(self._run_in_parts(inputs, step), wanted) for step in steps]

    def _golden_streams(self, inputs: Floats, wanted: Floats) -> list[tuple[Floats, Floats]]:
        """As one stream, and beside the same windows in reverse, whose states must not touch each other."""
        alone, reverse = self._run_as_streams([inputs])[0], inputs[::-1]
        reverse_alone = self._run_as_streams([reverse])[0]
        together, reverse_together = self._run_as_streams([inputs, reverse])
        return [(alone, wanted), (together, wanted), (reverse_together, reverse_alone)]

    def _measure(self, one: Floats, now_ns: Callable[[], int]) -> int:
        """Median time of one window in ns, after the golden vectors have warmed the session up."""
        run = partial(self._step_once, one, [self.initial()]) if self.is_streaming else partial(self._run_once, one)
        times: list[int] = []
        begun_ns = now_ns()
        while len(times) < WARM_UP_RUNS and (not times or now_ns() - begun_ns < WARM_UP_NS):
            start_ns = now_ns()
            run()
            times.append(now_ns() - start_ns)
        return sorted(times)[len(times) // 2]


def softmax(logits: Floats) -> Floats:
    """Scores of raw logits along the last axis. logits: (batch, labels)."""
    scores: Floats = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return scores


def reconstruction_error(inputs: Floats, outputs: Floats) -> Floats:
    """Mean squared difference per window, (batch, 1), in squared units of the input."""
    difference = (outputs - inputs).reshape(len(inputs), -1)
    difference *= difference
    error: Floats = np.add.reduce(difference, axis=1, keepdims=True)
    error /= difference.shape[1]
    return error


def both_scores(probability: Floats) -> Floats:
    """Scores of the first label and the second. probability: (batch, 1), of the second."""
    return np.concatenate((1 - probability, probability), axis=1)


SCORES: dict[OutputKind, Callable[[Floats, Floats], Floats]] = {
    "scores": lambda _inputs, raw: raw,
    "logits": lambda _inputs, raw: softmax(raw),
    "probability": lambda _inputs, raw: both_scores(raw),
    "reconstruction": reconstruction_error,
    "error": lambda _inputs, raw: raw,
}
"""What a graph's output means: (batch, labels) in [0, 1], or (batch, 1) errors, by what it was run on and returned."""


def scores_of(kind: OutputKind, inputs: Floats, raw: Floats) -> Floats:
    """What a graph's output means. inputs: what it was run on."""
    return SCORES[kind](inputs, raw)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
