"""A server for the lane that says what a test tells it to, both directions as bytes: plain and over TLS."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from broker import WAIT_S
from certificates import Authority
from driving import fates
from scripted import STEP_S, Scripted

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.frames import Cut, FrameCutter
from edge_runtime.mqtt.transport import Client, Waiter
from edge_runtime.records import Message, Outgoing

MakeClient = Callable[..., MqttClient]

PING, PINGRESP = b"\xc0\x00", b"\xd0\x00"
PUBACK, PUBREC, PUBCOMP = 0x40, 0x50, 0x70


class Server(Scripted):
    """Scripted, with both directions as bytes."""

    def __init__(self, client_protocol: str, *, tls: ssl.SSLContext | None = None, ca: Path | None = None) -> None:
        super().__init__(client_protocol, tls=tls)
        self.settings: dict[str, Any] = {"protocol": client_protocol, "client": "lane"}
        if ca is not None:
            self.settings["ca"] = str(ca)

    @property
    def line(self) -> socket.socket:
        assert self._connection is not None
        return self._connection

    def pour(self, raw: bytes, client: Client) -> list[Message]:
        """Send all of it, however little the client's buffers hold; the messages that came meanwhile."""
        messages: list[Message] = []
        self.line.settimeout(STEP_S)
        deadline = time.monotonic() + WAIT_S
        left = memoryview(raw)
        while left:
            assert time.monotonic() < deadline, f"{len(left)} bytes could not be sent"
            with suppress(TimeoutError, ssl.SSLWantWriteError):
                left = left[self.line.send(left[:65_536]) :]
            messages += client.poll(0)
        self.line.settimeout(None)
        return messages

    def hear(self, client: Client, until: Callable[[Cut], bool]) -> Cut:
        """What the client sends, until that is enough: its PUBLISH packets cut apart, the rest as it is."""
        cutter = FrameCutter(five=self.five, epoch=0, max_packet_bytes=1 << 24)
        heard = Cut()
        deadline = time.monotonic() + WAIT_S
        while not until(heard):
            assert time.monotonic() < deadline, f"{len(heard.messages)} messages and {heard.control!r:.80}"
            client.poll(0)
            if self._readable(self.line):
                chunk = self.line.recv(1 << 20)
                assert chunk, "the client closed the connection"
                found = cutter.cut(chunk, 0, ())
                heard.messages += found.messages
                heard.control += found.control
        return heard

    def body(self, topic: bytes, payload: bytes, *, mid: int = 0) -> bytes:
        return (
            struct.pack("!H", len(topic))
            + topic
            + (struct.pack("!H", mid) if mid else b"")
            + self.properties()
            + payload
        )


@pytest.fixture(params=["plain 5", "plain 3.1.1", "TLS 5"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    transport, protocol = request.param.split()
    context, ca = None, None
    if transport == "TLS":
        authority = Authority(tmp_path)
        signed = authority.issue("broker", hosts=("127.0.0.1",))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(signed.cert, signed.key)
        ca = tmp_path / "ca.pem"
    made = Server(protocol, tls=context, ca=ca)
    yield made
    made.close()


@pytest.fixture
def connected(make_client: MakeClient, server: Server) -> Callable[..., MqttClient]:
    """Makes a lane client of the server, accepted by it."""

    def make(*, settings: dict[str, Any] | None = None, properties: bytes = b"", **options: Any) -> MqttClient:
        client = make_client(server.url, settings={**server.settings, **(settings or {})}, **options)
        server.welcome(client, properties=properties)
        assert client.kind == "lane"
        return client

    return make


Connected = Callable[..., MqttClient]


def payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def await_messages(client: Client, count: int) -> list[Message]:
    """As the loop does it: sleep until the kernel shows input, or the client says it holds some itself."""
    waiter = Waiter([client])
    messages: list[Message] = []
    deadline = time.monotonic() + WAIT_S
    while len(messages) < count:
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages"
        waiter(WAIT_S / 2)
        messages += client.poll(0)
    return messages


class Publisher:
    """Publishes large messages that begin with their number, and knows what became of them."""

    def __init__(self, client: MqttClient, *, size: int = 60_000) -> None:
        self._client = client
        self._filling = bytes(size)
        self.tokens: list[int] = []
        self.known: dict[int, str] = {}

    def publish(self, qos: int = 0) -> None:
        payload = struct.pack("!I", len(self.tokens)) + self._filling
        self.tokens.append(self._client.publish(Outgoing("out/a", payload, qos=qos)))

    def publish_until(self, condition: Callable[[], bool], *, qos: int = 0) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"{len(self.tokens)} published"
            self.publish(qos)
            self._client.poll(0)
            self.collect()

    def collect(self) -> None:
        for token, reason in fates(self._client):
            assert token not in self.known, f"token {token} was confirmed twice"
            self.known[token] = reason

    @property
    def open(self) -> int:
        return len(self.tokens) - len(self.known)

    def numbers(self, *, reason: str) -> list[int]:
        return [number for number, token in enumerate(self.tokens) if self.known.get(token) == reason]


def numbers(messages: list[Message]) -> list[int]:
    return [struct.unpack("!I", message.payload[:4])[0] for message in messages]
