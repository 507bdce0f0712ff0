"""What a user writes about a model, loaded from a plain Python file and checked before anything is computed.

A recipe defines NAME, VERSION, SEED, INPUT, LABELS, build() and data(); OUTPUT, BUDGET, THRESHOLD, EPOCHS, train(),
metric() and augment() when the defaults do not fit. Whatever its code raises becomes one line that names the file and
line.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import DependencyError, EdgeRuntimeError, ExportError
from edge_runtime.model.manifest import ERROR_KINDS, NAME_PATTERN, VERSION_PATTERN, Budgets, OutputKind
from edge_runtime.model.session import load_onnxruntime
from edge_runtime.records import Floats, InputSpec

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import nn

__all__ = ["Budget", "InputSpec", "Progress", "Recipe", "Split", "Splits", "load", "require_tools"]

Budget = Budgets
Labels = npt.NDArray[np.int64]
Progress = Callable[[str], None]
Metric = Callable[[Floats, Labels], float]
Augment = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

TOOLS = ("torch", "onnx", "onnxscript")
DEFAULT_BUDGET = Budget(max_drop=0.01)
DEFAULT_EPOCHS = 15


class Split(msgspec.Struct, frozen=True):
    """Windows and what they are.

    inputs: (n, ...) float32 in the model's layout, physical units. targets: (n,) int64, index into the labels.
    """

    inputs: Floats
    targets: Labels


class Splits(msgspec.Struct, frozen=True):
    """train: to learn and calibrate. validation: to choose. test: looked at once, for the table."""

    train: Split
    validation: Split
    test: Split


class Recipe(msgspec.Struct, frozen=True):
    """A checked recipe. path: of its file. train and metric: None means the default.

    augment: (features, generator) to features, varied as the data may vary; compression fine-tunes on them. features
    are what the front-end gives, or the input without one.
    metric: (outputs, targets) to a number, higher is better; outputs are (n, labels), or (n, 1) errors when the model
    gives a reconstruction or an error. threshold: the error above which a window is an anomaly. summary: the recipe's
    docstring.
    """

    path: Path
    name: str
    version: str
    seed: int
    input: InputSpec
    labels: tuple[str, ...]
    output: OutputKind
    budget: Budget
    threshold: float | None
    epochs: int
    summary: str
    build: Callable[[], nn.Module]
    data: Callable[..., Splits]
    train: Callable[..., None] | None
    metric: Metric | None
    augment: Augment | None = None


def require_tools(tools: tuple[str, ...] = TOOLS) -> None:
    """Raises DependencyError naming what to install when one of the tools, or onnxruntime, is missing.

    ONNX Runtime is imported here, before anything else can do so with its telemetry on.
    """
    missing = [name for name in tools if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"{', '.join(missing)} not installed; edge-export needs: pip install 'edge-runtime[export,cpu]'"
        )
    load_onnxruntime()


def load(path: Path) -> Recipe:
    """Load and check a recipe. Its folder is on sys.path while its code runs, so that it can import neighbours.

    Raises ExportError naming the file, what was found and what was wanted; DependencyError without torch.
    """
    require_tools()
    module = _execute(path)
    recipe = Recipe(
        path=path,
        name=_setting(path, module, "NAME", str),
        version=_setting(path, module, "VERSION", str),
        seed=_setting(path, module, "SEED", int),
        input=_setting(path, module, "INPUT", InputSpec),
        labels=_labels(path, module),
        output=_output(path, module),
        budget=_setting(path, module, "BUDGET", Budget, DEFAULT_BUDGET),
        threshold=_threshold(path, module),
        epochs=_setting(path, module, "EPOCHS", int, DEFAULT_EPOCHS),
        summary=(module.__doc__ or "").strip(),
        build=_function(path, module, "build"),
        data=_checked_data(path, module),
        train=_function(path, module, "train") if hasattr(module, "train") else None,
        metric=_function(path, module, "metric") if hasattr(module, "metric") else None,
        augment=_function(path, module, "augment") if hasattr(module, "augment") else None,
    )
    _check(recipe)
    return recipe


def _execute(path: Path) -> ModuleType:
    if not path.is_file():
        raise ExportError(f"{path}: no such recipe")
    name = "edge_recipe_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path}: not a Python file; a recipe ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _guarded(path, "the recipe", spec.loader.exec_module)(module)
    return module


def _guarded(path: Path, what: str, function: Callable[P, R]) -> Callable[P, R]:
    """The function, its folder importable, its prints kept off stdout, its exceptions told in one line."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _neighbours(path.resolve().parent), redirect_stdout(sys.stderr):
            try:
                return function(*args, **kwargs)
            except EdgeRuntimeError:
                raise
            except (Exception, SystemExit) as error:
                raise ExportError(_one_line(path, what, error)) from error

    return call


def _one_line(path: Path, what: str, error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    line = error.lineno if isinstance(error, SyntaxError) else (frames[-1].lineno if frames else None)
    text = " ".join(str(error).split())
    where = f"{path}, line {line}" if line else str(path)
    return f"{where}: {what} raised {type(error).__name__}: {text}" if text else f"{where}: {type(error).__name__}"


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Make the recipe's neighbours importable, and forget them afterwards: another recipe may have its own."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder and not name.startswith("edge_recipe_"):
                del sys.modules[name]


def _setting(path: Path, module: ModuleType, name: str, wanted: type[T], default: T | None = None) -> T:
    if not hasattr(module, name):
        if default is not None:
            return default
        raise ExportError(f"{path}: {name} is missing, wanted {wanted.__name__}")
    value = getattr(module, name)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ExportError(f"{path}: {name} is {value!r} ({type(value).__name__}), wanted {wanted.__name__}")
    return value


def _output(path: Path, module: ModuleType) -> OutputKind:
    kinds: tuple[OutputKind, ...] = get_args(OutputKind)
    value = getattr(module, "OUTPUT", "logits")
    for kind in kinds:
        if value == kind:
            return kind
    raise ExportError(f"{path}: OUTPUT is {value!r}, wanted one of {', '.join(kinds)}")


def _labels(path: Path, module: ModuleType) -> tuple[str, ...]:
    labels = getattr(module, "LABELS", None)
    if not isinstance(labels, tuple | list) or not all(isinstance(label, str) for label in labels):
        raise ExportError(f"{path}: LABELS is {labels!r}, wanted a tuple of strings (empty for a reconstruction)")
    return tuple(labels)


def _threshold(path: Path, module: ModuleType) -> float | None:
    value = getattr(module, "THRESHOLD", None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExportError(f"{path}: THRESHOLD is {value!r}, wanted a number")
    return float(value)


def _function(path: Path, module: ModuleType, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        found = "missing" if function is None else f"{function!r}"
        raise ExportError(f"{path}: {name}() is {found}, wanted a function")
    return _guarded(path, f"{name}()", function)


def _checked_data(path: Path, module: ModuleType) -> Callable[..., Splits]:
    """The recipe's data(), its result held against INPUT and LABELS; settings, as a benchmark's fold, go through."""
    function = _function(path, module, "data")

    def data(**settings: int) -> Splits:
        splits = function(**settings)
        if not isinstance(splits, Splits):
            raise ExportError(f"{path}: data() returned {type(splits).__name__}, wanted export.recipe.Splits")
        for name in splits.__struct_fields__:
            _check_split(f"{path}: data(): {name}", getattr(splits, name), module.INPUT, len(module.LABELS))
        return splits

    return data


def _check_split(where: str, split: Split, spec: InputSpec, labels: int) -> None:
    wanted = spec.shape()
    for field, dtype in (("inputs", np.float32), ("targets", np.int64)):
        array = getattr(split, field, None)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = getattr(array, "dtype", type(array).__name__)
            raise ExportError(f"{where}.{field} is {found}, wanted a numpy array of {np.dtype(dtype)}")
    if len(split.inputs) < 1 or split.inputs.shape[1:] != wanted:
        raise ExportError(f"{where}.inputs has shape {split.inputs.shape}, wanted (n, {', '.join(map(str, wanted))})")
    if split.targets.shape != (len(split.inputs),):
        raise ExportError(f"{where}.targets has shape {split.targets.shape}, wanted ({len(split.inputs)},)")
    if not np.isfinite(split.inputs).all():
        raise ExportError(f"{where}.inputs holds NaN or infinity")
    if labels and not (split.targets.min() >= 0 and split.targets.max() < labels):
        raise ExportError(f"{where}.targets runs from {split.targets.min()} to {split.targets.max()}, {labels} labels")


def _check(recipe: Recipe) -> None:
    spec, path = recipe.input, recipe.path
    is_error = recipe.output in ERROR_KINDS
    problems = [
        (not re.fullmatch(NAME_PATTERN, recipe.name), f"NAME is {recipe.name!r}, wanted {NAME_PATTERN}"),
        (not re.fullmatch(VERSION_PATTERN, recipe.version), f"VERSION is {recipe.version!r}, wanted MAJOR.MINOR.PATCH"),
        (not is_error and len(recipe.labels) < 2, f"LABELS has {len(recipe.labels)} labels, {recipe.output} needs 2"),
        (len(set(recipe.labels)) != len(recipe.labels), f"LABELS repeats itself: {recipe.labels}"),
        (len(spec.units) != len(spec.channels), f"INPUT has {len(spec.units)} units for {len(spec.channels)} channels"),
        (min(spec.length, spec.hop) < 1, f"INPUT: length {spec.length}, hop {spec.hop}, wanted at least 1"),
        (spec.layout == "NT" and len(spec.channels) != 1, f"INPUT: layout NT with {len(spec.channels)} channels"),
        (recipe.epochs < 1, f"EPOCHS is {recipe.epochs}, wanted at least 1"),
        (recipe.output != "logits" and recipe.train is None, f"train() is missing, wanted one for {recipe.output}"),
        (is_error and recipe.metric is None, f"metric() is missing, wanted one for {recipe.output}"),
    ]
    for wrong, fact in problems:
        if wrong:
            raise ExportError(f"{path}: {fact}")


def files_of(recipe: Path) -> list[Path]:
    """The recipe's file and its neighbours that it imports, and theirs."""
    found: list[Path] = []
    waiting = [recipe.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            waiting += [path.parent / f"{name}.py" for name in named]
    return sorted(found)
