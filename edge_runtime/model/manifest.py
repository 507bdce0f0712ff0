"""What a bundle says of its model: the structs of manifest.json and reference.json, and what must hold in them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

import msgspec

from edge_runtime.model.family import FAMILIES
from edge_runtime.records import InputSpec

SCHEMA = 1
DEFAULT = "default"
NAME_PATTERN = "[A-Za-z0-9_-]{1,64}"
VERSION_PATTERN = r"[0-9]+\.[0-9]+\.[0-9]+"
RATES_HZ = (1e-6, 1e9)
MAX_HOW_CHARACTERS = 200
LARGEST_FLOAT32 = 3.4028234663852886e38

OutputKind = Literal["scores", "logits", "probability", "reconstruction", "error"]
StateType = Literal["float32", "int64"]
ScalarType = Literal["float32", "float64", "int32", "int64", "bool"]
ERROR_KINDS: tuple[OutputKind, ...] = ("reconstruction", "error")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one member. size in bytes."""

    sha256: str
    size: int


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graph's output is.

    scores: (batch, labels) in [0, 1]. logits: (batch, labels) raw. probability: (batch, 1) in [0, 1], of the second
    of two labels. reconstruction: the input's shape. error: (batch, 1) reconstruction error, computed in the graph.
    """

    name: str
    kind: OutputKind


class StateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that the runtime carries from one window of a stream to the next; zeros at the start.

    input, output: its names in the graph. shape: of one stream's state, batch axis included as 1. batch_axis: along
    which the states of several streams are joined, None when the graph takes one stream at a time.
    """

    input: str
    output: str
    shape: tuple[int, ...]
    batch_axis: int | None = None
    dtype: StateType = "float32"


class ScalarInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A graph input that is the same in every run, such as a sample rate. shape: () or (1,), as the graph asks."""

    name: str
    value: float
    dtype: ScalarType = "float32"
    shape: tuple[int, ...] = ()


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far an output may be from the golden one: absolute, in units of the output."""

    absolute: float


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the expected outputs of a numeric family came about.

    how: in words. from_default: their largest difference to the default outputs, from_float32: to what the float32
    model gives, None without one; both absolute, in units of the output.
    """

    how: Annotated[str, msgspec.Meta(max_length=MAX_HOW_CHARACTERS)]
    from_default: float
    from_float32: float | None = None


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the export was asked to keep. max_drop: of the metric, absolute. None = not asked."""

    max_drop: float | None = None
    p95_ms: float | None = None
    size_kb: float | None = None


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model comes from. tools: package name to version. steps: in order."""

    recipe: str
    seed: int
    tools: dict[str, str]
    steps: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the device must know of a model.

    labels: one per score; empty for a reconstruction. threshold: of the reconstruction error above which
    a window is an anomaly. session: extra ONNX Runtime session config entries. tolerances: numeric family
    ("default" is always there) to how exactly the golden outputs must be met. parity: numeric family to how its were
    measured; a family that is not listed was not, and nothing is claimed for it but the default.
    states, scalars: the graph's inputs beside the window; a model with states is a streaming model, and its golden
    vectors are consecutive windows of one stream.
    """

    schema: int
    name: str
    version: str
    precision: str
    input: InputSpec
    output: OutputSpec
    labels: tuple[str, ...]
    tolerances: dict[str, Tolerance]
    files: dict[str, FileEntry]
    provenance: Provenance
    threshold: float | None = None
    session: dict[str, str] = {}
    budgets: Budgets = Budgets()
    states: tuple[StateSpec, ...] = ()
    scalars: tuple[ScalarInput, ...] = ()
    parity: dict[str, Parity] = {}

    @property
    def model_id(self) -> str:
        return f"{self.name}@{self.version}"

    def certified(self, family: str) -> str:
        """The name under which this family's golden outputs and tolerance stand: its own, or "default"."""
        return family if family in self.parity else DEFAULT


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts between edges; the first and last bin are open. len(counts) == len(edges) - 1 + 2."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the training data looked like, for drift: per-channel window mean and deviation, and the scores."""

    features: dict[str, Histogram]
    scores: dict[str, Histogram]
    n: int


def contradictions(manifest: Manifest) -> list[str]:
    """What cannot be, a sentence each; an empty list for a sound manifest."""
    spec = manifest.input
    problems = [
        (manifest.schema != SCHEMA, f"schema {manifest.schema}, this version reads {SCHEMA}"),
        (not re.fullmatch(NAME_PATTERN, manifest.name), f"name {manifest.name!r}, wanted {NAME_PATTERN}"),
        (
            not re.fullmatch(VERSION_PATTERN, manifest.version),
            f"version {manifest.version!r}, wanted 1.2.3",
        ),
        (not spec.channels, "no input channels"),
        (len(spec.units) != len(spec.channels), f"{len(spec.units)} units for {len(spec.channels)} channels"),
        (
            spec.length < 1 or spec.hop < 1,
            f"window of {spec.length} samples with hop {spec.hop}, both must be at least 1",
        ),
        (not RATES_HZ[0] <= (spec.rate_hz or 1.0) <= RATES_HZ[1], f"rate_hz {spec.rate_hz}, wanted {RATES_HZ}"),
        (spec.layout == "NT" and len(spec.channels) != 1, f"layout NT with {len(spec.channels)} channels, wanted 1"),
        (not 0 <= spec.lead_in < spec.length, f"lead_in {spec.lead_in}, wanted 0 to {spec.length - 1}"),
        (DEFAULT not in manifest.tolerances, "no default tolerance"),
        (len(set(manifest.labels)) != len(manifest.labels), f"labels repeat: {manifest.labels}"),
        (
            manifest.output.kind in ERROR_KINDS and manifest.threshold is None,
            f"{manifest.output.kind} without a threshold",
        ),
        (manifest.output.kind == "probability" and len(manifest.labels) != 2, "probability needs two labels"),
        (manifest.output.kind not in ERROR_KINDS and not manifest.labels, f"{manifest.output.kind} without labels"),
        (manifest.output.kind in ERROR_KINDS and bool(manifest.labels), f"{manifest.output.kind} with labels"),
    ]
    problems.append((_inputs_repeat(manifest), "two inputs of the graph have the same name"))
    problems += [(not _holds(s), f"scalar {s.name}: {s.value!r} is no {s.dtype}") for s in manifest.scalars]
    problems += [
        (scalar.shape not in {(), (1,)}, f"scalar {scalar.name}: shape {scalar.shape}, wanted () or (1,)")
        for scalar in manifest.scalars
    ]
    found = [fact for wrong, fact in problems if wrong]
    return found + _parity_problems(manifest) + _state_problems(manifest.states)


def _holds(scalar: ScalarInput) -> bool:
    """Whether the value is one of its type; JSON numbers are exact up to 2**53."""
    if scalar.dtype == "bool":
        return scalar.value in (0, 1)
    if scalar.dtype.startswith("int"):
        return float(scalar.value).is_integer() and abs(scalar.value) < 2 ** (31 if scalar.dtype == "int32" else 53)
    return scalar.dtype == "float64" or abs(scalar.value) <= LARGEST_FLOAT32


def _inputs_repeat(manifest: Manifest) -> bool:
    names = [manifest.input.name, *(s.input for s in manifest.states), *(s.name for s in manifest.scalars)]
    return len(set(names)) != len(names)


def _parity_problems(manifest: Manifest) -> list[str]:
    named, measured = sorted(set(manifest.tolerances) - {DEFAULT}), sorted(manifest.parity)
    if named != measured:
        return [f"tolerances for the families {named}, parity for {measured}, wanted the same"]
    if unknown := [family for family in measured if family not in FAMILIES]:
        return [f"parity for {unknown}, known families are {', '.join(FAMILIES)}"]
    default = manifest.tolerances.get(DEFAULT, Tolerance(math.inf)).absolute
    problems = []
    for family, tolerance in manifest.tolerances.items():
        found = f"tolerance {tolerance.absolute:g} of {family}"
        problems.append((not tolerance.absolute > 0, f"{found}, wanted more than 0"))
        problems.append((tolerance.absolute > default, f"{found}, wanted at most the default, {default:g}"))
    for family, claim in manifest.parity.items():
        apart, wanted = f"{claim.from_default:g} from the default", f"wanted 0 to its tolerance, {default:g}"
        problems.append((not 0 <= claim.from_default <= default, f"parity of {family}: {apart}, {wanted}"))
        beyond = claim.from_float32 is not None and not claim.from_float32 >= 0
        problems.append((beyond, f"parity of {family}: {claim.from_float32 or 0:g} from float32, wanted 0 or more"))
    return [fact for wrong, fact in problems if wrong]


def _state_problems(states: tuple[StateSpec, ...]) -> list[str]:
    found = []
    for state in states:
        if any(size < 1 for size in state.shape):
            found.append(f"state {state.input}: shape {state.shape}, every axis must be at least 1")
        axis = state.batch_axis
        if axis is not None and not (0 <= axis < len(state.shape) and state.shape[axis] == 1):
            found.append(f"state {state.input}: batch axis {axis} of shape {state.shape}, wanted an axis of size 1")
    return found
