"""Unit pruning of GRU and LSTM: hidden units removed with all their gates and with the columns that read them.

What reads a unit is found by marking it with NaN, which passes elementwise operations, means and slices unmixed. The
cut is then proven: the smaller network must answer as the whole one does whose removed units are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import msgspec
import torch
from torch import nn

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.artifact import Artifact, Step
from export.prune import check_options, copied, kept, layers, parameters, tuned
from export.quiet import one_line
from export.task import FineTune
from export.to_onnx import FRONT_END
from export.train import deterministic, torch_outputs

MARKED_WINDOWS = 2
PROOF_WINDOWS = 7
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order
SMALLEST_MEAN = 1e-12
Recurred = tuple[torch.Tensor, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
Masks = dict[tuple[str, str, int], torch.Tensor]  # by module, parameter and axis: what stays


class Reader(msgspec.Struct, frozen=True):
    """A weight whose columns read hidden units. sources: (columns,) int64, the unit that each column reads, or -1."""

    module: str
    parameter: str
    sources: torch.Tensor


def units(windows: Floats, *, ratio: float, round_to: int = 8, seed: int, finetune: FineTune) -> Step:
    """A step that removes the weakest hidden units of every GRU and LSTM of a copy of the network.

    windows: (n, ...) float32, n >= 7, real ones. ratio: of the units. What stays is a multiple of round_to, the same
    number in every layer and direction of one nn.GRU, which has one hidden_size; which units stay differs.
    finetune: trains the module it gets in place. The step raises ExportError without a torch network, without a
    recurrent layer, when nothing is removed, and naming the layer whose units are read in a way it cannot follow.
    """
    check_options(ratio, round_to)

    def step(artifact: Artifact) -> Artifact:
        with deterministic(seed):
            module = copied(artifact, "unit pruning")
            before = parameters(module)
            removed = _remove(module, ratio, round_to, windows)
            told = (
                f"unit pruning, ratio {ratio:g}, units in multiples of {round_to}: {removed}; {before} to "
                f"{parameters(module)} parameters; fine-tuned"
            )
            return tuned(artifact, module, windows, finetune, told)

    return step


def _remove(module: nn.Module, ratio: float, round_to: int, windows: Floats) -> str:
    """Cut the module in place and prove the cut; what was removed, in words."""
    recurrent = _recurrent(module)
    widths = {name: rnn.hidden_size for name, rnn in recurrent.items()}
    masks: Masks = {}
    for name, rnn in recurrent.items():
        keep = kept(rnn.hidden_size, ratio=ratio, multiple=round_to)
        if keep < rnn.hidden_size:
            _choose(masks, module, name, keep, torch.from_numpy(windows[:MARKED_WINDOWS].copy()))
    if not masks:
        listed = ", ".join(f"{name} with {width} units" for name, width in widths.items())
        raise ExportError(f"unit pruning removed nothing: {listed}, ratio {ratio:g} in multiples of {round_to}")
    zeroed = copy.deepcopy(module)
    for (name, parameter, axis), stays in masks.items():
        with torch.no_grad():
            weight = zeroed.get_submodule(name).get_parameter(parameter)
            weight.mul_(stays.reshape(-1, *[1] * (weight.dim() - axis - 1)))
    _cut(module, masks)
    _prove(zeroed, module, windows[:PROOF_WINDOWS], ", ".join(widths))
    return ", ".join(f"{name} {width} to {recurrent[name].hidden_size}" for name, width in widths.items())


def _recurrent(module: nn.Module) -> dict[str, nn.RNNBase]:
    """The recurrent modules behind the front-end, by name. Raises ExportError when there is none that can be cut."""
    front_end = getattr(module, FRONT_END, None)
    fixed = set(front_end.modules()) if isinstance(front_end, nn.Module) else set()
    found = {name: part for name, part in module.named_modules() if isinstance(part, nn.RNNBase) and part not in fixed}
    if not found:
        raise ExportError(f"unit pruning: the network has no GRU or LSTM, its layers: {layers(module)}")
    for name, rnn in found.items():
        if rnn.proj_size:
            raise ExportError(f"unit pruning: {name} projects its units (proj_size {rnn.proj_size}), wanted 0")
    return found


def _choose(masks: Masks, module: nn.Module, name: str, keep: int, windows: torch.Tensor) -> None:
    """Add to masks what stays when each layer and direction of a recurrent module keeps its strongest units."""
    rnn = _recurrent(module)[name]
    readers = [*_inside(name, rnn), *_outside(module, name, windows)]
    scores = _importance(module, rnn, readers)
    stays = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(keep, dim=1).indices, value=True)
    for row, suffix in enumerate(_suffixes(rnn)):
        for parameter, weight in _of(rnn, suffix):
            _narrow(masks, name, parameter, 0, stays[row].repeat(len(weight) // rnn.hidden_size))
        _narrow(masks, name, f"weight_hh{suffix}", 1, stays[row])
    for reader in readers:
        read = stays.flatten()[reader.sources.clamp(min=0)] | (reader.sources < 0)
        _narrow(masks, reader.module, reader.parameter, 1, read)


def _narrow(masks: Masks, module: str, parameter: str, axis: int, stays: torch.Tensor) -> None:
    key = (module, parameter, axis)
    masks[key] = masks[key] & stays if key in masks else stays


def _suffixes(rnn: nn.RNNBase) -> list[str]:
    """What the parameters of each layer and direction end with; units are counted in this order."""
    directions = ("", "_reverse") if rnn.bidirectional else ("",)
    return [f"_l{layer}{direction}" for layer in range(rnn.num_layers) for direction in directions]


def _of(rnn: nn.RNNBase, suffix: str) -> list[tuple[str, torch.Tensor]]:
    """Weights and biases of one layer and direction, by name: each (gates x units, ...)."""
    return [(name, value.detach()) for name, value in rnn.named_parameters(recurse=False) if name.endswith(suffix)]


def _importance(module: nn.Module, rnn: nn.RNNBase, readers: list[Reader]) -> torch.Tensor:
    """(layers x directions, units): squared weights into, between and out of each unit, each over its layer's mean."""
    into, between = [], []
    for suffix in _suffixes(rnn):
        rows = torch.cat([value.reshape(len(value), -1) for _name, value in _of(rnn, suffix)], dim=1)
        into.append(rows.square().sum(dim=1).reshape(-1, rnn.hidden_size).sum(dim=0))
        between.append(rnn.get_parameter(f"weight_hh{suffix}").detach().square().sum(dim=0))
    out = torch.zeros(len(into) * rnn.hidden_size)
    for reader in readers:
        weight = module.get_submodule(reader.module).get_parameter(reader.parameter).detach()
        reads = reader.sources >= 0
        out.index_add_(0, reader.sources[reads], weight.square().sum(dim=0)[reads])
    members = (torch.stack(into), torch.stack(between), out.reshape(len(into), -1))
    shares = [member / member.mean(dim=1, keepdim=True).clamp(min=SMALLEST_MEAN) for member in members]
    return torch.stack(shares).sum(dim=0)


def _inside(name: str, rnn: nn.RNNBase) -> Iterator[Reader]:
    """The input weights of every layer but the first: they read the layer below, both directions."""
    suffixes, directions = _suffixes(rnn), 1 + rnn.bidirectional
    for row in range(directions, len(suffixes)):
        first = (row // directions - 1) * directions * rnn.hidden_size
        yield Reader(name, f"weight_ih{suffixes[row]}", first + torch.arange(directions * rnn.hidden_size))


def _outside(module: nn.Module, name: str, windows: torch.Tensor) -> Iterator[Reader]:
    """What reads the outputs of a recurrent module: nn.Linear and other recurrent modules.

    Bit by bit of a unit's number, first the units that have it and then the others are marked: a column that reads
    one unit is marked exactly once for each bit. Raises ExportError when it reads several, or when a mark gets past
    all readers.
    """
    rnn = _recurrent(module)[name]
    count = len(_suffixes(rnn)) * rnn.hidden_size
    numbers, bits = torch.arange(count), range(max(1, (count - 1).bit_length()))
    seen = [[_marked(module, name, windows, (numbers >> bit) % 2 == half) for half in (0, 1)] for bit in bits]
    for reader in dict.fromkeys(reader for pair in seen for half in pair for reader in half):
        weights = _input_weights(module.get_submodule(reader))
        width = module.get_submodule(reader).get_parameter(weights[0]).shape[1]
        none = torch.zeros(width, dtype=torch.bool)
        without, having = (torch.stack([pair[half].get(reader, none) for pair in seen]) for half in (0, 1))
        mixed = (without & having).any(dim=0)
        if mixed.any():
            raise ExportError(
                f"unit pruning: {int(mixed.sum())} of {width} inputs of {reader} depend on several units of {name}; "
                "between them wanted elementwise operations, means and slices only"
            )
        number = (having * (1 << torch.arange(len(seen)))[:, None]).sum(dim=0)
        sources = torch.where((without | having).any(dim=0), number, -1)
        for parameter in weights:
            yield Reader(reader, parameter, sources)


def _input_weights(reader: nn.Module) -> list[str]:
    if isinstance(reader, nn.RNNBase):
        return [f"weight_ih{suffix}" for suffix in _suffixes(reader)[: 1 + reader.bidirectional]]
    return ["weight"]


def _marked(module: nn.Module, name: str, windows: torch.Tensor, units: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which input columns of which readers get a NaN when these units give one. units: (layers x units,) bool."""
    rnn, found = _recurrent(module)[name], dict[str, torch.Tensor]()
    hooks = [rnn.register_forward_hook(partial(_mark, name, units.reshape(len(_suffixes(rnn)), 1, -1)))]
    for reader, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.RNNBase):
            hooks.append(part.register_forward_pre_hook(partial(_note, found, reader)))
    try:
        with torch.no_grad():
            past = torch.isnan(module(windows)).any()
    finally:
        for hook in hooks:
            hook.remove()
    if past:
        raise ExportError(
            f"unit pruning: units of {name} reach the output past every nn.Linear, nn.GRU and nn.LSTM, wanted one that "
            "reads them"
        )
    return found


def _mark(name: str, units: torch.Tensor, _rnn: nn.Module, _inputs: object, output: Recurred) -> Recurred:
    """A forward hook: what a recurrent module gives, NaN for the units. units: (layers, 1, units) bool."""
    values, states = output
    if not isinstance(values, torch.Tensor):
        raise ExportError(f"unit pruning: {name} gives a {type(values).__name__}, wanted a tensor")
    marked = values.masked_fill(units.flatten()[-values.shape[-1] :], torch.nan)
    if isinstance(states, torch.Tensor):
        return marked, states.masked_fill(units, torch.nan)
    hidden, cells = states
    return marked, (hidden.masked_fill(units, torch.nan), cells.masked_fill(units, torch.nan))


def _note(
    found: dict[str, torch.Tensor], reader: str, _reader: nn.Module, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """A forward pre-hook: note which columns are marked, and take the marks away."""
    marks = torch.isnan(inputs[0])
    columns = marks.reshape(-1, marks.shape[-1]).any(dim=0)
    if columns.any():
        found[reader] = found.get(reader, columns) | columns
    return (inputs[0].masked_fill(marks, 0.0), *inputs[1:])


def _cut(module: nn.Module, masks: Masks) -> None:
    """Remove rows and columns in place, and tell the modules their new widths."""
    for (name, parameter, axis), stays in masks.items():
        owner = module.get_submodule(name)
        weight = owner.get_parameter(parameter)
        rest = weight.detach().index_select(axis, stays.nonzero().flatten())
        setattr(owner, parameter, nn.Parameter(rest, requires_grad=weight.requires_grad))
    for name in {name for name, _parameter, _axis in masks}:
        owner = module.get_submodule(name)
        if isinstance(owner, nn.RNNBase):
            owner.input_size = owner.get_parameter("weight_ih_l0").shape[1]
            owner.hidden_size = owner.get_parameter("weight_hh_l0").shape[1]
        elif isinstance(owner, nn.Linear):
            owner.in_features = owner.weight.shape[1]


def _prove(zeroed: nn.Module, cut: nn.Module, windows: Floats, names: str) -> None:
    """Raises ExportError when the cut network answers otherwise than the whole one without the removed units."""
    wanted = torch_outputs(zeroed, windows)
    try:
        found = torch_outputs(cut, windows)
    except Exception as error:
        raise ExportError(
            f"unit pruning: without some units of {names} the network does not run: {one_line(error)}"
        ) from error
    difference = abs(found - wanted).max() if found.shape == wanted.shape else float("inf")
    if not difference <= TOLERANCE * max(abs(wanted).max(), 1.0):
        raise ExportError(
            f"unit pruning: units of {names} are read in a way that was not found: outputs differ by "
            f"{difference:.1e} from the network in which they are zero"
        )
