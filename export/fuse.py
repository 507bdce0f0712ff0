"""Attention as one operator of ONNX Runtime, where torch's exporter writes thirty.

The exporter takes attention apart, nn.MultiheadAttention with the sequence first, and neither ONNX Runtime nor
onnxruntime.transformers.optimizer (1.32) puts such a graph together again: what the latter still fuses is a sum with
its normalization, which brings nothing. So the network is exported anew, from a copy whose attention says what it is.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.overrides import TorchFunctionMode

from edge_runtime.errors import ExportError
from edge_runtime.model.policy import MICROSOFT
from edge_runtime.records import Floats
from export import to_onnx
from export.artifact import Artifact, Step, listed, operators, parse, require_float32

ATTENTION, MULTI_HEAD = "Attention", "MultiHeadAttention"
UNUSUAL = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "attn_mask", "use_separate_proj_weight")
LONGEST_CHAIN = 4  # operators that only reshape, between a projection and its attention


def transformer(windows: Floats) -> Step:
    """A step that makes self-attention one operator: Attention with its projections where they are linear.

    windows: (n, ...) float32 in the model's layout, n >= 7, for the example and the proof. Fused are
    nn.MultiheadAttention and torch's scaled_dot_product_attention, without mask.
    The step raises ExportError without a torch network and when nothing was fused.
    """
    return lambda artifact: _transformer(artifact, windows)


def _transformer(artifact: Artifact, windows: Floats) -> Artifact:
    require_float32(artifact, parse(artifact.model), "fusion")
    if artifact.module is None:
        raise ExportError(
            f"fusion of {artifact.name}: it has no torch network, wanted an artifact as to_onnx.export made it; fuse "
            "before any step that changes the ONNX graph"
        )
    done = to_onnx.export(
        artifact.module,
        windows,
        input_name=artifact.input,
        output_name=artifact.output,
        form=to_onnx.Form(_Telling, _join),
    )
    before, after = (parse(a.model) for a in (artifact, done))
    fused = Counter(node.op_type for node in after.graph.node if node.domain == MICROSOFT)
    if not fused:
        raise ExportError(
            f"fusion changed nothing: the graph has {operators(before)}. Fused are nn.MultiheadAttention and "
            "scaled_dot_product_attention, without mask"
        )
    told = f"attention fused: {listed(fused)}; {len(before.graph.node)} nodes to {len(after.graph.node)}"
    return msgspec.structs.replace(
        done,
        name="fused",
        steps=(*artifact.steps, told, *done.steps[1:]),
        session=artifact.session,
    )


class _Telling(TorchFunctionMode):
    """While it lasts, attention is exported as what it is. What it computes in torch then means nothing."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        told = TOLD.get(function)
        attended = None if told is None else told(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {})) if attended is None else attended


def _multi_head(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None] | None:  # noqa: ANN401
    """(time, batch, width), as nn.MultiheadAttention calls it; None for what the operator does not have."""
    bound = inspect.signature(nn.functional.multi_head_attention_forward).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    query, weight, bias = given["query"], given["in_proj_weight"], given["in_proj_bias"]
    alike = query is given["key"] and query is given["value"] and query.dim() == 3
    if not alike or weight is None or bias is None or any(given[name] not in (None, False) for name in UNUSUAL):
        return None
    attended = _operator(ATTENTION, [query.transpose(0, 1), weight.t(), bias], {"num_heads": given["num_heads"]})
    projected = nn.functional.linear(attended, given["out_proj_weight"], given["out_proj_bias"])
    return projected.transpose(0, 1), None


def _dot_product(
    *given: torch.Tensor, is_causal: bool = False, scale: float | None = None, **others: object
) -> torch.Tensor | None:
    """query, key and value (batch, heads, time, width); None for what the operator does not have."""
    alike = len(given) == 3 and given[0].dim() == 4 and len({tensor.shape[1::2] for tensor in given}) == 1
    if not alike or others.get("attn_mask") is not None:
        return None
    heads, width = given[0].shape[1], given[0].shape[3]
    settings: dict[str, float] = {"num_heads": heads, "unidirectional": int(is_causal)}
    if scale is not None:
        settings["scale"] = scale
    attended = _operator(MULTI_HEAD, [tensor.transpose(1, 2).flatten(2) for tensor in given], settings)
    apart: torch.Tensor = torch.unflatten(attended, 2, (heads, width))
    return apart.transpose(1, 2)


def _operator(name: str, inputs: list[torch.Tensor], settings: Mapping[str, float]) -> torch.Tensor:
    first = inputs[0]
    found: torch.Tensor = torch.onnx.ops.symbolic(
        f"{MICROSOFT}::{name}", inputs, dict(settings), dtype=first.dtype, shape=first.shape, version=1
    )
    return found


TOLD: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.functional.multi_head_attention_forward: _multi_head,
    nn.functional.scaled_dot_product_attention: _dot_product,
}


def _join(proto: onnx.ModelProto) -> None:
    """Make MultiHeadAttention and the three projections of one tensor before it an Attention.

    Only reshaping lies between them; that it ends where it began is for the proof of parity to show.
    """
    graph = proto.graph
    makers = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == MULTI_HEAD]:
        found = [_projection(makers, constants, name) for name in node.input[:3]]
        projections = [each for each in found if each is not None]
        if len(projections) < 3 or len({each.source for each in projections}) > 1:
            continue
        joined = [
            np.concatenate([numpy_helper.to_array(constants[name]) for name in names], axis=-1)
            for names in ([each.weight for each in projections], [each.bias for each in projections])
        ]
        names = [f"{node.name}_weight", f"{node.name}_bias"]
        graph.initializer.extend(numpy_helper.from_array(a, name) for a, name in zip(joined, names, strict=True))
        node.op_type = ATTENTION
        node.input[:] = [projections[0].source, *names]
    _sweep(graph)


class _Projection(msgspec.Struct, frozen=True):
    """source x weight + bias, by the names of the tensors."""

    source: str
    weight: str
    bias: str


def _projection(
    makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto], name: str
) -> _Projection | None:
    """The projection to as many features as it takes, that a tensor is a reshaped form of."""
    for _ in range(LONGEST_CHAIN):
        node = makers.get(name)
        if node is None or node.op_type not in {"Reshape", "Transpose", "Identity"}:
            break
        name = node.input[0]
    if node is None or node.op_type != "Add" or node.input[1] not in constants:
        return None
    product = makers.get(node.input[0])
    if product is None or product.op_type != "MatMul" or product.input[1] not in constants:
        return None
    weight = constants[product.input[1]].dims
    square = len(weight) == 2 and weight[0] == weight[1] and list(constants[node.input[1]].dims) == [weight[1]]
    return _Projection(product.input[0], product.input[1], node.input[1]) if square else None


def _sweep(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [node for node in graph.node if not read.isdisjoint(node.output)]
        if len(kept) == len(graph.node):
            break
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        graph.ClearField("node")
        graph.node.extend(nodes)
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    for field, left in (
        ("initializer", constants),
        ("value_info", [v for v in graph.value_info if v.name in read]),
    ):
        copies = [type(item).FromString(item.SerializeToString()) for item in left]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)
