"""Messages of one sample each, decoded together: the same samples as one by one, at a third of the cost.

Whatever is not just that is left to the decoder of single messages, which knows what is wrong with it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from edge_runtime.errors import DecodeError
from edge_runtime.records import Message, Rows
from edge_runtime.stream import content_type
from edge_runtime.stream.arrays import OF_NUMBERS, load_simdjson, split_list
from edge_runtime.stream.documents import NUMBER, tree_type
from edge_runtime.stream.source import Format, SourceSettings
from edge_runtime.stream.values import (
    NS_PER_UNIT,
    float_converter,
    frame_reader,
    is_plain,
    property_reader,
    sequence,
    time_ns,
)

RowsDecoder = Callable[[Sequence[Message]], Rows | None]
"""One row a message, in their order; None unless each message is one good sample. Raises nothing."""

JOINED_FROM_CHANNELS = 24
"""Numbers a message from which pysimdjson reads the lists of all at once faster than msgspec one after the other."""
MOST_JOINED_BYTES = 1 << 20
NO_TOPIC = ""

Way = Callable[[Any], Any]
ToNumbers = Callable[[list[Any]], tuple[list[int] | None, list[int] | None]]
Reader = Callable[[list[bytes]], Rows]


class _UnusualError(Exception):
    """A message is something else than one good sample."""


def make_rows_decoder(source: SourceSettings, channels: int) -> RowsDecoder | None:
    """A decoder of many messages of one source; None where there is none quicker than one message after the other.

    The settings must be such that make_decoder takes them.
    """
    if source.format not in READERS:
        return None
    read = READERS[source.format](source, channels)
    from_properties = property_reader(source)
    limit, is_plain_type = source.max_payload_bytes, _type_checker(source.format)

    def decode(messages: Sequence[Message]) -> Rows | None:
        payloads = [message.payload for message in messages]
        types = {message.properties.content_type for message in messages}
        if max(map(len, payloads)) > limit or not all(map(is_plain_type, types)):
            return None
        try:
            rows = read(payloads)
            if from_properties is None:
                return rows
            numbers = [from_properties(message) for message in messages]
        except (_UnusualError, DecodeError):
            return None
        seqs = [seq for seq, _ in numbers if seq is not None]
        times_ns = [when_ns for _, when_ns in numbers if when_ns is not None]
        return Rows(rows.values, seqs or rows.seqs, times_ns or rows.sensor_unix_ns)

    return decode


def _frames(source: SourceSettings, channels: int) -> Reader:
    read, frame_bytes = frame_reader(source, channels), np.dtype(source.dtype).itemsize * channels

    def read_all(payloads: list[bytes]) -> Rows:
        if set(map(len, payloads)) != {frame_bytes}:
            raise _UnusualError
        return Rows(read(NO_TOPIC, b"".join(payloads))[0])

    return read_all


def _json(source: SourceSettings, channels: int) -> Reader:
    joined = None if source.fields or channels < JOINED_FROM_CHANNELS else _joined(source, channels)
    return joined or _packed(source, channels, lambda kind: msgspec.json.Decoder(kind).decode, finite=True)


def _msgpack(source: SourceSettings, channels: int) -> Reader:
    return _packed(source, channels, lambda kind: msgspec.msgpack.Decoder(kind).decode, finite=False)


READERS: dict[Format, Callable[[SourceSettings, int], Reader]] = {"raw": _frames, "json": _json, "msgpack": _msgpack}


def _packed(
    source: SourceSettings, channels: int, make_parser: Callable[[Any], Callable[[bytes], Any]], *, finite: bool
) -> Reader:
    """Parses one document after the other and packs the numbers of all at once. finite: numbers are known to be."""
    document, to_row, to_numbers = _shape(source, float | list[float] if channels == 1 else list[float])
    parse = make_parser(document)
    plain = is_plain(source)
    dtype = np.dtype("<f4" if plain else "<f8")
    to_float = None if plain and finite else float_converter(source, dtype)

    def read_all(payloads: list[bytes]) -> Rows:
        try:
            documents = list(map(parse, payloads))
            rows = documents if to_row is None else list(map(to_row, documents))
            single = channels == 1 and type(rows[0]) is float
            if not single and set(map(len, rows)) != {channels}:
                raise _UnusualError
            numbers = rows if single else chain.from_iterable(rows)
            packed = struct.pack(f"<{len(payloads) * channels}{dtype.char}", *numbers)
        except (msgspec.MsgspecError, RecursionError, TypeError, OverflowError, struct.error) as error:
            raise _UnusualError from error
        values = np.ndarray((len(payloads), channels), dtype, packed)
        return Rows(values if to_float is None else to_float(NO_TOPIC, values), *to_numbers(documents))

    return read_all


def _joined(source: SourceSettings, channels: int) -> Reader | None:
    """Reads the lists of all documents as one; None where pysimdjson is missing.

    Each, as `arrays.split_list` has it, begins and ends with a bracket, so that as many rows as messages, all of the
    right length, can only be one of each.
    """
    simdjson = load_simdjson()
    if simdjson is None:
        return None
    parse, from_buffer = simdjson.Parser(MOST_JOINED_BYTES).parse, np.frombuffer
    around, _, to_numbers = _shape(source, list)
    parse_around = msgspec.json.Decoder(around).decode
    to_float = float_converter(source, np.dtype(np.float64))
    row = b"[" + b"," * (channels - 1) + b"]"

    def read_all(payloads: list[bytes]) -> Rows:
        lists, arounds, n = [], [], len(payloads)
        for payload in payloads:
            found, around_it = split_list(payload)
            lists.append(found)
            arounds.append(around_it)
        text = b"[" + b",".join(lists) + b"]"
        try:
            documents = list(map(parse_around, arounds))
            # No name for the array: while it lives, the parser takes no other text.
            numbers = from_buffer(parse(text).as_buffer(of_type="d"), np.float64)
        except (msgspec.MsgspecError, ValueError, TypeError, RuntimeError) as error:
            raise _UnusualError from error
        if len(numbers) != n * channels or text.translate(None, OF_NUMBERS) != b"[" + b",".join([row] * n) + b"]":
            raise _UnusualError
        return Rows(to_float(NO_TOPIC, numbers.reshape(n, channels)), *to_numbers(documents))

    return read_all


def _shape(source: SourceSettings, kind: object) -> tuple[Any, Way | None, ToNumbers]:
    """The type of a document, the way to its row (None: itself), and that of many documents to their numbers.

    kind: of the row, where the source does not name what is in it.
    """
    prefix = f"{source.path}." if source.path else ""
    names = [prefix + field for field in source.fields] or ([source.path] if source.path else [])
    if not names:
        return kind, None, lambda _: (None, None)
    numbers = {path: NUMBER for path in (source.seq_field, source.time_field) if path}
    document, ways = tree_type({**dict.fromkeys(names, float if source.fields else kind), **numbers})
    to_seq = attrgetter(ways[source.seq_field]) if source.seq_field else None
    to_time = attrgetter(ways[source.time_field]) if source.time_field else None
    ns = NS_PER_UNIT[source.time_unit]

    def to_numbers(documents: list[Any]) -> tuple[list[int] | None, list[int] | None]:
        seqs = None if to_seq is None else list(map(to_seq, documents))
        if seqs is not None and set(map(type, seqs)) != {int}:
            seqs = [sequence(NO_TOPIC, seq) for seq in seqs]
        times_ns = None if to_time is None else [time_ns(NO_TOPIC, to_time(document), ns) for document in documents]
        return seqs, times_ns

    return document, attrgetter(*(ways[name] for name in names)), to_numbers


def _type_checker(form: Format) -> Callable[[str], bool]:
    """Whether a content type says nothing but that format."""

    @lru_cache(content_type.KEPT)
    def is_plain_type(text: str) -> bool:
        try:
            return not text or content_type.parse(text) == content_type.ContentType(form)
        except ValueError:
            return False

    return is_plain_type
