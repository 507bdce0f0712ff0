"""From what a graph says and what its user says to a manifest's words: derived where it can be, asked for where not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, cast, get_args

import msgspec

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import (
    ERROR_KINDS,
    LARGEST_FLOAT32,
    OutputKind,
    ScalarInput,
    ScalarType,
    StateSpec,
    StateType,
)
from edge_runtime.records import InputSpec, Layout
from export.layouts import RANKS, axes_of, fits, likeliest
from export.signature import Graph, Tensor

BATCH = "b"
LINEAR = {"Gemm", "MatMul", "Add", "LogSoftmax", "QGemm", "QLinearMatMul", "QLinearAdd"}


class PackSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user says of somebody else's model; None = to be derived.

    state: input to output of what is carried from window to window, "OUTPUT" or, where the graph leaves the shape
    open, "OUTPUT:2,b,128" with b for the batch axis. scalar: input to the value it always has.
    tolerance: absolute, of the golden outputs. session: ONNX Runtime session config entries. licence, source: texts for
    the card.
    """

    name: str | None = None
    version: str = "0.1.0"
    input: str | None = None
    output: str | None = None
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    length: Annotated[int, msgspec.Meta(ge=1)] | None = None
    hop: Annotated[int, msgspec.Meta(ge=1)] | None = None
    rate_hz: Annotated[float, msgspec.Meta(gt=0)] | None = None
    layout: Layout | None = None
    lead_in: Annotated[int, msgspec.Meta(ge=0)] = 0
    labels: tuple[str, ...] = ()
    output_kind: OutputKind | None = None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_FLOAT32)] | None = None
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=LARGEST_FLOAT32)] | None = None
    scalar: dict[str, float | bool] = {}
    state: dict[str, str] = {}
    session: dict[str, str] = {}
    licence: str | None = None
    source: str | None = None


class Fact(NamedTuple):
    """A line of the summary. origin: told, graph, file name, default, ..."""

    key: str
    value: str
    origin: str


class Plan(msgspec.Struct, frozen=True):
    """What the manifest will say. labels: () while only the output's width can tell how many."""

    name: str
    input: InputSpec
    output: Tensor
    kind: OutputKind
    labels: tuple[str, ...]
    states: tuple[StateSpec, ...]
    scalars: tuple[ScalarInput, ...]
    facts: tuple[Fact, ...]


class _Asked(NamedTuple):
    """A flag that is still needed, ready to copy but for words in capitals, and why."""

    flag: str
    why: str


def derive(graph: Graph, spec: PackSpec) -> Plan:
    """Raises ExportError for what contradicts the graph, and one that names every flag still needed."""
    return _Derivation(graph, spec).plan()


class _Derivation:
    def __init__(self, graph: Graph, spec: PackSpec) -> None:
        self._graph, self._spec = graph, spec
        self._inputs = {tensor.name: tensor for tensor in graph.inputs}
        self._outputs = {tensor.name: tensor for tensor in graph.outputs}
        self._facts: list[Fact] = []
        self._asked: list[_Asked] = []

    def plan(self) -> Plan:
        for flag, words in (("--channels", self._spec.channels), ("--labels", self._spec.labels)):
            if not all(words) or len(set(words)) != len(words):
                raise self._refuse(f"{flag} {','.join(words)}: a name is empty or repeats")
        name = self._name()
        window = self._window()
        states, scalars = self._states(), self._scalars()
        input_ = self._cut(window)
        output = self._output()
        kind = self._kind(window, output)
        if self._asked or input_ is None or kind is None:
            raise ExportError(self._question())
        return Plan(name, input_, output, kind, self._labels(kind), states, scalars, tuple(self._facts))

    def _fact(self, key: str, value: object, origin: str) -> None:
        self._facts.append(Fact(key, str(value), origin))

    def _refuse(self, fact: str) -> ExportError:
        return ExportError(f"{self._graph.file}: {fact}\n{self._graph.listed()}")

    def _one_of(self, tensors: dict[str, Tensor], name: str, flag: str, kind: str) -> Tensor:
        if name not in tensors:
            raise self._refuse(f"{flag}: the graph has no {kind} {name!r}")
        return tensors[name]

    def _name(self) -> str:
        stem = self._graph.file.removesuffix(".onnx")
        name = self._spec.name or re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:64] or "model"
        self._fact("name", name, "told" if self._spec.name else "file name")
        return name

    def _window(self) -> Tensor:
        """The input that takes the window: the one named, the one left, or the one that looks like it."""
        spec = self._spec
        if spec.input is not None:
            found = self._one_of(self._inputs, spec.input, "--input", "input")
            self._fact("input", found, "told")
        else:
            left = [t for t in self._graph.inputs if t.name not in spec.state and t.name not in spec.scalar]
            if not left:
                raise self._refuse("no input is left for the window")
            candidates = self._windows_of(left)
            found = candidates[0]
            if len(candidates) > 1:
                self._asked.append(_Asked(f"--input {found.name}", "which input takes the window; there can be one"))
            self._fact("input", found, "graph: its only one" if len(self._inputs) == 1 else "graph: the one left")
        if found.dtype != "float32":
            raise self._refuse(f"input {found.name} takes {found.dtype}, wanted float32: convert it inside the graph")
        batch = found.shape[0] if found.shape else None
        if batch not in (None, 1) or (found.has_rank and not found.shape):
            raise self._refuse(f"input {found.name} has a fixed batch of {batch}, wanted an open first axis or 1")
        for other in self._graph.inputs:
            if other.name not in {found.name, *spec.state, *spec.scalar}:
                self._asked.append(self._purpose_of(other, found))
        return found

    def _windows_of(self, left: list[Tensor]) -> list[Tensor]:
        """Those of the inputs that may take the window: float32, of the highest rank, like no output, as a state is."""
        floats = [t for t in left if t.dtype == "float32"]
        found = [t for t in floats if not _is_scalar(t)] or floats or left
        found = [t for t in found if not any(_alike(t, output) for output in self._graph.outputs)] or found
        highest = max(len(t.shape) for t in found)
        return [t for t in found if len(t.shape) == highest or not t.has_rank]

    def _purpose_of(self, tensor: Tensor, window: Tensor) -> _Asked:
        if _is_scalar(tensor):
            return _Asked(f"--scalar {tensor.name}=VALUE", f"what {tensor.name} always is")
        floats = [t.name for t in self._graph.outputs if t.dtype == "float32"]
        read = {self._spec.output, floats[0] if len(floats) == 1 else None}
        fitting = [
            t.name
            for t in self._graph.outputs
            if t.name not in read and t.dtype == tensor.dtype and t.shape != window.shape
            if _may_equal(t.shape, tensor.shape)
        ]
        if not fitting:
            raise self._refuse(
                f"inputs {window.name} and {tensor.name}: one window input only, and no output can be the next value "
                f"of {tensor.name} as a state; join them inside the graph, or say --input"
            )
        nearest = max(fitting, key=lambda name: difflib.SequenceMatcher(None, tensor.name, name).ratio())
        why = f"whether {tensor.name} is a state, and which output is its next value"
        return _Asked(f"--state {tensor.name}={nearest}", why)

    def _states(self) -> tuple[StateSpec, ...]:
        return tuple(self._state(name, said) for name, said in self._spec.state.items())

    def _state(self, name: str, said: str) -> StateSpec:
        output, _, shape = said.partition(":")
        tensor = self._one_of(self._inputs, name, "--state", "input")
        after = self._one_of(self._outputs, output, "--state", "output")
        if tensor.dtype not in get_args(StateType) or after.dtype != tensor.dtype:
            raise self._refuse(
                f"state {name}={output}: {tensor.dtype} and {after.dtype}, wanted float32 or int64, equal"
            )
        axes = [None if axis == BATCH else axis for axis in shape.split(",")] if shape else list(tensor.shape)
        try:
            sizes = [None if axis is None else int(axis) for axis in axes]
        except ValueError:
            raise self._refuse(f"--state {name}={said}: wanted a shape such as 2,{BATCH},128") from None
        if any(size is not None and size < 1 for size in sizes):
            raise self._refuse(f"--state {name}={said}: wanted sizes of at least 1, such as 2,{BATCH},128")
        if sizes.count(None) > 1 or not (_compatible(sizes, tensor.shape) if tensor.has_rank else shape):
            raise self._refuse(f"state {tensor}: say one shape, such as --state {name}={output}:2,{BATCH},128")
        axis = sizes.index(None) if None in sizes else None
        found = StateSpec(name, output, tuple(size or 1 for size in sizes), axis, cast("StateType", tensor.dtype))
        batch = "one stream at a time" if axis is None else f"batch axis {axis}"
        self._fact("state", f"{name} -> {output} {found.dtype} {found.shape}, {batch}", "told and graph")
        return found

    def _scalars(self) -> tuple[ScalarInput, ...]:
        return tuple(self._scalar(name, float(value)) for name, value in self._spec.scalar.items())

    def _scalar(self, name: str, value: float) -> ScalarInput:
        tensor = self._one_of(self._inputs, name, "--scalar", "input")
        if tensor.dtype not in get_args(ScalarType) or len(tensor.shape) > 1 or tensor.shape not in ((), (1,), (None,)):
            raise self._refuse(f"scalar {tensor}: wanted shape () or (1), {', '.join(get_args(ScalarType))}")
        if not tensor.dtype.startswith("float") and not value.is_integer():
            raise self._refuse(f"--scalar {name}={value:g}: the graph takes {tensor.dtype}")
        found = ScalarInput(name, value, cast("ScalarType", tensor.dtype), (1,) if tensor.shape else ())
        self._fact("scalar", f"{name} = {value:g} {found.dtype} {found.shape}", "told and graph")
        return found

    def _cut(self, window: Tensor) -> InputSpec | None:
        """The window's layout, length and channels; None when something has to be asked."""
        spec, rest = self._spec, window.shape[1:]
        told = len(spec.channels) or None
        if not window.has_rank:
            if spec.layout is None:
                self._asked.append(_Asked("--layout LAYOUT", f"axes of {window.name}: {', '.join(get_args(Layout))}"))
                return None
            rest = (None,) * RANKS[spec.layout]
        fitting = [layout for layout in get_args(Layout) if fits(layout, rest, told, spec.length)]
        if spec.layout is not None and spec.layout not in fitting:
            raise self._refuse(f"--layout {spec.layout}: {window} with {_told(told, spec.length)} does not fit")
        if not fitting:
            raise self._refuse(f"{window} with {_told(told, spec.length)} fits no layout of {get_args(Layout)}")
        layout = spec.layout or likeliest(fitting, rest, told)
        if layout is None:
            guess = "NTC" if (rest[0] or 0) >= (rest[1] or 0) else "NCT"
            self._asked.append(
                _Asked(f"--layout {guess}", f"which of {rest} is the length (T) and which the channels (C)")
            )
            return None
        length, channels = axes_of(layout, rest, told)
        length, channels = length or spec.length, channels or told or (1 if layout == "NF" else None)
        if length is None:
            self._asked.append(_Asked("--length SAMPLES", "samples in a window, which the graph leaves open"))
        if channels is None:
            self._asked.append(_Asked("--channels NAME,NAME", "the channels of a sample, which the graph leaves open"))
        if length is None or channels is None:
            return None
        return self._input_spec(window.name, layout, length, channels)

    def _input_spec(self, name: str, layout: Layout, length: int, channels: int) -> InputSpec:
        spec = self._spec
        if spec.units and len(spec.units) not in (1, channels):
            raise self._refuse(f"--units: {len(spec.units)} units for {channels} channels")
        if spec.lead_in >= length:
            raise self._refuse(f"--lead-in {spec.lead_in}: a window has {length} samples")
        units = spec.units * channels if len(spec.units) == 1 else spec.units or ("1",) * channels
        names = spec.channels or tuple(f"c{i}" for i in range(channels))
        hop = spec.hop or length - spec.lead_in
        self._fact("layout", layout, "told" if spec.layout else "graph")
        self._fact("length", f"{length} samples", "told" if spec.length else "graph")
        self._fact(
            "channels", f"{channels}: {shortened(names)}", "told" if spec.channels else "graph, names by default"
        )
        self._fact("units", shortened(units), "told" if spec.units else "default")
        self._fact("hop", f"{hop} samples", "told" if spec.hop else "default: length less lead_in")
        self._fact("rate_hz", f"{spec.rate_hz:g}" if spec.rate_hz else "unknown", "told" if spec.rate_hz else "default")
        if spec.lead_in:
            self._fact("lead_in", f"{spec.lead_in} zeros before a stream", "told")
        return InputSpec(name, names, units, length, hop, spec.rate_hz, layout, spec.lead_in)

    def _output(self) -> Tensor:
        spec = self._spec
        if spec.output is not None:
            found = self._one_of(self._outputs, spec.output, "--output", "output")
            self._fact("output", found, "told")
        else:
            taken = {said.partition(":")[0] for said in spec.state.values()}
            taken |= {a.flag.rpartition("=")[2] for a in self._asked if a.flag.startswith("--state")}
            left = [tensor for tensor in self._graph.outputs if tensor.name not in taken]
            if not left:
                raise self._refuse("no output is left for the scores")
            left = [tensor for tensor in left if tensor.dtype == "float32"] or left
            if len(left) > 1:
                self._asked.append(_Asked(f"--output {left[0].name}", "which output to read"))
            found = left[0]
            self._fact("output", found, "graph: its only one" if len(self._outputs) == 1 else "graph: the one left")
        if found.dtype != "float32":
            raise self._refuse(f"output {found.name} gives {found.dtype}, wanted float32: convert it inside the graph")
        return found

    def _kind(self, window: Tensor, output: Tensor) -> OutputKind | None:
        spec, maker = self._spec, self._graph.made_by[output.name]
        kind = spec.output_kind or _kind_of(maker, window, output, has_labels=bool(spec.labels))
        if kind is None:
            kinds = ", ".join(get_args(OutputKind))
            self._asked.append(_Asked("--output-kind KIND", f"what {output.name} is: {kinds}"))
            return None
        derived = "graph: shape of the input" if kind == "reconstruction" else f"graph: {maker} gives it"
        origin = "told" if spec.output_kind else derived
        self._fact("output_kind", kind, origin)
        if kind in ERROR_KINDS and spec.threshold is None:
            self._asked.append(_Asked("--threshold ERROR", "above which error a window is an anomaly"))
        if kind not in ERROR_KINDS and spec.threshold is not None:
            raise self._refuse(f"--threshold {spec.threshold:g}: output {output.name} is {kind}, which has none")
        return kind

    def _labels(self, kind: OutputKind) -> tuple[str, ...]:
        if kind in ERROR_KINDS and self._spec.labels:
            raise self._refuse(f"--labels with --output-kind {kind}, which has none")
        return self._spec.labels

    def _question(self) -> str:
        graph = self._graph
        lines = [f"{graph.file}: the graph does not say everything", graph.listed()]
        width = max(len(asked.flag) for asked in self._asked)
        lines += ["  needed:", *(f"    {asked.flag:{width}}  {asked.why}" for asked in self._asked)]
        return "\n".join([*lines, f"  add: {' '.join(asked.flag for asked in self._asked)}"])


def _told(channels: int | None, length: int | None) -> str:
    return f"{length or 'any number of'} samples of {channels or 'any number of'} channels"


def _compatible(sizes: Sequence[int | None], graph: Sequence[int | None]) -> bool:
    if len(sizes) != len(graph):
        return False
    return all(size == wanted or wanted is None for size, wanted in zip(sizes, graph, strict=True))


def _may_equal(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return len(one) == len(other) and all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def _is_scalar(tensor: Tensor) -> bool:
    return tensor.has_rank and tensor.shape in ((), (1,), (None,))


def _alike(tensor: Tensor, output: Tensor) -> bool:
    """Whether an output can be the next value of an input: it says nothing of its axes that the input does not."""
    if tensor.dtype != output.dtype or len(tensor.shape) != len(output.shape):
        return False
    return all(after in (None, before) for before, after in zip(tensor.shape, output.shape, strict=True))


def _kind_of(maker: str, window: Tensor, output: Tensor, *, has_labels: bool) -> OutputKind | None:
    """What the output is, where nothing else would look the same; None = to be asked."""
    width = output.shape[-1] if len(output.shape) == 2 else None
    if maker == "Softmax" and len(output.shape) <= 2:
        return "scores"
    if maker == "Sigmoid" and width == 1:
        return "probability"
    if maker in LINEAR and has_labels:
        return "logits"
    is_shaped_alike = output.shape[1:] == window.shape[1:] and window.shape[1:] not in ((), (None,))
    return "reconstruction" if is_shaped_alike and not has_labels else None


def shortened(words: Sequence[Any], most: int = 4) -> str:
    if len(set(words)) == 1 and len(words) > 1:
        return f"{words[0]} for each"
    return ", ".join(words[:most]) + (f", … ({len(words)})" if len(words) > most else "")
