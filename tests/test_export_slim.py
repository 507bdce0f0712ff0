"""Graphs as they ship: smaller, valid to any reader, and the same to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from export_nets import exported, windows

from export import quantize, weight_only
from export.artifact import outputs_of, parse
from export.slim import slim

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("kind", ["static", "dynamic", "weights"])
def test_a_slim_graph_is_smaller_valid_and_the_same_to_the_bit(kind: str) -> None:
    name = "convolutions" if kind == "static" else "lstm"
    inputs = windows(name)
    steps = {"static": quantize.static_qdq(inputs), "dynamic": quantize.dynamic(), "weights": weight_only.int8()}
    made = steps[kind](exported(name))

    found = slim(made)

    onnx.checker.check_model(parse(made.model))
    onnx.checker.check_model(parse(found.model))
    assert len(found.model) < len(made.model)
    np.testing.assert_array_equal(outputs_of(found, inputs), outputs_of(made, inputs))


def test_weights_inputs_outputs_and_computing_nodes_keep_their_names() -> None:
    made = quantize.static_qdq(windows("convolutions"))(exported("convolutions"))
    before, after = parse(made.model).graph, parse(slim(made).model).graph

    assert [v.name for v in (*after.input, *after.output)] == [v.name for v in (*before.input, *before.output)]
    for kept in ("Conv", "Gemm", "ReduceMean"):
        assert [n.name for n in after.node if n.op_type == kept] == [n.name for n in before.node if n.op_type == kept]
    large = [t.name for t in before.initializer if len(t.dims) > 1]
    assert large
    assert [t.name for t in after.initializer if len(t.dims) > 1] == large
    assert not after.value_info
