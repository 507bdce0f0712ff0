"""Structured pruning: whole channels removed from the torch network, fine-tuned and exported anew.

torch-pruning finds which channels hang together and removes them; what shall go is decided here. What it cannot do it
does silently (GRU) or with an empty AssertionError (LSTM), so the counts decide.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import msgspec
import torch
import torch_pruning
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import to_onnx
from export.artifact import Artifact, Step
from export.prune_attention import AttentionPruner
from export.quiet import one_line, silenced
from export.task import FineTune
from export.train import deterministic, torch_outputs

Scope = Literal["layer", "global"]
LEAST_SHARE = 0.125  # of a layer's channels, which stay whatever the other layers hold
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Size(msgspec.Struct, frozen=True):
    """Of a network: parameters, and multiply-accumulates for one window as torch-pruning counts them."""

    parameters: int
    macs: int


def structured(
    windows: Floats,
    *,
    ratio: float,
    scope: Scope = "layer",
    round_to: int = 8,
    seed: int,
    finetune: FineTune,
) -> Step:
    """A step that removes the weakest channels of a copy of the network, has it trained again and exports it.

    windows: (n, ...) float32, n >= 7, real ones. ratio: of the channels, of each layer or of all together (global,
    where every layer keeps at least an eighth). round_to: channels are kept in multiples of it; odd counts can be
    slower. finetune: trains the module it gets in place. Transformer encoders lose feed-forward width, model width and
    head width, not heads. The last layer and the front-end stay as they are.
    The step raises ExportError without a torch network, and when nothing was removed.
    """
    check_options(ratio, round_to)
    if scope not in get_args(Scope):
        raise ExportError(f"pruning scope {scope!r}, wanted one of {', '.join(get_args(Scope))}")

    def step(artifact: Artifact) -> Artifact:
        with deterministic(seed):
            whole = copied(artifact, "pruning")
            example = torch.from_numpy(windows[:1].copy())
            module = _pruned(whole, example, ratio=ratio, scope=scope, round_to=round_to)
            before, after = _size(whole, example), _size(module, example)
            if after.parameters >= before.parameters:
                raise ExportError(_nothing_removed(module, example, after, round_to))
            _check_shape(whole, module, windows[:1])
            told = (
                f"structured pruning, ratio {ratio:g} ({scope}), channels in multiples of {round_to}: "
                f"{before.parameters} to {after.parameters} parameters, {before.macs} to {after.macs} MACs; fine-tuned"
            )
            return tuned(artifact, module, windows, finetune, told)

    return step


def check_options(ratio: float, round_to: int) -> None:
    """Raises ExportError for a ratio that removes nothing or everything, and for multiples of less than one."""
    if not 0 < ratio < 1:
        raise ExportError(f"pruning ratio {ratio}, wanted between 0 and 1")
    if round_to < 1:
        raise ExportError(f"round_to is {round_to}, wanted at least 1")


def copied(artifact: Artifact, step: str) -> nn.Module:
    """A copy of the artifact's network to cut, in evaluation mode; all but its front-end can be trained.

    Raises ExportError when torch no longer has the network.
    """
    if artifact.module is None:
        raise ExportError(
            f"{step} {artifact.name}: it has no torch network, wanted an artifact as to_onnx.export made it; prune "
            "before any step that changes the ONNX graph"
        )
    module = copy.deepcopy(artifact.module).eval().requires_grad_(True)
    for part in _front_end(module):
        part.requires_grad_(False)
    return module


def kept(width: int, *, ratio: float, multiple: int) -> int:
    """How many of width channels stay: the nearest multiple, at least one multiple, at most width."""
    nearest = math.floor(width * (1 - ratio) / multiple + 0.5) * multiple
    return min(width, max(multiple, nearest))


def tuned(artifact: Artifact, module: nn.Module, windows: Floats, finetune: FineTune, told: str) -> Artifact:
    """The network that was cut, trained again and exported. told: what was done to it."""
    finetune(module)
    module.eval().requires_grad_(False)
    exported = to_onnx.export(module, windows, input_name=artifact.input, output_name=artifact.output)
    steps = (*artifact.steps, told, *exported.steps[1:])  # its export is told already, its parity is new
    return msgspec.structs.replace(exported, name="pruned", steps=steps, session=artifact.session)


def parameters(module: nn.Module) -> int:
    """Numbers that the network has learned or was given as parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def layers(module: nn.Module) -> str:
    """Layers with weights, by type, with their parameters."""
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for part in module.modules():
        own = sum(parameter.numel() for parameter in part.parameters(recurse=False))
        if own:
            counts[type(part).__name__] += 1
            weights[type(part).__name__] += own
    return ", ".join(f"{n} {kind} ({weights[kind]} parameters)" for kind, n in counts.items())


class _Group(msgspec.Struct, frozen=True):
    """Channels of several layers that go together. scores: (channels of one part,), 1 on average.

    parts: of grouped convolutions and normalizations, which must stay equally wide. multiple: what stays of one part.
    """

    group: torch_pruning.dependency.Group
    scores: torch.Tensor
    parts: int
    multiple: int

    def remove(self, keep: int) -> None:
        """Remove all but the strongest channels of each part."""
        width = len(self.scores)
        weakest = self.scores.argsort(stable=True)[: width - keep]
        if len(weakest):
            self.group.prune(idxs=[int(channel) + part * width for part in range(self.parts) for channel in weakest])


def _pruned(module: nn.Module, example: torch.Tensor, *, ratio: float, scope: Scope, round_to: int) -> nn.Module:
    """A copy without the weakest channels.

    Channels that the network's input has too, past a residual connection, are not in torch-pruning's graph: the copy
    does not run without them. Then all is done again, and they stay.
    """
    fixed: set[str] = set()
    while True:
        pruned = copy.deepcopy(module)
        stuck = _prune(pruned, example, fixed, ratio=ratio, scope=scope, round_to=round_to)
        if not stuck:
            return pruned
        fixed.add(stuck)


def _prune(
    module: nn.Module, example: torch.Tensor, fixed: set[str], *, ratio: float, scope: Scope, round_to: int
) -> str:
    """Prune in place, but for the layers with fixed names; the name of the layer after which nothing runs, or ""."""
    names = {part: name for name, part in module.named_modules()}
    stay = [*_front_end(module), _last_layer(module, example)[1], *(module.get_submodule(name) for name in fixed)]
    ignored = [part for layer in stay for part in layer.modules()]
    module.requires_grad_(True)  # torch-pruning follows gradients
    try:
        with silenced():
            graph = torch_pruning.DependencyGraph().build_dependency(
                module, example, customized_pruners={nn.MultiheadAttention: AttentionPruner()}
            )
            groups = list(_groups(graph, ignored, round_to))
            for group, share in zip(groups, _ratios(groups, ratio, scope), strict=True):
                group.remove(kept(len(group.scores), ratio=share, multiple=group.multiple))
                if not _runs(module, example):
                    stuck: str = names[group.group[0].dep.target.module]
                    return stuck
    except Exception as error:
        said = one_line(error) or "without a message"
        raise ExportError(
            f"torch-pruning cannot prune this network ({type(error).__name__}: {said}); its layers: {layers(module)}"
        ) from error
    for part in _front_end(module):
        part.requires_grad_(False)
    return ""


def _runs(module: nn.Module, example: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            module(example)
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _groups(graph: torch_pruning.DependencyGraph, ignored: list[nn.Module], round_to: int) -> Iterator[_Group]:
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[*CONVOLUTIONS, nn.Linear]):
        scores = importance(group)
        if scores is None:
            continue
        parts = max(_parts(graph, dep) for dep, _ in group)
        attention = [dep.target.module for dep, _ in group if isinstance(dep.target.module, nn.MultiheadAttention)]
        heads = [layer.num_heads for layer in attention]
        multiple = math.lcm(round_to, *heads)
        yield _Group(group, scores.reshape(parts, -1).mean(dim=0), parts, multiple // math.gcd(multiple, parts))


def _parts(graph: torch_pruning.DependencyGraph, dependency: torch_pruning.dependency.Dependency) -> int:
    """Into how many equal parts a layer divides the channels; a depthwise convolution does not."""
    layer = dependency.target.module
    if not isinstance(layer, nn.Module) or (isinstance(layer, CONVOLUTIONS) and layer.groups == layer.out_channels):
        return 1
    pruner = graph.get_pruner_of_module(layer)
    is_output = graph.is_out_channel_pruning_fn(dependency.handler)
    return int(pruner.get_out_channel_groups(layer) if is_output else pruner.get_in_channel_groups(layer))


def _ratios(groups: Sequence[_Group], ratio: float, scope: Scope) -> list[float]:
    """The share of its channels that each group loses: the same, or by one threshold over all scores."""
    if scope == "layer" or not groups:
        return [ratio] * len(groups)
    scores = torch.cat([group.scores for group in groups])
    threshold = scores.sort().values[round(ratio * len(scores))]
    return [min(float((group.scores < threshold).float().mean()), 1 - LEAST_SHARE) for group in groups]


def _front_end(module: nn.Module) -> list[nn.Module]:
    front_end = getattr(module, to_onnx.FRONT_END, None)
    return [front_end] if isinstance(front_end, nn.Module) else []


def _last_layer(module: nn.Module, example: torch.Tensor) -> tuple[str, nn.Module]:
    """The layer with weights that is called last, and its name: its channels are the network's outputs.

    A module with weights of its own around others that were called, such as the network itself, is no layer.
    """
    called: list[nn.Module] = []

    def note(layer: nn.Module, _inputs: object, _output: object) -> None:
        if not called or all(part is not called[-1] for part in layer.modules()):
            called.append(layer)

    weighted = {part: name for name, part in module.named_modules() if list(part.parameters(recurse=False))}
    hooks = [part.register_forward_hook(note) for part in weighted]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ExportError("pruning: the network calls no layer with weights")
    return weighted[called[-1]], called[-1]


def _size(module: nn.Module, example: torch.Tensor) -> Size:
    with silenced():
        macs, _parameters = torch_pruning.utils.count_ops_and_params(module, example)
    return Size(parameters(module), round(macs))


def _nothing_removed(module: nn.Module, example: torch.Tensor, size: Size, round_to: int) -> str:
    last, _layer = _last_layer(module, example)
    return (
        f"pruning removed nothing: {size.parameters} parameters before and after, channels in multiples of {round_to}; "
        f"layers: {layers(module)}. The last, {last or 'the network itself'!r}, is never pruned; recurrent layers are "
        "left to prune_units.units, and layers too narrow for the multiple as they are"
    )


def _check_shape(whole: nn.Module, pruned: nn.Module, window: Floats) -> None:
    wanted, found = torch_outputs(whole, window).shape, torch_outputs(pruned, window).shape
    if found != wanted:
        raise ExportError(f"the pruned network returns {found}, wanted {wanted}")
