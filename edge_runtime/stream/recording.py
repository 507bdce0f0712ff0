"""A recording: messages as they came off the wire, in one file. docs/recordings.md has it byte by byte.

A magic, a version, then frames, each with its length and checksum: first the header, then a message each. Damage costs
the frames from there on, never those before.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from edge_runtime.errors import MALFORMED, RecordingError
from edge_runtime.records import NO_PROPERTIES, Message, Properties

MAGIC = b"EDGEREC"
VERSION = 1
MAX_FRAME_BYTES = 257 * 2**20  # the largest MQTT packet, and room for what the frame adds
MAX_TOPICS = 65_536
PENDING_BYTES = 2**20
QOS_1, RETAINED, DUP = 1, 2, 4

_HEAD = struct.Struct(">II")
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class RecordingHeader(msgspec.Struct, frozen=True):
    """id: random, of this recording. start_unix_ns: the wall clock when its time was 0."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    start_unix_ns: _Count


class _Properties(msgspec.Struct, frozen=True, array_like=True):
    content_type: str
    user: tuple[tuple[str, str], ...]
    message_expiry_s: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None
    response_topic: str
    correlation_data: bytes


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """topic: text where it comes first and then has the next number, else that number."""

    t_ns: int
    topic: str | _Count
    flags: Annotated[int, msgspec.Meta(ge=0, le=QOS_1 | RETAINED | DUP)]
    payload: bytes
    properties: _Properties | None


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(RecordingHeader).decode
_decode_entry = msgspec.msgpack.Decoder(_Entry).decode


class RecordingWriter:
    """A new file; what was flushed survives the end of the process, and what was closed the loss of power.

    messages, topics, bytes: written so far. topics counts those that have a number.
    """

    def __init__(self, path: Path, header: RecordingHeader, *, start_ns: int) -> None:
        """start_ns: the monotonic clock at the header's start. Raises RecordingError, also when the file exists."""
        self.path, self.header, self._start_ns = path, header, start_ns
        try:
            self._file = FileIO(path, "xb", opener=_private)
        except FileExistsError:
            raise RecordingError(str(path), "exists already, and a recording is never written over") from None
        except OSError as error:
            raise RecordingError(str(path), f"cannot be written: {error.strerror}") from error
        self._numbers: dict[str, int] = {}
        self._pending = bytearray(MAGIC + bytes([VERSION]))
        self.messages = 0
        self.bytes = len(self._pending)
        self._append(_encode(header))

    @property
    def topics(self) -> int:
        return len(self._numbers)

    def write(self, message: Message) -> None:
        """Add one message. Raises RecordingError when the file takes no more."""
        topic: str | int = self._numbers.get(message.topic, message.topic)
        flags = (QOS_1 if message.qos else 0) | (RETAINED if message.retain else 0) | (DUP if message.dup else 0)
        found = message.properties
        properties = None if found == NO_PROPERTIES else _Properties(*msgspec.structs.astuple(found))
        body = _encode(_Entry(message.received_ns - self._start_ns, topic, flags, message.payload, properties))
        if len(body) > MAX_FRAME_BYTES:
            raise RecordingError(str(self.path), f"a message of {len(body):,} bytes, at most {MAX_FRAME_BYTES:,} fit")
        if isinstance(topic, str) and len(self._numbers) < MAX_TOPICS:
            self._numbers[topic] = len(self._numbers)
        self._append(body)
        self.messages += 1
        if len(self._pending) >= PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system. Raises RecordingError; what it took before stays readable."""
        left, self._pending = memoryview(self._pending), bytearray()
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Flush, wait until the disk has it, close. Raises RecordingError."""
        try:
            self.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._file.close()

    def _append(self, body: bytes) -> None:
        self._pending += _HEAD.pack(len(body), zlib.crc32(body))
        self._pending += body
        self.bytes += _HEAD.size + len(body)

    def _failed(self, error: OSError) -> RecordingError:
        fact = f"cannot be written any more: {error.strerror}; what came before can be read"
        return RecordingError(str(self.path), fact)


class _DamageError(Exception):
    """What is wrong with the frame that was to be read."""


class Recording:
    """A recording to be read, any number of times, in the order of its messages.

    received_ns of a message is nanoseconds since the recording began. After an iteration unread_bytes and problem say
    how much of the end could not be read, and why: 0 and "" for a whole file.
    """

    def __init__(self, path: Path) -> None:
        """Raises RecordingError for what is no recording, or of a newer version."""
        self.path = path
        self.unread_bytes = 0
        self.problem = ""
        with self._open() as file:
            self.header = self._read_header(file)
            self._first = file.tell()

    def __iter__(self) -> Iterator[Message]:
        topics: list[str] = []
        self.unread_bytes, self.problem = 0, ""
        with self._open() as file:
            left = _size(file) - self._first
            file.seek(self._first)
            try:
                while left:
                    body = _read_frame(file, left)
                    message = _message(body, topics)
                    left -= _HEAD.size + len(body)
                    yield message
            except _DamageError as damage:
                self.unread_bytes, self.problem = left, str(damage)

    def _open(self) -> BinaryIO:
        try:
            if stat.S_ISREG(self.path.stat().st_mode):
                return self.path.open("rb")
        except OSError as error:
            raise RecordingError(str(self.path), f"cannot be read: {error.strerror}") from error
        raise RecordingError(str(self.path), "is no regular file")

    def _read_header(self, file: BinaryIO) -> RecordingHeader:
        start = file.read(len(MAGIC) + 1)
        if start[: len(MAGIC)] != MAGIC or len(start) <= len(MAGIC):
            raise RecordingError(str(self.path), f"is no recording: it begins with {start!r}, wanted {MAGIC!r}")
        if start[-1] != VERSION:
            fact = f"is a recording of format {start[-1]}; this version reads format {VERSION}"
            raise RecordingError(str(self.path), fact)
        try:
            return _decode_header(_read_frame(file, _size(file) - len(start)))
        except (_DamageError, *MALFORMED) as error:
            raise RecordingError(str(self.path), f"has no header that can be read, so no messages: {error}") from error


def _private(path: str, flags: int) -> int:
    """Messages may hold personal data: the file is its owner's alone."""
    return os.open(path, flags, 0o600)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read_frame(file: BinaryIO, left: int) -> bytes:
    """The body of the next frame. left: bytes to the end of the file, which a lying length cannot exceed."""
    if left < _HEAD.size:
        raise _DamageError(f"cut off: {left} bytes of a frame's {_HEAD.size}-byte head")
    try:
        length, checksum = _HEAD.unpack(file.read(_HEAD.size))
        if not 0 < length <= MAX_FRAME_BYTES:
            raise _DamageError(f"damaged: a frame says it has {length:,} bytes, wanted 1 to {MAX_FRAME_BYTES:,}")
        if length > left - _HEAD.size:
            raise _DamageError(f"cut off: {left - _HEAD.size:,} of a frame's {length:,} bytes")
        body = file.read(length)
    except (OSError, struct.error) as error:
        raise _DamageError(f"cannot be read: {error}") from error
    if zlib.crc32(body) != checksum:
        raise _DamageError("damaged: a frame's checksum is wrong")
    return body


def _message(body: bytes, topics: list[str]) -> Message:
    """topics: those that have a number; a new one is added."""
    try:
        entry = _decode_entry(body)
        topic = topics[entry.topic] if isinstance(entry.topic, int) else entry.topic
    except (*MALFORMED, IndexError) as error:
        raise _DamageError(f"damaged: a frame holds no message: {error}") from error
    if isinstance(entry.topic, str) and len(topics) < MAX_TOPICS:
        topics.append(topic)
    return Message(
        topic=topic,
        payload=entry.payload,
        received_ns=entry.t_ns,
        qos=1 if entry.flags & QOS_1 else 0,
        retain=bool(entry.flags & RETAINED),
        dup=bool(entry.flags & DUP),
        properties=Properties(*msgspec.structs.astuple(entry.properties)) if entry.properties else NO_PROPERTIES,
    )
