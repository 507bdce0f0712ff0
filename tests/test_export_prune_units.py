"""Hidden units of GRU and LSTM: what is cut with them, what reads them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime.errors import ExportError
from export import prune_units, to_onnx
from export.artifact import Artifact, outputs_of
from export.train import torch_outputs

pytestmark = pytest.mark.torch

STEPS, CHANNELS, LABELS = 9, 6, 5
WINDOWS = np.random.default_rng(5).normal(size=(16, STEPS, CHANNELS)).astype(np.float32)


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps' result without ONNX, which takes seconds; tests with real exports stand beside."""
    monkeypatch.setattr(to_onnx, "export", lambda module, _windows, **_names: artifact_of(module))


READS = {
    "mean": lambda net, out, _h: net.head(out.mean(dim=1)),
    "last step": lambda net, out, _h: net.head(out[:, -1]),
    "last state": lambda net, _out, h: net.head(torch.cat([*h[-1 - net.rnn.bidirectional :]], dim=1)),
    "maximum": lambda net, out, _h: net.head(torch.relu(out).amax(dim=1)),
    "flattened": lambda net, out, _h: net.head(out.flatten(1)),
    "attention": lambda net, out, _h: net.head((torch.softmax(net.score(out), dim=1) * out).sum(dim=1)),
    "normalized": lambda net, out, _h: net.head(torch.nn.functional.layer_norm(out, out.shape[-1:]).mean(dim=1)),
    "beside the head": lambda net, out, _h: net.head(out.mean(dim=1)) + out.mean(dim=(1, 2))[:, None],
    "no head": lambda _net, out, _h: out[:, -1, :LABELS],
    "in part": lambda net, out, _h: net.head(torch.cat([out[:, -1], torch.zeros(len(out), 7)], dim=1)),
    "lower state": lambda net, out, h: net.head(out[:, -1]) + net.score(h[0]),
    "scaled": lambda net, out, _h: net.head((out * net.scale).mean(dim=1)),
}


class Net(nn.Module):
    """Recurrent layers over (n, 9, 6), read as one of READS says; five logits."""

    def __init__(
        self,
        kind: type[nn.RNNBase],
        read: str = "mean",
        *,
        units: int = 24,
        layers: int = 1,
        both: bool = False,
        **more,
    ) -> None:
        super().__init__()
        self.rnn = kind(CHANNELS, units, num_layers=layers, bidirectional=both, batch_first=True, **more)
        width = units * (1 + both)
        self.head = nn.Linear({"flattened": width * STEPS, "in part": width + 7}.get(read, width), LABELS)
        if read in ("attention", "lower state"):
            self.score = nn.Linear(width, 1)
        if read == "scaled":
            self.scale = nn.Parameter(torch.ones(width))
        self.read = read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, states = self.rnn(x)
        return READS[self.read](self, out, states[0] if isinstance(states, tuple) else states)


class TimeFirst(nn.Module):
    """Two modules, one after the other, over (time, n, channels); the head reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(CHANNELS, 24, bidirectional=True)
        self.second = nn.LSTM(48, 16)
        self.head = nn.Linear(48 + 16, LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, _ = self.first(x.transpose(0, 1))
        second, _ = self.second(torch.tanh(first))
        return self.head(torch.cat([first.mean(dim=0), second[-1]], dim=1))


def network(build) -> nn.Module:
    torch.manual_seed(7)
    return build().eval().requires_grad_(False)


def artifact_of(module: nn.Module | None) -> Artifact:
    return Artifact("float32", "float32", b"", "x", "logits", (), module=module)


def cut(module: nn.Module | None, *, ratio: float = 0.5, finetune=lambda _module: None, **options) -> Artifact:
    return prune_units.units(WINDOWS, ratio=ratio, seed=7, finetune=finetune, **options)(artifact_of(module))


def silence(rnn: nn.RNNBase, units: list[int]) -> None:
    """Zero the weights into, between and out of units inside a recurrent module, in every layer and direction."""
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            gates = parameter.view(-1, rnn.hidden_size, *parameter.shape[1:])
            gates[:, units] = 0
            if name.startswith("weight_hh"):
                parameter[:, units] = 0
            elif name.startswith("weight_ih") and "_l0" not in name:
                parameter.view(len(parameter), -1, rnn.hidden_size)[:, :, units] = 0


@pytest.mark.parametrize("read", ["mean", "last state", "attention", "flattened"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("both", [False, True])
def test_units_that_do_nothing_are_those_removed_and_nothing_changes(
    unexported, kind, read: str, *, both: bool
) -> None:
    module = network(lambda: Net(kind, read, layers=2, both=both))
    dead = [0, 3, 4, 9, 10, 11, 17, 23]
    silence(module.rnn, dead)
    with torch.no_grad():
        for reader in (module.head, *([module.score] if read == "attention" else [])):
            reader.weight.view(len(reader.weight), -1, 24)[:, :, dead] = 0
    alive = [unit for unit in range(24) if unit not in dead]

    small = cut(module, ratio=1 / 3).module

    assert small.rnn.hidden_size == 16
    np.testing.assert_allclose(torch_outputs(small, WINDOWS), torch_outputs(module, WINDOWS), rtol=1e-5, atol=1e-6)
    wanted = module.rnn.weight_ih_l0.view(-1, 24, CHANNELS)[:, alive].flatten(0, 1)
    assert torch.equal(small.rnn.weight_ih_l0, wanted)


def gru(inputs: int, units: int) -> int:
    return 3 * units * (inputs + units) + 2 * 3 * units


def lstm(inputs: int, units: int) -> int:
    return 4 * units * (inputs + units) + 2 * 4 * units


@pytest.mark.parametrize(
    ("build", "options", "told"),
    [
        (
            lambda: Net(nn.GRU),
            {},
            f"rnn 24 to 16; {gru(6, 24) + 5 * 24 + 5} to {gru(6, 16) + 5 * 16 + 5} parameters",
        ),
        (
            lambda: Net(nn.LSTM, layers=2, both=True),
            {"ratio": 0.75},
            (
                f"rnn 24 to 8; {2 * (lstm(6, 24) + lstm(48, 24)) + 5 * 48 + 5} to "
                f"{2 * (lstm(6, 8) + lstm(16, 8)) + 5 * 16 + 5} parameters"
            ),
        ),
        (
            lambda: Net(nn.GRU),
            {"round_to": 1, "ratio": 0.3},
            f"rnn 24 to 17; {gru(6, 24) + 5 * 24 + 5} to {gru(6, 17) + 5 * 17 + 5} parameters",
        ),
        (
            TimeFirst,
            {"round_to": 4},
            (
                f"first 24 to 12, second 16 to 8; {2 * gru(6, 24) + lstm(48, 16) + 5 * 64 + 5} to "
                f"{2 * gru(6, 12) + lstm(24, 8) + 5 * 32 + 5} parameters"
            ),
        ),
    ],
)
def test_the_step_says_what_it_removed_and_the_count_is_that_by_hand(unexported, build, options, told: str) -> None:
    done = prune_units.units(WINDOWS, **{"ratio": 0.5, "seed": 7, "finetune": lambda _module: None, **options})(
        artifact_of(network(build))
    )
    assert done.steps[0].startswith("unit pruning, ratio ")
    assert told in done.steps[0]


@pytest.mark.parametrize(
    "build", [lambda: Net(nn.GRU, layers=2, both=True), lambda: Net(nn.LSTM, "last step"), TimeFirst]
)
def test_the_smaller_network_is_exported_and_both_answer_the_same_at_every_batch_size(build) -> None:
    module = network(build)

    done = cut(module)

    assert type(done.module) is type(module)
    assert done.module is not module
    assert [type(part) for part in done.module.children()] == [type(part) for part in module.children()]
    for batch in (1, 3, 16):
        found = np.concatenate([outputs_of(done, WINDOWS[i : i + batch]) for i in range(0, 16, batch)])
        np.testing.assert_allclose(found, torch_outputs(done.module, WINDOWS), rtol=1e-4, atol=1e-5)
    assert done.steps[-1].startswith("parity with torch at batch 1, 2, 7")


@pytest.mark.parametrize("read", ["last step", "maximum", "in part"])
def test_what_reads_units_is_found_behind_slices_maxima_and_beside_other_inputs(unexported, read: str) -> None:
    module = network(lambda: Net(nn.GRU, read))

    small = cut(module).module

    assert small.head.in_features == small.head.weight.shape[1] == {"in part": 16 + 7}.get(read, 16)


def test_a_step_can_be_applied_to_its_own_result_and_the_original_stays(unexported) -> None:
    module = network(lambda: Net(nn.GRU, units=32))
    before = {name: value.clone() for name, value in module.state_dict().items()}

    twice = cut(cut(module, ratio=0.25).module, ratio=1 / 3)

    assert twice.module.rnn.hidden_size == 16
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_fine_tuning_gets_the_smaller_network_ready_to_train(unexported) -> None:
    seen: list[tuple[int, bool]] = []

    def finetune(module: nn.Module) -> None:
        seen.append((module.rnn.hidden_size, all(p.requires_grad for p in module.parameters())))
        torch.nn.functional.cross_entropy(module(torch.from_numpy(WINDOWS)), torch.zeros(16, dtype=int)).backward()
        assert all(p.grad is not None for p in module.parameters())

    done = cut(network(lambda: Net(nn.LSTM, layers=2)), finetune=finetune)

    assert seen == [(16, True)]
    assert not any(p.requires_grad for p in done.module.parameters())


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            lambda: Net(nn.GRU, "normalized"),
            r"24 of 24 inputs of head depend on several units of rnn; between them wanted",
        ),
        (lambda: Net(nn.LSTM, "no head"), r"units of rnn reach the output past every nn\.Linear"),
        (lambda: Net(nn.GRU, "beside the head"), r"units of rnn reach the output past every nn\.Linear"),
        (lambda: Net(nn.GRU, "scaled"), r"without some units of rnn the network does not run: The size of tensor"),
        (lambda: Net(nn.LSTM, proj_size=8, units=24), r"rnn projects its units \(proj_size 8\), wanted 0"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(54, 5)), r"no GRU or LSTM, its layers: 1 Linear \(275 param"),
        (lambda: Net(nn.GRU, units=8), r"removed nothing: rnn with 8 units, ratio 0\.5 in multiples of 8"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(build, told: str) -> None:
    with pytest.raises(ExportError, match=told):
        cut(network(build))


def test_a_reader_of_a_lower_layers_state_is_found(unexported) -> None:
    module = network(lambda: Net(nn.GRU, "lower state", layers=2))

    small = cut(module).module

    assert (small.head.in_features, small.score.in_features) == (16, 16)


def test_a_cut_that_changes_more_than_it_should_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one column of the head had been missed and another cut."""
    real = prune_units._cut

    def wrong(module: nn.Module, masks: prune_units.Masks) -> None:
        key = ("head", "weight", 1)
        real(module, {**masks, key: masks[key].roll(1)})

    monkeypatch.setattr(prune_units, "_cut", wrong)

    with pytest.raises(ExportError, match=r"units of rnn are read in a way that was not found: outputs differ by \d"):
        cut(network(lambda: Net(nn.GRU)))


def test_unit_pruning_wants_the_torch_network_and_a_share_of_the_units() -> None:
    with pytest.raises(ExportError, match=r"unit pruning float32: it has no torch network, wanted .* to_onnx\.export"):
        cut(None)
    with pytest.raises(ExportError, match=r"pruning ratio 1\.0, wanted between 0 and 1"):
        cut(network(lambda: Net(nn.GRU)), ratio=1.0)
