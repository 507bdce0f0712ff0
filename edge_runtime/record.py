"""Messages of a broker into a recording, until a limit is reached or somebody asks to stop."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_runtime.errors import TransportError
from edge_runtime.mqtt.client import MqttClient, make_client
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import match, parse_source, plan_connections
from edge_runtime.mqtt.transport import Waiter
from edge_runtime.records import Message
from edge_runtime.stop import StopSignal
from edge_runtime.stream.pipeline import Clock
from edge_runtime.stream.recording import RecordingHeader, RecordingWriter

POLL_S = 0.25
CONNECT_POLL_S = 0.05
QUIET_S = 0.3
FINISH_S = 5.0
STOP_S = 1.0
NS = 1e9


class RecordLimits(msgspec.Struct, frozen=True):
    """Whichever comes first ends a recording; the last message may exceed `bytes`."""

    seconds: float = math.inf
    messages: float = math.inf
    bytes: float = math.inf


class RecordSummary(msgspec.Struct, frozen=True):
    """What was recorded so far. disconnects: while the broker was away, its messages were missed.

    unfinished: at the end more was still coming in after FINISH_S, and is missing.
    """

    path: str
    id: str
    messages: int
    topics: int
    bytes: int
    seconds: float
    disconnects: int
    unfinished: bool = False


class _Tap(NamedTuple):
    """One connection. elsewhere: filters of the connections before it, which bring what they match themselves."""

    client: MqttClient
    elsewhere: tuple[str, ...]


def plain_filter(topic: str) -> str:
    """The MQTT filter of "plant/+/vib" or "plant/+machine/vib". Raises ValueError when it is none."""
    levels = topic.split("/")
    taken = {level[1:] for level in levels}
    names = (str(n) for n in itertools.count() if str(n) not in taken)
    return parse_source("/".join(level + next(names) if level in ("+", "#") else level for level in levels)).filter


def record(
    path: Path,
    settings: MqttSettings,
    filters: Sequence[str],
    *,
    limits: RecordLimits,
    stop: StopSignal,
    progress: Callable[[RecordSummary], None],
    clock: Clock = Clock(),  # noqa: B008  immutable
) -> RecordSummary:
    """Subscribe under a client id and a session of its own, so that a running daemon keeps its messages.

    Raises TransportError when the broker cannot be reached or refuses, RecordingError when the file cannot be written;
    it can then be read up to there.
    """
    start_ns = clock.monotonic_ns()
    header = RecordingHeader(secrets.token_hex(8), clock.unix_ns())
    taps = _taps(settings, filters, f"edge-runtime-record-{header.id}")
    with ExitStack() as stack:
        for tap in taps:
            stack.callback(tap.client.stop, STOP_S)
            tap.client.start()
        early = [connect(tap.client, settings.connect_timeout_s) for tap in taps]
        writer = stack.enter_context(closing(RecordingWriter(path, header, start_ns=start_ns)))
        recorder = _Recorder(writer, taps, limits)
        for tap, messages in zip(taps, early, strict=True):
            recorder.take(tap, messages)
        found = recorder.summary(0.0)
        while not (stop.asked or recorder.full or found.seconds >= limits.seconds):
            recorder.step(min(POLL_S, limits.seconds - found.seconds))
            found = recorder.summary((clock.monotonic_ns() - start_ns) / NS)
            progress(found)
        unfinished = recorder.finish()
        return recorder.summary((clock.monotonic_ns() - start_ns) / NS, unfinished=unfinished)


class _Recorder:
    """Writes what the connections bring, and then acknowledges it."""

    def __init__(self, writer: RecordingWriter, taps: Sequence[_Tap], limits: RecordLimits) -> None:
        self._writer, self._taps, self._limits = writer, taps, limits
        self._wait = Waiter([tap.client for tap in taps])

    @property
    def full(self) -> bool:
        return self._writer.messages >= self._limits.messages or self._writer.bytes >= self._limits.bytes

    def step(self, timeout_s: float) -> bool:
        """Wait for messages at most timeout_s, take what is there; whether there was anything."""
        self._wait(timeout_s)
        arrived = [(tap, tap.client.poll(0.0)) for tap in self._taps]
        for tap, messages in arrived:
            self.take(tap, messages)
        return any(messages for _, messages in arrived)

    def finish(self) -> bool:
        """Take what the broker still holds for us, until none came for QUIET_S; whether FINISH_S cut that short."""
        for tap in self._taps:
            tap.client.unsubscribe()
        now_s = time.monotonic()
        deadline_s, quiet_s = now_s + FINISH_S, now_s + QUIET_S
        while not self.full and now_s < quiet_s:
            if now_s >= deadline_s:
                return True
            arrived = self.step(min(quiet_s, deadline_s) - now_s)
            now_s = time.monotonic()
            quiet_s = now_s + QUIET_S if arrived else quiet_s
        return False

    def take(self, tap: _Tap, messages: Sequence[Message]) -> None:
        taken = []
        for message in messages:
            if self.full:
                break
            if not any(match(topic_filter, message.topic) for topic_filter in tap.elsewhere):
                self._writer.write(message)
            taken.append(message)
        self._writer.flush()
        for message in taken:
            tap.client.acknowledge(message.epoch, [message.mid])

    def summary(self, seconds: float, *, unfinished: bool = False) -> RecordSummary:
        return RecordSummary(
            path=str(self._writer.path),
            id=self._writer.header.id,
            messages=self._writer.messages,
            topics=self._writer.topics,
            bytes=self._writer.bytes,
            seconds=round(seconds, 3),
            disconnects=sum(tap.client.counters.disconnects for tap in self._taps),
            unfinished=unfinished,
        )


def connect(client: MqttClient, timeout_s: float) -> list[Message]:
    """Wait until a started client is connected and subscribed; the messages that came meanwhile.

    Raises TransportError when the broker does not answer in time, or refuses the client or a subscription.
    """
    messages: list[Message] = []
    deadline_s = time.monotonic() + timeout_s
    while not client.subscribed:
        if client.counters.refused or time.monotonic() >= deadline_s:
            raise TransportError(client.reason or f"the broker did not answer SUBSCRIBE within {timeout_s:g} s")
        messages += client.poll(CONNECT_POLL_S)
    if client.refused_filters:
        refused = ", ".join(f"{name}: {why}" for name, why in client.refused_filters.items())
        raise TransportError(f"the broker refuses the subscription to {refused}")
    return messages


def _taps(settings: MqttSettings, filters: Sequence[str], client_id: str) -> list[_Tap]:
    """A connection for all filters, or several where they overlap."""
    own = msgspec.structs.replace(settings, session_expiry_s=0)
    taps: list[_Tap] = []
    elsewhere: tuple[str, ...] = ()
    for subscriptions in plan_connections((topic_filter, 1) for topic_filter in filters):
        client = make_client(own, client_id=f"{client_id}-{len(taps) + 1}", subscriptions=subscriptions)
        taps.append(_Tap(client, elsewhere))
        elsewhere += tuple(topic_filter for topic_filter, _ in subscriptions)
    return taps
