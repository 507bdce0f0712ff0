"""The turn loop: poll, ingest, predict, emit, commit, acknowledge, publish."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from edge_runtime.delivery.acks import Acknowledgements
from edge_runtime.delivery.ledger import NO_PIPELINE, Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.monitor.latency import StageRecorder
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.topics import INVALID_TOPIC, Routes
from edge_runtime.mqtt.transport import Client, wait
from edge_runtime.records import DeadLetter, Message, Outgoing, Queued, Turn
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.worker import Worker

TURN_MESSAGES = 64
REASON_CHARACTERS = 60
TURNS_IN_FLIGHT = 2
NO_STREAM = ""

Stream = tuple[str, str]


class Connection:
    """One broker connection: its client, where its messages go, and what is still to be acknowledged."""

    def __init__(self, client: Client, routes: Routes) -> None:
        self.client = client
        self.routes = routes
        self.acks = Acknowledgements()


class Lane:
    """One pipeline in the loop: what waits for it and its turns in flight."""

    def __init__(
        self, pipeline: Pipeline, queue: InputQueue, recorder: StageRecorder, connection: Connection, *, inline: bool
    ) -> None:
        self.pipeline, self.queue, self.recorder, self.connection = pipeline, queue, recorder, connection
        self.inline = inline
        self.in_flight: deque[Turn] = deque()

    @property
    def has_work(self) -> bool:
        return bool(len(self.queue)) and len(self.in_flight) < TURNS_IN_FLIGHT


class Loop:
    """Moves messages through their lanes; the one owner of the sockets, called from one thread."""

    def __init__(
        self,
        connections: Sequence[Connection],
        lanes: Iterable[Lane],
        *,
        ledger: Ledger,
        publications: Publications,
        worker: Worker | None,
        max_waiting: int,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """max_waiting: results that may wait for their confirmation before turns wait for them."""
        self._connections = connections
        self._max_waiting = max_waiting
        self._publisher = connections[0].client
        self._lanes = {lane.pipeline.name: lane for lane in lanes}
        self._ledger, self._publications, self._worker, self._now_ns = ledger, publications, worker, now_ns
        self._waiting: dict[int, Stream] = {}
        self._event_tokens: dict[int, Stream] = {}
        self._state_tokens: dict[int, str] = {}
        self._states: dict[str, Outgoing] = {}
        self._refused_states: set[str] = set()
        self._unsent: list[tuple[StageRecorder, list[tuple[int, int]]]] = []
        self._saturated = False
        self.publish_refusals = 0

    def step(self, timeout_s: float, *, accepting: bool = True) -> None:
        """One round: wait for input at most timeout_s, then move everything that can move.

        accepting: take new messages; otherwise those of QoS 1 stay, unacknowledged, with the broker.
        """
        self._wait(timeout_s)
        self._saturated = False
        for connection in self._connections:
            messages = connection.client.poll(0.0)
            if messages:
                self._offer(connection, messages if accepting else self._drop_unkept(connection, messages))
        for lane in self._lanes.values():
            if self._may_begin(lane):
                self._begin_turn(lane)
        for name in self._worker.finished() if self._worker else ():
            lane = self._lanes[name]
            self._end_turn(lane, lane.in_flight.popleft())
        self._flush()
        self.confirm()

    def drain(self, deadline_ns: int) -> bool:
        """Finish what was accepted, take nothing new; whether everything was done before the deadline."""
        while self._busy():
            if self._now_ns() >= deadline_ns:
                return False
            self.step(0.02, accepting=False)
        return True

    def publish(self, outgoing: Outgoing) -> None:
        """Publish a document that may be lost: metrics, dead letters, the node's own state."""
        if self._publisher.connected:
            self._publisher.publish(outgoing)

    def states(self) -> list[Outgoing]:
        """The newest alarm state of every stream, for a broker that may have forgotten them."""
        return list(self._states.values())

    def retry_states(self) -> None:
        """Publish again what the broker refused or never confirmed of the alarm states."""
        refused, self._refused_states = self._refused_states, set()
        for topic in refused:
            self._publish_state(self._states[topic])

    def account(self) -> LedgerView:
        """The ledger, held against the messages, windows and results that are counted here."""
        queued, in_flight = Counter[Stream](), Counter[Stream]()
        for name, lane in self._lanes.items():
            queued.update({(name, stream): n for stream, n in lane.queue.depths().items()})
            for turn in lane.in_flight:
                queued.update((name, entry.stream) for entry in turn.messages)
                in_flight.update((name, window.stream) for window in turn.windows)
        waiting = Counter(self._waiting.values())
        return self._ledger.totals(queued, in_flight, waiting)

    def _wait(self, timeout_s: float) -> None:
        if self._saturated or any(self._may_begin(lane) for lane in self._lanes.values()):
            return
        finished = -1 if self._worker is None else self._worker.fileno()
        wait((connection.client for connection in self._connections), timeout_s, also=finished)

    def _offer(self, connection: Connection, messages: list[Message]) -> None:
        queued_ns = self._now_ns()
        self._saturated = self._saturated or len(messages) >= TURN_MESSAGES
        for message in messages:
            routes = connection.routes.find(message.topic)
            connection.acks.arrived(message, len(routes))
            if not routes:
                self._reject_unrouted(message)
            for name, stream in routes:
                self._enqueue(connection, name, Queued(stream, message, queued_ns))
        self._acknowledge(connection)

    def _enqueue(self, connection: Connection, name: str, queued: Queued) -> None:
        queue = self._lanes[name].queue
        if not queue.admits(queued.stream):
            self._reject(name, queued.message, "too_many_streams", "max_streams other streams were seen before it")
            connection.acks.settled(queued.message)
            return
        self._ledger.received(name, queued.stream)
        for gave_way in queue.offer(queued):
            self._ledger.dropped(name, gave_way.stream, "queue_full")
            connection.acks.settled(gave_way.message)

    def _drop_unkept(self, connection: Connection, messages: list[Message]) -> list[Message]:
        """Count messages of QoS 0, which no broker keeps for us; nothing is left to be taken."""
        for message in messages:
            for name, stream in connection.routes.find(message.topic) if message.qos == 0 else ():
                if self._lanes[name].queue.admits(stream):
                    self._ledger.received(name, stream)
                    self._ledger.dropped(name, stream, "shutdown")
        return []

    def _reject_unrouted(self, message: Message) -> None:
        if INVALID_TOPIC in message.topic:
            shown = msgspec.structs.replace(message, topic=message.topic.replace(INVALID_TOPIC, ""))
            self._reject(NO_PIPELINE, shown, "topic_not_utf8", "the topic is not UTF-8")
        else:
            self._reject(NO_PIPELINE, message, "unknown_topic", "no pipeline takes this topic")

    def _reject(self, pipeline: str, message: Message, reason: str, detail: str) -> None:
        """Dead-letter a message that has no stream."""
        self._ledger.received(pipeline, NO_STREAM)
        self._ledger.dead_lettered(pipeline, NO_STREAM)
        self._publish_dead_letters(pipeline, [DeadLetter(NO_STREAM, reason, detail, message)])

    def _begin_turn(self, lane: Lane) -> None:
        messages = lane.queue.take(TURN_MESSAGES)
        turn = lane.pipeline.ingest(messages)
        lane.queue.put_back(messages[len(turn.messages) :])
        if lane.inline or self._worker is None:
            lane.pipeline.predict(turn)
            self._end_turn(lane, turn)
        else:
            lane.in_flight.append(turn)
            self._worker.submit(lane.pipeline.name, lambda: lane.pipeline.predict(turn))

    def _end_turn(self, lane: Lane, turn: Turn) -> None:
        """Emit and settle. Delivery `memory` has nothing to commit, so acknowledgements follow at once."""
        lane.pipeline.emit(turn)
        self._ledger.settle(turn)
        for queued in turn.messages:
            lane.connection.acks.settled(queued.message)
        self._acknowledge(lane.connection)
        self._publish_turn(lane, turn)

    def _acknowledge(self, connection: Connection) -> None:
        ids = connection.acks.ready()
        if ids:
            connection.client.acknowledge(connection.acks.epoch, ids)

    def _publish_turn(self, lane: Lane, turn: Turn) -> None:
        for result in turn.results:
            token = self._publisher.publish(self._publications.result(result))
            self._waiting[token] = (turn.pipeline, result.stream)
        for change in turn.state_changes:
            self._publish_state(self._publications.state_change(turn.pipeline, change))
        for segment in turn.events:
            token = self._publisher.publish(self._publications.event(segment))
            self._event_tokens[token] = (turn.pipeline, segment.stream)
        self._publish_dead_letters(turn.pipeline, turn.dead_letters)
        if turn.emitted_ns and self._publisher.connected:
            self._unsent.append((lane.recorder, turn.emitted_ns))

    def _publish_state(self, outgoing: Outgoing) -> None:
        self._states[outgoing.topic] = outgoing
        self._state_tokens[self._publisher.publish(outgoing)] = outgoing.topic

    def _publish_dead_letters(self, pipeline: str, letters: list[DeadLetter]) -> None:
        for letter in letters:
            outgoing = self._publications.dead_letter(pipeline, letter, now_ns=self._now_ns())
            if outgoing is not None:
                self.publish(outgoing)

    def _flush(self) -> None:
        for connection in self._connections:
            connection.client.flush()
        if self._unsent:
            now_ns = self._now_ns()
            for recorder, times in self._unsent:
                for received_ns, decided_ns in times:
                    recorder.record("publish", now_ns - decided_ns)
                    recorder.record("e2e", now_ns - received_ns)
            self._unsent.clear()

    def confirm(self) -> None:
        """Account for what the broker has answered."""
        for token, reason in self._publisher.confirmed():
            self.publish_refusals += bool(reason)
            stream = self._waiting.pop(token, None)
            topic = self._state_tokens.pop(token, None)
            event = self._event_tokens.pop(token, None)
            if topic is not None and reason:
                self._refused_states.add(topic)
            if event is not None and reason:
                self._ledger.event_dropped(*event, _in_short(reason))
            if stream is not None and reason:
                self._ledger.result_dropped(*stream, _in_short(reason))
            elif stream is not None:
                self._ledger.confirmed(*stream)

    def _may_begin(self, lane: Lane) -> bool:
        return lane.has_work and len(self._waiting) < self._max_waiting

    def _busy(self) -> bool:
        unconfirmed = self._waiting or self._event_tokens
        return bool(unconfirmed) or any(len(lane.queue) or lane.in_flight for lane in self._lanes.values())


def _in_short(reason: str) -> str:
    return reason.partition(":")[0][:REASON_CHARACTERS]
