"""A recording played again: to a broker on time, or straight through the pipelines of a configuration."""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from edge_runtime.config import Config
from edge_runtime.delivery.ledger import Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session
from edge_runtime.monitor.latency import NoRecorder
from edge_runtime.mqtt.client import MqttClient, make_client
from edge_runtime.mqtt.publications import DeadLetterSettings, Publications
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import INVALID_TOPIC, Routes, Subscription, Tree, match, parse_source
from edge_runtime.mqtt.transport import Confirmed, Counters, Kind
from edge_runtime.pipelines import build_pipeline
from edge_runtime.record import STOP_S, connect
from edge_runtime.records import NO_PROPERTIES, Message, Outgoing
from edge_runtime.stop import StopSignal
from edge_runtime.stream.pipeline import Clock
from edge_runtime.stream.recording import Recording

AT_ONCE = math.inf
UNLIMITED = DeadLetterSettings(burst=sys.maxsize)
POLL_S = 0.25
NS = 1e9


class PublishSummary(msgspec.Struct, frozen=True):
    """What a broker was sent. published: confirmed by it; refused: by reason.

    retained: messages that a broker had delivered as stored state, which are not sent. without_properties: sent without
    those they had, because the broker speaks MQTT 3.1.1. behind_s: the longest a message went out after its time, None
    at full speed. unread_bytes, problem: of the recording's end.
    """

    id: str
    published: int
    refused: dict[str, int]
    retained: int
    without_properties: int
    seconds: float
    behind_s: float | None
    unread_bytes: int
    problem: str


class ReplaySummary(msgspec.Struct, frozen=True):
    """What became of a recording in the pipelines. documents: lines that were written.

    unrouted: messages that the daemon does not subscribe to, and so would not have had.
    """

    id: str
    messages: int
    unrouted: int
    documents: int
    balanced: bool
    ledger: LedgerView
    unread_bytes: int
    problem: str


class _Document(msgspec.Struct, frozen=True):
    topic: str
    payload: dict[str, Any]


def to_broker(
    recording: Recording,
    settings: MqttSettings,
    *,
    speed: float,
    stop: StopSignal,
    progress: Callable[[PublishSummary], None],
) -> PublishSummary:
    """Publish the messages at their times, or at speed times their pace; AT_ONCE: as fast as the broker takes them.

    Raises TransportError when the broker cannot be reached at the start; later it is waited for.
    """
    own = msgspec.structs.replace(settings, session_expiry_s=0)
    client = make_client(own, client_id=f"edge-runtime-replay-{secrets.token_hex(8)}")
    client.start()
    try:
        connect(client, settings.connect_timeout_s)
        player = _Player(recording, client, own, speed=speed, stop=stop, progress=progress)
        for message in recording:
            player.play(message)
            if stop.asked:
                break
        player.wait_for_answers(0)
    finally:
        client.stop(STOP_S)
    player.settle()
    return player.summary()


class _Player:
    """Publishes message after message, each in its time, with no more unanswered than the client may have."""

    def __init__(
        self,
        recording: Recording,
        client: MqttClient,
        settings: MqttSettings,
        *,
        speed: float,
        stop: StopSignal,
        progress: Callable[[PublishSummary], None],
    ) -> None:
        self._recording, self._client, self._speed = recording, client, speed
        self._stop, self._progress = stop, progress
        self._most_open = settings.max_inflight
        self._drops_properties = settings.protocol == "3.1.1"
        self._begun_ns = time.monotonic_ns()
        self._first_ns: int | None = None
        self._open = 0
        self._answers = Counter[str]()
        self._retained = self._without_properties = self._behind_ns = 0

    def play(self, message: Message) -> None:
        """Wait for the message's time and for room, publish it."""
        if message.retain:
            self._retained += 1
            return
        if self._first_ns is None:
            self._first_ns = message.received_ns
        due_ns = self._begun_ns + int((message.received_ns - self._first_ns) / self._speed)
        while (left_ns := due_ns - time.monotonic_ns()) > 0 and not self._stop.asked:
            self._poll(min(left_ns / NS, POLL_S))
        self.wait_for_answers(self._most_open - 1)
        if self._stop.asked:
            return
        self._behind_ns = max(self._behind_ns, time.monotonic_ns() - due_ns)
        self._without_properties += self._drops_properties and message.properties != NO_PROPERTIES
        self._client.publish(_outgoing(message))
        self._client.flush()
        self._open += 1

    def wait_for_answers(self, most_open: int) -> None:
        """Until at most so many messages are unanswered, or somebody asks to stop."""
        while self._open > most_open and not self._stop.asked:
            self._poll(POLL_S)

    def settle(self) -> None:
        """Count what the broker has answered."""
        delivered, failed = self._client.confirmed()
        self._open -= len(delivered) + len(failed)
        self._answers[""] += len(delivered)
        self._answers.update(reason for _, reason in failed)

    def summary(self) -> PublishSummary:
        return PublishSummary(
            id=self._recording.header.id,
            published=self._answers[""],
            refused={reason: n for reason, n in self._answers.items() if reason},
            retained=self._retained,
            without_properties=self._without_properties,
            seconds=round((time.monotonic_ns() - self._begun_ns) / NS, 3),
            behind_s=None if self._speed == AT_ONCE else round(self._behind_ns / NS, 6),
            unread_bytes=self._recording.unread_bytes,
            problem=self._recording.problem,
        )

    def _poll(self, timeout_s: float) -> None:
        self._client.poll(timeout_s)
        self.settle()
        self._progress(self.summary())


def _outgoing(message: Message) -> Outgoing:
    properties = message.properties
    return Outgoing(
        message.topic,
        message.payload,
        qos=message.qos,
        content_type=properties.content_type,
        message_expiry_s=properties.message_expiry_s,
        user=properties.user,
        response_topic=properties.response_topic,
        correlation_data=properties.correlation_data,
    )


def through_pipelines(
    recording: Recording, config: Config, path: str, write: Callable[[bytes], object]
) -> ReplaySummary:
    """Every document that the daemon of a configuration would publish, one line of JSON each, in order.

    The same loop as the daemon's, but each message is a turn of its own, and time is the recording's: it stands still
    while a message is worked on, so there are no stage times and nothing grows too old. The run's id is the
    recording's.
    path: of the configuration, for messages. Raises what the daemon raises at its start.
    """
    subscriptions = [(parse_source(p.source.topic).filter, p.source.qos) for p in config.pipelines.values()]
    ledger, tape = Ledger(), _Tape(recording, subscriptions, write)
    lanes = _lanes(config, path, tape, ledger)
    loop = Loop(
        [lanes[0].connection],
        lanes,
        ledger=ledger,
        publications=Publications(
            Tree(config.mqtt.root, config.node.id),
            result_qos=dict.fromkeys(config.pipelines, 1),
            dead_letters=UNLIMITED,
        ),
        worker=None,
        max_waiting=sys.maxsize,
        now_ns=tape.clock.monotonic_ns,
    )
    while not tape.ended:
        loop.step(0.0)
    view = loop.account()
    return ReplaySummary(
        id=recording.header.id,
        messages=tape.messages,
        unrouted=tape.unrouted,
        documents=tape.documents,
        balanced=not view.imbalances,
        ledger=view,
        unread_bytes=recording.unread_bytes,
        problem=recording.problem,
    )


def _lanes(config: Config, path: str, tape: _Tape, ledger: Ledger) -> list[Lane]:
    """The daemon's pipelines, all on the one tape."""
    sessions = {name: Session(read(Path(model.bundle)), model.session()) for name, model in config.models.items()}
    sources = [(name, parse_source(settings.source.topic)) for name, settings in config.pipelines.items()]
    connection = Connection(tape, Routes(sources))
    lanes = []
    for name, settings in config.pipelines.items():
        pipeline = build_pipeline(
            config,
            name,
            sessions[settings.model],
            path=path,
            ledger=ledger,
            run_id=tape.recording.header.id,
            clock=tape.clock,
        )
        queue = InputQueue(settings.queue, max_streams=settings.max_streams)
        lanes.append(Lane(pipeline, queue, NoRecorder(), connection, inline=True))
    return lanes


class _Tape:
    """A transport.Client whose broker is a recording: one message a poll, and what is published is written down.

    As a broker would, it passes over what nobody subscribed to, and lowers QoS to that of the subscription.
    clock: stands at the time of the message that was polled last.
    """

    kind: Kind = "callbacks"
    connected = subscribed = True
    more = held = False
    lost_at = 0
    reason = problem = ""

    def __init__(
        self, recording: Recording, subscriptions: Sequence[Subscription], write: Callable[[bytes], object]
    ) -> None:
        self.counters = Counters()
        self.refused_filters: dict[str, str] = {}
        self.recording = recording
        self.clock = Clock(lambda: self._now_ns, lambda: recording.header.start_unix_ns + self._now_ns)
        self.messages = self.unrouted = self.documents = 0
        self.ended = False
        self._now_ns = 0
        self._messages = iter(recording)
        self._subscriptions = subscriptions
        self._write = write
        self._unconfirmed: list[int] = []

    def start(self) -> None: ...

    def poll(self, timeout_s: float) -> list[Message]:  # noqa: ARG002  nothing to wait for
        for message in self._messages:
            granted = self._granted(message.topic)
            if granted is None:
                self.unrouted += 1
                continue
            self._now_ns = message.received_ns
            self.messages += 1
            return [message if message.qos <= granted else msgspec.structs.replace(message, qos=granted, dup=False)]
        self.ended = True
        return []

    def _granted(self, topic: str) -> int | None:
        """The highest QoS of the subscriptions to a topic, None when there are none."""
        shown = topic.replace(INVALID_TOPIC, "")
        return max((qos for name, qos in self._subscriptions if match(name, shown)), default=None)

    def fileno(self) -> int:
        return -1

    def wants_write(self) -> bool:
        return False

    def acknowledge(self, epoch: int, mids: Sequence[int]) -> None: ...

    def publish(self, message: Outgoing) -> int:
        payload = msgspec.json.decode(message.payload)
        payload.pop("lat_ms", None)
        self._write(msgspec.json.encode(_Document(message.topic, payload)) + b"\n")
        self.documents += 1
        self._unconfirmed.append(self.documents)
        return self.documents

    def publish_all(self, messages: Sequence[Outgoing]) -> int:
        return [self.publish(message) for message in messages][-1]

    def confirmed(self) -> Confirmed:
        delivered, self._unconfirmed = self._unconfirmed, []
        return Confirmed(delivered, [])

    @property
    def written(self) -> int:
        return self.documents

    def flush(self) -> None: ...

    def stop(self, timeout_s: float) -> None: ...


def partial(path: Path) -> Path:
    """What stands for a file until it is whole."""
    real = path.resolve()
    return real.with_name(real.name + ".part")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens PATH.part, which takes the path's place when all went well, else is removed. A device is opened itself."""
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    part = partial(path)
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path.resolve())
    finally:
        part.unlink(missing_ok=True)
