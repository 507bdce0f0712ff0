"""Structured pruning: whole channels removed from the torch network, fine-tuned and exported anew.

What torch-pruning cannot do it does silently (GRU) or with an empty AssertionError (LSTM), so the counts decide.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import msgspec
import torch
import torch_pruning
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export import to_onnx
from export.artifact import Artifact, Step
from export.quiet import one_line, silenced
from export.recipe import Splits
from export.train import deterministic, fit, torch_outputs

EPOCHS = 10
FineTune = Callable[[nn.Module], None]


class Size(msgspec.Struct, frozen=True):
    """Of a network: parameters, and multiply-accumulates for one window as torch-pruning counts them."""

    parameters: int
    macs: int


def structured(
    splits: Splits,
    *,
    ratio: float = 0.5,
    round_to: int = 8,
    epochs: int = EPOCHS,
    seed: int = 0,
    finetune: FineTune | None = None,
) -> Step:
    """A step that removes the weakest channels of a copy of the network, trains it again and exports it.

    ratio: of the channels of each layer. round_to: channels are kept in multiples of it; odd counts can be slower.
    The last layer and the front-end stay as they are. finetune: trains the module it gets in place; the default is
    `train.fit`, cross-entropy on the train split for epochs.
    The step raises ExportError without a torch network, and when nothing was pruned.
    """
    if not 0 < ratio < 1:
        raise ExportError(f"pruning ratio {ratio}, wanted between 0 and 1")
    if round_to < 1:
        raise ExportError(f"round_to is {round_to}, wanted at least 1")

    def default(module: nn.Module) -> None:
        fit(module, splits, seed=seed, epochs=epochs, progress=lambda _text: None)

    tuned = f"fine-tuned {epochs} epochs" if finetune is None else "fine-tuned by the caller"
    settings = _Settings(ratio, round_to, seed, finetune or default, tuned)
    return lambda artifact: _structured(artifact, splits.train.inputs, settings)


class _Settings(msgspec.Struct, frozen=True):
    ratio: float
    round_to: int
    seed: int
    finetune: FineTune
    tuned: str


def _structured(artifact: Artifact, windows: Floats, settings: _Settings) -> Artifact:
    if artifact.module is None:
        raise ExportError(
            f"pruning {artifact.name}: it has no torch network, wanted an artifact as to_onnx.export made it; prune "
            "before any step that changes the ONNX graph"
        )
    with deterministic(settings.seed):
        module = copy.deepcopy(artifact.module).eval()
        example = torch.from_numpy(windows[:1].copy())
        before = _size(module, example)
        _prune(module, example, settings)
        after = _size(module, example)
        if after.parameters >= before.parameters:
            kept, _layer = _last_layer(artifact.module, example)
            raise ExportError(_nothing_removed(artifact.module, kept, before, after, settings))
        _check_runs(artifact.module, module, windows[:1])
        settings.finetune(module)
        module.eval().requires_grad_(False)
        exported = to_onnx.export(module, windows, input_name=artifact.input, output_name=artifact.output)
    told = (
        f"structured pruning, ratio {settings.ratio:g}, channels in multiples of {settings.round_to}: "
        f"{before.parameters} to {after.parameters} parameters, {before.macs} to {after.macs} MACs; {settings.tuned}"
    )
    return msgspec.structs.replace(
        exported, name="pruned", steps=(*artifact.steps, told, *exported.steps), session=artifact.session
    )


def _prune(module: nn.Module, example: torch.Tensor, settings: _Settings) -> None:
    """Prune in place; what shall be trained afterwards requires gradients."""
    module.requires_grad_(True)  # torch-pruning follows gradients
    front_end = getattr(module, to_onnx.FRONT_END, None)
    fixed = [front_end] if isinstance(front_end, nn.Module) else []
    try:
        with silenced():
            torch_pruning.pruner.BasePruner(
                module,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=settings.ratio,
                round_to=settings.round_to,
                ignored_layers=[_last_layer(module, example)[1], *fixed],
                in_channel_groups={},  # the defaults are shared between calls
                out_channel_groups={},
                num_heads={},
            ).step()
    except Exception as error:
        said = one_line(error) or "without a message"
        raise ExportError(
            f"torch-pruning cannot prune this network ({type(error).__name__}: {said}); its layers: {_layers(module)}"
        ) from error
    for part in fixed:
        part.requires_grad_(False)


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
    return Size(sum(parameter.numel() for parameter in module.parameters()), round(macs))


def _nothing_removed(module: nn.Module, kept: str, before: Size, after: Size, settings: _Settings) -> str:
    return (
        f"pruning removed nothing: {before.parameters} parameters before, {after.parameters} after, ratio "
        f"{settings.ratio:g} in multiples of {settings.round_to}; layers: {_layers(module)}. The last, "
        f"{kept or 'the network itself'!r}, is never pruned; torch-pruning skips recurrent layers, and layers "
        "too narrow for the multiple"
    )


def _check_runs(original: nn.Module, pruned: nn.Module, window: Floats) -> None:
    """Raises ExportError when what is left does not run or returns another shape."""
    try:
        found = torch_outputs(pruned, window).shape
    except Exception as error:
        raise ExportError(f"the pruned network does not run: {one_line(error)}") from error
    wanted = torch_outputs(original, window).shape
    if found != wanted:
        raise ExportError(f"the pruned network returns {found}, wanted {wanted}")


def _layers(module: nn.Module) -> str:
    """Layers with weights, by type, with their parameters."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for part in module.modules():
        own = sum(parameter.numel() for parameter in part.parameters(recurse=False))
        if own:
            counts[type(part).__name__] += 1
            parameters[type(part).__name__] += own
    return ", ".join(f"{n} {kind} ({parameters[kind]} parameters)" for kind, n in counts.items())
