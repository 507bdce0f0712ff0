"""Structured pruning: which channels go, in which kinds of network, and what is refused."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from export_nets import Wide, network, windows
from torch import nn

from edge_runtime.errors import ExportError
from export import prune, to_onnx
from export.artifact import Artifact, outputs_of
from export.prune_attention import AttentionPruner
from export.train import torch_outputs

pytestmark = pytest.mark.torch

TONES = np.random.default_rng(5).normal(size=(32, 2, 256)).astype(np.float32)


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's result without ONNX, which takes seconds; tests with real exports stand beside."""
    monkeypatch.setattr(to_onnx, "export", lambda module, _windows, **_names: artifact_of(module))


def artifact_of(module: nn.Module | None) -> Artifact:
    return Artifact("float32", "float32", b"", "x", "logits", ("made",), module=module)


def untouched(_module: nn.Module) -> None:
    pass


def cut(module: nn.Module | None, inputs: np.ndarray, *, finetune=untouched, ratio: float = 0.5, **options) -> Artifact:
    return prune.structured(inputs, ratio=ratio, seed=7, finetune=finetune, **options)(artifact_of(module))


def built(build) -> nn.Module:
    torch.manual_seed(7)
    return build().eval().requires_grad_(False)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.named_parameters() if name.endswith("weight")}


def test_pruning_removes_half_of_the_channels_and_says_what_it_saved() -> None:
    module = built(Wide)

    done = cut(module, TONES)

    assert shapes(done.module) == {
        "body.0.weight": (24, 2, 9),
        "body.1.weight": (24,),
        "body.3.weight": (32, 24, 5),
        "head.weight": (3, 32),
    }
    assert (done.name, done.precision) == ("pruned", "float32")
    assert done.steps[:2] == (
        "made",
        (
            "structured pruning, ratio 0.5 (layer), channels in multiples of 8: 16627 to 4475 parameters, "
            "297987 to 91395 MACs; fine-tuned"
        ),
    )
    assert done.steps[-1].startswith("parity with torch at batch 1, 2, 7")
    np.testing.assert_allclose(outputs_of(done, TONES), torch_outputs(done.module, TONES), rtol=1e-4, atol=1e-5)


def test_pruning_leaves_the_original_network_as_it_was(unexported) -> None:
    module = built(Wide)
    before = copy.deepcopy(module.state_dict())

    done = cut(module, TONES)

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_hooks for part in module.modules())
    assert done.module is not module


def test_fine_tuning_gets_the_pruned_network_ready_to_train_and_its_result_is_kept(unexported) -> None:
    seen: list[tuple[int, bool]] = []

    def finetune(module: nn.Module) -> None:
        seen.append((sum(p.numel() for p in module.parameters() if p.requires_grad), module.training))
        with torch.no_grad():
            module.head.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))

    done = cut(built(Wide), TONES, finetune=finetune)

    assert seen == [(4475, False)]
    assert set(torch_outputs(done.module, TONES).argmax(axis=1)) == {0}


class Images(nn.Module):
    """Over (n, 1, 12, 12): a body, averaged, and five logits."""

    def __init__(self, width: int, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


class Residual(nn.Module):
    """Around it the channels stay as wide as they come."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


def depthwise() -> nn.Module:
    def separable(before: int, after: int) -> list[nn.Module]:
        apart = [nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False), nn.BatchNorm2d(before), nn.ReLU6()]
        return [*apart, nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU6()]

    return Images(48, nn.Conv2d(1, 32, 3, 2), nn.ReLU6(), *separable(32, 32), *separable(32, 48))


def grouped() -> nn.Module:
    convolutions = nn.Conv2d(1, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 64, 3, groups=2)
    return Images(32, *convolutions, nn.ReLU(), nn.Conv2d(64, 32, 3))


def autoencoder() -> nn.Module:
    widths = (64, 128, 8, 128, 64)
    layers = [nn.Linear(*pair) for pair in pairwise(widths)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], layers[2], nn.ReLU(), layers[3])


NETS = {
    "depthwise": (depthwise, (1, 12, 12)),
    "residual": (lambda: Images(32, nn.Conv2d(1, 32, 3), Residual(32), nn.ReLU()), (1, 12, 12)),
    "grouped": (grouped, (1, 12, 12)),
    "autoencoder": (autoencoder, (64,)),
}
HALVES = {
    "depthwise": {
        "body.0.weight": (16, 1, 3, 3),
        "body.2.weight": (16, 1, 3, 3),
        "body.5.weight": (16, 16, 1, 1),
        "body.8.weight": (16, 1, 3, 3),
        "body.11.weight": (24, 16, 1, 1),
        "head.weight": (5, 24),
    },
    "residual": {
        "body.0.weight": (16, 1, 3, 3),
        "body.1.up.weight": (32, 16, 3, 3),
        "body.1.down.weight": (16, 32, 3, 3),
        "head.weight": (5, 16),
    },
    "grouped": {
        "body.0.weight": (16, 1, 3, 3),
        "body.3.weight": (32, 8, 3, 3),
        "body.5.weight": (16, 32, 3, 3),
        "head.weight": (5, 16),
    },
    "autoencoder": {"0.weight": (64, 64), "2.weight": (8, 64), "3.weight": (64, 8), "5.weight": (64, 64)},
}


def inputs_of(name: str) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(16, *NETS[name][1])).astype(np.float32)


@pytest.mark.parametrize("name", NETS)
def test_layers_that_hang_together_lose_the_same_channels(unexported, name: str) -> None:
    done = cut(built(NETS[name][0]), inputs_of(name))

    found = shapes(done.module)
    assert {layer: found[layer] for layer in HALVES[name]} == HALVES[name]
    assert (
        torch_outputs(done.module, inputs_of(name)).shape == torch_outputs(built(NETS[name][0]), inputs_of(name)).shape
    )


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_that_do_nothing_are_those_removed_and_nothing_changes(unexported, scope: str) -> None:
    module = built(lambda: Images(32, nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3)))
    random = np.random.default_rng(0)
    with torch.no_grad():
        for layer, norm, reader in ((0, 1, module.body[3]), (3, None, module.head)):
            dead = random.permutation(len(module.body[layer].weight))[::2].copy()
            for part in (module.body[layer], *([module.body[norm]] if norm else [])):
                part.weight[dead] = part.bias[dead] = 0
            reader.weight[:, dead] = 0

    small = cut(module, inputs_of("residual"), scope=scope).module

    assert (small.body[0].out_channels, small.body[3].out_channels, small.head.in_features) == (8, 16, 16)
    found, wanted = torch_outputs(small, inputs_of("residual")), torch_outputs(module, inputs_of("residual"))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_global_pruning_takes_more_from_the_weaker_layer_and_leaves_every_layer_an_eighth(unexported) -> None:
    module = built(lambda: Images(64, nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()))
    with torch.no_grad():
        module.body[0].weight[1:] *= 1e-3
        module.body[0].bias[1:] *= 1e-3
        module.body[2].weight[:, 1:] *= 1e-3

    small = cut(module, inputs_of("residual"), scope="global", ratio=0.6).module

    assert small.body[0].out_channels == 8, "one strong channel, a layer of which only it would be left"
    assert small.body[2].out_channels == 48


def test_pruning_can_be_applied_to_its_own_result(unexported) -> None:
    once = cut(built(autoencoder), inputs_of("autoencoder"), ratio=0.25)
    twice = cut(once.module, inputs_of("autoencoder"), ratio=1 / 3)

    assert shapes(once.module)["3.weight"] == (96, 8)
    assert shapes(twice.module)["3.weight"] == (64, 8)


@pytest.mark.parametrize("name", ["encoder", "pre-norm encoder"])
def test_a_transformer_encoder_loses_width_everywhere_and_keeps_its_heads(name: str) -> None:
    done = cut(network(name), windows(name))

    (layer,) = done.module.encoder.layers
    attention = layer.self_attn
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (32, 4, 8), "its input is that wide"
    assert (layer.linear1.out_features, layer.linear2.in_features) == (32, 32)
    np.testing.assert_allclose(outputs_of(done, windows(name)), torch_outputs(done.module, windows(name)), atol=1e-5)


class Embedded(nn.Module):
    """An encoder of two layers whose width is its own, over (n, 8, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(20, 48)
        self.place = nn.Parameter(torch.randn(1, 8, 48))
        layer = nn.TransformerEncoderLayer(48, 6, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x) + self.place).mean(dim=1))


def test_the_width_of_an_encoder_stays_a_multiple_of_its_heads_and_the_export_is_equal() -> None:
    inputs = np.random.default_rng(1).normal(size=(16, 8, 20)).astype(np.float32)

    done = cut(built(Embedded), inputs)

    for layer in done.module.encoder.layers:
        assert (layer.self_attn.embed_dim, layer.self_attn.num_heads, layer.self_attn.head_dim) == (24, 6, 4)
        assert tuple(layer.self_attn.in_proj_weight.shape) == (72, 24)
    assert tuple(done.module.place.shape) == (1, 8, 24)
    np.testing.assert_allclose(outputs_of(done, inputs), torch_outputs(done.module, inputs), atol=1e-5)


def test_attention_loses_in_each_head_the_dimensions_that_do_nothing() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    dead = [[0, 2], [1, 3], [0, 3]]  # of the four of each head; channels 0 to 5 of the outside
    with torch.no_grad():
        attention.in_proj_weight[:, :6] = 0
        attention.out_proj.weight[:6], attention.out_proj.bias[:6] = 0, 0
        for head, dimensions in enumerate(dead):
            for dimension in dimensions:
                row = 4 * head + dimension
                for part in (0, 12):  # asked and compared
                    attention.in_proj_weight[part + row] = attention.in_proj_bias[part + row] = 0
                other = 4 * head + 3 - dimension if head == 2 else row  # told
                attention.in_proj_weight[24 + other] = attention.in_proj_bias[24 + other] = 0
                attention.out_proj.weight[:, other] = 0
    inputs = torch.randn(2, 7, 12)
    wanted = attention(inputs, inputs, inputs, need_weights=False)[0].detach()

    AttentionPruner().prune_out_channels(attention, [0, 1, 2, 3, 4, 5])

    narrow = inputs[..., 6:]
    found = attention(narrow, narrow, narrow, need_weights=False)[0].detach()
    assert (attention.embed_dim, attention.head_dim, attention.out_proj.in_features) == (6, 2, 6)
    torch.testing.assert_close(found, wanted[..., 6:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "gru",
            r"removed nothing: 39109 parameters before and after, channels in multiples of 8; layers: 1 GRU \(38784",
        ),
        ("gru", r"The last, 'head', is never pruned; recurrent layers are left to prune_units\.units"),
        (
            "lstm",
            r"removed nothing: 52037 parameters before and after, .* layers: 1 LSTM \(51712 parameters\), 1 Linear",
        ),
        ("narrow convolutions", r"removed nothing: 637 parameters .* layers: 2 Conv1d .* too narrow for the multiple"),
    ],
)
def test_a_network_that_pruning_leaves_as_it_was_is_refused(name: str, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        cut(network(name), windows(name))


class Scaled(nn.Module):
    """A parameter of the network's own around its layers, and a front-end that could be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.front_end = nn.Conv1d(2, 16, 3)
        self.body = nn.Conv1d(16, 32, 5, 4)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.head(torch.relu(self.body(self.front_end(x))).mean(dim=2))


def test_a_network_with_a_parameter_of_its_own_is_pruned_and_its_front_end_stays(unexported) -> None:
    module, learnable = built(Scaled), set[str]()

    done = cut(
        module,
        TONES,
        finetune=lambda small: learnable.update(name for name, p in small.named_parameters() if p.requires_grad),
    )

    assert tuple(done.module.body.weight.shape) == (16, 16, 5)
    assert torch.equal(done.module.front_end.weight, module.front_end.weight)
    assert learnable == {"scale", "body.weight", "body.bias", "head.weight", "head.bias"}


def test_pruning_that_removes_nothing_names_the_layer_it_never_prunes() -> None:
    with pytest.raises(ExportError, match=r"removed nothing: .* The last, 'head', is never pruned"):
        cut(built(Scaled), TONES, round_to=32)


def test_pruning_wants_an_artifact_that_still_has_its_torch_network() -> None:
    with pytest.raises(ExportError, match=r"pruning float32: it has no torch network, wanted .* to_onnx\.export"):
        cut(None, TONES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio": 1.0}, r"ratio 1\.0, wanted between 0 and 1"),
        ({"round_to": 0}, "round_to is 0"),
        ({"scope": "model"}, "scope 'model', wanted one of layer, global"),
    ],
)
def test_options_of_pruning_that_cannot_be_are_refused(options, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        cut(None, TONES, **options)


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "stays"),
    [(64, 0.5, 8, 32), (24, 0.5, 8, 16), (20, 0.5, 8, 8), (64, 0.95, 8, 8), (4, 0.5, 8, 4), (10, 0.3, 1, 7)],
)
def test_what_stays_is_the_nearest_multiple_and_never_nothing(width, ratio, multiple, stays) -> None:
    assert prune.kept(width, ratio=ratio, multiple=multiple) == stays
