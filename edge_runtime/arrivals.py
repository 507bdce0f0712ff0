"""Messages off the wire: into the queues of their pipelines, or accounted for where they do not get there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from edge_runtime.delivery.journal import Journal
from edge_runtime.delivery.ledger import NO_PIPELINE, Ledger
from edge_runtime.lanes import Connection, Lane
from edge_runtime.mqtt.topics import INVALID_TOPIC
from edge_runtime.records import DeadLetter, Message, Queued

NO_STREAM = ""


class Arrivals:
    """Deals messages out. given_up: those that had no turn and may be acknowledged when that is written down."""

    def __init__(
        self,
        lanes: Mapping[str, Lane],
        *,
        ledger: Ledger,
        journal: Journal | None,
        tell: Callable[[str, DeadLetter], None],
    ) -> None:
        """tell: publishes a dead letter of a pipeline."""
        self.given_up: list[tuple[Connection, list[Message]]] = []
        self._lanes, self._ledger, self._journal, self._tell = lanes, ledger, journal, tell

    def offer(self, connection: Connection, messages: list[Message]) -> None:
        """Put messages in line, those of one topic together: order matters within a stream, and to the broker."""
        if connection.client.lost_at != connection.lost_at:
            self._session_lost(connection)
        acks, find = connection.acks, connection.routes.find
        acks.arrived(messages)
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            if message.topic in by_topic:
                by_topic[message.topic].append(message)
            else:
                by_topic[message.topic] = [message]
        batches: dict[str, list[Queued]] = {}
        for topic, run in by_topic.items():
            routes = find(topic)
            if not routes:
                self._reject_unrouted(connection, run)
            for name, stream in routes:
                acks.taken(run)
                batches.setdefault(name, []).append(Queued(stream, run))
        for name, batch in batches.items():
            self._enqueue(connection, name, batch)

    def _session_lost(self, connection: Connection) -> None:
        connection.lost_at = connection.client.lost_at
        for lane in self._lanes.values():
            if lane.connection is connection:
                lane.pipeline.session_lost(connection.lost_at)

    def _enqueue(self, connection: Connection, name: str, batch: list[Queued]) -> None:
        lane, admitted = self._lanes[name], []
        for queued in batch:
            if lane.queue.admits(queued.stream):
                self._ledger.received(name, queued.stream, len(queued.messages))
                admitted.append(queued)
                if lane.careful:
                    lane.expect(queued.messages)
            else:
                self._refuse(connection, lane, queued.messages)
        room = self._journal.memory if lane.careful and self._journal is not None else 0
        for stream, gave_way in lane.queue.offer(admitted, room=room):
            self._ledger.dropped(name, stream, "queue_full")
            seen = lane.pipeline.gave_way(stream, gave_way)
            if self._journal is not None and lane.durable:
                self._journal.gave_way(name, seen)
            if lane.careful:
                lane.seen_off(gave_way)
            self._let_go(connection, [gave_way], durable=lane.durable)

    def _let_go(self, connection: Connection, messages: list[Message], *, durable: bool) -> None:
        """A pipeline is done with messages that had no turn; acknowledged when that is written down, where it is."""
        if durable and self._journal is not None:
            self.given_up.append((connection, messages))
        else:
            connection.acks.settled(messages)

    def _refuse(self, connection: Connection, lane: Lane, messages: list[Message]) -> None:
        for message in messages:
            detail = "max_streams other streams were seen before it"
            self._reject(lane.pipeline.name, message, "too_many_streams", detail, durable=lane.durable)
        self._let_go(connection, messages, durable=lane.durable)

    def drop_unkept(self, connection: Connection, messages: list[Message]) -> None:
        """Count messages of QoS 0, which no broker keeps for us."""
        for message in messages:
            for name, stream in connection.routes.find(message.topic) if message.qos == 0 else ():
                if self._lanes[name].queue.admits(stream):
                    self._ledger.received(name, stream)
                    self._ledger.dropped(name, stream, "shutdown")
                    if self._journal is not None and self._lanes[name].durable:
                        self._journal.dropped(name, stream, "shutdown")

    def _reject_unrouted(self, connection: Connection, messages: list[Message]) -> None:
        for message in messages:
            if INVALID_TOPIC in message.topic:
                shown = msgspec.structs.replace(message, topic=message.topic.replace(INVALID_TOPIC, ""))
                self._reject(NO_PIPELINE, shown, "topic_not_utf8", "the topic is not UTF-8", durable=True)
            else:
                self._reject(NO_PIPELINE, message, "unknown_topic", "no pipeline takes this topic", durable=True)
        connection.acks.taken(messages)
        self._let_go(connection, messages, durable=True)

    def _reject(self, pipeline: str, message: Message, reason: str, detail: str, *, durable: bool) -> None:
        """Dead-letter a message that has no stream."""
        self._ledger.received(pipeline, NO_STREAM)
        self._ledger.dead_lettered(pipeline, NO_STREAM)
        if durable and self._journal is not None:
            self._journal.dead_lettered(pipeline, NO_STREAM)
        self._tell(pipeline, DeadLetter(NO_STREAM, reason, detail, message))
