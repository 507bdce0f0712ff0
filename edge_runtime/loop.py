"""The turn loop: poll, ingest, predict, emit, commit, acknowledge, publish."""

from __future__ import annotations

import select
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from edge_runtime.delivery.acks import Acknowledgements
from edge_runtime.delivery.ledger import NO_PIPELINE, Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.monitor.latency import StageRecorder
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.topics import Routes
from edge_runtime.mqtt.transport import Client
from edge_runtime.records import DeadLetter, Message, Outgoing, Queued, Turn
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.worker import Worker

TURN_MESSAGES = 64
TURNS_IN_FLIGHT = 2
RECONNECT_POLL_S = 0.01
NO_STREAM = "-"

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
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._connections = connections
        self._publisher = connections[0].client
        self._lanes = {lane.pipeline.name: lane for lane in lanes}
        self._ledger, self._publications, self._worker, self._now_ns = ledger, publications, worker, now_ns
        self._waiting: dict[int, Stream | None] = {}
        self._unsent: list[tuple[StageRecorder, list[tuple[int, int]]]] = []
        self._saturated = False
        self.publish_refusals = 0

    def step(self, timeout_s: float, *, accepting: bool = True) -> None:
        """One round: wait for input at most timeout_s, then move everything that can move.

        accepting: take new messages; otherwise they stay, unacknowledged, with the broker.
        """
        self._wait(timeout_s)
        self._saturated = False
        for connection in self._connections:
            messages = connection.client.poll(0.0)
            if accepting and messages:
                self._offer(connection, messages)
        for lane in self._lanes.values():
            if lane.has_work:
                self._begin_turn(lane)
        for name in self._worker.finished() if self._worker else ():
            lane = self._lanes[name]
            self._end_turn(lane, lane.in_flight.popleft())
        self._flush()
        self._confirm()

    def drain(self, deadline_ns: int) -> bool:
        """Finish what was accepted, take nothing new; whether everything was done before the deadline."""
        while self._busy():
            if self._now_ns() >= deadline_ns:
                return False
            self.step(0.02, accepting=False)
        return True

    def publish(self, outgoing: Outgoing) -> None:
        """Publish a document that stands outside the ledger's equations: state, metrics, dead letters."""
        self._waiting[self._publisher.publish(outgoing)] = None

    def account(self) -> LedgerView:
        """The ledger, held against the messages, windows and results that are counted here."""
        queued, in_flight = Counter[Stream](), Counter[Stream]()
        for name, lane in self._lanes.items():
            queued.update({(name, stream): n for stream, n in lane.queue.depths().items()})
            for turn in lane.in_flight:
                queued.update((name, entry.stream) for entry in turn.messages)
                in_flight.update((name, window.stream) for window in turn.windows)
        waiting = Counter(stream for stream in self._waiting.values() if stream is not None)
        return self._ledger.totals(queued, in_flight, waiting)

    def _wait(self, timeout_s: float) -> None:
        if self._saturated or any(lane.has_work for lane in self._lanes.values()):
            return
        poller = select.poll()
        for connection in self._connections:
            client = connection.client
            if client.fileno() >= 0:
                poller.register(client.fileno(), select.POLLIN | (select.POLLOUT if client.wants_write() else 0))
            if not client.connected:
                timeout_s = min(timeout_s, RECONNECT_POLL_S)
        if self._worker is not None:
            poller.register(self._worker.fileno(), select.POLLIN)
        poller.poll(timeout_s * 1000)

    def _offer(self, connection: Connection, messages: list[Message]) -> None:
        queued_ns = self._now_ns()
        self._saturated = self._saturated or len(messages) >= TURN_MESSAGES
        for message in messages:
            routes = connection.routes.find(message.topic)
            connection.acks.arrived(message, len(routes))
            if not routes:
                self._reject(NO_PIPELINE, message, "unknown_topic", "no pipeline takes this topic")
            for name, stream in routes:
                self._enqueue(connection, name, Queued(stream, message, queued_ns))
        self._acknowledge(connection)

    def _enqueue(self, connection: Connection, name: str, queued: Queued) -> None:
        queue = self._lanes[name].queue
        if not queue.admits(queued.stream):
            self._reject(name, queued.message, "too_many_streams", "max_streams other streams were seen before it")
            return connection.acks.settled(queued.message)
        self._ledger.received(name, queued.stream)
        gave_way = queue.offer(queued)
        if gave_way is not None:
            self._ledger.dropped(name, gave_way.stream, "queue_full")
            connection.acks.settled(gave_way.message)
        return None

    def _reject(self, pipeline: str, message: Message, reason: str, detail: str) -> None:
        """Dead-letter a message that has no stream."""
        self._ledger.received(pipeline, NO_STREAM)
        self._ledger.dead_lettered(pipeline, NO_STREAM)
        self._publish_dead_letters(pipeline, [DeadLetter(NO_STREAM, reason, detail, message)])

    def _begin_turn(self, lane: Lane) -> None:
        turn = lane.pipeline.ingest(lane.queue.take(TURN_MESSAGES))
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
            self.publish(self._publications.state_change(turn.pipeline, change))
        self._publish_dead_letters(turn.pipeline, turn.dead_letters)
        if turn.emitted_ns:
            self._unsent.append((lane.recorder, turn.emitted_ns))

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

    def _confirm(self) -> None:
        for token, reason in self._publisher.confirmed():
            stream = self._waiting.pop(token)
            if reason:
                self.publish_refusals += 1
            if stream is None:
                continue
            if reason:
                self._ledger.result_dropped(*stream, reason)
            else:
                self._ledger.confirmed(*stream)

    def _busy(self) -> bool:
        return bool(self._waiting) or any(len(lane.queue) or lane.in_flight for lane in self._lanes.values())
