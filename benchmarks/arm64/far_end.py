"""The broker's end of a connection. In the guest the counted thread plays it too, where nothing is counted."""

from __future__ import annotations

import fcntl
import gc
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from edge_runtime.mqtt.encode import publish_frame
from edge_runtime.records import Outgoing

HOST = "127.0.0.1"
RECORDING, REPORT = "recording.msgpack", "report.msgpack"
WAIT_S, PAUSE_S = 30.0, 0.0005
READ_BYTES = 1 << 20
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 0x10, 0x20, 0x30, 0x40, 0x80, 0x90
LAST_MID = 65_535


class Read(msgspec.Struct, frozen=True):
    """What the subject finds when it reads once. payloads: of its messages; windows: that those complete."""

    payloads: tuple[bytes, ...]
    windows: int
    is_counted: bool


class Recording(msgspec.Struct, frozen=True):
    """topic: of the messages; results: of what is published for them. is_five: MQTT 5, else 3.1.1."""

    topic: str
    results: str
    qos: int
    is_five: bool
    reads: tuple[Read, ...]

    @staticmethod
    def load() -> Recording:
        return msgspec.msgpack.decode(Path(RECORDING).read_bytes(), type=Recording)


class Report(msgspec.Struct, frozen=True):
    """results: all that were published, in order. rounds: of the subject's loop, for each counted read.

    is_balanced: what the subject itself says of its ledger, True when it keeps none.
    """

    results: tuple[bytes, ...]
    rounds: tuple[int, ...]
    is_balanced: bool = True

    def save(self) -> None:
        Path(REPORT).write_bytes(msgspec.msgpack.encode(self))

    @staticmethod
    def load(folder: Path) -> Report:
        return msgspec.msgpack.decode((folder / REPORT).read_bytes(), type=Report)


class FarEnd:
    """Accepts one connection, sends it the recorded reads, takes and acknowledges what it publishes."""

    def __init__(self, recording: Recording) -> None:
        self._topic, self._wanted = recording.topic, recording.results
        self._qos, self._is_five = recording.qos, recording.is_five
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(WAIT_S)
        self._line: socket.socket
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._left = b""
        self._owed = b""
        self._mid = 0
        self._windows = self._messages = self._acknowledged = 0
        self._is_subscribed = self._is_counting = False
        self.results: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def connect(self, fileno: Callable[[], int]) -> Iterator[None]:
        """Accept the connection that a subject has begun; an item whenever it may go on, until it has subscribed.

        fileno: of the subject's descriptor, which may be another one after it has gone on.
        """
        self._line, _ = self._listener.accept()
        while not self._is_subscribed:
            yield
            self._collect(fileno())
            self._send(self._take_owed(), fileno())
        yield

    def feed(self, read: Read, fileno: int) -> Iterator[None]:
        """An item whenever the subject has something to read: a read, then what acknowledges its results.

        That comes at once and alone, as from a broker that has nothing else to say. fileno: the subject's descriptor,
        where everything has arrived by then. Garbage is collected before the first read that is counted: collections
        then always fall into the same rounds. Raises ConnectionError when results or acknowledgements are missing.
        """
        if read.is_counted and not self._is_counting:
            gc.collect()
        self._is_counting = read.is_counted
        self._windows += read.windows
        self._messages += len(read.payloads)
        raw = b"".join(self._frame(payload) for payload in read.payloads)
        while raw:
            self._send(raw, fileno)
            yield
            self._collect(fileno)
            raw = self._take_owed()
        found, wanted = (len(self.results), self._acknowledged), (self._windows, self._messages * self._qos)
        if found != wanted:
            raise ConnectionError(f"{found} results and acknowledgements of all reads, wanted {wanted}")

    def close(self) -> None:
        self._line.close()
        self._listener.close()

    def _send(self, raw: bytes, fileno: int) -> None:
        arrived = unread_bytes(fileno) + len(raw)
        self._line.sendall(raw)
        _await(lambda: unread_bytes(fileno) == arrived, f"{len(raw)} bytes to arrive")

    def _take_owed(self) -> bytes:
        owed, self._owed = self._owed, b""
        return owed

    def _collect(self, fileno: int) -> None:
        """Take all that the subject has written, at once, however it has come, and prepare the answers."""
        _await(lambda: self._has_all(fileno), "what the subject has written")
        while unread_bytes(self._line.fileno()):
            size = self._line.recv_into(self._buffer)
            self._left += self._buffer[:size]
        for first, body in self._packets():
            self._answer(first, body)

    def _has_all(self, fileno: int) -> bool:
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # else Nagle holds paho back for 40 ms
        return _queued(fileno, termios.TIOCOUTQ) == 0

    def _frame(self, payload: bytes) -> bytes:
        self._mid = self._mid % LAST_MID + 1
        message = Outgoing(self._topic, payload, qos=self._qos)
        return publish_frame(message, mid=self._mid, dup=False, expiry_s=None, five=self._is_five)

    def _packets(self) -> Iterator[tuple[int, bytes]]:
        """First byte and body of every whole packet; the rest is left."""
        while len(self._left) > 1:
            try:
                length, start = _varint(self._left, 1)
            except IndexError:
                return
            if len(self._left) < start + length:
                return
            packet, self._left = self._left[: start + length], self._left[start + length :]
            yield packet[0], packet[start:]

    def _answer(self, first: int, body: bytes) -> None:
        kind, no_properties = first & 0xF0, b"\0" if self._is_five else b""
        if kind == CONNECT:
            self._owed += _packet(CONNACK, b"\0\0" + no_properties)
        elif kind == SUBSCRIBE:
            self._owed += _packet(SUBACK, body[:2] + no_properties + bytes([self._qos]))
            self._is_subscribed = True
        elif kind == PUBACK:
            self._acknowledged += 1
        elif kind == PUBLISH:
            self._take(first, body)

    def _take(self, first: int, body: bytes) -> None:
        at = 2 + struct.unpack_from("!H", body)[0]
        topic = body[2:at].decode()
        if first >> 1 & 3:
            self._owed += _packet(PUBACK, body[at : at + 2])
            at += 2
        if self._is_five:
            size, at = _varint(body, at)
            at += size
        if topic == self._wanted:
            self.results.append(body[at:])


def unread_bytes(fileno: int) -> int:
    """What has come to a socket and was not read."""
    return _queued(fileno, termios.FIONREAD)


def _queued(fileno: int, which: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(fileno, which, b"\0" * 4))[0])


def _await(condition: Callable[[], bool], what: str) -> None:
    """Looks at no clock: the guest's is not one."""
    for _ in range(round(WAIT_S / PAUSE_S)):
        if condition():
            return
        time.sleep(PAUSE_S)
    raise TimeoutError(f"waited {WAIT_S:g} s for {what}")


def _packet(first: int, body: bytes) -> bytes:
    """Of less than 128 bytes."""
    return bytes([first, len(body)]) + body


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Raises IndexError when it is cut off."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
