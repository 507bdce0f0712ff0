"""MQTT 5 content types to the decoder they ask for: media type and parameters as RFC 9110, section 8.3.1, has them."""

from __future__ import annotations

import re
import typing

import msgspec

from edge_runtime.stream.source import DType, Format

MAX_CHARACTERS = 255
KEPT = 32  # parsed ones that a decoder remembers
RAW = "application/octet-stream"
MEDIA_TYPES: dict[str, Format] = {
    RAW: "raw",
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/cbor": "cbor",
}
SUFFIXES: dict[str, Format] = {"json": "json", "msgpack": "msgpack", "cbor": "cbor"}
DTYPES: dict[str, DType] = {name: name for name in typing.get_args(DType)}
DTYPES |= {re.sub("[a-z]+", lambda kind: kind[0][0], name): name for name in typing.get_args(DType)}
SHAPE = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", re.ASCII)


class ContentType(msgspec.Struct, frozen=True):
    """dtype: None when the type does not say. shape: (rows, channels), None when it does not say."""

    format: Format
    dtype: DType | None = None
    shape: tuple[int, int] | None = None


def parse(text: str) -> ContentType:
    """Raises ValueError that names what was found and what is known."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"content type {text[:40]!r}... of {len(text)} characters, wanted at most {MAX_CHARACTERS}")
    media, *words = text.lower().split(";")
    form = _format(media.strip())
    parameters = dict(_parameter(word) for word in words if word.strip())
    charset = parameters.get("charset", "utf-8")
    if charset != "utf-8":
        raise ValueError(f"charset={charset}, wanted utf-8")
    if form == "raw":
        return ContentType(form, _dtype(parameters.get("dtype")), _shape(parameters.get("shape")))
    for name in ("dtype", "shape"):
        if name in parameters:
            raise ValueError(f"{name}={parameters[name]} in {text!r}: that is for {RAW}")
    return ContentType(form)


def _format(media: str) -> Format:
    found = MEDIA_TYPES.get(media)
    if found is None and media.startswith("application/") and "+" in media:
        found = SUFFIXES.get(media.rpartition("+")[2])
    if found is None:
        known = ", ".join([*MEDIA_TYPES, *(f"application/*+{suffix}" for suffix in SUFFIXES)])
        raise ValueError(f"content type {media!r}, known are {known}")
    return found


def _parameter(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word.strip()!r} in a content type, wanted name=value")
    return name.strip(), value.strip().strip('"')


def _dtype(name: str | None) -> DType | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise ValueError(f"dtype={name}, known are {', '.join(DTYPES)}")
    return DTYPES[name]


def _shape(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (found := SHAPE.fullmatch(text)):
        raise ValueError(f"shape={text}, wanted rows x channels: 128x6")
    return int(found[1]), int(found[2])
