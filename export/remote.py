"""Candidates timed on a device, by the daemon that runs there: `mqtt[s]://[user@]host[:port]/node` as a target.

The daemon measures in a child process beside its pipelines, where its configuration allows it (docs/remote-bench.md).
"""

from __future__ import annotations

import ipaddress
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from edge_runtime.errors import MALFORMED, ExportError, TransportError
from edge_runtime.model.compare import Answer, Device, Graph, Request
from edge_runtime.model.session import CPU
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.presence import Status
from edge_runtime.mqtt.settings import MAX_PACKET_BYTES, MqttSettings
from edge_runtime.mqtt.topics import Tree
from edge_runtime.records import Floats, Message, Outgoing
from export.artifact import Artifact
from export.measure import Latency, summarize
from export.probe import Failure

QUERY = ("ca", "cert", "key", "password_file", "root")
CONNECT_S = 20.0
RETAINED_S = 2.0
"""How long what a broker has kept may take behind its answer to the subscription."""
GRACE_S = 30.0
"""Beyond the time that the node allows itself: for the way there and back."""
BUSY_S = 900.0
PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
POLL_S = 0.25
STOP_S = 1.0
SESSION_S = 120

T = TypeVar("T")


class Offer(msgspec.Struct, frozen=True):
    """What a node allows: as in its settings remote_bench. cpu: that does it."""

    max_request_bytes: int
    timeout_s: float
    cpu: str = ""


class _Info(msgspec.Struct, frozen=True):
    """What is read of a node's retained info."""

    remote_bench: Offer | None = None
    machine: str = ""
    onnxruntime: str = ""


class Remote:
    """A device under a daemon that allows remote benches. device: what it said of itself when it last measured."""

    provider, is_time = CPU, True

    def __init__(self, settings: MqttSettings, node: str, *, busy_s: float = BUSY_S) -> None:
        """busy_s: how long to try while it measures for others. Raises ValueError for a name that no node has."""
        self.device: Device | None = None
        self._settings = msgspec.structs.replace(
            settings, session_expiry_s=SESSION_S, maximum_packet_bytes=MAX_PACKET_BYTES
        )
        self._tree, self._busy_s, self._place = Tree(settings.root, node), busy_s, ""

    @classmethod
    def of(cls, url: str, *, password_file: str = "") -> Remote:
        """From `mqtt[s]://[user@]host[:port]/node?ca=…&cert=…&key=…&password_file=…&root=…`, a file path each.

        Raises ExportError for anything else.
        """
        try:
            parts = urlsplit(url)
            user, _, host = parts.netloc.rpartition("@")
            if ":" in user:
                raise ValueError("the url must not hold a password; name a file that does: ?password_file=…")
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
            if unknown := options.keys() - set(QUERY):
                raise ValueError(f"unknown in the query: {', '.join(sorted(unknown))}; allowed: {', '.join(QUERY)}")
            given = {"password_file": password_file} if password_file else {}
            address = {"url": f"{parts.scheme}://{host}", "username": unquote(user)}
            return cls(msgspec.convert({**address, **options, **given}, MqttSettings), parts.path.removeprefix("/"))
        except (ValueError, msgspec.ValidationError) as error:
            raise ExportError(f"target: {error}; wanted mqtt[s]://[user@]host[:port]/node") from error

    @property
    def name(self) -> str:
        """Where it is, without who asks."""
        return f"{self._settings.url}/{self._tree.node}"

    @property
    def place(self) -> str:
        """The device as it tells of itself, asked once. Raises as latency does."""
        if not self._place:
            with _talking(self._settings, self._tree) as talk:
                info = talk.info()
                self._place = f"{self.name}: {talk.offer().cpu}, {info.machine}, onnxruntime {info.onnxruntime}"
        return self._place

    def cost(self, baseline: Artifact, candidate: Artifact, window: Floats, *, seed: int) -> Latency | Failure:
        """Time a candidate beside the baseline on the device, as `measure.latency` does here.

        window: (1, ...) float32 in the model's layout. A Failure is the candidate's. Raises TransportError when the
        broker cannot be reached or refuses, ConfigError for files that cannot be used, ExportError when the node is not
        there, does not allow it or has no time.
        """
        request = Request(
            v=1,
            baseline=Graph(baseline.model, baseline.session),
            candidate=Graph(candidate.model, candidate.session),
            input=candidate.input,
            shape=window.shape,
            window=window.astype("<f4").tobytes(),
            seed=seed % (1 << 32),
        )
        answer = self._ask(msgspec.msgpack.encode(request))
        if answer.outcome == "measured" and answer.rounds is not None:
            self.device = answer.device
            return summarize(answer.rounds)
        if answer.outcome in ("failed", "refused", "too_large"):
            return Failure(f"{answer.outcome} on {self._tree.node}: {answer.reason}")
        raise ExportError(f"{self.name}: {answer.outcome}: {answer.reason}")

    def _ask(self, payload: bytes) -> Answer:
        """The node's answer, asked for again while it is busy."""
        with _talking(self._settings, self._tree) as talk:
            offer = talk.offer()
            if len(payload) > offer.max_request_bytes:
                allowed = f"remote_bench.max_request_bytes = {offer.max_request_bytes}"
                return Answer(1, "too_large", f"{len(payload)} bytes, more than {allowed}")
            give_up_s, pause_s = time.monotonic() + self._busy_s, PAUSE_S
            while True:
                answer = talk.ask(payload, timeout_s=offer.timeout_s + GRACE_S)
                if answer.outcome != "busy" or time.monotonic() >= give_up_s:
                    return answer
                talk.pause(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  so that two who wait do not meet again
                pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)


def exposed(target: str) -> str:
    """What a target gives away on the way to its broker, "" when nothing: a password without TLS, to another machine.

    target: one that `Remote.of` takes.
    """
    parts = urlsplit(target)
    host = parts.hostname or ""
    has_password = "password_file" in dict(parse_qsl(parts.query))
    if parts.scheme != "mqtt" or not has_password or _is_loopback(host):
        return ""
    return f"the password for {host} goes over the network as plain text; wanted mqtts://"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Talk:
    """A connection on which one asks one node, and what the node has said on it."""

    def __init__(self, settings: MqttSettings, tree: Tree) -> None:
        token = secrets.token_hex(8)
        self._url, self._tree, self._topic = settings.url, tree, f"{tree.reply}/{token}"
        self._heard: dict[str, Message] = {}
        topics = (tree.status, tree.info, self._topic)
        self._client = make_client(
            settings,
            client_id=f"edge-export-{token}",
            subscriptions=[(topic, 1) for topic in topics],
            retained=True,
            keeps_session=False,
        )

    def open(self) -> None:
        """Raises TransportError."""
        client = self._client
        client.start()
        if not self._wait(lambda: client.subscribed or bool(client.counters.refused), CONNECT_S):
            raise TransportError(f"{self._url}: {client.reason or 'no answer to SUBSCRIBE'}")
        if not client.subscribed:
            raise TransportError(f"{self._url}: {client.reason}")
        if client.refused_filters:
            refused = "; ".join(f"{name}: {why}" for name, why in client.refused_filters.items())
            raise TransportError(f"{self._url}: {refused}")

    def close(self) -> None:
        self._client.stop(STOP_S)

    def info(self) -> _Info:
        """What the node says of itself. Raises ExportError when it is not there."""
        status, info = self._tree.status, self._tree.info
        self._wait(lambda: status in self._heard and info in self._heard, RETAINED_S)
        self._check_node()
        return _decode(self._heard[info], _Info) if info in self._heard else _Info()

    def offer(self) -> Offer:
        """What the node allows. Raises ExportError when it is not there or allows nothing."""
        found = self.info().remote_bench
        if found is None:
            problem = "the node does not allow it: its config needs node.allow_remote_bench = true"
            raise ExportError(f"{self._where}: {problem}")
        return found

    def ask(self, payload: bytes, *, timeout_s: float) -> Answer:
        """Raises ExportError when nobody takes the request, or no answer comes."""
        client, correlation = self._client, secrets.token_bytes(8)
        self._heard.pop(self._topic, None)
        unheard, sent = client.counters.no_subscribers, False
        request = Outgoing(
            self._tree.bench,
            payload,
            qos=1,
            content_type="application/msgpack",
            response_topic=self._topic,
            correlation_data=correlation,
            message_expiry_s=max(1, round(timeout_s)),
        )
        client.publish(request)
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            self._step(POLL_S)
            delivered, failed = client.confirmed()
            if failed:
                raise ExportError(f"{self._where}: the broker refuses the request: {failed[0][1]}")
            sent = sent or bool(delivered)
            if client.counters.no_subscribers > unheard:
                raise ExportError(f"{self._where}: nobody takes requests on {self._tree.bench}: is the node starting?")
            answer = self._heard.get(self._topic)
            if answer is not None and answer.properties.correlation_data == correlation:
                return _decode(answer, Answer)
            self._check_node()
        what = "no answer" if sent else "the request could not be sent"
        raise ExportError(f"{self._where}: {what} within {timeout_s:g} s{self._unsent(sent)}")

    def pause(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    @property
    def _where(self) -> str:
        return f"{self._url}/{self._tree.node}"

    def _unsent(self, sent: bool) -> str:
        return "" if sent or not self._client.reason else f": {self._client.reason}"

    def _check_node(self) -> None:
        """Raises ExportError when the node is not running."""
        found = self._heard.get(self._tree.status)
        if found is None:
            raise ExportError(f"{self._where}: no node of that name has been heard of at {self._tree.status}")
        state = _decode(found, Status).state
        if state in ("offline", "stopped"):
            raise ExportError(f"{self._where}: the node is {state}")

    def _wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether the condition came true in time."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._step(min(POLL_S, left_s))
        return True

    def _step(self, timeout_s: float) -> None:
        for message in self._client.poll(timeout_s):
            self._heard[message.topic] = message
            self._client.acknowledge(message.epoch, [message.mid])
        self._client.flush()


@contextmanager
def _talking(settings: MqttSettings, tree: Tree) -> Iterator[_Talk]:
    talk = _Talk(settings, tree)
    try:
        talk.open()
        yield talk
    finally:
        talk.close()


def _decode(message: Message, kind: type[T]) -> T:
    """Raises ExportError for what no daemon says."""
    try:
        return msgspec.json.decode(message.payload, type=kind)
    except MALFORMED as error:
        raise ExportError(f"{message.topic}: what came is no {kind.__name__.strip('_').lower()}: {error}") from error
