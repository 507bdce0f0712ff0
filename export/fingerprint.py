"""What a task is, as a digest: what was found out about one must never be taken for what holds of another."""

from __future__ import annotations

import functools
import hashlib
import inspect
import secrets
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from export.contents import tools
from export.task import Task


def of_task(task: Task) -> bytes:
    """Of the original, the data, the code that judges, varies and trains, and the versions of the tools."""
    found = hashlib.sha256(task.original.model)
    for array in (
        task.calibrate,
        *(part for split in task.splits().values() for part in (split.inputs, split.targets)),
    ):
        found.update(str((array.dtype, array.shape)).encode())
        found.update(np.ascontiguousarray(array).data)
    judged = (task.seed, task.output, task.threshold, task.original.session, task.code, sorted(tools("torch").items()))
    found.update(repr(judged).encode())
    for function in (task.metric, task.augment, task.finetune):
        found.update(of_value(function))
    return found.digest()


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


def _parts(value: Any) -> list[object]:  # noqa: ANN401  whatever a function may hold
    """Bytes, and values to look into."""
    for kinds, parts in LOOK:
        if isinstance(value, kinds):
            return parts(value)
    if callable(getattr(value, "state_dict", None)):  # a network: its form and its weights
        return [repr(value).encode(), dict(value.state_dict())]
    return [value.detach().numpy()] if callable(getattr(value, "detach", None)) else [secrets.token_bytes()]


def _held(function: FunctionType) -> list[object]:
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return [_file_of(function), function.__code__, function.__defaults__, function.__kwdefaults__, cells]


def _file_of(value: Any) -> bytes:  # noqa: ANN401
    try:
        return Path(inspect.getfile(value)).read_bytes()
    except (OSError, TypeError):
        return b""


LOOK: tuple[tuple[Any, Callable[[Any], list[object]]], ...] = (
    ((str, bytes, int, float, bool, type(None)), lambda value: [repr(value).encode()]),
    ((tuple, list), list),
    (dict, lambda value: [part for item in value.items() for part in item]),
    (functools.partial, lambda value: [value.func, value.args, value.keywords]),
    ((np.ndarray, np.generic), lambda value: [str((value.dtype, value.shape)).encode(), value.tobytes()]),
    (FunctionType, _held),
    (CodeType, lambda value: [value.co_code, value.co_consts, value.co_names]),
    ((ModuleType, type), lambda value: [value.__name__.encode(), _file_of(value)]),
)
"""What values of a type are made of."""
