"""What a pipeline's messages look like, as its settings say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec

from edge_runtime.records import Floats, Message, Samples

Decoder = Callable[[Message, str], Samples]
Numbers = tuple[int | None, int | None]
Reader = Callable[[str, bytes], tuple[Floats, Numbers]]
NO_NUMBERS: Numbers = (None, None)
Format = Literal["raw", "json", "msgpack", "cbor"]
DType = Literal[
    "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"
]
TimeUnit = Literal["s", "ms", "us", "ns"]


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a pipeline's messages come from and what their payloads look like.

    format: of messages without a content type. raw: little-endian dtype, channels interleaved; value = number *
    scale + offset. json, msgpack, cbor: `fields` names the channels of a row object; without it rows are lists, or
    bytes as raw has them (in json their base64). `path` leads to the row, or the list of rows, or the bytes, through
    nested objects ("data.accel"). seq_field and time_field are such paths too; seq_property and time_property name
    MQTT 5 user properties. clock_synced: the times are those of clocks as true as ours, so that the way from sensor to
    here can be timed. max_payload_bytes bounds one message.
    """

    topic: str
    qos: Literal[0, 1] = 1
    format: Format = "json"
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
    clock_synced: bool = False
    max_payload_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576


def check(source: SourceSettings) -> None:
    """Raises ValueError for settings that contradict each other or would be ignored."""
    paths = [path for path in (*source.fields, source.path, source.seq_field, source.time_field) if path]
    scaled = math.isfinite(source.scale) and math.isfinite(source.offset)
    twice = (source.seq_field and source.seq_property) or (source.time_field and source.time_property)
    problems = [
        (
            source.format == "raw" and paths,
            "fields, path, seq_field and time_field are for json, msgpack and cbor; raw takes user properties",
        ),
        (
            source.fields and source.dtype != "float32",
            f"dtype = {source.dtype!r} says what bytes are, but fields asks for named numbers",
        ),
        (len(set(source.fields)) != len(source.fields), f"fields repeats a name: {list(source.fields)}"),
        ("" in source.fields or (paths and not all(".".join(paths).split("."))), f"an empty part in a path of {paths}"),
        (twice, "sequence or time is given both as a field and as a property; one of them must go"),
        (
            source.clock_synced and not (source.time_field or source.time_property),
            "clock_synced speaks of the sensors' times, wanted time_field or time_property with it",
        ),
        (not scaled, f"scale = {source.scale}, offset = {source.offset}: wanted finite numbers"),
    ]
    for wrong, fact in problems:
        if wrong:
            raise ValueError(fact)
