"""Long lists of numbers in JSON, read by pysimdjson where it is installed: the same answers in half the time or less.

What it cannot judge as msgspec does is left to msgspec: all that is wrong, and integers beyond 64 bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from edge_runtime.records import Floats
from edge_runtime.stream.source import NO_NUMBERS, Numbers, SourceSettings
from edge_runtime.stream.values import float_converter

FAST_FROM_BYTES = 600
OF_NUMBERS = b"+-.0123456789Ee \t\r\n"

FastReader = Callable[[str, bytes], tuple[Floats, Numbers] | None]


def array_reader(
    source: SourceSettings,
    channels: int,
    parse_around: Callable[[bytes], Any],
    to_numbers: Callable[[str, Any], Numbers] | None,
) -> FastReader | None:
    """Reads documents that have one list in them, their rows; None for all others, and where pysimdjson is missing.

    parse_around: reads a document in which an empty list stands for the rows.
    """
    simdjson = load_simdjson()
    if simdjson is None:
        return None
    parse, from_buffer = simdjson.Parser(source.max_payload_bytes).parse, np.frombuffer
    to_float = float_converter(source, np.dtype(np.float64))

    def read(topic: str, payload: bytes) -> tuple[Floats, Numbers] | None:
        text, around_it = split_list(payload)
        if not text:
            return None
        try:
            around = parse_around(around_it)
            # No name for the array: while it lives, the parser takes no other text.
            numbers = from_buffer(parse(text).as_buffer(of_type="d"), np.float64)
        except (msgspec.DecodeError, ValueError, TypeError, RuntimeError):
            return None
        if not _are_rows(text, len(numbers), channels):
            return None
        values = to_float(topic, numbers.reshape(-1, channels))
        return values, NO_NUMBERS if to_numbers is None else to_numbers(topic, around)

    return read


def split_list(payload: bytes) -> tuple[bytes, bytes]:
    """What lies between a document's first bracket and its last, and the document with an empty list instead.

    If that is a document, it has no other bracket. Nothing lies there where there is no list.
    """
    begin, end = payload.find(b"["), payload.rfind(b"]") + 1
    return payload[begin:end], payload[:begin] + b"[]" + payload[end:]


def _are_rows(text: bytes, n: int, channels: int) -> bool:
    """Whether the text of n numbers in nested lists is a list of rows, or of numbers that are one row."""
    if text.find(b"[", 1) < 0:
        return n == channels or (channels == 1 and n > 0)
    row = b"[" + b"," * (channels - 1) + b"],"
    return n > 0 and text.translate(None, OF_NUMBERS) == b"[" + (row * (n // channels))[:-1] + b"]"


def json_reader() -> str:
    """Name and version of what reads long lists in JSON here."""
    if load_simdjson() is None:
        return f"msgspec {msgspec.__version__}"
    return f"simdjson {importlib.import_module('csimdjson').VERSION}"


def load_simdjson() -> ModuleType | None:
    try:
        return importlib.import_module("simdjson")
    except (ImportError, RuntimeError):  # RuntimeError: its compiled part does not load
        return None
