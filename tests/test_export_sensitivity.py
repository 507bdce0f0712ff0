"""Which layers int8 harms: found, named as the step that leaves them in float32 wants it, and true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from export_nets import artifact_of, exported, windows
from onnx import helper

from edge_runtime.errors import ExportError
from export import quantize
from export.artifact import Artifact, outputs_of
from export.evaluate import snr_db
from export.sensitivity import sensitivity

pytestmark = pytest.mark.torch

INPUTS = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)


def one_fragile() -> Artifact:
    """x (batch, 8) -> first (MatMul) -> Relu -> fragile -> Relu -> last -> y (batch, 8); `fragile` reads and weighs
    one loud channel against fifteen quiet ones, which 8 bits hold badly."""
    random = np.random.default_rng(0)
    loud = np.ones(16, np.float32)
    loud[3] = 60.0
    first, fragile, last = (random.normal(size=size).astype(np.float32) for size in ((8, 16), (16, 16), (16, 8)))
    constants = {"a": np.abs(first) * loud, "b": fragile / loud[:, None], "c": last}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["wide"], name="first"),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("MatMul", ["positive", "b"], ["mixed"], name="fragile"),
        helper.make_node("Relu", ["mixed"], ["clipped"]),
        helper.make_node("MatMul", ["clipped", "c"], ["y"], name="last"),
    ]
    return artifact_of(nodes, constants, shape=[8], width=8)


def test_the_fragile_layer_comes_first_and_leaving_it_in_float32_gains_what_was_promised() -> None:
    found = sensitivity(one_fragile(), INPUTS)

    assert found[0].name in {"first", "fragile"}
    assert {layer.name: layer.weights for layer in found} == {"first": 128, "fragile": 256, "last": 128}
    assert [layer.gain_db for layer in found] == sorted((layer.gain_db for layer in found), reverse=True)
    wanted = outputs_of(one_fragile(), INPUTS)
    plain = snr_db(wanted, outputs_of(quantize.static_qdq(INPUTS)(one_fragile()), INPUTS))
    worst = quantize.static_qdq(INPUTS, keep=(found[0].name,))(one_fragile())
    assert snr_db(wanted, outputs_of(worst, INPUTS)) - plain == pytest.approx(found[0].gain_db, abs=0.2)
    assert found[0].gain_db > found[-1].gain_db + 1


def test_alone_in_int8_a_layer_costs_less_than_all_of_them() -> None:
    found = sensitivity(exported("convolutions"), windows("convolutions"), scheme="s8s8")

    done = quantize.static_qdq(windows("convolutions"), scheme="s8s8")(exported("convolutions"))
    both = snr_db(
        outputs_of(exported("convolutions"), windows("convolutions")), outputs_of(done, windows("convolutions"))
    )
    assert [layer.op for layer in found].count("Conv") == 2
    assert all(math.isfinite(layer.snr_db) and layer.snr_db > both for layer in found)


def test_a_graph_without_such_layers_has_none() -> None:
    assert sensitivity(exported("gru"), windows("gru"))[0].op == "Gemm"
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    assert sensitivity(artifact_of(nodes, {}, shape=[8], width=8), INPUTS) == ()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ExportError, match="scheme 'u8u8', wanted one of u8s8, s8s8"):
        sensitivity(one_fragile(), INPUTS, scheme="u8u8")
