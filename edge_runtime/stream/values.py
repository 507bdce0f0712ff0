"""Numbers as a producer sent them to numbers as the daemon uses them: physical units, sequence numbers, times."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import DecodeError
from edge_runtime.records import Floats, Message
from edge_runtime.stream.source import NO_NUMBERS, Numbers, Reader, SourceSettings, TimeUnit

NS_PER_UNIT: dict[TimeUnit, int] = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
LARGEST_NUMBER = 2**63 - 1
FLOAT32 = np.dtype(np.float32)
FLOAT32_END = 2.0**128 - 2.0**103  # the first number that is rounded to infinity

Array = npt.NDArray[Any]


def frame_reader(source: SourceSettings, channels: int) -> Reader:
    """Little-endian bytes of the source's dtype, channels interleaved, to (n, channels) in physical units."""
    dtype = np.dtype(source.dtype).newbyteorder("<")
    frame_bytes = dtype.itemsize * channels
    to_float, array, is_finite = float_converter(source, dtype), np.ndarray, np.isfinite
    as_it_is = dtype == FLOAT32 and is_plain(source)

    def read(topic: str, frames: bytes) -> tuple[Floats, Numbers]:
        n, rest = divmod(len(frames), frame_bytes)
        if rest or not n:
            wanted = f"wanted a multiple of {frame_bytes} ({channels} x {source.dtype})"
            raise DecodeError(topic, "shape", f"{len(frames)} bytes, {wanted}")
        values = array((n, channels), dtype, frames)
        if as_it_is and 0 not in is_finite(values).tobytes():
            return values, NO_NUMBERS
        return to_float(topic, values), NO_NUMBERS

    return read


def list_reader(source: SourceSettings, channels: int, *, finite: bool) -> Callable[[str, Iterable[Any]], Floats]:
    """A row, a list of rows, or of a single channel a number or a list of them, to (n, channels) in physical units.

    finite: the numbers are known to be. Packing them takes half the time of making an array of them.
    """
    dtype = np.dtype("<f4" if is_plain(source) else "<f8")
    to_float = None if is_plain(source) and finite else float_converter(source, dtype)
    pack_row, array, one_row = struct.Struct(f"<{channels}{dtype.char}").pack, np.ndarray, (1, channels)

    def read(topic: str, found: Iterable[Any]) -> Floats:
        try:
            values = array(one_row, dtype, pack_row(*found))
        except OverflowError:
            raise _not_finite(topic) from None
        except (TypeError, struct.error):
            packed = _pack_rows(topic, found, channels, dtype.char)
            values = array((len(packed) // (channels * dtype.itemsize), channels), dtype, packed)
        return values if to_float is None else to_float(topic, values)

    return read


def _pack_rows(topic: str, found: object, channels: int, code: str) -> bytes:
    """What is not one row, packed. Raises DecodeError when it is not rows either."""
    numbers: list[Any] = found if isinstance(found, list) else [found]
    try:
        if channels > 1 or not isinstance(numbers[0], float):
            widths = set(map(len, numbers))
            if widths != {channels}:
                raise DecodeError(topic, "shape", f"rows of {sorted(widths)} numbers, wanted {channels} in each")
            numbers = list(chain.from_iterable(numbers))
        return struct.pack(f"<{len(numbers)}{code}", *numbers)
    except OverflowError:
        raise _not_finite(topic) from None
    except (TypeError, IndexError, struct.error):
        raise DecodeError(topic, "shape", f"neither {channels} numbers nor rows of so many") from None


def float_converter(source: SourceSettings, dtype: np.dtype[Any]) -> Callable[[str, Array], Floats]:
    """Numbers to physical units in float32, all finite; computed in float64 where float32 would lose digits."""
    if dtype.kind in "iu" and _fits_float32(np.iinfo(dtype), source):
        in_units = _in_units(source, dtype)
        return lambda _topic, numbers: in_units(numbers).astype(FLOAT32, copy=False)
    return _checked(source, dtype)


def _checked(source: SourceSettings, dtype: np.dtype[Any]) -> Callable[[str, Array], Floats]:
    in_units = None if is_plain(source) else _in_units(source, dtype)
    is_usable = np.isfinite if dtype.itemsize <= (2 if in_units else 4) else _rounds_to_float32
    as_it_is = dtype == FLOAT32

    def convert(topic: str, numbers: Array) -> Floats:
        if in_units is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                numbers = in_units(numbers)
        if 0 in is_usable(numbers).tobytes():  # all() goes through Python code of numpy's and takes three times as long
            raise _not_finite(topic)
        return numbers if as_it_is and in_units is None else numbers.astype(FLOAT32)

    return convert


def _in_units(source: SourceSettings, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    work: type[np.floating[Any]] = np.float64 if dtype.itemsize > 2 else np.float32
    scale, offset = work(source.scale), work(source.offset)
    if is_plain(source):
        return lambda numbers: numbers
    return (lambda numbers: numbers * scale + offset) if source.offset else (lambda numbers: numbers * scale)


def is_plain(source: SourceSettings) -> bool:
    return source.scale == 1.0 and source.offset == 0.0


def _rounds_to_float32(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.abs(numbers) < FLOAT32_END


def _fits_float32(limits: np.iinfo[Any], source: SourceSettings) -> bool:
    largest = max(abs(limits.min * source.scale), abs(limits.max * source.scale)) + abs(source.offset)
    return bool(largest < FLOAT32_END)


def _not_finite(topic: str) -> DecodeError:
    return DecodeError(topic, "not_finite", "NaN, infinity or a number beyond float32")


def property_reader(source: SourceSettings) -> Callable[[Message], Numbers] | None:
    """Sequence and sensor time from MQTT 5 user properties; None where none is configured."""
    seq_name, time_name, ns = source.seq_property, source.time_property, NS_PER_UNIT[source.time_unit]
    if not (seq_name or time_name):
        return None

    def read(message: Message) -> Numbers:
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
    if not 0 <= number <= LARGEST_NUMBER or number % 1:
        raise DecodeError(topic, "shape", f"sequence {number!r:.40}, wanted a whole number from 0 up")
    return int(number)


def time_ns(topic: str, number: float, ns_per_unit: int) -> int:
    """Unix nanoseconds. Raises DecodeError when it is before 1970 or after 2262."""
    if not 0 <= number * ns_per_unit <= LARGEST_NUMBER:
        raise DecodeError(topic, "shape", f"time {number!r:.40}, wanted one after 1970 and before 2262")
    return round(number * ns_per_unit)
