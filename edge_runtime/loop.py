"""The turn loop: poll, ingest, predict, emit, commit, acknowledge, publish."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from edge_runtime.delivery.acks import Acknowledgements
from edge_runtime.delivery.ledger import NO_PIPELINE, Ledger, LedgerView, tally
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.monitor.latency import Recorder
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.topics import INVALID_TOPIC, Routes
from edge_runtime.mqtt.transport import Client, Waiter
from edge_runtime.records import DeadLetter, Message, Outgoing, Queued, Turn
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.worker import Worker

TURN_MESSAGES = 256
REASON_CHARACTERS = 60
TURNS_IN_FLIGHT = 2
NO_STREAM = ""
NOT_A_RESULT = (NO_PIPELINE, NO_STREAM)
NOT_YET = -1

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
        self, pipeline: Pipeline, queue: InputQueue, recorder: Recorder, connection: Connection, *, inline: bool
    ) -> None:
        self.pipeline, self.queue, self.recorder, self.connection = pipeline, queue, recorder, connection
        self.inline = inline
        self.in_flight: deque[Turn] = deque()


class _Ended(NamedTuple):
    """A turn whose results were handed to the publisher. last: token of the last one, 0 when there is none."""

    lane: Lane
    turn: Turn
    last: int


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
        self._wait = Waiter([connection.client for connection in connections], also=worker.fileno() if worker else -1)
        self._waiting: dict[int, Stream] = {}
        self._left_ns: dict[int, int] = {}
        self._event_tokens: dict[int, Stream] = {}
        self._state_tokens: dict[int, str] = {}
        self._states: dict[str, Outgoing] = {}
        self._refused_states: set[str] = set()
        self._ended: list[_Ended] = []
        self._unwritten: deque[_Ended] = deque()
        self._written = self._polled_ns = 0
        self.publish_refusals = 0

    def step(self, timeout_s: float, *, accepting: bool = True) -> None:
        """One round: wait for input at most timeout_s, then move everything that can move.

        accepting: take new messages; otherwise those of QoS 1 stay, unacknowledged, with the broker.
        """
        if not any(map(self._may_begin, self._lanes.values())):
            self._wait(timeout_s)
        for connection in self._connections:
            messages = connection.client.poll(0.0)
            if messages and accepting:
                self._offer(connection, messages)
            elif messages:
                self._drop_unkept(connection, messages)
        self._polled_ns = self._now_ns()
        for lane in self._lanes.values():
            if self._may_begin(lane):
                self._begin_turn(lane)
        for name in self._worker.finished() if self._worker else ():
            lane = self._lanes[name]
            self._end_turn(lane, lane.in_flight.popleft())
        for connection in self._connections:
            connection.client.flush()
        written_ns = self._now_ns()
        if self._ended:
            self._settle()
        self._note_written(written_ns)
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
                for entry in turn.messages:
                    queued[name, entry.stream] += len(entry.messages)
                in_flight.update((name, window.stream) for window in turn.windows)
        waiting = Counter(self._waiting.values())
        return self._ledger.totals(queued, in_flight, waiting)

    def _offer(self, connection: Connection, messages: list[Message]) -> None:
        """Put messages in line, those of one topic together: order matters within a stream, and to the broker."""
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
                self._reject_unrouted(run)
            for name, stream in routes:
                acks.taken(run)
                batches.setdefault(name, []).append(Queued(stream, run))
        for name, batch in batches.items():
            self._enqueue(connection, name, batch)
        self._acknowledge(connection)

    def _enqueue(self, connection: Connection, name: str, batch: list[Queued]) -> None:
        queue, admitted = self._lanes[name].queue, []
        for queued in batch:
            if queue.admits(queued.stream):
                self._ledger.received(name, queued.stream, len(queued.messages))
                admitted.append(queued)
            else:
                self._refuse(connection, name, queued.messages)
        for stream, gave_way in queue.offer(admitted):
            self._ledger.dropped(name, stream, "queue_full")
            connection.acks.settled([gave_way])

    def _refuse(self, connection: Connection, name: str, messages: list[Message]) -> None:
        for message in messages:
            self._reject(name, message, "too_many_streams", "max_streams other streams were seen before it")
        connection.acks.settled(messages)

    def _drop_unkept(self, connection: Connection, messages: list[Message]) -> None:
        """Count messages of QoS 0, which no broker keeps for us."""
        for message in messages:
            for name, stream in connection.routes.find(message.topic) if message.qos == 0 else ():
                if self._lanes[name].queue.admits(stream):
                    self._ledger.received(name, stream)
                    self._ledger.dropped(name, stream, "shutdown")

    def _reject_unrouted(self, messages: list[Message]) -> None:
        for message in messages:
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
        turn = lane.pipeline.ingest(lane.queue.take(TURN_MESSAGES))
        if turn.left_over:
            lane.queue.put_back(turn.left_over)
        if lane.inline or self._worker is None:
            lane.pipeline.predict(turn)
            self._end_turn(lane, turn)
        else:
            lane.in_flight.append(turn)
            self._worker.submit(lane.pipeline.name, lambda: lane.pipeline.predict(turn))

    def _end_turn(self, lane: Lane, turn: Turn) -> None:
        """Emit and publish. Delivery `memory` has nothing to commit, so acknowledgements follow at once."""
        lane.pipeline.emit(turn)
        for queued in turn.messages:
            lane.connection.acks.settled(queued.messages)
        self._acknowledge(lane.connection)
        self._publish_turn(lane, turn)

    def _settle(self) -> None:
        """Account for the turns that have ended, after their results have left: nobody waits for that."""
        waiting, ended, self._ended = self._waiting, self._ended, []
        for one in ended:
            lane, turn, last = one
            if last:
                first = last - len(turn.results) + 1
                for token, result in enumerate(turn.results, first):
                    waiting[token] = turn.pipeline, result.stream
                if self._publications.result_qos[turn.pipeline]:
                    self._left_ns.update(dict.fromkeys(range(first, last + 1), NOT_YET))
                self._unwritten.append(one)
            self._ledger.settle(turn)
            lane.recorder.record_turn(turn)
            turn.messages, turn.accepted, turn.spent = [], [], []  # none of it need wait for the broker

    def _acknowledge(self, connection: Connection) -> None:
        ids = connection.acks.ready()
        if ids:
            connection.client.acknowledge(connection.acks.epoch, ids)

    def _publish_turn(self, lane: Lane, turn: Turn) -> None:
        publish, last = self._publisher.publish, 0
        if turn.results:
            last = self._publisher.publish_all(self._publications.results(turn.results))
        self._ended.append(_Ended(lane, turn, last))
        for change in turn.state_changes:
            self._publish_state(self._publications.state_change(turn.pipeline, change))
        for segment in turn.events:
            self._event_tokens[publish(self._publications.event(segment))] = (turn.pipeline, segment.stream)
        self._publish_dead_letters(turn.pipeline, turn.dead_letters)

    def _publish_state(self, outgoing: Outgoing) -> None:
        self._states[outgoing.topic] = outgoing
        self._state_tokens[self._publisher.publish(outgoing)] = outgoing.topic

    def _publish_dead_letters(self, pipeline: str, letters: list[DeadLetter]) -> None:
        for letter in letters:
            outgoing = self._publications.dead_letter(pipeline, letter, now_ns=self._now_ns())
            if outgoing is not None:
                self.publish(outgoing)

    def _note_written(self, now_ns: int) -> None:
        """Time what has left; a turn when all its results have, as some may have to wait for the broker."""
        written = self._publisher.written
        if written == self._written:
            return
        if self._left_ns:
            tokens = range(self._written + 1, written + 1)
            self._left_ns.update({token: now_ns for token in tokens if token in self._left_ns})
        self._written = written
        while self._unwritten and self._unwritten[0].last <= written:
            lane, turn, _ = self._unwritten.popleft()
            lane.recorder.written(turn, now_ns)

    def confirm(self) -> None:
        """Account for what the broker has answered, and for what was written at QoS 0."""
        delivered, failed = self._publisher.confirmed()
        if delivered:
            self._note_delivered(delivered)
        if failed:
            for token, reason in failed:
                self._note_failed(token, reason.partition(":")[0][:REASON_CHARACTERS])
            self._unwritten = deque(ended for ended in self._unwritten if ended.last in self._waiting)

    def _note_delivered(self, tokens: list[int]) -> None:
        streams = [self._waiting.pop(token, NOT_A_RESULT) for token in tokens]
        for stream, n in tally(streams).items():
            if stream is not NOT_A_RESULT:
                self._ledger.confirmed(*stream, n)
        if self._left_ns:
            self._time_pubacks(tokens, streams)
        if self._state_tokens or self._event_tokens:
            for token in tokens:
                self._state_tokens.pop(token, None)
                self._event_tokens.pop(token, None)

    def _time_pubacks(self, tokens: list[int], streams: list[Stream]) -> None:
        took: dict[str, list[int]] = {}
        for token, (pipeline, _) in zip(tokens, streams, strict=True):
            left_ns = self._left_ns.pop(token, NOT_YET)
            if left_ns != NOT_YET:
                took.setdefault(pipeline, []).append(self._polled_ns - left_ns)
        for pipeline, durations_ns in took.items():
            self._lanes[pipeline].recorder.record_all("puback", durations_ns)

    def _note_failed(self, token: int, reason: str) -> None:
        self.publish_refusals += 1
        self._left_ns.pop(token, None)
        topic = self._state_tokens.pop(token, None)
        event = self._event_tokens.pop(token, None)
        stream = self._waiting.pop(token, None)
        if topic is not None:
            self._refused_states.add(topic)
        if event is not None:
            self._ledger.event_dropped(*event, reason)
        if stream is not None:
            self._ledger.result_dropped(*stream, reason)

    def _may_begin(self, lane: Lane) -> bool:
        has_work = len(lane.queue) > 0 and len(lane.in_flight) < TURNS_IN_FLIGHT
        return has_work and len(self._waiting) < self._max_waiting

    def _busy(self) -> bool:
        unconfirmed = self._waiting or self._event_tokens
        return bool(unconfirmed) or any(len(lane.queue) or lane.in_flight for lane in self._lanes.values())
