"""A broker that says exactly what a test tells it to, byte by byte, for what no real broker can be made to do."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time

from edge_runtime.mqtt.transport import Client

RECEIVE_MAXIMUM = 0x21
MAXIMUM_PACKET_SIZE = 0x27

WAIT_S = 10.0
STEP_S = 0.01


def packet(first: int, body: bytes) -> bytes:
    size, length = len(body), b""
    while size >= 128:
        length += bytes([size % 128 | 128])
        size //= 128
    return bytes([first]) + length + bytes([size]) + body


def publish_ids(packets: list[tuple[int, bytes]]) -> list[tuple[int, bool]]:
    """(packet id, DUP) of the PUBLISH packets at QoS 1."""
    found = []
    for first, body in packets:
        if first & 0xF0 == 0x30:
            size = struct.unpack("!H", body[:2])[0]
            found.append((struct.unpack("!H", body[2 + size : 4 + size])[0], bool(first & 8)))
    return found


class Scripted:
    """Listens on a free port and serves one connection at a time; the client is polled while it waits."""

    def __init__(self, client_protocol: str = "5", *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.five = client_protocol == "5"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self.url = f"{'mqtts' if tls else 'mqtt'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self, client: Client) -> tuple[int, bytes]:
        """Take the next connection and its CONNECT packet."""
        self.hang_up()
        self._await_readable(self._listener, client)
        self._connection, _ = self._listener.accept()
        if self._tls is not None:
            self._connection = self._tls.wrap_socket(self._connection, server_side=True)
        return self.receive(client)

    def welcome(self, client: Client, *, session_present: bool = False, properties: bytes = b"") -> None:
        """Take the next connection and accept it. properties: of the CONNACK, encoded."""
        assert self.accept(client)[0] == 0x10
        self.send_packet(0x20, bytes([session_present, 0]) + self.properties(properties))
        deadline = time.monotonic() + WAIT_S
        while not client.connected:
            client.poll(STEP_S)
            assert time.monotonic() < deadline

    def properties(self, encoded: bytes = b"") -> bytes:
        return bytes([len(encoded)]) + encoded if self.five else b""

    def publish(self, topic: bytes, payload: bytes, *, mid: int = 0) -> None:
        self.send(self.published(topic, payload, mid=mid))

    def published(self, topic: bytes, payload: bytes, *, mid: int = 0) -> bytes:
        packet_id = struct.pack("!H", mid) if mid else b""
        body = struct.pack("!H", len(topic)) + topic + packet_id + self.properties() + payload
        return packet(0x32 if mid else 0x30, body)

    def send_packet(self, first: int, body: bytes) -> None:
        self.send(packet(first, body))

    def send(self, raw: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(raw)

    def receive(self, client: Client) -> tuple[int, bytes]:
        """The next packet: its first byte, and what follows the length."""
        first = self._exactly(1, client)[0]
        length = shift = 0
        while True:
            byte = self._exactly(1, client)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return first, self._exactly(length, client)

    def received(self, client: Client, *, quiet_s: float = 0.2) -> list[tuple[int, bytes]]:
        """All packets until nothing came for a while."""
        assert self._connection is not None
        packets = []
        deadline = time.monotonic() + quiet_s
        while time.monotonic() < deadline:
            client.poll(STEP_S)
            if self._readable(self._connection):
                packets.append(self.receive(client))
                deadline = time.monotonic() + quiet_s
        return packets

    def left_over(self) -> list[tuple[int, bytes]]:
        """All packets up to the end of the connection, which the client has closed."""
        assert self._connection is not None
        self._connection.settimeout(WAIT_S)
        raw = b""
        while chunk := self._connection.recv(65_536):
            raw += chunk
        packets = []
        while raw:
            size = raw[1]
            assert size < 128, "only small packets are cut here"
            packets.append((raw[0], raw[2 : 2 + size]))
            raw = raw[2 + size :]
        return packets

    def _exactly(self, count: int, client: Client) -> bytes:
        assert self._connection is not None
        found = b""
        while len(found) < count:
            self._await_readable(self._connection, client)
            chunk = self._connection.recv(count - len(found))
            assert chunk, "the client closed the connection"
            found += chunk
        return found

    def _await_readable(self, sock: socket.socket, client: Client) -> None:
        deadline = time.monotonic() + WAIT_S
        while not self._readable(sock):
            client.poll(STEP_S)
            assert time.monotonic() < deadline, "nothing came from the client"

    def _readable(self, sock: socket.socket) -> bool:
        decrypted = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        return decrypted or bool(select.select([sock], [], [], 0)[0])

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()
