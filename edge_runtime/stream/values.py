"""Numbers as a producer sent them to numbers as the daemon uses them: physical units, sequence numbers, times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import DecodeError
from edge_runtime.records import Floats, Message
from edge_runtime.stream.source import SourceSettings, TimeUnit

NS_PER_UNIT: dict[TimeUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
LARGEST_NUMBER = 2**63 - 1
LARGEST_FLOAT32 = np.float64(np.finfo(np.float32).max)


def frame_reader(source: SourceSettings, channels: int) -> Callable[[str, bytes], Floats]:
    """Little-endian bytes of the source's dtype, channels interleaved, to (n, channels) in physical units."""
    dtype = np.dtype(source.dtype).newbyteorder("<")
    frame_bytes = dtype.itemsize * channels
    to_float = float_converter(source, dtype)

    def read(topic: str, frames: bytes) -> Floats:
        size = len(frames)
        if size % frame_bytes or not size:
            raise DecodeError(
                topic, "shape", f"{size} bytes, wanted a multiple of {frame_bytes} ({channels} x {source.dtype})"
            )
        return to_float(topic, np.frombuffer(frames, dtype).reshape(-1, channels))

    return read


def float_converter(source: SourceSettings, dtype: np.dtype[Any]) -> Callable[[str, npt.NDArray[Any]], Floats]:
    """Numbers to physical units in float32, all finite; computed in float64 where float32 would lose digits."""
    work: type[np.floating[Any]] = np.float64 if dtype.itemsize > 2 else np.float32
    scale, offset = work(source.scale), work(source.offset)
    plain = source.scale == 1.0 and source.offset == 0.0
    always_finite = dtype.kind in "iu" and _fits_float32(np.iinfo(dtype), source.scale, source.offset)
    usable = np.isfinite if (dtype if plain else np.dtype(work)).itemsize <= 4 else _within_float32

    def convert(topic: str, numbers: npt.NDArray[Any]) -> Floats:
        if always_finite:
            return numbers.astype(np.float32) if plain else (numbers * scale + offset).astype(np.float32, copy=False)
        if not plain:
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = numbers * scale + offset
        if b"\0" in usable(numbers).tobytes():  # all() goes through Python code of numpy's and takes twice as long
            raise DecodeError(topic, "not_finite", "NaN, infinity or a number beyond float32")
        return numbers.astype(np.float32)

    return convert


def _within_float32(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.abs(numbers) <= LARGEST_FLOAT32


def _fits_float32(limits: np.iinfo[Any], scale: float, offset: float) -> bool:
    largest = max(abs(limits.min * scale), abs(limits.max * scale)) + abs(offset)
    return bool(largest < LARGEST_FLOAT32)


def property_reader(source: SourceSettings) -> Callable[[Message], tuple[int | None, int | None]]:
    """Sequence and sensor time from MQTT 5 user properties, where configured."""
    seq_name, time_name, ns = source.seq_property, source.time_property, NS_PER_UNIT[source.time_unit]
    if not (seq_name or time_name):
        return lambda _: (None, None)

    def read(message: Message) -> tuple[int | None, int | None]:
        user = dict(message.properties.user)
        seq = sequence(message.topic, _number(message.topic, seq_name, user)) if seq_name else None
        when_ns = time_ns(message.topic, _number(message.topic, time_name, user), ns) if time_name else None
        return seq, when_ns

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


def sequence(topic: str, number: float) -> int:
    """A message number. Raises DecodeError when it is not whole, negative or beyond 63 bits."""
    if not 0 <= number <= LARGEST_NUMBER or number != int(number):
        raise DecodeError(topic, "shape", f"sequence {number!r:.40}, wanted a whole number from 0 up")
    return int(number)


def time_ns(topic: str, number: float, ns_per_unit: int) -> int:
    """Unix nanoseconds. Raises DecodeError when it is before 1970 or after 2262."""
    if not 0 <= number * ns_per_unit <= LARGEST_NUMBER:
        raise DecodeError(topic, "shape", f"time {number!r:.40}, wanted one after 1970 and before 2262")
    return round(number * ns_per_unit)
