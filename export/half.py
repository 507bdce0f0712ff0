"""float16: half the file, and the type GPUs compute in. On a CPU it is no faster, and some graphs crash."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats
from export import probe
from export.artifact import Artifact, Step, ancestors, changed, name_nodes, outputs_of, parse, refuse_quantized
from export.evaluate import snr_db
from export.probe import Failure
from export.quiet import one_line, silenced

WITHOUT_NCHWC = {"optimization.disable_specified_optimizers": "NchwcTransformer"}


def fp16(windows: Floats, *, session: dict[str, str] | None = None) -> Step:
    """A step that makes weights and arithmetic float16; inputs, outputs and the front-end stay float32.

    windows: (n, ...) float32 in the model's layout; the result is loaded and run on them in a child process.
    session: ONNX Runtime session entries that it shall need, such as WITHOUT_NCHWC.
    The step raises ExportError when the child crashes or fails, or an output is not finite.
    """
    return lambda artifact: _fp16(artifact, windows, session or {})


def _fp16(artifact: Artifact, windows: Floats, session: dict[str, str]) -> Artifact:
    load_onnxruntime()
    from onnxruntime.transformers.float16 import convert_float_to_float16  # after telemetry is off

    proto = parse(artifact.model)
    refuse_quantized(artifact, proto, "fp16")
    name_nodes(proto)
    front = ancestors(proto.graph, artifact.front_end)
    try:
        with silenced():
            half = convert_float_to_float16(proto, keep_io_types=True, node_block_list=sorted(front))
    except Exception as error:
        raise ExportError(f"fp16: conversion failed: {type(error).__name__}: {one_line(error)}") from error
    name_nodes(half)
    if artifact.front_end and not front <= ancestors(half.graph, artifact.front_end):
        raise ExportError(f"fp16 removed {artifact.front_end!r}, where the front-end ends")
    done = changed(artifact, half, name="fp16", precision="float16")
    done = msgspec.structs.replace(done, session={**artifact.session, **session})
    snr = _proven(artifact, done, windows)
    needs = f"; needs {', '.join(f'{key}={value}' for key, value in session.items())}" if session else ""
    note = f"; {len(front)} front-end nodes left in float32" if front else ""
    told = f"fp16 with float32 inputs and outputs{needs}: output SNR {snr:.1f} dB over {len(windows)} windows{note}"
    return msgspec.structs.replace(done, steps=(*done.steps, told))


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
