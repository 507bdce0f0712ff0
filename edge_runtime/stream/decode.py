"""Payload bytes to samples: one table of decoders, each strict about what it was promised.

Reasons of a DecodeError, one word each, for counting: empty, too_large, content_type, malformed, shape, not_finite,
property.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from edge_runtime.errors import DecodeError, DependencyError
from edge_runtime.records import Message, Samples
from edge_runtime.stream import content_type
from edge_runtime.stream.documents import cbor, json, msgpack
from edge_runtime.stream.source import Decoder, Format, SourceSettings, check
from edge_runtime.stream.values import frame_reader, property_reader

__all__ = ["DECODERS", "Decoder", "SourceSettings", "make_decoder"]

CONTENT_TYPES_KEPT = 32


def make_decoder(source: SourceSettings, channels: int) -> Decoder:
    """A decoder for one source whose samples have that many channels; a message's content type goes before its format.

    The decoder raises DecodeError and nothing else. Raises ValueError when the settings contradict each other,
    DependencyError when the format's package is not installed.
    """
    check(source)
    decode = DECODERS[source.format](source, channels)
    choose = _chooser(source, channels, decode)
    limit = source.max_payload_bytes

    def bounded(message: Message, stream: str) -> Samples:
        size = len(message.payload)
        if size == 0:
            raise DecodeError(message.topic, "empty", "no payload")
        if size > limit:
            raise DecodeError(message.topic, "too_large", f"{size} bytes, max_payload_bytes is {limit}")
        if not message.properties.content_type:
            return decode(message, stream)
        try:
            chosen = choose(message.properties.content_type)
        except (ValueError, DependencyError) as error:
            raise DecodeError(message.topic, "content_type", str(error)) from error
        return chosen(message, stream)

    return bounded


def raw(source: SourceSettings, channels: int) -> Decoder:
    """Little-endian arrays, channels interleaved."""
    from_frames = frame_reader(source, channels)
    from_properties = property_reader(source)

    def decode(message: Message, stream: str) -> Samples:
        values = from_frames(message.topic, message.payload)
        seq, time_ns = from_properties(message)
        return Samples(stream, values, message.received_ns, seq, time_ns)

    return decode


DECODERS: dict[Format, Callable[[SourceSettings, int], Decoder]] = {
    "raw": raw,
    "json": json,
    "msgpack": msgpack,
    "cbor": cbor,
}


def _chooser(source: SourceSettings, channels: int, default: Decoder) -> Callable[[str], Decoder]:
    """Content type to decoder, each parsed once. Raises ValueError for one that is unknown, DependencyError."""
    documents: dict[Format, Decoder] = {source.format: default}

    @lru_cache(CONTENT_TYPES_KEPT)
    def choose(text: str) -> Decoder:
        found = content_type.parse(text)
        if found.format == "raw":
            return _raw_as(found, source, channels)
        if found.format not in documents:
            documents[found.format] = DECODERS[found.format](source, channels)
        return documents[found.format]

    return choose


def _raw_as(found: content_type.ContentType, source: SourceSettings, channels: int) -> Decoder:
    """Raw with the dtype and of the shape its content type says. Raises ValueError where the source rules that out."""
    if source.seq_field or source.time_field:
        raise ValueError(f"{content_type.RAW} has no place for the source's seq_field and time_field")
    decode = raw(msgspec.structs.replace(source, dtype=found.dtype or source.dtype), channels)
    if found.shape is None:
        return decode
    rows, columns = found.shape
    if columns != channels:
        raise ValueError(f"shape={rows}x{columns}, wanted {channels} channels")

    def of_shape(message: Message, stream: str) -> Samples:
        samples = decode(message, stream)
        if len(samples.values) != rows:
            found_rows = len(samples.values)
            raise DecodeError(message.topic, "shape", f"{found_rows} rows, its content type says {rows}x{columns}")
        return samples

    return of_shape
