"""float16: half the file, and the type GPUs compute in. On a CPU it is no faster, and some graphs crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export import front_end, probe
from export.artifact import (
    Artifact,
    Step,
    changed,
    name_nodes,
    operators,
    outputs_of,
    parse,
    require_float32,
    tensors,
)
from export.evaluate import snr_db
from export.front_end import Cut
from export.probe import Failure
from export.quiet import one_line, silenced

if TYPE_CHECKING:
    import onnx

WITHOUT_NCHWC = {"optimization.disable_specified_optimizers": "NchwcTransformer"}
LARGEST = 65504.0  # of float16
INFINITE = 1e30  # attention masks stand for minus infinity with such values; as the largest float16 they still do
LOST = 2.0**-25  # float16 makes 0 of what is not larger
MAX_LOST = 0.01  # share of the weights that are not 0


def fp16(windows: Floats, *, session: dict[str, str] | None = None) -> Step:
    """A step that makes weights and arithmetic float16; inputs, outputs and the front-end stay float32.

    windows: (n, ...) float32 in the model's layout; the result is loaded and run on them in a child process.
    session: ONNX Runtime session entries that it shall need, such as WITHOUT_NCHWC.
    The step raises ExportError when a weight, or an activation on the windows, is beyond float16, more than MAX_LOST
    of the weights are below it, no weight would be converted, the child fails, or an output is not finite.
    """
    return lambda artifact: _fp16(artifact, windows, session or {})


def _fp16(artifact: Artifact, windows: Floats, session: dict[str, str]) -> Artifact:
    proto = parse(artifact.model)
    require_float32(artifact, proto, "fp16")
    parts = front_end.cut(artifact, "fp16")
    _check_weights(parts.body)
    largest = _largest_activation(parts, windows)
    done = changed(artifact, parts.joined(_converted(parts.body)), name="fp16", precision="float16")
    done = msgspec.structs.replace(done, session={**artifact.session, **session})
    snr = _proven(artifact, done, windows)
    needs = f"; needs {', '.join(f'{key}={value}' for key, value in session.items())}" if session else ""
    note = f"; {len(parts.front)} front-end nodes left in float32" if parts.front else ""
    told = (
        f"fp16 with float32 inputs and outputs{needs}: output SNR {snr:.1f} dB over {len(windows)} windows as this CPU "
        f"computes it; activations reach {largest:.3g} of {LARGEST:g}{note}"
    )
    return msgspec.structs.replace(done, steps=(*done.steps, told))


def _converted(body: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    load_onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16  # after telemetry is off

    try:
        with silenced():
            half: onnx.ModelProto = convert_float_to_float16(body, keep_io_types=True)
    except Exception as error:
        raise ExportError(f"fp16: conversion failed: {type(error).__name__}: {one_line(error)}") from error
    if all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in tensors(half)):
        raise ExportError(f"fp16: no weight became float16; behind the front-end the graph has {operators(half)}")
    name_nodes(half)
    return half


def _check_weights(body: onnx.ModelProto) -> None:
    """Raises ExportError when there are none, or float16 cannot hold them."""
    import onnx

    floats = [tensor for tensor in tensors(body) if tensor.data_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise ExportError(f"fp16: no float32 weight behind the front-end; the graph has {operators(body)} there")
    lost = total = 0
    for tensor in floats:
        weight = onnx.numpy_helper.to_array(tensor)
        if (largest := _largest(weight)) > LARGEST:
            raise ExportError(f"fp16: weight {tensor.name!r} reaches {largest:.3g}, float16 ends at {LARGEST:g}")
        lost += int(np.count_nonzero((weight != 0) & (np.abs(weight) <= LOST)))
        total += int(np.count_nonzero(weight))
    if lost > MAX_LOST * total:
        raise ExportError(f"fp16: {lost} of {total} weights are lost below {LOST:.2e}, allowed {MAX_LOST:.0%}")


def _largest_activation(parts: Cut, windows: Floats) -> float:
    """The largest magnitude that any tensor behind the front-end takes on the windows, computed in float32.

    Raises ExportError when it is beyond float16: a CPU that computes float16 in float32 would not show it.
    """
    worst = 0.0
    for found in front_end.activations(parts.body, parts.feeds(windows), parts.session):
        for name, values in found.items():
            if (largest := _largest(values)) > LARGEST:
                raise ExportError(f"fp16: {name!r} reaches {largest:.3g} on the windows, float16 ends at {LARGEST:g}")
            worst = max(worst, largest)
    return worst


def _largest(values: Floats) -> float:
    """The largest magnitude below INFINITE."""
    magnitudes = np.abs(values)
    return float(np.max(magnitudes, where=magnitudes < INFINITE, initial=0.0))


def _proven(artifact: Artifact, done: Artifact, windows: Floats) -> float:
    """Output SNR in dB of the float16 graph against the one it was made of."""
    outputs = probe.run(done, windows)
    if isinstance(outputs, Failure):
        raise ExportError(
            f"fp16: ONNX Runtime {outputs.reason} in a child process. Use fp16 on a GPU only; on a CPU such a graph "
            "may load at optimization level ORT_ENABLE_EXTENDED or below, or with session=half.WITHOUT_NCHWC"
        )
    if not np.isfinite(outputs).all():
        raise ExportError(f"fp16: {int((~np.isfinite(outputs)).sum())} of {outputs.size} outputs are not finite")
    return snr_db(outputs_of(artifact, windows), outputs)
