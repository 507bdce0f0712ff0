"""One TCP or TLS connection under paho at a time: dial, wait, cut, hang up.

Connecting is the one step that blocks, so it runs in a Dial, and paho is left alone until that is over. All else
happens in the calls made here, so an exception in one of paho's callbacks comes out of them.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from paho.mqtt import client as paho

from edge_runtime.mqtt import wire
from edge_runtime.mqtt.dial import Dial

LINGER_BYTES = 65_536


class Writer(Protocol):
    """Who writes on the link. write: as much as the socket takes, without waiting."""

    def wants_write(self) -> bool: ...

    def write(self) -> None: ...


class Link:
    """paho, and whoever reads and writes beside it, may use the connection only while the link is open.

    client: paho's, of the connection or of the attempt under way. line: a second descriptor of the connection,
    whatever paho's own socket is wrapped in; for TCP options, and for the time after paho has closed its own.
    problem: why this side gave the connection up, or "".
    """

    client: paho.Client
    line: socket.socket

    def __init__(self, *, now_ns: Callable[[], int]) -> None:
        self.open = False
        self.problem = ""
        self.errors = wire.LastError()
        self._now_ns = now_ns
        self._dial: Dial | None = None
        self._fileno = -1

    def dial(self, client: paho.Client) -> None:
        """Begin to connect; CONNECT is sent with the first write after that."""
        self.problem = self.errors.text = ""
        self.client = client
        self.client.on_socket_close = self._on_socket_close
        self._dial = Dial(client.reconnect)

    def dialed(self) -> bool:
        """Whether the attempt is over and the link open. Raises OSError when it failed."""
        dial = self._dial
        if dial is None or not dial.over:
            return False
        self._dial = None
        dial.result()
        sock = self.client.socket()
        assert sock is not None  # noqa: S101  paho has just connected it
        self._fileno = sock.fileno()
        self.line = _second(self._fileno)
        wire.no_delay(self.line)
        self.open = True
        return True

    def abandon(self) -> None:
        """Let an attempt under way end unseen. No CONNECT was sent, so no will was set."""
        if self._dial is not None:
            self._dial.abandon()

    def fileno(self) -> int:
        if self._dial is not None:
            return self._dial.fileno()
        return self._fileno if self.open else -1

    def wait(self, timeout_s: float, *, writing: bool) -> None:
        """Sleep until there is something to read, room to write when that is wanted, or time is up."""
        poller = select.poll()
        fileno = self.fileno()
        if fileno >= 0:
            poller.register(fileno, select.POLLIN | (select.POLLOUT if writing else 0))
        poller.poll(max(0.0, timeout_s) * 1000)

    def wait_writable(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self.fileno(), select.POLLOUT)
        poller.poll(max(0.0, timeout_s) * 1000)

    def cut(self, problem: str = "") -> None:
        """Close the connection under paho, without a DISCONNECT, and let paho notice. problem: why, for people."""
        self.problem = problem
        sock = self.client.socket() if self.open else None
        if sock is not None:
            with suppress(OSError):
                self.line.shutdown(socket.SHUT_RDWR)
            sock.close()
            while self.open:
                self.client.loop_read()

    def hang_up(self, writer: Writer, deadline_ns: int) -> None:
        """Write what is left, then DISCONNECT, and stay on the line until the broker has closed its end, or time is up.

        paho closes right after writing. With input unread that resets the connection, the broker may never read the
        DISCONNECT, and the will fires; a second descriptor keeps the line open meanwhile.
        """
        if not self.open:
            return
        with _second(self._fileno) as line:
            self._drain(writer, deadline_ns)
            self.client.disconnect()
            self._drain(writer, deadline_ns)
            with suppress(OSError):
                line.shutdown(socket.SHUT_WR)
                while (left_ns := deadline_ns - self._now_ns()) > 0:
                    line.settimeout(left_ns / 1e9)
                    if not line.recv(LINGER_BYTES):
                        break
        self.cut()

    def _drain(self, writer: Writer, deadline_ns: int) -> None:
        writer.write()
        while self.open and writer.wants_write() and self._now_ns() < deadline_ns:
            self.wait_writable((deadline_ns - self._now_ns()) / 1e9)
            writer.write()

    def _on_socket_close(self, _client: paho.Client, _userdata: object, _sock: object) -> None:
        if self.open:
            self.open = False
            self.line.close()


def _second(fileno: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fileno))
