"""float16: what it keeps, and the crash that must be caught."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from export_nets import exported, two_matrices, windows
from onnx import TensorProto, numpy_helper

from edge_runtime.errors import ExportError
from export import half, probe
from export.artifact import outputs_of, parse
from export.evaluate import snr_db

pytestmark = pytest.mark.torch

ADVICE = r"Use fp16 on a GPU only; .* ORT_ENABLE_EXTENDED or below, or with session=half\.WITHOUT_NCHWC"


def test_fp16_is_half_the_size_and_close_with_float32_at_both_ends() -> None:
    artifact = exported("convolutions")

    done = half.fp16(windows("convolutions"))(artifact)

    graph = parse(done.model).graph
    assert {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)} == {TensorProto.FLOAT}
    assert (done.name, done.precision, done.session) == ("fp16", "float16", {})
    assert done.size_kb < 0.65 * artifact.size_kb
    assert snr_db(outputs_of(artifact, windows("convolutions")), outputs_of(done, windows("convolutions"))) > 50
    assert done.steps[-1].startswith("fp16 with float32 inputs and outputs: output SNR ")
    assert done.steps[-1].endswith(" dB over 32 windows")


def test_fp16_leaves_the_front_end_in_float32() -> None:
    inputs = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)

    done = half.fp16(inputs)(two_matrices())

    types = {t.name: numpy_helper.to_array(t).dtype for t in parse(done.model).graph.initializer}
    assert types == {"fixed": np.float32, "learned": np.float16}
    assert done.steps[-1].endswith("1 front-end nodes left in float32")


def test_fp16_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a processor answers that really computes in float16; this one may go through float32."""
    monkeypatch.setattr(
        half.probe, "run", lambda _artifact, _inputs: np.array([[1.0, np.inf, 0.0, np.nan]], np.float32)
    )

    with pytest.raises(ExportError, match=r"fp16: 2 of 4 outputs are not finite"):
        half.fp16(np.ones((1, 8), np.float32))(two_matrices())


def test_a_crash_of_the_child_is_an_error_that_names_the_signal_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGSEGV in the child, sent by what its interpreter runs at start."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(ExportError, match=rf"fp16: ONNX Runtime crashed with SIGSEGV in a child process\. {ADVICE}"):
        half.fp16(windows("convolutions"))(exported("convolutions"))


def test_onnxruntime_crashes_on_a_pre_norm_transformer_in_fp16_unless_one_optimizer_is_off() -> None:
    inputs = windows("pre-norm encoder")
    artifact = exported("pre-norm encoder")

    done = half.fp16(inputs, session=half.WITHOUT_NCHWC)(artifact)

    assert done.session == half.WITHOUT_NCHWC
    assert snr_db(outputs_of(artifact, inputs), outputs_of(done, inputs)) > 50
    bare = msgspec.structs.replace(done, session={})
    if not isinstance(probe.run(bare, inputs), probe.Failure):
        pytest.skip("this ONNX Runtime does not crash (1.32 does): half.WITHOUT_NCHWC may go")
    with pytest.raises(ExportError, match=rf"fp16: ONNX Runtime crashed with SIGSEGV in a child process\. {ADVICE}"):
        half.fp16(inputs)(artifact)
