"""What a task is, as a digest: what was found out about one must never be taken for what holds of another."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import secrets
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePath
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import msgspec
import numpy as np

from export.contents import tools
from export.task import Task

OURS = ("edge_runtime", "export")


def of_task(task: Task) -> bytes:
    """Of the original, the data, the code that judges, varies and trains, and the versions of the tools."""
    found = hashlib.sha256(task.original.model)
    arrays: dict[str, Any] = {"calibrate": task.calibrate}
    for name, split in task.splits().items():
        arrays |= {f"{name} inputs": split.inputs, f"{name} targets": split.targets}
    for name, array in arrays.items():
        found.update(str((name, array.dtype, array.shape)).encode())
        found.update(np.ascontiguousarray(array).data)
    found.update(own_code())
    judged = (task.seed, task.output, task.threshold, task.original.session, task.code, _versions())
    found.update(repr(judged).encode())
    for function in (task.metric, task.augment, task.finetune):
        found.update(of_value(function))
    return found.digest()


def _versions() -> list[tuple[str, str]]:
    used = ("torch", "onnxscript", "torch-pruning")
    return sorted(tools(*(name for name in used if find_spec(name.replace("-", "_")))).items())


def own_code() -> bytes:
    """Of all of ours that makes, judges and times candidates; not of what shows them."""
    found = hashlib.sha256()
    for path in _imported(Path(__file__).with_name("candidate.py")):
        found.update(path.name.encode() + path.read_bytes())
    return found.digest()


def _imported(start: Path) -> list[Path]:
    """A module of ours and those of ours that it imports, wherever it does, and theirs."""
    root = start.parents[1]
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                folder = root.joinpath(*node.module.split("."))
                waiting += [folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)]
    return sorted(found)


def of_value(value: object, within: tuple[int, ...] = ()) -> bytes:
    """Of a function: its file, its code, its defaults and what it closes over; of what else such things hold.

    What cannot be seen through gets a digest of its own each time. within: ids of the values around it.
    """
    found = hashlib.sha256(type(value).__name__.encode())
    for part in _parts(inspect.unwrap(value) if isinstance(value, FunctionType) else value):
        found.update(
            part if isinstance(part, bytes) else b"" if id(part) in within else of_value(part, (*within, id(value)))
        )
    return found.digest()


def _parts(value: Any) -> Sequence[object]:  # noqa: ANN401  whatever a function may hold
    """Bytes, and values to look into."""
    for kinds, parts in LOOK:
        if isinstance(value, kinds):
            return parts(value)
    if callable(getattr(value, "state_dict", None)):  # a network: its form and its weights
        return [repr(value).encode(), dict(value.state_dict())]
    if callable(getattr(value, "detach", None)):
        return [value.detach().numpy()]
    return _named(value) or [secrets.token_bytes()]


def _named(value: Any) -> Sequence[object]:  # noqa: ANN401
    """Of what is built in, its name; of an object, its class and what it holds; nothing of anything else."""
    if type(value).__name__ in {"dtype", "device"}:
        return [repr(value).encode()]
    if isinstance(value, np.ufunc):
        return [value.__name__.encode()]
    if callable(value) and hasattr(value, "__qualname__"):
        return [f"{value.__module__}.{value.__qualname__}".encode()]
    is_own = hasattr(value, "__dict__") and type(value).__module__ != "builtins"
    return [type(value), vars(value)] if is_own else []


def _held(function: FunctionType) -> Sequence[object]:
    """Its file, its code, and the values that its names stand for."""
    named: list[object] = []
    with contextlib.suppress(ValueError):  # a name that has no value yet
        bound = inspect.getclosurevars(function)
        named = [bound.nonlocals, bound.globals]
    return [_file_of(function), function.__code__, function.__defaults__, function.__kwdefaults__, *named]


def _file_of(value: Any) -> bytes:  # noqa: ANN401
    """Of what is nobody else's package: its file."""
    try:
        path = Path(inspect.getfile(value))
        return b"" if "site-packages" in path.parts else path.read_bytes()
    except (OSError, TypeError):
        return b""


LOOK: tuple[tuple[Any, Callable[[Any], Sequence[object]]], ...] = (
    (
        (str, bytes, int, float, complex, type(None), type(...), range, slice, PurePath, np.dtype),
        lambda value: [repr(value).encode()],
    ),
    ((tuple, list), list),
    ((set, frozenset), lambda value: sorted(map(of_value, value))),
    (dict, lambda value: [part for item in value.items() for part in item]),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    (MethodType, lambda value: [value.__func__, value.__self__]),
    ((np.ndarray, np.generic), lambda value: [str((value.dtype, value.shape)).encode(), value.tobytes()]),
    (FunctionType, _held),
    (CodeType, lambda value: [value.co_code, value.co_consts, value.co_names]),
    ((ModuleType, type), lambda value: [value.__name__.encode(), _file_of(value)]),
    (msgspec.Struct, lambda value: [type(value), msgspec.structs.asdict(value)]),
)
"""What values of a type are made of."""
