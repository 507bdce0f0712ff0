"""What can be tried: moves, chains of them, and which of them a graph gives reason to try.

A candidate is a chain of moves from the original. A move is plain data, so that it can be told, kept and repeated on
other data of the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge_runtime.errors import ExportError
from export.artifact import RECURRENT, Artifact, Step, ancestors, parse
from export.recipe import Progress
from export.task import FineTune, Task

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["prune", "prune-units", "qat", "fuse", "int8", "int8-dynamic", "int8-weights", "fp16"]
Setting = bool | int | float | str | tuple[str, ...]
Tuned = Callable[[FineTune], FineTune]
"""What becomes of a fine-tuning before it runs: a cache may answer in its place."""
ROUND_TO = 8


class Move(msgspec.Struct, frozen=True):
    """One step and its settings, by the names of its function's parameters."""

    kind: Kind
    settings: dict[str, Setting] = {}


Chain = tuple[Move, ...]
NARROWER: tuple[Kind, ...] = ("prune", "prune-units")
TRAINS: tuple[Kind, ...] = (*NARROWER, "qat")
"""Kinds that change the torch network and train it."""


def step(task: Task, move: Move, tuned: Tuned, progress: Progress) -> Step:
    """The step that a move stands for. Raises ExportError for a setting it cannot have."""
    settings: dict[str, Any] = dict(move.settings)
    if move.kind in TRAINS:
        return _training(task, move.kind, settings, tuned, progress)
    from export import fuse, half, quantize, weight_only

    windows = task.calibrate
    makers: dict[str, Callable[..., Step]] = {
        "fuse": lambda **named: fuse.transformer(windows, **named),
        "int8": lambda **named: quantize.static_qdq(windows, **named),
        "int8-dynamic": quantize.dynamic,
        "int8-weights": weight_only.int8,
        "fp16": lambda **named: half.fp16(windows, **named),
    }
    return makers[move.kind](**settings)


def _training(task: Task, kind: Kind, settings: dict[str, Any], tuned: Tuned, progress: Progress) -> Step:
    finetune = tuned(_finetune(task, _module(task), settings.pop("epochs"), progress))
    if kind == "qat":
        from export.qat import aware

        return aware(task.calibrate, seed=task.seed, finetune=finetune, **settings)
    from export import prune, prune_units  # torch takes seconds to import, and an ONNX file needs none

    maker = prune.structured if kind == "prune" else prune_units.units
    return maker(task.calibrate, round_to=ROUND_TO, seed=task.seed, finetune=finetune, **settings)


def _finetune(task: Task, teacher: nn.Module, epochs: int, progress: Progress) -> FineTune:
    from export.distill import distill

    return task.finetune or distill(task, teacher, epochs=epochs, seed=task.seed, progress=progress)


def _module(task: Task) -> nn.Module:
    if task.original.module is None:
        raise ExportError(f"{task.name}: came as ONNX; pruning and fine-tuning need the torch network")
    return task.original.module


def named(chain: Chain) -> str:
    """Short and telling: `pruned 58% global + int8 u8s8`; the share is that of channels or units removed in all."""
    if not chain:
        return "float32"
    words: list[str] = []
    left = 1.0
    for move, following in zip(chain, (*chain[1:], None), strict=True):
        if move.kind not in NARROWER:
            words.append(_named(move))
            continue
        left *= 1 - number(move, "ratio")
        if following is None or following.kind != move.kind:
            what = "units" if move.kind == "prune-units" else move.settings["scope"]
            words.append(f"pruned {100 * (1 - left):.0f}% {what}, {_epochs(chain):g} epochs")
    return " + ".join(words)


def _epochs(chain: Chain) -> float:
    return sum(number(move, "epochs") for move in chain if move.kind in NARROWER)


def number(move: Move, name: str) -> float:
    """A setting that has to be one. Raises ExportError."""
    value = move.settings[name]
    if not isinstance(value, int | float):
        raise ExportError(f"{move.kind}: {name} is {value!r}, wanted a number")
    return value


def _named(move: Move) -> str:
    settings = move.settings
    if move.kind != "int8":
        return {"qat": f"quantization-aware {settings.get('epochs')} epochs"}.get(move.kind, move.kind)
    kept = settings.get("keep", ())
    words = ["int8", str(settings["scheme"]), str(settings["method"])]
    words += ["7-bit"] if settings.get("reduce_range") else []
    words += [f"{len(kept)} float"] if isinstance(kept, tuple) and kept else []
    return " ".join(words)


class Held(msgspec.Struct, frozen=True):
    """What a graph holds behind its front-end, as far as it decides what is tried."""

    conv: bool
    recurrent: bool
    lstm: bool
    attention: bool
    matrices: bool


def held(artifact: Artifact) -> Held:
    graph = parse(artifact.model).graph
    front = ancestors(graph, artifact.front_end)
    kinds = {node.op_type for node in graph.node if node.name not in front}
    return Held(
        conv="Conv" in kinds,
        recurrent=not kinds.isdisjoint(RECURRENT),
        lstm="LSTM" in kinds,
        attention=not kinds.isdisjoint({"Softmax", "Attention"}) and "MatMul" in kinds,
        matrices=not kinds.isdisjoint({"MatMul", "Gemm"}),
    )


def int8(scheme: str, method: str = "minmax", **settings: Setting) -> Move:
    return Move("int8", {"scheme": scheme, "method": method, **settings})


def post_training(found: Held, *, gpu: bool) -> list[Chain]:
    """What needs no training. Static int8 knows no recurrent layer, dynamic int8 makes convolutions slow."""
    chains: list[Chain] = []
    if found.conv or not found.recurrent:
        chains += [(int8("u8s8"),), (int8("s8s8"),)]
    if found.lstm or (found.matrices and not found.conv and not found.recurrent):
        chains.append((Move("int8-dynamic"),))
    if found.recurrent or not found.conv:
        chains.append((Move("int8-weights"),))
    if found.attention:
        chains += [(Move("fuse"),), (Move("fuse"), Move("int8-dynamic"))]
    if gpu:
        chains.append((Move("fp16"),))
    return chains


def refined(move: Move) -> list[Chain]:
    """Other ways to calibrate the static int8 that did best."""
    scheme = str(move.settings["scheme"])
    return [(int8(scheme, "percentile"),), (int8(scheme, "entropy"),), (int8(scheme, reduce_range=True),)]


def prunings(task: Task, found: Held) -> list[Callable[[float, int], Move]]:
    """Ways to make the network narrower, each a function of ratio and epochs; none without network and data."""
    if task.original.module is None or (task.train is None and task.finetune is None):
        return []
    ways: list[Callable[[float, int], Move]] = []
    if found.recurrent:
        ways.append(lambda ratio, epochs: Move("prune-units", {"ratio": ratio, "epochs": epochs}))
    if found.conv or not found.recurrent:
        ways += [_channels("global"), _channels("layer")]
    return ways


def _channels(scope: str) -> Callable[[float, int], Move]:
    return lambda ratio, epochs: Move("prune", {"ratio": ratio, "scope": scope, "epochs": epochs})
