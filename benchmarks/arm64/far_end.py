"""The broker's end of a connection. In the guest the counted thread plays it too, where nothing is counted."""

from __future__ import annotations

import fcntl
import gc
import select
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
WAIT_S = 30.0
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
        self._listener.setblocking(False)
        self._line: socket.socket | None = None
        self._left = b""
        self._owed = b""
        self._mid = 0
        self._windows = self._messages = self._acknowledged = 0
        self.is_subscribed = self._is_counting = False
        self.results: list[bytes] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Take the connection, or what has come over it, and answer; waits for nothing."""
        if self._line is None:
            if select.select([self._listener], [], [], 0)[0]:
                self._line, _ = self._listener.accept()
            return
        while select.select([self._line], [], [], 0)[0]:
            self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # else Nagle holds paho back for 40 ms
            found = self._line.recv(READ_BYTES)
            if not found:
                raise ConnectionError("the subject has closed the connection")
            self._left += found
            for first, body in self._packets():
                self._answer(self._line, first, body)

    def send(self, read: Read, fileno: int) -> None:
        """A read, behind the acknowledgements that are owed; returns when all of it is at the subject's descriptor.

        Garbage is collected before the first that is counted: collections then always fall into the same rounds.
        """
        if read.is_counted and not self._is_counting:
            gc.collect()
        self._is_counting = read.is_counted
        raw = self._owed + b"".join(self._frame(payload) for payload in read.payloads)
        self._owed = b""
        self._windows += read.windows
        self._messages += len(read.payloads)
        if self._line is None:
            raise ConnectionError("there is no connection to send over")
        self._line.sendall(raw)
        _await(lambda: unread_bytes(fileno) >= len(raw), f"{len(raw)} bytes to arrive")

    def settle(self) -> None:
        """Wait until all that was sent is answered."""
        _await(self._is_settled, "the results and acknowledgements of a read")

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        self._listener.close()

    def _is_settled(self) -> bool:
        self.serve()
        return len(self.results) >= self._windows and self._acknowledged >= self._messages * self._qos

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

    def _answer(self, line: socket.socket, first: int, body: bytes) -> None:
        kind, no_properties = first & 0xF0, b"\0" if self._is_five else b""
        if kind == CONNECT:
            line.sendall(_packet(CONNACK, b"\0\0" + no_properties))
        elif kind == SUBSCRIBE:
            line.sendall(_packet(SUBACK, body[:2] + no_properties + bytes([self._qos])))
            self.is_subscribed = True
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
    return int(struct.unpack("i", fcntl.ioctl(fileno, termios.FIONREAD, b"\0" * 4))[0])


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:g} s for {what}")
        time.sleep(0.0005)


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
