"""JSON, MessagePack and CBOR: one machinery for the rows, the bytes and the numbers inside a document."""

from __future__ import annotations

import importlib
import io
import operator
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import DecodeError, DependencyError
from edge_runtime.records import Message, Samples
from edge_runtime.stream.source import Decoder, SourceSettings
from edge_runtime.stream.values import NS_PER_UNIT, float_converter, frame_reader, property_reader, sequence, time_ns

Parse = Callable[[bytes], object]
Way = Callable[[Any], Any]
Numbers = Callable[[str, Any], tuple[int | None, int | None]]

CBOR_MAX_DEPTH = 64
CBOR_TAGS = (*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)


class _MalformedError(Exception):
    """What a parser other than msgspec's says of bytes that are no document."""


def json(source: SourceSettings, channels: int) -> Decoder:
    """UTF-8 text; bytes are base64 text."""
    return _documents(source, channels, "JSON", lambda kind: msgspec.json.Decoder(kind).decode)


def msgpack(source: SourceSettings, channels: int) -> Decoder:
    """MessagePack; bytes are of its type bin."""
    return _documents(source, channels, "MessagePack", lambda kind: msgspec.msgpack.Decoder(kind).decode)


def cbor(source: SourceSettings, channels: int) -> Decoder:
    """CBOR without tags; bytes are byte strings. Raises DependencyError when cbor2 is not installed."""
    return _documents(source, channels, "CBOR", _cbor_parser)


def _documents(source: SourceSettings, channels: int, name: str, make_parser: Callable[[Any], Parse]) -> Decoder:
    """A row of named fields, a list of rows, bytes of interleaved frames, or a nested path to either."""
    if source.fields and len(source.fields) != channels:
        raise ValueError(f"fields names {len(source.fields)} channels, the model takes {channels}")
    document_type, to_rows, to_numbers = _shape(source)
    parse = make_parser(document_type)
    to_float = float_converter(source, np.dtype(np.float64))
    from_frames = frame_reader(source, channels)
    from_properties = property_reader(source)

    def decode(message: Message, stream: str) -> Samples:
        topic = message.topic
        try:
            document = parse(message.payload)
        except msgspec.ValidationError as error:
            raise DecodeError(topic, "shape", str(error)) from error
        except (msgspec.DecodeError, RecursionError, _MalformedError) as error:
            raise DecodeError(topic, "malformed", f"not {name}: {error}") from error
        rows = to_rows(document)
        values = from_frames(topic, rows) if type(rows) is bytes else to_float(topic, _as_rows(topic, rows, channels))
        seq, when_ns = from_properties(message)
        if to_numbers:
            found_seq, found_ns = to_numbers(topic, document)
            seq, when_ns = (found_seq if seq is None else seq), (found_ns if when_ns is None else when_ns)
        return Samples(stream, values, message.received_ns, seq, when_ns)

    return decode


def _as_rows(topic: str, rows: object, channels: int) -> npt.NDArray[np.float64]:
    """Lists as (n, channels): a flat list is one row, or n samples of a single channel."""
    try:
        array = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise DecodeError(topic, "shape", f"rows of unequal length: {error}") from error
    if array.ndim < 2:
        array = array.reshape(-1, 1) if channels == 1 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != channels or not len(array):
        raise DecodeError(topic, "shape", f"an array of {array.shape}, wanted (n, {channels}) with n >= 1")
    return array


def _cbor_parser(kind: object) -> Parse:
    """Bytes to an object of that type.

    Tags are refused before they are read: they stand for dates, expressions and patterns, and shared values (28, 29)
    let a few bytes name a tree without end.
    """
    cbor2 = _load_cbor2()
    tagged = dict.fromkeys(CBOR_TAGS, _refuse_tag)
    make_decoder = partial(cbor2.CBORDecoder, semantic_decoders=tagged, tag_hook=_refuse_tag, max_depth=CBOR_MAX_DEPTH)
    # In a struct, because convert() works a union of its own out anew at every call.
    whole: Any = msgspec.defstruct("Whole", [("document", kind)])

    def parse(payload: bytes) -> object:
        decoder = make_decoder(io.BytesIO(payload))
        try:
            found = decoder.decode()
        except cbor2.CBORDecodeError as error:
            raise _MalformedError(f"{error}: {error.__cause__}" if error.__cause__ else str(error)) from error
        try:
            decoder.read(1)
        except cbor2.CBORDecodeEOF:
            return msgspec.convert({"document": found}, whole, builtin_types=(bytes,)).document
        raise _MalformedError("bytes after its end")

    return parse


def _refuse_tag(_found: object, _immutable: bool) -> NoReturn:
    raise ValueError("tags are not taken")


def _load_cbor2() -> ModuleType:
    """Raises DependencyError when it is not installed."""
    try:
        return importlib.import_module("cbor2")
    except ImportError as error:
        raise DependencyError("CBOR needs cbor2: pip install 'edge-runtime[cbor]'") from error


def _shape(source: SourceSettings) -> tuple[Any, Way, Numbers | None]:
    """The type of a document, the way to its rows, and the way to its sequence and time (None: not in the payload)."""
    numbers = {path: int | float for path in (source.seq_field, source.time_field) if path}
    if source.path:
        row, to_rows, _ = _row_type(source.fields, {})
        document, ways = _tree_type({source.path: row, **numbers})
        to_value = ways[source.path]
        return document, _then(to_value, to_rows), _numbers(source, ways, lambda found: found)
    if numbers and not source.fields:
        raise ValueError("seq_field and time_field need an object around the rows: say with path where the rows are")
    row, to_rows, ways = _row_type(source.fields, numbers)
    return row, to_rows, _numbers(source, ways, lambda found: found[0] if isinstance(found, list) else found)


def _row_type(fields: tuple[str, ...], more: dict[str, Any]) -> tuple[Any, Way, dict[str, Way]]:
    """The type of a row, a list of rows, or bytes; the way to the lists of numbers; and the ways inside a row."""
    if not fields:
        return float | list[float | list[float]] | bytes, lambda value: value, {}
    row, ways = _tree_type({**dict.fromkeys(fields, float), **more})
    getters = [ways[name] for name in fields]

    def to_rows(found: object) -> list[list[float]]:
        rows = found if isinstance(found, list) else [found]
        return [[get(row) for get in getters] for row in rows]

    return row | Annotated[list[row], msgspec.Meta(min_length=1)], to_rows, ways  # type: ignore[valid-type]


def _tree_type(leaves: dict[str, Any]) -> tuple[Any, dict[str, Way]]:
    """A struct type whose leaves lie at dotted paths, and a getter for each path."""
    tree: dict[str, dict[str, Any]] = {}
    for path, kind in leaves.items():
        head, _, tail = path.partition(".")
        tree.setdefault(head, {})[tail] = kind
    fields: list[tuple[str, Any]] = []
    names: dict[str, str] = {}
    ways: dict[str, Way] = {}
    for i, (head, below) in enumerate(tree.items()):
        attribute = f"f{i}"
        names[attribute] = head
        if "" in below:
            if len(below) > 1:
                raise ValueError(f"{head!r} is named both as a value and as an object around one")
            fields.append((attribute, below[""]))
            ways[head] = operator.attrgetter(attribute)
            continue
        inner, inner_ways = _tree_type(below)
        fields.append((attribute, inner))
        for tail, way in inner_ways.items():
            ways[f"{head}.{tail}"] = _then(operator.attrgetter(attribute), way)
    return msgspec.defstruct("Document", fields, rename=names, frozen=True), ways


def _then(first: Way, second: Way) -> Way:
    return lambda value: second(first(value))


def _numbers(source: SourceSettings, ways: dict[str, Way], to_holder: Way) -> Numbers | None:
    seq_way, time_way = ways.get(source.seq_field), ways.get(source.time_field)
    ns = NS_PER_UNIT[source.time_unit]
    if not (seq_way or time_way):
        return None

    def read(topic: str, document: object) -> tuple[int | None, int | None]:
        holder = to_holder(document)
        seq = sequence(topic, seq_way(holder)) if seq_way else None
        return seq, time_ns(topic, time_way(holder), ns) if time_way else None

    return read
