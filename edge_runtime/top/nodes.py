"""Nodes as they say they are: their status and metrics, heard over MQTT, and nothing else known of them."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from edge_runtime.errors import TransportError
from edge_runtime.metrics import SCHEMA, Metrics
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.presence import Status
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import check_name
from edge_runtime.mqtt.transport import Client, Waiter
from edge_runtime.record import connect
from edge_runtime.records import Message

DOCUMENTS: dict[str, type[Status | Metrics]] = {"status": Status, "metrics": Metrics}
ALL_NODES = "+"
MOST_NODES = 1000
MOST_BYTES = 1 << 20
MOST_WHY = 120  # characters
SILENT_INTERVALS = 3
STOP_S = 1.0
NS_PER_S = 1e9
NOT_ASCII = re.compile(r"[^ -~]")


class Node:
    """What one node said last. heard_ns: when its metrics came in. kept: by the broker, so they are older than that.

    unreadable: documents so far. why: by the kind of which the last one was so.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: Status | None = None
        self.metrics: Metrics | None = None
        self.heard_ns = 0
        self.kept = False
        self.unreadable = 0
        self.why: dict[str, str] = {}

    @property
    def runs(self) -> bool:
        """Whether it said that it does, and its connection has not broken since."""
        return self.status is not None and self.status.state in ("online", "degraded")

    @property
    def told(self) -> bool:
        """Whether there is nothing to wait for: its metrics are here, or it is gone."""
        return self.metrics is not None or (self.status is not None and not self.runs)

    def silent(self, now_ns: int) -> bool:
        """Whether SILENT_INTERVALS went by in which it should have sent metrics."""
        if not self.runs or self.metrics is None:
            return False
        return now_ns - self.heard_ns > SILENT_INTERVALS * self.metrics.every_s * NS_PER_S

    def gone(self, now_ns: int) -> bool:
        """Whether its metrics are of a time that is over."""
        return self.silent(now_ns) or (self.status is not None and not self.runs)


class Heard(NamedTuple):
    """A document that could be read. body: all of it, what we do not know included, as JSON in UTF-8."""

    node: str
    kind: str
    retained: bool
    body: bytes

    def line(self) -> str:
        """One line of JSON in ASCII."""
        line = msgspec.json.encode(
            {"node": self.node, "kind": self.kind, "retained": self.retained, "document": msgspec.Raw(self.body)}
        )
        return NOT_ASCII.sub(lambda char: json.dumps(char[0])[1:-1], line.decode())


class Nodes:
    """All nodes that were heard of, MOST_NODES at most; documents above MOST_BYTES are not read."""

    def __init__(self, root: str) -> None:
        self._prefix = f"{root}/"
        self._by_name: dict[str, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        """In the order of their names."""
        return iter(sorted(self._by_name.values(), key=lambda node: node.name))

    def take(self, message: Message, *, now_ns: int) -> Heard | None:
        """Keep what a message says; what is no document is counted with its node. An empty one withdraws the last."""
        name, _, kind = message.topic.removeprefix(self._prefix).partition("/")
        node = self._node(name) if kind in DOCUMENTS else None
        if node is None:
            return None
        if not message.payload:
            setattr(node, kind, None)
            node.why.pop(kind, None)
            return None
        try:
            found, body = _read(message.payload, DOCUMENTS[kind])
        except ValueError as error:
            node.unreadable += 1
            node.why[kind] = str(error)[:MOST_WHY]
            return None
        node.why.pop(kind, None)
        if isinstance(found, Status):
            node.status = found
        else:
            node.metrics, node.heard_ns, node.kept = found, now_ns, message.retain
        return Heard(name, kind, message.retain, body)

    def _node(self, name: str) -> Node | None:
        if name not in self._by_name and len(self._by_name) < MOST_NODES:
            try:
                self._by_name[name] = Node(check_name("node", name))
            except ValueError:
                return None
        return self._by_name.get(name)


def _read(body: bytes, kind: type[Status | Metrics]) -> tuple[Status | Metrics, bytes]:
    """The document, and all of it as JSON. Raises ValueError."""
    if len(body) > MOST_BYTES:
        raise ValueError(f"{len(body):,} bytes, more than {MOST_BYTES:,}")
    try:
        whole = msgspec.json.decode(body)
        if kind is Metrics and isinstance(whole, dict) and whole.get("v", SCHEMA) != SCHEMA:
            raise ValueError(f"v is {msgspec.json.encode(whole['v']).decode()}, known is {SCHEMA}")
        return msgspec.json.decode(body, type=kind), msgspec.json.encode(whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Feed:
    """The nodes, and the connection on which they are heard."""

    def __init__(self, client: Client, nodes: Nodes, early: Sequence[Message]) -> None:
        """early: messages that came while it was being connected."""
        self.nodes = nodes
        self._client, self._early = client, list(early)
        self._wait = Waiter([client])

    @property
    def away(self) -> str:
        """Why the broker is not there, "" while it is."""
        return self._client.reason

    def also(self, fileno: int) -> None:
        """Let `step` return when this descriptor can be read, too."""
        self._wait = Waiter([self._client], also=fileno)

    def step(self, timeout_s: float) -> list[Heard]:
        """Wait for messages at most timeout_s; the documents among them."""
        messages, self._early = self._early, []
        if not messages:
            self._wait(timeout_s)
        messages += self._client.poll(0.0)
        now_ns = time.monotonic_ns()
        found = [self.nodes.take(message, now_ns=now_ns) for message in messages]
        return [heard for heard in found if heard is not None]


@contextmanager
def listening(settings: MqttSettings, wanted: str) -> Iterator[Feed]:
    """Hear one node, or ALL_NODES, under a client id and a session of its own.

    Raises TransportError when the broker cannot be reached or refuses.
    """
    client = make_client(
        msgspec.structs.replace(settings, session_expiry_s=0),
        client_id=f"edge-runtime-top-{secrets.token_hex(8)}",
        subscriptions=[(f"{settings.root}/{wanted}/{kind}", 0) for kind in DOCUMENTS],
        retained=True,
    )
    try:
        client.start()
        try:
            early = connect(client, settings.connect_timeout_s)
        except TransportError as error:
            raise TransportError(f"{settings.url}: {error}") from error
        yield Feed(client, Nodes(settings.root), early)
    finally:
        client.stop(STOP_S)
