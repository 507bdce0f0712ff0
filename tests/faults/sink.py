"""A consumer with a session of its own, subscribed to all a node's pipelines publish."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any, NamedTuple

from broker import until
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from scene import ROOT, Document

HOST = "127.0.0.1"
SESSION_S = 3600


class Arrival(NamedTuple):
    """at_s: by the monotonic clock. again: flagged by the broker as one it had sent us before."""

    topic: str
    payload: bytes
    at_s: float
    again: bool


class Sink:
    """Keeps everything in the order in which it came; comes back by itself when the broker does."""

    def __init__(self, port: int, *, node: str, receive_maximum: int = 1000) -> None:
        self.arrivals: list[Arrival] = []
        self._documents: list[Document] = []
        self._seen: set[tuple[str, bytes]] = set()
        self._read = 0
        self._node, self._port = node, port
        self._id = f"sink-{uuid.uuid4().hex[:12]}"
        self._filters = (f"{ROOT}/{node}/p/#", f"marker/{self._id}")
        self._subscribed, self._markers = threading.Event(), set[bytes]()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._id, protocol=paho.MQTTv5)
        self._client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]  takes fractions as well
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval, properties.ReceiveMaximum = SESSION_S, receive_maximum
        self._client.connect(HOST, port, clean_start=False, properties=properties)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def _on_connect(self, client: paho.Client, _user: Any, _flags: Any, code: Any, _properties: Any) -> None:
        assert not code.is_failure, code
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
        client.subscribe([(name, options) for name in self._filters])

    def _on_message(self, _client: paho.Client, _user: Any, message: paho.MQTTMessage) -> None:
        if message.topic.startswith("marker/"):
            self._markers.add(message.payload)
            return
        self.arrivals.append(Arrival(message.topic, message.payload, time.monotonic(), message.dup))

    def catch_up(self, timeout_s: float = 20.0) -> None:
        """Wait until everything has arrived that the broker holds for us now: a marker of our own comes after it."""
        marker = uuid.uuid4().bytes
        self._client.publish(self._filters[1], marker, 1)
        until(lambda: marker in self._markers, what="the sink's own marker", timeout_s=timeout_s)

    def documents(self) -> list[Document]:
        """What came, but for dead letters, and for what the broker itself sent us again.

        That it does after it was killed, with what had not yet been answered when it last saved.
        """
        for one in self.arrivals[self._read :]:
            self._read += 1
            content = one.topic, one.payload
            if not (one.topic.endswith("/dead") or (one.again and content in self._seen)):
                self._documents.append(Document(one.topic, json.loads(one.payload)))
            self._seen.add(content)
        return self._documents

    def forget(self) -> None:
        """What has come so far."""
        self.arrivals, self._documents, self._seen, self._read = [], [], set(), 0

    def results(self) -> int:
        return sum("/out/" in one.topic for one in list(self.arrivals))

    def first_after(self, at_s: float) -> float | None:
        """When the first result came after a moment, None when none has; not one the broker had sent us before."""
        found = (one.at_s for one in list(self.arrivals) if one.at_s > at_s and "/out/" in one.topic and not one.again)
        return next(found, None)

    def retained(self, expected: int, timeout_s: float = 5.0) -> dict[str, dict[str, Any]]:
        """What somebody who comes now is told of the alarms, by topic. expected: how many to wait for."""
        found: dict[str, dict[str, Any]] = {}
        late = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"late-{uuid.uuid4().hex[:12]}", protocol=paho.MQTTv5)
        late.on_message = lambda _client, _user, message: found.update({message.topic: json.loads(message.payload)})
        late.connect(HOST, self._port)
        late.subscribe(f"{ROOT}/{self._node}/p/+/state/#", 1)
        deadline = time.monotonic() + timeout_s
        while len(found) < expected and time.monotonic() < deadline:
            late.loop(0.05)
        late.disconnect()
        return found

    def close(self) -> None:
        """Leave, and leave no session behind."""
        properties = Properties(PacketTypes.DISCONNECT)
        properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)
        self._client.loop_stop()
