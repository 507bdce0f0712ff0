"""Payload bytes to samples: one table of decoders, each strict about what it was promised.

Reasons of a DecodeError, one word each, for counting: empty, too_large, malformed, shape, not_finite, property.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import DecodeError
from edge_runtime.records import Floats, Message, Samples

Decoder = Callable[[Message, str], Samples]
DType = Literal[
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"
]
TimeUnit = Literal["s", "ms", "us", "ns"]
NS_PER_UNIT: dict[TimeUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
LARGEST_NUMBER = 2**63 - 1


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a pipeline's messages come from and what their payloads look like.

    raw: little-endian dtype, channels interleaved; value = number * scale + offset.
    json: `fields` names the channels of a row object; without it rows are lists. `path` leads to the row, or
    the list of rows, through nested objects ("data.accel"). seq_field and time_field are such paths too;
    seq_property and time_property name MQTT 5 user properties. max_payload_bytes bounds one message.
    """

    topic: str
    qos: Literal[0, 1] = 1
    format: Literal["raw", "json"] = "json"
    dtype: DType = "float32"
    channels: Annotated[int, msgspec.Meta(ge=1)] | None = None
    scale: float = 1.0
    offset: float = 0.0
    fields: tuple[str, ...] = ()
    path: str = ""
    seq_field: str = ""
    time_field: str = ""
    seq_property: str = ""
    time_property: str = ""
    time_unit: TimeUnit = "s"
    max_payload_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576


def make_decoder(source: SourceSettings, channels: int) -> Decoder:
    """A decoder for one source whose samples have that many channels.

    The decoder raises DecodeError and nothing else. Raises ValueError when the settings contradict each other.
    """
    _check(source)
    decode = DECODERS[source.format](source, channels)
    limit = source.max_payload_bytes

    def bounded(message: Message, stream: str) -> Samples:
        size = len(message.payload)
        if size == 0:
            raise DecodeError(message.topic, "empty", "no payload")
        if size > limit:
            raise DecodeError(message.topic, "too_large", f"{size} bytes, max_payload_bytes is {limit}")
        return decode(message, stream)

    return bounded


def _check(source: SourceSettings) -> None:
    """Raises ValueError for settings that contradict each other or would be ignored."""
    paths = [path for path in (*source.fields, source.path, source.seq_field, source.time_field) if path]
    scaled = math.isfinite(source.scale) and math.isfinite(source.offset)
    twice = (source.seq_field and source.seq_property) or (source.time_field and source.time_property)
    problems = [
        (
            source.format == "raw" and paths,
            "fields, path, seq_field and time_field are for format json; raw takes user properties",
        ),
        (source.format == "json" and source.dtype != "float32", f"dtype = {source.dtype!r} is for format raw"),
        (len(set(source.fields)) != len(source.fields), f"fields repeats a name: {list(source.fields)}"),
        ("" in source.fields or (paths and not all(".".join(paths).split("."))), f"an empty part in a path of {paths}"),
        (twice, "sequence or time is given both as a field and as a property; one of them must go"),
        (not scaled, f"scale = {source.scale}, offset = {source.offset}: wanted finite numbers"),
    ]
    for wrong, fact in problems:
        if wrong:
            raise ValueError(fact)


def raw(source: SourceSettings, channels: int) -> Decoder:
    """Little-endian arrays, channels interleaved."""
    dtype = np.dtype(source.dtype).newbyteorder("<")
    frame_bytes = dtype.itemsize * channels
    to_float = _float_converter(source, dtype)
    from_properties = _property_reader(source)

    def decode(message: Message, stream: str) -> Samples:
        payload = message.payload
        if len(payload) % frame_bytes:
            raise DecodeError(
                message.topic,
                "shape",
                f"{len(payload)} bytes, wanted a multiple of {frame_bytes} ({channels} x {source.dtype})",
            )
        values = to_float(message.topic, np.frombuffer(payload, dtype).reshape(-1, channels))
        seq, time_ns = from_properties(message)
        return Samples(stream, values, message.received_ns, seq, time_ns)

    return decode


def json(source: SourceSettings, channels: int) -> Decoder:
    """A row of named fields, a list of rows, or a nested path to either."""
    if source.fields and len(source.fields) != channels:
        raise ValueError(f"fields names {len(source.fields)} channels, the model takes {channels}")
    document_type, to_rows, to_numbers = _json_shape(source)
    decoder = msgspec.json.Decoder(document_type)
    to_float = _float_converter(source, np.dtype(np.float64))
    from_properties = _property_reader(source)

    def decode(message: Message, stream: str) -> Samples:
        try:
            document = decoder.decode(message.payload)
            rows = np.array(to_rows(document), dtype=np.float64)
        except msgspec.ValidationError as error:
            raise DecodeError(message.topic, "shape", str(error)) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise DecodeError(message.topic, "malformed", f"not JSON: {error}") from error
        except ValueError as error:
            raise DecodeError(message.topic, "shape", f"rows of unequal length: {error}") from error
        values = to_float(message.topic, _as_rows(message.topic, rows, channels))
        seq, time_ns = from_properties(message)
        if to_numbers:
            found_seq, found_ns = to_numbers(message.topic, document)
            seq, time_ns = (found_seq if seq is None else seq), (found_ns if time_ns is None else time_ns)
        return Samples(stream, values, message.received_ns, seq, time_ns)

    return decode


DECODERS: dict[str, Callable[[SourceSettings, int], Decoder]] = {"raw": raw, "json": json}


def _json_shape(
    source: SourceSettings,
) -> tuple[Any, Callable[[Any], Any], Callable[[str, Any], tuple[int | None, int | None]] | None]:
    """The type of a document, the way to its rows, and the way to its sequence and time (None: not in the payload)."""
    numbers = {path: int | float for path in (source.seq_field, source.time_field) if path}
    if source.path:
        row, to_rows, _ = _row_type(source.fields, {})
        document, ways = _tree_type({source.path: row, **numbers})
        to_value = ways[source.path]
        return document, lambda found: to_rows(to_value(found)), _numbers(source, ways, lambda found: found)
    if numbers and not source.fields:
        raise ValueError("seq_field and time_field need an object around the rows: say with path where the rows are")
    row, to_rows, ways = _row_type(source.fields, numbers)
    return row, to_rows, _numbers(source, ways, lambda found: found[0] if isinstance(found, list) else found)


def _row_type(
    fields: tuple[str, ...], more: dict[str, Any]
) -> tuple[Any, Callable[[Any], Any], dict[str, Callable[[Any], Any]]]:
    """The type of a row or a list of rows, the way to the nested lists of numbers, and the ways inside a row."""
    if not fields:
        return float | list[float | list[float]], lambda value: value, {}
    row, ways = _tree_type({**dict.fromkeys(fields, float), **more})
    getters = [ways[name] for name in fields]

    def to_rows(found: object) -> list[list[float]]:
        rows = found if isinstance(found, list) else [found]
        return [[get(row) for get in getters] for row in rows]

    return row | Annotated[list[row], msgspec.Meta(min_length=1)], to_rows, ways  # type: ignore[valid-type]


def _tree_type(leaves: dict[str, Any]) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    """A struct type whose leaves lie at dotted paths, and a getter for each path."""
    tree: dict[str, dict[str, Any]] = {}
    for path, kind in leaves.items():
        head, _, tail = path.partition(".")
        tree.setdefault(head, {})[tail] = kind
    fields: list[tuple[str, Any]] = []
    names: dict[str, str] = {}
    ways: dict[str, Callable[[Any], Any]] = {}
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


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


def _numbers(
    source: SourceSettings, ways: dict[str, Callable[[Any], Any]], to_holder: Callable[[Any], Any]
) -> Callable[[str, Any], tuple[int | None, int | None]] | None:
    seq_way, time_way = ways.get(source.seq_field), ways.get(source.time_field)
    ns = NS_PER_UNIT[source.time_unit]
    if not (seq_way or time_way):
        return None

    def read(topic: str, document: object) -> tuple[int | None, int | None]:
        holder = to_holder(document)
        seq = _sequence(topic, seq_way(holder)) if seq_way else None
        return seq, _time_ns(topic, time_way(holder), ns) if time_way else None

    return read


def _as_rows(topic: str, array: npt.NDArray[np.float64], channels: int) -> npt.NDArray[np.float64]:
    """Lists as (n, channels): a flat list is one row, or n samples of a single channel."""
    if array.ndim < 2:
        array = array.reshape(-1, 1) if channels == 1 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != channels or not len(array):
        raise DecodeError(topic, "shape", f"an array of {array.shape}, wanted (n, {channels}) with n >= 1")
    return array


def _float_converter(source: SourceSettings, dtype: np.dtype[Any]) -> Callable[[str, npt.NDArray[Any]], Floats]:
    """Numbers to physical units in float32, all finite; computed in float64 where float32 would lose digits."""
    work: type[np.floating[Any]] = np.float64 if dtype.itemsize > 2 else np.float32
    scale, offset = work(source.scale), work(source.offset)
    plain = source.scale == 1.0 and source.offset == 0.0
    always_finite = dtype.kind in "iu" and _fits_float32(np.iinfo(dtype), source.scale, source.offset)

    def convert(topic: str, numbers: npt.NDArray[Any]) -> Floats:
        if always_finite:
            return numbers.astype(np.float32) if plain else (numbers * scale + offset).astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (numbers if plain else numbers * scale + offset).astype(np.float32)
        if not np.isfinite(values).all():
            raise DecodeError(topic, "not_finite", "NaN, infinity or a number beyond float32")
        return values

    return convert


def _fits_float32(limits: np.iinfo[Any], scale: float, offset: float) -> bool:
    largest = max(abs(limits.min * scale), abs(limits.max * scale)) + abs(offset)
    return largest < float(np.finfo(np.float32).max)


def _property_reader(source: SourceSettings) -> Callable[[Message], tuple[int | None, int | None]]:
    """Sequence and sensor time from MQTT 5 user properties, where configured."""
    seq_name, time_name, ns = source.seq_property, source.time_property, NS_PER_UNIT[source.time_unit]
    if not (seq_name or time_name):
        return lambda _: (None, None)

    def read(message: Message) -> tuple[int | None, int | None]:
        user = dict(message.properties.user)
        seq = _sequence(message.topic, _number(message.topic, seq_name, user)) if seq_name else None
        time_ns = _time_ns(message.topic, _number(message.topic, time_name, user), ns) if time_name else None
        return seq, time_ns

    return read


def _number(topic: str, name: str, user: dict[str, str]) -> int | float:
    text = user.get(name)
    if text is None:
        raise DecodeError(topic, "property", f"no user property {name!r}, found {sorted(user)}")
    try:
        number = int(text) if text.lstrip("-").isdigit() and len(text) < 20 else float(text)
    except ValueError as error:
        raise DecodeError(topic, "property", f"user property {name!r} is {text!r}, wanted a number") from error
    return number


def _sequence(topic: str, number: float) -> int:
    if not 0 <= number <= LARGEST_NUMBER or number != int(number):
        raise DecodeError(topic, "shape", f"sequence {number!r:.40}, wanted a whole number from 0 up")
    return int(number)


def _time_ns(topic: str, number: float, ns_per_unit: int) -> int:
    if not 0 <= number * ns_per_unit <= LARGEST_NUMBER:
        raise DecodeError(topic, "shape", f"time {number!r:.40}, wanted one after 1970 and before 2262")
    return round(number * ns_per_unit)
