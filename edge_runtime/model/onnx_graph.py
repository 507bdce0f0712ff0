"""What an ONNX file refers to, read off its protobuf bytes without the onnx package.

A strict reader of the wire format: every message that can hold a node, a graph or a tensor is visited once, without
recursion and within the bounds below. What protobuf would resolve silently (a field given twice, a wrong wire type, a
number beyond its range) is an error here, so that no two readers can see different models in the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple

import msgspec

from edge_runtime.errors import ModelError

MAX_NESTING = 16
"""Graphs inside graphs; silero-vad, the deepest model met so far, has 4."""
MAX_FIELDS = 2_000_000
"""Protobuf fields visited, a few seconds of work; a node has some 5 to 50."""
MAX_VARINT_BYTES = 10
ORT_FORMAT = b"ORTM"

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
IN_MODEL, EXTERNAL = 0, 1

Operator = tuple[str, str]
"""Domain and name, as a node or function gives them; the domain "" is ai.onnx."""


class Kind(Enum):
    """The messages of onnx.proto that are entered, and the two scalars that are read."""

    MODEL = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    TENSOR = auto()
    SPARSE_TENSOR = auto()
    FUNCTION = auto()
    TRAINING = auto()
    EXTERNAL_ENTRY = auto()
    TEXT = auto()
    LOCATION = auto()


class Field(NamedTuple):
    """A field that matters. name: as in onnx.proto."""

    name: str
    kind: Kind
    repeated: bool


FIELDS: dict[Kind, dict[int, Field]] = {
    Kind.MODEL: {
        7: Field("graph", Kind.GRAPH, repeated=False),
        20: Field("training_info", Kind.TRAINING, repeated=True),
        25: Field("functions", Kind.FUNCTION, repeated=True),
    },
    Kind.GRAPH: {
        1: Field("node", Kind.NODE, repeated=True),
        5: Field("initializer", Kind.TENSOR, repeated=True),
        15: Field("sparse_initializer", Kind.SPARSE_TENSOR, repeated=True),
    },
    Kind.NODE: {
        4: Field("op_type", Kind.TEXT, repeated=False),
        5: Field("attribute", Kind.ATTRIBUTE, repeated=True),
        7: Field("domain", Kind.TEXT, repeated=False),
    },
    Kind.ATTRIBUTE: {
        5: Field("t", Kind.TENSOR, repeated=False),
        6: Field("g", Kind.GRAPH, repeated=False),
        10: Field("tensors", Kind.TENSOR, repeated=True),
        11: Field("graphs", Kind.GRAPH, repeated=True),
        22: Field("sparse_tensor", Kind.SPARSE_TENSOR, repeated=False),
        23: Field("sparse_tensors", Kind.SPARSE_TENSOR, repeated=True),
    },
    Kind.TENSOR: {
        13: Field("external_data", Kind.EXTERNAL_ENTRY, repeated=True),
        14: Field("data_location", Kind.LOCATION, repeated=False),
    },
    Kind.SPARSE_TENSOR: {
        1: Field("values", Kind.TENSOR, repeated=False),
        2: Field("indices", Kind.TENSOR, repeated=False),
    },
    Kind.FUNCTION: {
        1: Field("name", Kind.TEXT, repeated=False),
        7: Field("node", Kind.NODE, repeated=True),
        10: Field("domain", Kind.TEXT, repeated=False),
        11: Field("attribute_proto", Kind.ATTRIBUTE, repeated=True),
    },
    Kind.TRAINING: {
        1: Field("initialization", Kind.GRAPH, repeated=False),
        2: Field("algorithm", Kind.GRAPH, repeated=False),
    },
    Kind.EXTERNAL_ENTRY: {
        1: Field("key", Kind.TEXT, repeated=False),
        2: Field("value", Kind.TEXT, repeated=False),
    },
}


class GraphFacts(msgspec.Struct, frozen=True):
    """operators: how many nodes use each. functions: defined in the model itself.

    external_tensors: tensors whose data lie outside the model; locations: where, sorted. nesting: graphs inside graphs.
    """

    operators: dict[Operator, int]
    functions: frozenset[Operator]
    external_tensors: int
    locations: tuple[str, ...]
    tensors: int
    nesting: int


class _Message(NamedTuple):
    """A message still to be read: model[start:end]. nesting: graphs around it."""

    kind: Kind
    start: int
    end: int
    nesting: int


def read_facts(model: bytes) -> GraphFacts:
    """Raises ModelError when the bytes are no protobuf of a model, or exceed a bound."""
    if model[4:8] == ORT_FORMAT:
        raise ModelError("an ORT format model; wanted ONNX protobuf")
    reader = _Reader(model)
    waiting = [_Message(Kind.MODEL, 0, len(model), 0)]
    while waiting:
        waiting += reader.read(waiting.pop())
    return GraphFacts(
        operators=dict(reader.operators),
        functions=frozenset(reader.functions),
        external_tensors=reader.external_tensors,
        locations=tuple(sorted(reader.locations)),
        tensors=reader.tensors,
        nesting=reader.nesting,
    )


class _Reader:
    """Collects the facts, message by message."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._fields_left = MAX_FIELDS
        self.operators: Counter[Operator] = Counter()
        self.functions: list[Operator] = []
        self.locations: list[str] = []
        self.external_tensors = 0
        self.tensors = 0
        self.nesting = 0

    def read(self, message: _Message) -> list[_Message]:
        """Read one message; the messages inside it are still to be read."""
        known = FIELDS[message.kind]
        inside: list[_Message] = []
        given: dict[str, str] = {}
        external = False
        for number, wire, value, end in self._fields(message.start, message.end):
            field = known.get(number)
            if field is None:
                continue
            if wire != (VARINT if field.kind is Kind.LOCATION else BYTES):
                raise ModelError(f"malformed: {field.name} has wire type {wire}")
            if not field.repeated and field.name in given:
                raise ModelError(f"malformed: {field.name} is given twice in one message")
            given[field.name] = ""
            match field.kind:
                case Kind.TEXT:
                    given[field.name] = self._text(field.name, value, end)
                case Kind.LOCATION:
                    external |= _is_external(value)
                case kind:
                    inside.append(_Message(kind, value, end, self._nesting(message, kind)))
                    external |= kind is Kind.EXTERNAL_ENTRY
        self._collect(message.kind, given, external=external)
        return inside

    def _collect(self, kind: Kind, given: dict[str, str], *, external: bool) -> None:
        match kind:
            case Kind.NODE:
                self.operators[given.get("domain", ""), given.get("op_type", "")] += 1
            case Kind.FUNCTION:
                self.functions.append((given.get("domain", ""), given.get("name", "")))
            case Kind.TENSOR:
                self.tensors += 1
                self.external_tensors += external
            case Kind.EXTERNAL_ENTRY if given.get("key") == "location":
                self.locations.append(given.get("value", ""))

    def _nesting(self, around: _Message, kind: Kind) -> int:
        nesting = around.nesting + (kind is Kind.GRAPH and around.kind is Kind.ATTRIBUTE)
        if nesting > MAX_NESTING:
            raise ModelError(f"graphs are nested more than {MAX_NESTING} deep")
        self.nesting = max(self.nesting, nesting)
        return nesting

    def _text(self, name: str, start: int, end: int) -> str:
        try:
            return self._model[start:end].decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"malformed: {name} is not UTF-8") from error

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and the varint's value or where the field's bytes begin; and where they end."""
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ModelError(f"more than {MAX_FIELDS:,} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number == 0 or tag >= 1 << 32:
                raise ModelError(f"malformed: no such field as {number}")
            if wire == VARINT:
                value, at = self._varint(at, end)
                yield number, wire, value, at
                continue
            if wire == BYTES:
                size, at = self._varint(at, end)
            elif wire in (FIXED64, FIXED32):
                size = 8 if wire == FIXED64 else 4
            else:
                raise ModelError(f"malformed: wire type {wire}")
            if size > end - at:
                raise ModelError(f"malformed: a field of {size} bytes where {end - at} are left")
            yield number, wire, at, at + size
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        if at < end and self._model[at] < 0x80:
            return self._model[at], at + 1
        value = 0
        for index, byte in enumerate(self._model[at : min(end, at + MAX_VARINT_BYTES)]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at + index + 1
        raise ModelError("malformed: a number that does not end")


def _is_external(value: int) -> bool:
    if value not in (IN_MODEL, EXTERNAL):
        raise ModelError(f"malformed: data_location {value}")
    return value == EXTERNAL
