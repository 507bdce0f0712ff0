"""What paho takes for its socket: its packets join the lane's output, and it reads the frames the lane leaves to it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

DISCONNECT = 0xE0
BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
CONNACK = b"\x20\x02\x00\x00"
REHEARSED = ["called", "10", "on_connect", "82060001", "on_socket_close", "on_disconnect"]


class LaneSocket:
    """The socket of one connection, shared with paho, which calls recv, send, pending, close and their like.

    control: whole frames for paho. queued, sent: bytes put into the output and written, since the connection began.
    called: paho has packets to send. hides_input: OpenSSL holds more than the last read had room for, where select
    cannot see it. mute: nothing more can be written, and what is put is dropped; what the peer has sent before it
    closed is still to be read. ended: nothing more will be read; paho finds that out in recv. read_needs_room: TLS
    cannot read before it has written. write_needs_input: it cannot write before it has read; write again after that.
    """

    def __init__(self, sock: socket.socket, *, flush_timeout_s: float) -> None:
        self.control = bytearray()
        self.queued = self.sent = 0
        self.called = self.hides_input = self.mute = self.ended = False
        self.read_needs_room = self.write_needs_input = False
        self._sock = sock
        self._hidden: Callable[[], int] | None = getattr(sock, "pending", None)
        self._flush_timeout_s = flush_timeout_s
        self._frames: list[bytes] = []
        self._rest: bytes | memoryview = b""
        self._error: OSError | None = None
        self._write_error: OSError | None = None
        self._leaving = False

    def recv(self, size: int) -> bytes:
        if self.control:
            taken = bytes(self.control[:size])
            del self.control[:size]
            return taken
        if self._error is not None:
            raise self._error
        if self.ended:
            return b""
        raise BlockingIOError

    def pending(self) -> int:
        return len(self.control)

    def send(self, packet: bytes | bytearray) -> int:
        self._leaving = packet[0] == DISCONNECT
        self.put(bytes(packet))
        return len(packet)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def close(self) -> None:
        """After a DISCONNECT, which paho takes to be sent by now, write it first: else the broker sends the will."""
        if self._leaving and not (self.ended or self.mute):
            with suppress(OSError):
                self._sock.settimeout(self._flush_timeout_s)
                self._sock.sendall(b"".join((self._rest, *self._frames)))
                self.sent = self.queued
        self.end()
        self.control.clear()
        self._sock.close()

    def end(self, error: OSError | None = None) -> None:
        self.ended = True
        self._error = error or self._write_error

    def put(self, frames: bytes) -> None:
        if not self.mute:
            self._frames.append(frames)
        self.queued += len(frames)

    def write(self) -> None:
        """Send in one go as much as the socket takes."""
        self.write_needs_input = False
        while self.sent < self.queued and not self.mute:
            output = self._rest
            if not output:
                output = b"".join(self._frames)
                self._frames.clear()
            try:
                count = self._sock.send(output)
            except BLOCKED as blocked:
                self._rest = output
                self.write_needs_input = isinstance(blocked, ssl.SSLWantReadError)
                return
            except (ConnectionError, ssl.SSLError) as error:
                self._fall_silent(error)
                return
            except OSError as error:
                self.end(error)
                return
            self.sent += count
            if count < len(output):
                self._rest = memoryview(output)[count:]
                return
            self._rest = b""

    def _fall_silent(self, error: OSError) -> None:
        """The peer takes no more. Its end, and what it said before, make the socket readable."""
        self.mute, self._write_error = True, error
        self._frames.clear()
        self._rest = b""

    def read_into(self, buffer: memoryview) -> int:
        """Read once, over TLS record by record until there is no more; how many bytes came."""
        count = 0
        self.hides_input = self.read_needs_room = False
        try:
            while count < len(buffer):
                size = self._sock.recv_into(buffer[count:])
                count += size
                if not size:
                    self.end()
                if not size or self._hidden is None:
                    return count
            self.hides_input = self._hidden is not None and self._hidden() > 0
        except BLOCKED as blocked:
            self.read_needs_room = isinstance(blocked, ssl.SSLWantWriteError)
        except OSError as error:
            self.end(error)
        return count


class LaneClient(paho.Client):
    """A paho client whose socket is a lane; a new one for every connection, so that its packet ids begin anew."""

    flush_timeout_s = 0.0

    def _create_socket(self) -> Any:  # noqa: ANN401  paho has no public name for what it returns
        sock: Any = super()._create_socket()
        return LaneSocket(sock, flush_timeout_s=self.flush_timeout_s)


def on_register_write(_client: paho.Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401  paho's own type
    """To be called back by paho, which with this set leaves all writing to loop_write."""
    sock.called = True


def hook_problem() -> str:
    """Why this paho cannot be made to use a lane, or "": a rehearsal on a socket that leads nowhere."""
    if not hasattr(paho.Client, "_create_socket"):
        return "paho.Client has no _create_socket"
    ours, far = socket.socketpair()
    with ours, far:
        far.setblocking(False)
        try:
            found = _rehearse(LaneSocket(ours, flush_timeout_s=0.0), far)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
    return "" if found == REHEARSED else f"paho.Client did {found} where the lane needs {REHEARSED}"


def _rehearse(lane: LaneSocket, far: socket.socket) -> list[str]:
    """What paho does with a lane, from CONNECT to the end. Raises what paho raises."""

    class Rehearsal(paho.Client):
        def _create_socket(self) -> Any:  # noqa: ANN401
            return lane

    def sent(size: int) -> str:
        client.loop_write()
        lane.write()
        return far.recv(1024)[:size].hex()

    found: list[str] = []
    client = Rehearsal(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, reconnect_on_failure=False)
    client.on_connect = lambda *_: found.append("on_connect")
    client.on_disconnect = lambda *_: found.append("on_disconnect")
    client.on_socket_close = lambda *_: found.append("on_socket_close")
    client.on_socket_register_write = on_register_write
    client.connect_async("localhost")
    client.reconnect()
    if lane.called and client.socket() is lane:
        found.append("called")
    found.append(sent(1))
    lane.control += CONNACK
    client.loop_read()
    client.subscribe("a")
    found.append(sent(4))
    lane.end()
    client.loop_read()
    return found
