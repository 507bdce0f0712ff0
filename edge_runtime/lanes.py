"""What the loop moves messages through: the connections, and a lane for each pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from edge_runtime.delivery.acks import Acknowledgements
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.monitor.latency import Recorder
from edge_runtime.mqtt.topics import Routes
from edge_runtime.mqtt.transport import Client
from edge_runtime.records import Message, Turn
from edge_runtime.stream.pipeline import Pipeline


class Service(Protocol):
    """Takes all messages of a connection in the pipelines' stead."""

    def serve(self, messages: list[Message]) -> None:
        """Take, acknowledge and answer what can be; called every round by the loop's thread, so it never blocks."""

    def stop(self) -> None:
        """Give up what was begun."""


class Connection:
    """One broker connection: its client, where its messages go, and what is still to be acknowledged.

    session: names what the broker holds for us. lost_at: the client's, as its pipelines were told. service: who takes
    its messages when no pipeline does.
    """

    def __init__(self, client: Client, routes: Routes, *, session: str = "", service: Service | None = None) -> None:
        self.client, self.routes, self.session, self.service = client, routes, session, service
        self.acks, self.lost_at = Acknowledgements(), 0


class Lane:
    """One pipeline in the loop: what waits for it and its turns in flight.

    durable: its turns are committed; sync: in such a way that they survive a loss of power. careful: the run before
    was killed, perhaps by one of the messages that come again: those are taken one by one. suspect: the one whose turn
    has begun.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        queue: InputQueue,
        recorder: Recorder,
        connection: Connection,
        *,
        inline: bool,
        durable: bool = False,
        sync: bool = False,
        careful: bool = False,
    ) -> None:
        self.pipeline, self.queue, self.recorder, self.connection = pipeline, queue, recorder, connection
        self.inline, self.durable, self.sync, self.careful = inline, durable, sync, careful
        self.in_flight: deque[Turn] = deque()
        self.suspect: Message | None = None
        self._redelivered, self._fresh = 0, False

    @property
    def delivery(self) -> str:
        """Its tier, as in the configuration."""
        return "memory" if not self.durable else "full" if self.sync else "normal"

    def expect(self, messages: Iterable[Message]) -> None:
        """Of a careful lane: messages were put in line. A broker sends again first, in order, then what is new."""
        for message in messages:
            self._redelivered += message.dup
            self._fresh = self._fresh or not message.dup

    def seen_off(self, message: Message) -> None:
        """Of a careful lane: a message has left the line. All that had to come again has: no more care is needed."""
        self._redelivered -= message.dup
        self.careful = not self._fresh or self._redelivered > 0
