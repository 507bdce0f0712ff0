"""One TCP or TLS connection under paho at a time: dial, wait, read, write, hang up.

Connecting is the one step that blocks, so it runs in a Dial, and paho is left alone until that is over. All else
happens in the calls made here, so an exception in one of paho's callbacks comes out of them.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from paho.mqtt import client as paho

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.dial import Dial
from edge_runtime.mqtt.settings import MqttSettings

READ_BYTES = 65_536


class Link:
    """paho may be used by others only while the link is open."""

    def __init__(self, settings: MqttSettings, client_id: str, *, now_ns: Callable[[], int]) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._errors = wire.LastError()
        self.paho = wire.new_client(settings, client_id, self._errors)
        self.paho.on_socket_open = _on_socket_open
        self.paho.on_socket_register_write = _on_register_write
        self._now_ns = now_ns
        self._dial: Dial | None = None
        self._poller = select.poll()

    @property
    def open(self) -> bool:
        return self._dial is None and self.paho.socket() is not None

    @property
    def error(self) -> str:
        """The last error paho met on this connection, or "" when there was none."""
        return self._errors.text

    def dial(self) -> None:
        """Begin to connect; CONNECT is sent with the first write after that."""
        self._errors.text = ""
        self._dial = Dial(self.paho.reconnect)

    def dialed(self) -> bool:
        """Whether the attempt is over and the link open. Raises OSError when it failed."""
        dial = self._dial
        if dial is None or not dial.over:
            return False
        self._dial = None
        dial.result()
        self._poller = select.poll()
        self._poller.register(self.fileno(), select.POLLIN)
        return True

    def abandon(self) -> None:
        """Let an attempt under way end unseen. No CONNECT was sent, so no will was set."""
        if self._dial is not None:
            self._dial.abandon()

    def fileno(self) -> int:
        if self._dial is not None:
            return self._dial.fileno()
        sock = self._socket()
        return -1 if sock is None else int(sock.fileno())

    def wants_write(self) -> bool:
        return self.open and self.paho.want_write()

    def readable(self) -> bool:
        """Whether a read would find something: in the kernel, or inside the TLS layer, where select cannot see it."""
        sock = self._socket()
        if sock is None:
            return False
        pending = getattr(sock, "pending", None)
        return (pending is not None and pending() > 0) or bool(self._poller.poll(0))

    def wait(self, timeout_s: float) -> None:
        """Sleep until there is something to read, room to write what waits, or time is up."""
        if self.open and self.readable():
            return
        poller = select.poll()
        fileno = self.fileno()
        if fileno >= 0:
            poller.register(fileno, select.POLLIN | (select.POLLOUT if self.wants_write() else 0))
        poller.poll(max(0.0, timeout_s) * 1000)

    def wait_writable(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        poller.poll(max(0.0, timeout_s) * 1000)

    def read(self) -> None:
        """Let paho read: one packet, part of one, or the end of the connection."""
        self.paho.loop_read()
        sock = self._socket()
        if sock is not None:
            wire.quick_ack(sock)

    def write(self) -> None:
        """Write as much of what is buffered as the socket takes."""
        if self.wants_write():
            self.paho.loop_write()

    def cut(self) -> None:
        """Close the socket under paho, without a DISCONNECT, and let paho notice."""
        sock = self._socket()
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            while self._socket() is not None:
                self.paho.loop_read()

    def hang_up(self, deadline_ns: int) -> None:
        """Send DISCONNECT and stay on the line until the broker has closed its end, or time is up.

        paho closes right after writing. With input unread that resets the connection, the broker may never read the
        DISCONNECT, and the will fires; a second descriptor keeps the line open meanwhile.
        """
        if not self.open:
            return
        with socket.socket(fileno=os.dup(self.fileno())) as line:
            self.paho.disconnect()
            self.write()
            while self.open and self._now_ns() < deadline_ns:
                self.wait_writable((deadline_ns - self._now_ns()) / 1e9)
                self.write()
            with suppress(OSError):
                line.shutdown(socket.SHUT_WR)
                while (left_ns := deadline_ns - self._now_ns()) > 0:
                    line.settimeout(left_ns / 1e9)
                    if not line.recv(READ_BYTES):
                        break
        self.cut()

    def _socket(self) -> socket.socket | None:
        """The socket paho uses, or None while there is none or a dial may be at work on it."""
        return None if self._dial is not None else cast("socket.socket | None", self.paho.socket())


def _on_socket_open(_client: paho.Client, _userdata: object, sock: object) -> None:
    wire.no_delay(sock)


def _on_register_write(_client: paho.Client, _userdata: object, _sock: object) -> None:
    """With this set, paho leaves all writing to loop_write: nothing is sent from inside publish or ack."""
