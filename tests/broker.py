"""A real mosquitto for one test, and a bare paho client beside ours to publish and listen with.

def test_x(start_broker):                    # fixtures: conftest.py
    broker = start_broker(users={"node": "secret"})
    client = make_client(MqttSettings(url=broker.url), client_id="c")
    probe = broker.probe("results/#")
    probe.publish("in/1", b"...")
    assert probe.wait_for(1)[0].payload == b"..."
"""

from __future__ import annotations

import base64
import hashlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from certificates import Authority
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_runtime.demo.broker import HOST, find_mosquitto

START_S = 10.0
STOP_S = 10.0
WAIT_S = 10.0

FLOOD = """
import contextlib, sys
from paho.mqtt import client as paho
client = paho.Client(paho.CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", int(sys.argv[1]))
while not client.is_connected():
    client.loop(0.1)
topic = sys.argv[2].encode()
body = len(topic).to_bytes(2, "big") + topic + bytes(int(sys.argv[3]))
length, size = b"", len(body)
while size >= 128:
    length, size = length + bytes([size % 128 | 128]), size // 128
packets = (b"\\x30" + length + bytes([size]) + body) * 16
line = client.socket()
line.setblocking(True)
with contextlib.suppress(OSError):
    while True:
        line.sendall(packets)
"""


def hold_port(port: int = 0) -> socket.socket:
    """A free port, kept from everyone but a server that listens on it; until one does, connections are refused."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, port))
    return holder


def free_port() -> int:
    """A port that was free a moment ago; hold_port is the surer way."""
    with hold_port() as holder:
        return int(holder.getsockname()[1])


def until(condition: Callable[[], bool], *, what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds; fail the test, naming it, when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.005)


@dataclass
class Broker:
    """One mosquitto on a port of its own.

    users: name -> password; with any, anonymous clients are refused. acl: lines of an ACL file. authority: serve TLS
    with a certificate of its for hosts, and ask clients for one when client_certificates is set. lines: more of
    mosquitto.conf.
    """

    folder: Path
    users: dict[str, str] = field(default_factory=dict)
    acl: tuple[str, ...] = ()
    authority: Authority | None = None
    hosts: tuple[str, ...] = ("localhost", HOST)
    client_certificates: bool = False
    tcp_nodelay: bool = True
    lines: tuple[str, ...] = ()
    port: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._holder = hold_port(self.port)
        self.port = int(self._holder.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._probes: list[Probe] = []
        self._floods: list[subprocess.Popen[bytes]] = []
        self._prepared: list[str] = []

    @property
    def url(self) -> str:
        return f"mqtts://localhost:{self.port}" if self.authority else f"mqtt://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        path = self.folder / "mosquitto.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it, and see that it is this process that listens: a foreign broker on the port must fail the test."""
        path = find_mosquitto()
        assert path is not None
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(self._config()) + "\n")
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen([path, "-c", str(config)], stdout=log, stderr=log)
        if not self._listens():
            self._end(signal.SIGKILL)
            pytest.fail(f"mosquitto did not start:\n{self.log}")

    def _listens(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        process = psutil.Process(self._process.pid)
        while self._process.poll() is None and time.monotonic() < deadline:
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == self.port for c in connections):
                return True
            time.sleep(0.005)
        return False

    def stop(self) -> None:
        """End it the way a system does (SIGTERM): clients are told, persistence is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it the way a power cut does (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None

    def close(self) -> None:
        for process in self._floods:
            process.kill()
            process.wait(STOP_S)
        for probe in self._probes:
            probe.close()
        self._end(signal.SIGTERM)
        self._holder.close()

    def probe(self, *filters: str, **options: Any) -> Probe:
        """A connected client, subscribed at QoS 1, that ends with the broker."""
        options = {"authority": self.authority, **options}
        probe = Probe(self.port, filters=filters, **options)
        self._probes.append(probe)
        return probe

    def flood(self, topic: str, payload_bytes: int) -> None:
        """Publish to a topic at QoS 0 as fast as the broker takes it, from another process, until the broker ends."""
        command = [sys.executable, "-c", FLOOD, str(self.port), topic, str(payload_bytes)]
        self._floods.append(subprocess.Popen(command))

    def _config(self) -> list[str]:
        if not self._prepared:
            self._prepared = [*self._access(), *self._tls(), *self.lines]
        own = [f"listener {self.port} {HOST}", f"set_tcp_nodelay {str(self.tcp_nodelay).lower()}", "log_type all"]
        user = ["user root"] if os.geteuid() == 0 else []
        return [*user, *own, *self._prepared]

    def _access(self) -> list[str]:
        lines = [f"allow_anonymous {str(not self.users).lower()}"]
        if self.users:
            passwords = self.folder / "passwords"
            passwords.write_text("".join(f"{name}:{_hashed(secret)}\n" for name, secret in self.users.items()))
            passwords.chmod(0o600)
            lines.append(f"password_file {passwords}")
        if self.acl:
            acl = self.folder / "acl"
            acl.write_text("\n".join(self.acl) + "\n")
            acl.chmod(0o600)
            lines.append(f"acl_file {acl}")
        return lines

    def _tls(self) -> list[str]:
        if self.authority is None:
            return []
        own = self.authority.issue("broker", hosts=self.hosts)
        lines = [f"cafile {self.authority.cert}", f"certfile {own.cert}", f"keyfile {own.key}"]
        return [*lines, f"require_certificate {str(self.client_certificates).lower()}"]


def _hashed(secret: str) -> str:
    """A line of mosquitto's password file: PBKDF2 with SHA-512, 101 rounds."""
    salt = os.urandom(12)
    digest = hashlib.pbkdf2_hmac("sha512", secret.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


class Probe:
    """Stock paho on its own thread: what another program on the broker sees and says."""

    def __init__(
        self,
        port: int,
        *,
        filters: tuple[str, ...] = (),
        protocol: str = "5",
        username: str = "",
        password: str = "",
        client_id: str = "",
        authority: Authority | None = None,
    ) -> None:
        self._seen: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self._subscribed: queue.Queue[None] = queue.Queue()
        self._filters = filters
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"probe-{uuid.uuid4().hex[:12]}",
            protocol=paho.MQTTv5 if protocol == "5" else paho.MQTTv311,
        )
        if username:
            self._client.username_pw_set(username, password)
        if authority is not None:
            own = authority.issue(f"probe-{uuid.uuid4().hex[:8]}")
            self._client.tls_set(str(authority.cert), str(own.cert), str(own.key))
        self._client.on_message = lambda _client, _userdata, message: self._seen.put(message)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.put(None)
        self._client.connect("localhost" if authority else HOST, port)
        self._client.loop_start()
        self._subscribed.get(timeout=WAIT_S)

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, code: Any, _properties: Any) -> None:
        assert not code.is_failure, code
        if not self._filters:
            self._subscribed.put(None)
        elif client.protocol == paho.MQTTv5:
            client.subscribe([(name, SubscribeOptions(qos=1)) for name in self._filters])
        else:
            client.subscribe([(name, 1) for name in self._filters])

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, properties: Properties | None = None
    ) -> None:
        """Publish, and wait until the broker has it."""
        self._client.publish(topic, payload, qos, retain, properties).wait_for_publish(WAIT_S)

    def wait_for(self, count: int, *, timeout_s: float = WAIT_S) -> list[paho.MQTTMessage]:
        """The next messages, in order; fails when fewer come."""
        deadline = time.monotonic() + timeout_s
        found: list[paho.MQTTMessage] = []
        with suppress(queue.Empty):
            while len(found) < count:
                found.append(self._seen.get(timeout=max(0.0, deadline - time.monotonic())))
        assert len(found) == count, f"{len(found)} of {count} messages within {timeout_s} s: {found}"
        return found

    def seen(self) -> list[paho.MQTTMessage]:
        """What has come so far and was not asked for yet."""
        found = []
        while not self._seen.empty():
            found.append(self._seen.get_nowait())
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
