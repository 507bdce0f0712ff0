"""Narrower attention: torch-pruning removes the same rows from queries, keys and values as from the model's width.

That moves dimensions from one head to the next, and the softmax gets another temperature. Here the model's width loses
the channels that the rest of the network loses, and each head its own weakest dimensions, as many as that takes.
"""

from __future__ import annotations

import math

import torch
import torch_pruning
from torch import nn


class AttentionPruner(torch_pruning.function.MultiheadAttentionPruner):  # type: ignore[misc]
    """For nn.MultiheadAttention over one input (self-attention): the number of heads stays."""

    def prune_out_channels(self, layer: nn.MultiheadAttention, idxs: list[int]) -> nn.Module:
        """Remove channels of the input and output, and as many dimensions inside, the same number in each head."""
        if layer.in_proj_weight is None or layer.bias_k is not None:
            raise ValueError("attention with kdim, vdim or add_bias_kv is not supported")
        width, heads = layer.embed_dim, layer.num_heads
        kept = torch.tensor(sorted(set(range(width)) - set(idxs)))
        head_width = len(kept) // heads
        query, key, value = layer.in_proj_weight.detach().reshape(3, heads, width // heads, width)
        out = layer.out_proj.weight.detach().T.reshape(heads, width // heads, width)
        asked = _strongest(query, key, head_width)
        told = _strongest(value, out, head_width)
        rows = torch.cat([asked, width + asked, 2 * width + told])
        scale = torch.ones(len(rows), 1)
        scale[: len(kept)] = math.sqrt(
            head_width / (width // heads)
        )  # the softmax divides by the root of the new width
        layer.in_proj_weight = nn.Parameter(layer.in_proj_weight.detach()[rows][:, kept] * scale)
        if layer.in_proj_bias is not None:
            layer.in_proj_bias = nn.Parameter(layer.in_proj_bias.detach()[rows] * scale[:, 0])
        projection = layer.out_proj
        projection.weight = nn.Parameter(projection.weight.detach()[kept][:, told])
        if projection.bias is not None:
            projection.bias = nn.Parameter(projection.bias.detach()[kept])
        projection.in_features = projection.out_features = len(kept)
        layer.embed_dim = layer.kdim = layer.vdim = len(kept)
        layer.head_dim = head_width
        return layer

    prune_in_channels = prune_out_channels  # the model's width is one: what goes in comes out


def _strongest(first: torch.Tensor, second: torch.Tensor, count: int) -> torch.Tensor:
    """Of each head's dimensions those whose two weights have the largest product: (heads x count,) in order.

    first, second: (heads, dimensions, width).
    """
    scores = first.square().sum(dim=2) * second.square().sum(dim=2)
    rows = scores.topk(count, dim=1).indices.sort(dim=1).values
    return (rows + torch.arange(len(scores))[:, None] * scores.shape[1]).flatten()
