"""From what a graph says and what its user says to a manifest's words: derived where it can be, asked for where not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, cast, get_args

import msgspec

from edge_runtime.errors import ExportError
from edge_runtime.model.manifest import ERROR_KINDS, OutputKind, ScalarInput, ScalarType, StateSpec, StateType
from edge_runtime.records import InputSpec, Layout
from export.signature import Graph, Tensor

BATCH = "b"
AXES: dict[Layout, tuple[int, int | None]] = {
    "NTC": (0, 1),
    "NCT": (1, 0),
    "NT": (0, None),
    "N1TC": (1, 2),
    "N1CT": (2, 1),
    "NTC1": (0, 1),
}  # length, channels; behind the batch axis
UNIT_AXES: dict[str, int] = {"N1TC": 0, "N1CT": 0, "NTC1": 2}
LINEAR = {"Gemm", "MatMul", "Add", "LogSoftmax", "QGemm", "QLinearMatMul", "QLinearAdd"}


class PackSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user says of somebody else's model; None = to be derived.

    state: input to output of what is carried from window to window, "OUTPUT" or, where the graph leaves the shape
    open, "OUTPUT:2,b,128" with b for the batch axis. scalar: input to the value it always has.
    tolerance: absolute, of the golden outputs.
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
    threshold: Annotated[float, msgspec.Meta(ge=0)] | None = None
    tolerance: Annotated[float, msgspec.Meta(gt=0)] | None = None
    scalar: dict[str, float | bool] = {}
    state: dict[str, str] = {}


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
        """The input that takes the window: the one named, the one left, or, until the others are named, a guess."""
        spec = self._spec
        if spec.input is not None:
            found = self._one_of(self._inputs, spec.input, "--input", "input")
            self._fact("input", found, "told")
        else:
            left = [t for t in self._graph.inputs if t.name not in spec.state and t.name not in spec.scalar]
            if not left:
                raise self._refuse("no input is left for the window")
            found = next((t for t in left if t.dtype == "float32" and len(t.shape) > 1), left[0])
            self._fact("input", found, "graph: its only one" if len(self._inputs) == 1 else "graph: the one left")
        if found.dtype != "float32":
            raise self._refuse(f"input {found.name} takes {found.dtype}, wanted float32: convert it inside the graph")
        batch = found.shape[0] if found.shape else 0
        if batch not in (None, 1):
            raise self._refuse(f"input {found.name} has a fixed batch of {batch}, wanted an open first axis or 1")
        for other in self._graph.inputs:
            if other.name not in {found.name, *spec.state, *spec.scalar}:
                self._asked.append(self._purpose_of(other, found))
        return found

    def _purpose_of(self, tensor: Tensor, window: Tensor) -> _Asked:
        if not tensor.shape or tensor.shape == (1,):
            return _Asked(f"--scalar {tensor.name}=VALUE", f"what {tensor.name} always is")
        fitting = [
            t.name
            for t in self._graph.outputs
            if t.dtype == tensor.dtype and len(t.shape) == len(tensor.shape) and t.shape != window.shape
        ]
        nearest = sorted(fitting, key=lambda name: -difflib.SequenceMatcher(None, tensor.name, name).ratio())
        why = f"whether {tensor.name} is a state, and which output is its next value"
        return _Asked(f"--state {tensor.name}={nearest[0] if nearest else 'OUTPUT'}", why)

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
        if sizes.count(None) > 1 or not _compatible(sizes, tensor.shape):
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
        fitting = [layout for layout in get_args(Layout) if _fits(layout, rest, told, spec.length)]
        if spec.layout is not None and spec.layout not in fitting:
            raise self._refuse(f"--layout {spec.layout}: {window} with {_told(told, spec.length)} does not fit")
        if not fitting:
            raise self._refuse(f"{window} with {_told(told, spec.length)} fits no layout of {get_args(Layout)}")
        layout = spec.layout or _likeliest(fitting, rest, told)
        if layout is None:
            guess = "NTC" if (rest[0] or 0) >= (rest[1] or 0) else "NCT"
            self._asked.append(
                _Asked(f"--layout {guess}", f"which of {rest} is the length (T) and which the channels (C)")
            )
            return None
        length, channels = _axes(layout, rest, told)
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
            if len(left) > 1:
                self._asked.append(_Asked(f"--output {left[0].name}", "which output to read"))
            found = left[0]
            self._fact("output", found, "graph: its only one" if len(self._outputs) == 1 else "graph: the one left")
        if found.dtype != "float32":
            raise self._refuse(f"output {found.name} gives {found.dtype}, wanted float32: convert it inside the graph")
        return found

    def _kind(self, window: Tensor, output: Tensor) -> OutputKind | None:
        spec, maker = self._spec, self._graph.made_by[output.name]
        kind = spec.output_kind or _kind_of(maker, window, output)
        if kind is None:
            kinds = ", ".join(get_args(OutputKind))
            self._asked.append(_Asked("--output-kind KIND", f"what {output.name} is: {kinds}"))
            return None
        origin = "told" if spec.output_kind else f"graph: {maker} gives it" if maker else "graph: shape of the input"
        self._fact("output_kind", kind, origin)
        if kind in ERROR_KINDS and spec.threshold is None:
            self._asked.append(_Asked("--threshold ERROR", "above which error a window is an anomaly"))
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


def _axes(layout: Layout, rest: Sequence[int | None], channels: int | None) -> tuple[int | None, int | None]:
    """Length and channels as the graph's axes say them; None where an axis is open."""
    if layout == "NF":
        return (rest[0] // (channels or 1) if rest[0] else None), channels
    length, channel = AXES[layout]
    return rest[length], 1 if channel is None else rest[channel]


def _fits(layout: Layout, rest: Sequence[int | None], channels: int | None, length: int | None) -> bool:
    """Whether a window's axes can be read so, with what is told of it."""
    if len(rest) != {"NT": 1, "NF": 1, "NTC": 2, "NCT": 2}.get(layout, 3):
        return False
    if layout == "NF" and rest[0] is not None and rest[0] % (channels or 1):
        return False
    if layout in UNIT_AXES and rest[UNIT_AXES[layout]] not in (1, None):
        return False
    found = _axes(layout, rest, channels)
    return all(a is None or b is None or a == b for a, b in zip(found, (length, channels), strict=True))


def _likeliest(fitting: list[Layout], rest: Sequence[int | None], channels: int | None) -> Layout | None:
    """The layout to take: one channel is NT, an open axis the length, an axis of 1 where one is. None = not clear."""
    if "NT" in fitting:
        return "NT"
    if "NTC" in fitting and "NCT" in fitting:
        closed = [layout for layout in ("NTC", "NCT") if _axes(layout, rest, channels)[1] is not None]
        return cast("Layout", closed[0]) if len(closed) == 1 else None
    exact = [layout for layout in fitting if layout not in UNIT_AXES or rest[UNIT_AXES[layout]] == 1]
    return (exact or fitting)[0]


def _compatible(sizes: Sequence[int | None], graph: Sequence[int | None]) -> bool:
    if len(sizes) != len(graph):
        return False
    return all(size == wanted or wanted is None for size, wanted in zip(sizes, graph, strict=True))


def _kind_of(maker: str, window: Tensor, output: Tensor) -> OutputKind | None:
    if len(output.shape) > 2 and output.shape[1:] == window.shape[1:]:
        return "reconstruction"
    width = output.shape[-1] if len(output.shape) == 2 else None
    if maker == "Softmax":
        return "scores"
    if maker == "Sigmoid" and width == 1:
        return "probability"
    return "logits" if maker in LINEAR and (width or 0) > 1 else None


def shortened(words: Sequence[Any], most: int = 4) -> str:
    if len(set(words)) == 1 and len(words) > 1:
        return f"{words[0]} for each"
    return ", ".join(words[:most]) + (f", … ({len(words)})" if len(words) > most else "")
