"""Fine-tuning with the rounding of int8: what static int8 loses comes back, and only the weights have changed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from export_nets import exported, windows
from export_recipes import tones
from torch import nn
from torch.nn.utils import parametrize

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import qat, quantize, to_onnx, train
from export.artifact import Artifact, outputs_of, parse
from export.evaluate import snr_db
from export.recipe import Split, Splits
from export.train import deterministic, torch_outputs

pytestmark = pytest.mark.torch


class Separable(nn.Module):
    """Depthwise and pointwise over (n, 2, 256), three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.front_end = tones.Standardize()
        self.body = nn.Sequential(
            nn.Conv1d(2, 16, 9, 4, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 16, 5, 2, groups=16, bias=False), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 32, 1, bias=False), nn.BatchNorm1d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.front_end(x)).mean(dim=2))

    def scale_badly(self) -> None:
        """Every second or third channel loud, and as much quieter behind: the same function, bad for 8 bits."""
        for start, step, by in ((1, 2, 150.0), (4, 3, 100.0)):
            loud = torch.ones(16)
            loud[::step] = by
            normalization, behind = self.body[start], self.body[start + 2]
            normalization.weight.mul_(loud)
            normalization.bias.mul_(loud)
            behind.weight.div_(loud[:, None, None] if behind.groups > 1 else loud[None, :, None])


@pytest.fixture(scope="module")
def splits() -> Splits:
    return tones.data()


@pytest.fixture(scope="module")
def badly_scaled(splits: Splits) -> Artifact:
    """Trained, then scaled."""
    with deterministic(3):
        net = Separable()
        train.fit(net, splits, seed=7, epochs=8, progress=lambda _text: None)
        net.eval().requires_grad_(False).scale_badly()
        return to_onnx.export(net, splits.train.inputs, input_name="x", output_name="logits")


def teaching(artifact: Artifact, inputs: Floats, *, epochs: int = 8) -> Callable[[nn.Module], None]:
    """Training in place on what the artifact answers."""
    wanted, given = torch.from_numpy(outputs_of(artifact, inputs)), torch.from_numpy(inputs)

    def finetune(module: nn.Module) -> None:
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-3)
        module.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(given)).split(64):
                loss = nn.functional.mse_loss(module(given[rows]), wanted[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return finetune


def accuracy(artifact: Artifact, split: Split) -> float:
    return float((outputs_of(artifact, split.inputs).argmax(axis=1) == split.targets).mean())


def test_what_static_int8_loses_of_a_badly_scaled_net_comes_back(badly_scaled: Artifact, splits: Splits) -> None:
    inputs = splits.train.inputs
    int8 = quantize.static_qdq(inputs[:256])

    tuned = qat.aware(inputs[:256], finetune=teaching(badly_scaled, inputs), seed=1)(badly_scaled)

    wanted = outputs_of(badly_scaled, splits.test.inputs)
    before, after = (int8(artifact) for artifact in (badly_scaled, tuned))
    assert accuracy(badly_scaled, splits.test) > 0.9
    assert accuracy(after, splits.test) > accuracy(before, splits.test) + 0.03
    assert (
        snr_db(wanted, outputs_of(after, splits.test.inputs))
        > snr_db(wanted, outputs_of(before, splits.test.inputs)) + 2
    )
    assert (tuned.name, tuned.precision) == ("qat", "float32")
    assert any("4 layers, 8-bit weights per channel, 8-bit inputs; 3 normalizations folded" in s for s in tuned.steps)


def test_the_result_is_a_plain_float_network_that_is_the_graph(badly_scaled: Artifact, splits: Splits) -> None:
    inputs = splits.train.inputs[:64]

    tuned = qat.aware(inputs, finetune=teaching(badly_scaled, inputs, epochs=1), seed=1)(badly_scaled)

    assert tuned.module is not None
    assert not any(parametrize.is_parametrized(part) for part in tuned.module.modules())
    assert not any(hasattr(part, qat.ROUNDING) or part._forward_pre_hooks for part in tuned.module.modules())
    assert not any(isinstance(part, qat.NORMALIZATIONS) for part in tuned.module.modules())
    np.testing.assert_allclose(torch_outputs(tuned.module, inputs), outputs_of(tuned, inputs), atol=1e-4)
    assert tuned.front_end == badly_scaled.front_end


def test_while_it_is_trained_the_network_computes_as_int8_will(badly_scaled: Artifact, splits: Splits) -> None:
    inputs = splits.train.inputs[:256]
    seen: list[Floats] = []

    qat.aware(inputs, finetune=lambda module: seen.append(torch_outputs(module.eval(), inputs)), seed=1)(badly_scaled)

    wanted = outputs_of(badly_scaled, inputs)
    int8 = outputs_of(quantize.static_qdq(inputs)(badly_scaled), inputs)
    assert snr_db(int8, seen[0]) > snr_db(wanted, seen[0]) + 6


def test_weights_are_rounded_as_onnxruntime_rounds_them() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.4], [0.0, 0.0, 0.0], [12.7, 0.26, -0.04]], requires_grad=True)

    rounded = qat._Rows(127)(weight)

    steps = np.float32([2 / 127, 1.0, 0.1])[:, None]
    np.testing.assert_allclose(rounded.detach(), np.rint(weight.detach().numpy() / steps) * steps, rtol=1e-6)
    rounded.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == torch.ones(3, 3).tolist()


def test_a_layer_to_keep_is_not_rounded(badly_scaled: Artifact, splits: Splits) -> None:
    inputs = splits.train.inputs[:64]
    name = quantize.weighted(quantize.prepared(badly_scaled, "test").body)[1]
    rounded: list[int] = []

    def count(module: nn.Module) -> None:
        rounded.extend(i for i, part in enumerate(module.modules()) if parametrize.is_parametrized(part, "weight"))

    qat.aware(inputs, finetune=count, seed=1, keep=(name,))(badly_scaled)

    assert len(rounded) == 3
    with pytest.raises(ExportError, match="no layers nowhere to keep in float32"):
        qat.aware(inputs, finetune=count, seed=1, keep=("nowhere",))(badly_scaled)


def test_what_has_no_layer_for_static_int8_or_no_network_is_refused() -> None:
    class Means(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=2)

    inputs = windows("convolutions")
    means = to_onnx.export(Means(), inputs, input_name="x", output_name="y")
    step = qat.aware(inputs, finetune=lambda _module: None, seed=1)

    with pytest.raises(ExportError, match="^quantization-aware fine-tuning: no layer becomes int8 here"):
        step(means)
    with pytest.raises(ExportError, match="^quantization-aware fine-tuning float32: it has no torch network"):
        step(msgspec.structs.replace(exported("convolutions"), module=None))
    assert parse(means.model).graph.node[0].op_type == "ReduceMean"
