"""Attention as one operator: what is fused, what is not, and what int8 makes of it."""

from __future__ import annotations

from collections import Counter
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from export_nets import exported, windows
from onnxruntime.transformers import optimizer
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.model import policy
from edge_runtime.model.onnx_graph import read_facts
from export import fuse, half, quantize, to_onnx, weight_only
from export.artifact import Artifact, outputs_of, parse
from export.evaluate import snr_db
from export.islands import islands
from export.train import deterministic

pytestmark = pytest.mark.torch

WINDOWS = np.random.default_rng(0).normal(size=(16, 8, 32)).astype(np.float32)


class ByHand(nn.Module):
    """(n, 8, 32) -> attention with projections of its own, four heads -> five logits."""

    def __init__(self, *, causal: bool = False, masked: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.head = nn.Linear(32, 5)
        self.causal = causal
        self.mask = nn.Parameter(torch.randn(8, 8)) if masked else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = [f(x).reshape(-1, 8, 4, 8).transpose(1, 2) for f in (self.query, self.key, self.value)]
        mixed = nn.functional.scaled_dot_product_attention(*apart, attn_mask=self.mask, is_causal=self.causal)
        return self.head(self.out(mixed.transpose(1, 2).reshape(-1, 8, 32)).mean(dim=1))


class Across(nn.Module):
    """Attention of the second half of the window to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(x[:, 4:], x[:, :4], x[:, :4], need_weights=False)
        return self.head(mixed.mean(dim=1))


@cache
def network(kind: type[nn.Module], **settings: bool) -> Artifact:
    with deterministic(5):
        net = kind(**settings).eval().requires_grad_(False)
    return to_onnx.export(net, WINDOWS, input_name="x", output_name="logits")


def kinds(artifact: Artifact) -> Counter[str]:
    return Counter(node.op_type for node in parse(artifact.model).graph.node)


@pytest.mark.parametrize("name", ["encoder", "pre-norm encoder"])
def test_a_transformer_encoder_of_torch_has_one_attention_a_layer_and_nothing_that_only_reshapes(name: str) -> None:
    before = exported(name)

    done = fuse.transformer(windows(name))(before)

    found = kinds(done)
    assert (done.name, done.precision, found["Attention"]) == ("fused", "float32", 1)
    assert not {"Transpose", "Reshape", "Softmax", "Slice", "Gather", "Concat"} & set(found)
    assert found.total() < kinds(before).total() / 2
    assert snr_db(outputs_of(before, windows(name)), outputs_of(done, windows(name))) > 100
    assert done.module is before.module
    assert any(step.startswith("attention fused: 1 Attention; ") for step in done.steps)
    assert policy.objections(read_facts(done.model), done.session) == []


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_hand_becomes_one_with_its_three_projections(causal: bool) -> None:
    before = network(ByHand, causal=causal)

    done = fuse.transformer(WINDOWS)(before)

    assert (kinds(done)["Attention"], kinds(done)["MatMul"] + kinds(done)["Gemm"]) == (1, 2)
    assert snr_db(outputs_of(before, WINDOWS), outputs_of(done, WINDOWS)) > 100


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize(
    ("artifact", "residuals"),
    [(exported("encoder"), 2), (exported("pre-norm encoder"), 1), (network(ByHand), 0)],
    ids=["encoder", "pre-norm encoder", "by hand"],
)
def test_onnxruntimes_own_optimizer_fuses_no_attention_of_our_exports_only_residuals(
    artifact: Artifact, residuals: int, kind: str
) -> None:
    """What fuse.py and docs/export-steps.md say of onnxruntime.transformers.optimizer, and why fuse.py is ours."""
    done = optimizer.optimize_model(parse(artifact.model), model_type=kind, num_heads=4, hidden_size=32, opt_level=0)

    fused = Counter(node.op_type for node in done.model.graph.node if node.domain == policy.MICROSOFT)
    assert fused == Counter({"SkipLayerNormalization": residuals} if residuals else {})
    assert {"Softmax", "Transpose", "Slice"} <= {node.op_type for node in done.model.graph.node}


def test_dynamic_int8_computes_a_fused_attention_in_int8() -> None:
    done = quantize.dynamic()(fuse.transformer(windows("encoder"))(exported("encoder")))

    assert islands(done).integer["QAttention"] == 1
    assert islands(done).islands == ()
    assert "100.0% of the weights" in done.steps[-2]
    assert snr_db(outputs_of(exported("encoder"), windows("encoder")), outputs_of(done, windows("encoder"))) > 30
    assert policy.objections(read_facts(done.model), done.session) == []


def test_weight_only_int8_takes_the_weights_of_a_fused_attention_too() -> None:
    fused = fuse.transformer(windows("encoder"))(exported("encoder"))

    done = weight_only.int8()(fused)

    assert done.size_kb < fused.size_kb / 2
    assert snr_db(outputs_of(fused, windows("encoder")), outputs_of(done, windows("encoder"))) > 45


@pytest.mark.parametrize("artifact", [network(ByHand, masked=True), network(Across), exported("convolutions")])
def test_what_holds_no_plain_self_attention_is_refused(artifact: Artifact) -> None:
    inputs = windows("convolutions") if "Conv" in kinds(artifact) else WINDOWS

    with pytest.raises(ExportError, match=r"^fusion changed nothing: the graph has \d+ \w+, .* without mask$"):
        fuse.transformer(inputs)(artifact)


def test_a_graph_without_its_torch_network_is_refused() -> None:
    bare = msgspec.structs.replace(exported("encoder"), module=None)

    with pytest.raises(ExportError, match="^fusion of float32: it has no torch network, wanted an artifact as"):
        fuse.transformer(windows("encoder"))(bare)


def test_what_is_quantized_or_float16_is_refused() -> None:
    for step in (quantize.dynamic(), half.fp16(windows("encoder"))):
        with pytest.raises(ExportError, match="^fusion: .* already"):
            fuse.transformer(windows("encoder"))(step(exported("encoder")))
