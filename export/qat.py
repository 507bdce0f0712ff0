"""Quantization-aware fine-tuning: weights that stay good when they are rounded to int8.

Rounding is simulated while the network is trained, with gradients passed straight through it (Jacob et al. 2018):
weights per output channel, symmetric, inputs of layers per tensor, as `quantize.static_qdq` will do it. Batch
normalization is folded before, because int8 acts on the folded weights. The result is a float32 network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.artifact import Artifact, Step
from export.prepare import prepared
from export.prune import copied, layers, tuned
from export.quantize import check_scheme
from export.task import FineTune
from export.to_onnx import FRONT_END
from export.train import deterministic, torch_outputs

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MOMENTUM = 0.99  # of the ranges, per batch
SMALLEST = 1e-8  # a scale of nothing
PROOF_WINDOWS = 8
ROUNDING = "rounding_of_input"


def aware(
    windows: Floats,
    *,
    finetune: FineTune,
    seed: int,
    scheme: str = "u8s8",
    reduce_range: bool = False,
    keep: tuple[str, ...] = (),
) -> Step:
    """A step that trains a copy of the network with the rounding of int8 in it; `static_qdq` shall follow.

    windows: (n, ...) float32 in the model's layout, for the first ranges, the example and the proof. finetune: trains
    the module it gets in place. scheme, reduce_range, keep: as the `static_qdq` that follows has them.
    The step raises ExportError without a torch network, without a layer to quantize, and for nodes to keep that are
    none of these layers. Recurrent layers are trained as they are: static int8 leaves them in float32.
    """
    check_scheme(scheme)  # both have activations of 256 levels with a zero point, and weights alike

    def step(artifact: Artifact) -> Artifact:
        with deterministic(seed):
            module = copied(artifact, "quantization-aware fine-tuning")
            folded = _fold(module, windows[:PROOF_WINDOWS])
            chosen = _layers(module, _kept(artifact, keep))
            if not chosen:
                raise ExportError(f"quantization-aware fine-tuning: no layer becomes int8 here: {layers(module)}")
            with _rounded(module, chosen, windows, 64 if reduce_range else 127):
                finetune(module)
            told = (
                f"quantization-aware fine-tuning: {len(chosen)} layers, {'7' if reduce_range else '8'}-bit weights per "
                f"channel, 8-bit inputs; {folded} normalizations folded"
            )
            done = tuned(artifact, module, windows, lambda _module: None, told)
        return msgspec.structs.replace(done, name="qat")

    return step


def _fold(module: nn.Module, windows: Floats) -> int:
    """Fold batch normalizations into the layers that they follow; how many.

    Raises ExportError when the outputs change: a layer's output is then read by others too.
    """
    wanted = torch_outputs(module, windows)
    names = {part: name for name, part in module.named_modules()}
    pairs = _pairs(module, torch.from_numpy(windows))
    for layer, normalization in pairs:
        fused: nn.Module = (
            fuse_linear_bn_eval(layer, normalization)
            if isinstance(layer, nn.Linear)
            else fuse_conv_bn_eval(layer, normalization)
        )
        for part, put in ((layer, fused), (normalization, nn.Identity())):
            parent, _, name = names[part].rpartition(".")
            setattr(module.get_submodule(parent), name, put)
    if not np.allclose(torch_outputs(module, windows), wanted, rtol=1e-3, atol=1e-4):
        raise ExportError("quantization-aware fine-tuning: batch normalization cannot be folded into this network")
    return len(pairs)


def _pairs(module: nn.Module, example: torch.Tensor) -> list[tuple[Layer, nn.modules.batchnorm._BatchNorm]]:
    """Layers whose output a batch normalization reads, with it, behind the front-end; each called once."""
    made: dict[int, Layer] = {}
    held: list[torch.Tensor] = []  # so that no address is used twice
    pairs: list[tuple[Layer, nn.modules.batchnorm._BatchNorm]] = []

    def note(part: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(part, LAYERS):
            made[id(output)] = part
        elif isinstance(part, NORMALIZATIONS) and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], part))
        held.append(output)

    hooks = [
        part.register_forward_hook(note) for part in _behind(module) if isinstance(part, (*LAYERS, *NORMALIZATIONS))
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    once = Counter(part for pair in pairs for part in pair)
    return [pair for pair in pairs if once[pair[0]] == once[pair[1]] == 1]


def _behind(module: nn.Module) -> list[nn.Module]:
    """All parts but the front-end's."""
    front_end = getattr(module, FRONT_END, None)
    front = set(front_end.modules()) if isinstance(front_end, nn.Module) else set()
    return [part for part in module.modules() if part not in front]


def _layers(module: nn.Module, kept: list[Floats]) -> list[Layer]:
    """Layers that become int8. kept: weights of those that do not."""
    found: list[Layer] = [part for part in _behind(module) if isinstance(part, LAYERS)]
    chosen = [part for part in found if not any(_same(part, weight) for weight in kept)]
    if len(found) - len(chosen) < len(kept):
        raise ExportError(
            f"quantization-aware fine-tuning: {len(kept)} nodes to keep in float32, but only "
            f"{len(found) - len(chosen)} of them are layers of the network"
        )
    return chosen


def _same(layer: Layer, weight: Floats) -> bool:
    """Whether a node's weight is that of a layer, as it is or transposed."""
    own = layer.weight.detach().numpy()
    return any(own.shape == form.shape and np.allclose(own, form, rtol=1e-3, atol=1e-5) for form in (weight, weight.T))


def _kept(artifact: Artifact, keep: tuple[str, ...]) -> list[Floats]:
    """The weights of nodes of the prepared graph."""
    if not keep:
        return []
    graph = prepared(artifact, "quantization-aware fine-tuning").body.graph
    constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    if unknown := [name for name in keep if name not in nodes or nodes[name].input[1] not in constants]:
        raise ExportError(f"quantization-aware fine-tuning: no layers {', '.join(unknown)} to keep in float32")
    return [numpy_helper.to_array(constants[nodes[name].input[1]]) for name in keep]


@contextmanager
def _rounded(module: nn.Module, chosen: list[Layer], windows: Floats, largest: int) -> Iterator[None]:
    """While it lasts, the layers compute with rounded weights and rounded inputs. largest: of int8 weights."""
    inputs = [_Input() for _ in chosen]
    hooks = []
    try:
        for layer, rounding in zip(chosen, inputs, strict=True):
            layer.register_module(ROUNDING, rounding)
            hooks.append(layer.register_forward_pre_hook(_round_input))
        torch_outputs(module, windows)
        for layer, rounding in zip(chosen, inputs, strict=True):
            rounding.settled = True
            parametrize.register_parametrization(layer, "weight", _Rows(largest))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in chosen:
            if hasattr(layer, ROUNDING):
                delattr(layer, ROUNDING)
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _round_input(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (layer.get_submodule(ROUNDING)(given[0]), *given[1:])


class _Rows(nn.Module):
    """A weight as int8 will hold it: symmetric, one scale per output channel."""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        scale = weight.detach().abs().flatten(1).amax(dim=1) / self.largest
        zero = torch.zeros(len(scale), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale.clamp(min=SMALLEST), zero, 0, -self.largest, self.largest
        )


class _Input(nn.Module):
    """What a layer reads, as 8 bits will hold it: 256 levels over the range seen, zero among them.

    Until it is settled it only widens its range; later the range follows the batches of the training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = 0.0, 0.0
        self.settled = False

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        low, high = min(values.detach().min().item(), 0.0), max(values.detach().max().item(), 0.0)
        if not self.settled:
            self.low, self.high = min(self.low, low), max(self.high, high)
            return values
        if self.training:
            self.low = MOMENTUM * self.low + (1 - MOMENTUM) * low
            self.high = MOMENTUM * self.high + (1 - MOMENTUM) * high
        scale = max((self.high - self.low) / 255, SMALLEST)
        zero = min(max(round(-self.low / scale), 0), 255)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)
