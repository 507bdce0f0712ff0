"""Payload bytes to samples: one table of decoders, each strict about what it was promised.

Reasons of a DecodeError, one word each, for counting: empty, too_large, content_type, malformed, shape, not_finite,
property.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from edge_runtime.errors import DecodeError, DependencyError
from edge_runtime.records import Floats, Message, Samples
from edge_runtime.stream import content_type
from edge_runtime.stream.documents import cbor, json, msgpack
from edge_runtime.stream.source import Decoder, Format, Numbers, Reader, SourceSettings, check
from edge_runtime.stream.values import frame_reader, property_reader

__all__ = ["DECODERS", "Decoder", "SourceSettings", "make_decoder"]


def make_decoder(source: SourceSettings, channels: int) -> Decoder:
    """A decoder for one source whose samples have that many channels; a message's content type goes before its format.

    The decoder raises DecodeError and nothing else. Raises ValueError when the settings contradict each other,
    DependencyError when the format's package is not installed.
    """
    check(source)
    read = DECODERS[source.format](source, channels)
    choose = _chooser(source, channels, read)
    from_properties = property_reader(source)
    limit = source.max_payload_bytes

    def decode(message: Message, stream: str) -> Samples:
        topic, payload = message.topic, message.payload
        if not 0 < len(payload) <= limit:
            raise _wrong_size(topic, len(payload), limit)
        typed = message.properties.content_type
        values, (seq, when_ns) = (choose(topic, typed) if typed else read)(topic, payload)
        if from_properties is not None:
            found_seq, found_ns = from_properties(message)
            seq, when_ns = (seq if found_seq is None else found_seq), (when_ns if found_ns is None else found_ns)
        return Samples(stream, values, message.received_ns, seq, when_ns)

    return decode


DECODERS: dict[Format, Callable[[SourceSettings, int], Reader]] = {
    "raw": frame_reader,
    "json": json,
    "msgpack": msgpack,
    "cbor": cbor,
}


def _wrong_size(topic: str, size: int, limit: int) -> DecodeError:
    if not size:
        return DecodeError(topic, "empty", "no payload")
    return DecodeError(topic, "too_large", f"{size} bytes, max_payload_bytes is {limit}")


def _chooser(source: SourceSettings, channels: int, default: Reader) -> Callable[[str, str], Reader]:
    """Topic and content type to the reader, each type parsed once. Raises DecodeError for one that is not taken."""
    documents: dict[Format, Reader] = {source.format: default}

    @lru_cache(content_type.KEPT)
    def parsed(text: str) -> Reader:
        found = content_type.parse(text)
        if found.format == "raw":
            return _raw_as(found, source, channels)
        if found.format not in documents:
            documents[found.format] = DECODERS[found.format](source, channels)
        return documents[found.format]

    def choose(topic: str, text: str) -> Reader:
        try:
            return parsed(text)
        except (ValueError, DependencyError) as error:
            raise DecodeError(topic, "content_type", str(error)) from error

    return choose


def _raw_as(found: content_type.ContentType, source: SourceSettings, channels: int) -> Reader:
    """Raw with the dtype and of the shape its content type says. Raises ValueError where the source rules that out."""
    if source.seq_field or source.time_field:
        raise ValueError(f"{content_type.RAW} has no place for the source's seq_field and time_field")
    read = frame_reader(msgspec.structs.replace(source, dtype=found.dtype or source.dtype), channels)
    if found.shape is None:
        return read
    rows, columns = found.shape
    if columns != channels:
        raise ValueError(f"shape={rows}x{columns}, wanted {channels} channels")

    def of_shape(topic: str, payload: bytes) -> tuple[Floats, Numbers]:
        content = read(topic, payload)
        if (n := len(content[0])) != rows:
            raise DecodeError(topic, "shape", f"{n} rows, its content type says {rows}x{columns}")
        return content

    return of_shape
