"""A TCP proxy that spoils what goes through it, switched while it runs; it needs no rights."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536
TICK_S = 0.01
RESET = struct.pack("ii", 1, 0)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.ended = False

    def close(self, *, reset: bool = False) -> None:
        """reset: with RST, which is sent when nobody reads from the socket any more: so wake those who do."""
        self.ended = True
        for line in (self.client, self.server):
            with suppress(OSError):
                if reset:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                line.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
            line.close()


class Proxy:
    """Listens on a port of its own and passes everything on to another port of this machine.

    latency_s, jitter_s: added to every piece, the jitter evenly from 0. drip_bytes: 0, or at most so many at a time,
    one piece per drip_pause_s. up, down: whether what the client and what the server says goes through; what does not
    stays in the buffers, as in a network that drops packets. refusing: new connections are closed at once.
    """

    def __init__(self, target_port: int, *, seed: int) -> None:
        self.latency_s = self.jitter_s = 0.0
        self.drip_bytes, self.drip_pause_s = 0, 0.001
        self.up = self.down = True
        self.refusing = False
        self.connections = 0
        self._target_port, self._random = target_port, random.Random(seed)
        self._pairs: list[_Pair] = []
        self._closed = False
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"mqtt://{HOST}:{self.port}"
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def stall(self) -> None:
        """Let nothing through either way, and say nothing about it."""
        self.up = self.down = False

    def heal(self) -> None:
        """Let everything through, unspoilt."""
        self.latency_s = self.jitter_s = 0.0
        self.drip_bytes = 0
        self.refusing = False
        self.up = self.down = True

    def cut(self) -> None:
        """End all connections (FIN)."""
        self._end_all(reset=False)

    def reset(self) -> None:
        """Reset all connections (RST)."""
        self._end_all(reset=True)

    def half_close(self) -> None:
        """End what the server says; the client may go on."""
        for pair in self._pairs:
            with suppress(OSError):
                pair.client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all(reset=False)

    def _end_all(self, *, reset: bool) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close(reset=reset)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if not self.refusing and self._connect(client):
                continue
            client.close()

    def _connect(self, client: socket.socket) -> bool:
        try:
            server = socket.create_connection((HOST, self._target_port), 5)
        except OSError:
            return False
        pair = _Pair(client, server)
        for line in (client, server):
            line.settimeout(None)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.append(pair)
        for way in ("up", "down"):
            threading.Thread(target=self._pass_on, args=(pair, way), name=f"proxy {way}", daemon=True).start()
        return True

    def _pass_on(self, pair: _Pair, way: str) -> None:
        source, target = (pair.client, pair.server) if way == "up" else (pair.server, pair.client)
        try:
            while piece := self._take(source, way):
                self._wait_open(way)
                if self.latency_s or self.jitter_s:
                    time.sleep(self.latency_s + self._random.uniform(0, self.jitter_s))
                self._wait_open(way)
                target.sendall(piece)
            if not pair.ended:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pair.close()

    def _take(self, source: socket.socket, way: str) -> bytes:
        self._wait_open(way)
        if not self.drip_bytes:
            return source.recv(CHUNK_BYTES)
        time.sleep(self.drip_pause_s)
        return source.recv(self.drip_bytes)

    def _wait_open(self, way: str) -> None:
        while not (getattr(self, way) or self._closed):
            time.sleep(TICK_S)
