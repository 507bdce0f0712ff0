"""The turn loop: poll, ingest, predict, emit, commit, acknowledge, publish."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from edge_runtime.arrivals import NO_STREAM, Arrivals
from edge_runtime.delivery.journal import Journal
from edge_runtime.delivery.ledger import Ledger, LedgerView
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.delivery.parcels import Kind, Parcel
from edge_runtime.delivery.store import StoreSettings
from edge_runtime.lanes import Connection, Lane
from edge_runtime.monitor.departures import Departures
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.retained import Retained
from edge_runtime.mqtt.transport import Waiter, is_permanent
from edge_runtime.records import DeadLetter, Message, Outgoing, Queued, Turn
from edge_runtime.worker import Worker

log = logging.getLogger(__name__)

TURN_MESSAGES = 256
TURNS_IN_FLIGHT = 2
MOST_CAREFUL = 64
"""Messages that come again, each in a turn of its own, before the others have their turn."""
MOST_UNCOMMITTED = 64
"""Turns that wait to share a transaction."""
DELETE_WITHIN_NS = 1_000_000_000
POISON, REFUSED = "poison", "result_refused"


class _Batch(NamedTuple):
    """Messages of one kind that a turn has to send. parcels: where they are kept, if they are."""

    kind: Kind
    streams: list[str]
    messages: list[Outgoing]
    parcels: list[Parcel]


class _Ended(NamedTuple):
    """A turn that was emitted, and what it has to send."""

    lane: Lane
    turn: Turn
    batches: list[_Batch]


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
        journal: Journal | None = None,
        store: StoreSettings = StoreSettings(),  # noqa: B008  immutable
        now_ns: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """max_waiting: results that may wait for their confirmation before turns wait for them.

        journal: where durable turns are committed; the bounds of that are in store.
        """
        self._connections = connections
        self._publisher = connections[0].client
        self._lanes = {lane.pipeline.name: lane for lane in lanes}
        self._ledger, self._publications, self._worker, self._now_ns = ledger, publications, worker, now_ns
        self._wait = Waiter([connection.client for connection in connections], also=worker.fileno() if worker else -1)
        self._journal, self._commit_wait_ns = journal, int(store.wait_ms * 1e6)
        self.states = Retained(self._publisher)
        self.outbox = Outbox(
            self._publisher,
            ledger=ledger,
            journal=journal,
            settings=store,
            max_waiting=max_waiting,
            is_permanent=is_permanent,
            on_refused=self._dead_letter_result,
            now_ns=now_ns,
            unix_s=unix_s,
        )
        self._departures = Departures({name: lane.recorder for name, lane in self._lanes.items()})
        self._uncommitted: list[_Ended] = []
        self._arrivals = Arrivals(self._lanes, ledger=ledger, journal=journal, tell=self._publish_letter)
        self._ended: list[_Ended] = []
        self._polled_ns = self._written_down_ns = self._waits_since_ns = 0
        self.publish_refusals = self.rounds = 0
        self._sync = False
        self._blocking = [lane for lane in self._lanes.values() if lane.queue.blocks]
        self._look_for_careful()
        self.on_poison: Callable[[str, DeadLetter], None] = _nothing

    def step(self, timeout_s: float, *, accepting: bool = True) -> None:
        """One round: wait for input at most timeout_s, then move everything that can move.

        accepting: take new messages; otherwise those of QoS 1 stay, unacknowledged, with the broker.
        """
        self.rounds += 1
        for lane in self._blocking:
            lane.connection.client.held = lane.queue.full
        if not any(map(self._may_begin, self._lanes.values())):
            self._wait(self._idle_s(timeout_s))
        self._poll(accepting=accepting)
        for lane in sorted(self._lanes.values(), key=_careful_first) if self._careful else self._lanes.values():
            if self._may_begin(lane):
                self._begin_turn(lane)
        for name in self._worker.finished() if self._worker else ():
            lane = self._lanes[name]
            self._end_turn(lane, lane.in_flight.popleft())
        if self._journal is not None and self._commit_due(hurry=not accepting):
            self._commit(self._journal)
        if accepting:
            self.outbox.replay()
        for connection in self._connections:
            connection.client.flush()
        written_ns = self._now_ns()
        if self._ended:
            self._settle()
        self._departures.written(self._publisher.written, written_ns)
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

    def account(self) -> LedgerView:
        """The ledger, held against the messages, windows and results that are counted here."""
        queued, in_flight = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        turns = [(ended.lane.pipeline.name, ended.turn) for ended in self._uncommitted]
        for name, lane in self._lanes.items():
            queued.update({(name, stream): n for stream, n in lane.queue.depths().items()})
            turns += [(name, turn) for turn in lane.in_flight]
        for name, turn in turns:
            for entry in turn.messages:
                queued[name, entry.stream] += len(entry.messages)
            in_flight.update((name, window.stream) for window in turn.windows)
        return self._ledger.totals(queued, in_flight, self.outbox.waiting())

    def _poll(self, *, accepting: bool) -> None:
        for connection in self._connections:
            messages = connection.client.poll(0.0)
            if connection.service is not None:
                connection.service.serve(messages)
            elif messages and accepting:
                self._arrivals.offer(connection, messages)
                self._acknowledge(connection)
            elif messages:
                self._arrivals.drop_unkept(connection, messages)
        self._polled_ns = self._now_ns()

    # Turns.

    def _begin_turn(self, lane: Lane) -> None:
        journal = self._journal
        if not lane.careful or journal is None:
            self._run(lane, lane.queue.take(TURN_MESSAGES))
            return
        begun = 0
        while lane.careful and begun < MOST_CAREFUL and self._may_begin(lane):
            self._begin_carefully(lane, journal)
            begun += 1
        journal.commit(sync=self._sync)  # what another lane does to the process is not held against these messages
        if not lane.careful and self._may_begin(lane):
            self._run(lane, lane.queue.take(TURN_MESSAGES))

    def _begin_carefully(self, lane: Lane, journal: Journal) -> None:
        """Note a message that comes again before its turn, which it has for itself; not if that killed us before."""
        name, runs = lane.pipeline.name, lane.queue.take(1)
        message = runs[0].messages[0]
        lane.seen_off(message)
        if message.dup and not journal.examine(name, message):
            letter = DeadLetter(runs[0].stream, POISON, "the process has ended in its turn, time and again", message)
            log.error("poison", extra={"pipeline": name, "stream": runs[0].stream, "topic": message.topic})
            self.on_poison(name, letter)
            self._keep(lane, lane.pipeline.reject(runs[0], letter), journal)
        else:
            if message.dup:
                lane.suspect = message
                journal.commit(sync=lane.sync or self._sync)
            self._run(lane, runs)
        self._look_for_careful()
        if not self._careful:
            journal.forget_notes()

    def _look_for_careful(self) -> None:
        self._careful = any(lane.careful or lane.suspect for lane in self._lanes.values())

    def _run(self, lane: Lane, runs: list[Queued]) -> None:
        turn = lane.pipeline.ingest(runs)
        if turn.left_over:
            lane.queue.put_back(turn.left_over)
        if lane.inline or self._worker is None:
            lane.pipeline.predict(turn)
            self._end_turn(lane, turn)
        else:
            lane.in_flight.append(turn)
            self._worker.submit(lane.pipeline.name, lambda: lane.pipeline.predict(turn))

    def _end_turn(self, lane: Lane, turn: Turn) -> None:
        """Emit. Delivery `memory` has nothing to commit, so acknowledgements and results follow at once."""
        lane.pipeline.emit(turn)
        if lane.durable and self._journal is not None:
            self._keep(lane, turn, self._journal)
            return
        for queued in turn.messages:
            lane.connection.acks.settled(queued.messages)
        self._acknowledge(lane.connection)
        self._publish_turn(_Ended(lane, turn, self._batches(turn, durable=False)))

    def _keep(self, lane: Lane, turn: Turn, journal: Journal) -> None:
        """All that has to survive of a turn goes into the next commit."""
        journal.keep(turn)
        self._sync = self._sync or lane.sync
        if lane.suspect is not None:
            journal.survived(lane.pipeline.name, lane.suspect)
            lane.suspect = None
            self._look_for_careful()
        self._uncommitted.append(_Ended(lane, turn, self._batches(turn, durable=True)))

    def _batches(self, turn: Turn, *, durable: bool) -> list[_Batch]:
        found: list[tuple[Kind, list[str], list[Outgoing]]] = []
        if turn.results:
            found.append(("result", [one.stream for one in turn.results], self._publications.results(turn.results)))
        if turn.events:
            events = [self._publications.event(segment) for segment in turn.events]
            found.append(("event", [segment.stream for segment in turn.events], events))
        if turn.dead_letters:
            letters = self._letters(turn.pipeline, turn.dead_letters, qos=int(durable))
            found += [("dead", [NO_STREAM] * len(letters), letters)] if letters else []
        return [_Batch(*one, self.outbox.pack(turn.pipeline, *one, durable=durable)) for one in found]

    # Commit, acknowledge, publish.

    def _commit_due(self, *, hurry: bool) -> bool:
        """Whether turns have waited long enough, or deletions as long as they may."""
        now_ns = self._now_ns()
        if self._uncommitted or self._arrivals.given_up:
            self._waits_since_ns = self._waits_since_ns or now_ns
            hurry = hurry or len(self._uncommitted) >= MOST_UNCOMMITTED
            return hurry or now_ns - self._waits_since_ns >= self._commit_wait_ns
        late = now_ns - self._written_down_ns >= DELETE_WITHIN_NS
        return (late or hurry) and self._journal is not None and self._journal.dirty

    def _commit(self, journal: Journal) -> None:
        """One transaction for every turn that has ended; only then their acknowledgements, and their results."""
        self.confirm()
        ended, self._uncommitted = self._uncommitted, []
        given_up, self._arrivals.given_up = self._arrivals.given_up, []
        journal.commit(sync=self._sync)
        self._sync = False
        now_ns = self._written_down_ns = self._now_ns()
        self._waits_since_ns = 0
        for lane, turn, _ in ended:
            if turn.results:
                turn.commit_ns = now_ns - turn.decided_ns
                turn.spent.append(("commit", [turn.commit_ns], len(turn.results)))
            for queued in turn.messages:
                lane.connection.acks.settled(queued.messages)
        for connection, messages in given_up:
            connection.acks.settled(messages)
        for connection in self._connections:
            self._acknowledge(connection)
        for one in ended:
            self._publish_turn(one)

    def _acknowledge(self, connection: Connection) -> None:
        ids = connection.acks.ready()
        if ids:
            connection.client.acknowledge(connection.acks.epoch, ids)

    def _publish_turn(self, ended: _Ended) -> None:
        turn = ended.turn
        for batch in ended.batches:
            last = self.outbox.hand_over(turn.pipeline, *batch)
            if batch.kind == "result" and last:
                answered = self._publications.result_qos[turn.pipeline] > 0
                self._departures.handed_over(turn, last, answered=answered)
        for change in turn.state_changes:
            self.states.publish(self._publications.state_change(turn.pipeline, change))
        self._ended.append(ended)

    def _settle(self) -> None:
        """Account for the turns that have ended, after their results have left: nobody waits for that."""
        ended, self._ended = self._ended, []
        for lane, turn, _ in ended:
            self._ledger.settle(turn)
            lane.recorder.record_turn(turn)
            turn.messages, turn.accepted, turn.spent = [], [], []  # none of it need wait for the broker

    def confirm(self) -> None:
        """Account for what the broker has answered, and for what was written at QoS 0."""
        self.outbox.register()
        delivered, failed = self._publisher.confirmed()
        if delivered:
            pipelines = self.outbox.delivered(delivered)
            self._departures.delivered(delivered, pipelines, self._polled_ns)
            self.states.delivered(delivered)
        self.publish_refusals += len(failed)
        for token, reason in failed:
            self._departures.failed(token)
            if not self.states.failed(token):
                self.outbox.failed(token, reason)
        if failed:
            self._departures.forget(self.outbox.is_waiting)

    def _letters(self, pipeline: str, letters: list[DeadLetter], *, qos: int = 0) -> list[Outgoing]:
        """Those of the dead letters that may be published."""
        now_ns = self._now_ns()
        found = [self._publications.dead_letter(pipeline, letter, now_ns=now_ns) for letter in letters]
        return [msgspec.structs.replace(one, qos=qos) if qos else one for one in found if one is not None]

    def _publish_letter(self, pipeline: str, letter: DeadLetter) -> None:
        for outgoing in self._letters(pipeline, [letter]):
            self.publish(outgoing)

    def _dead_letter_result(self, pipeline: str, stream: str, refused: Outgoing, reason: str) -> None:
        message = Message(refused.topic, refused.payload, self._now_ns())
        self._publish_letter(pipeline, DeadLetter(stream, REFUSED, reason, message))

    def _may_begin(self, lane: Lane) -> bool:
        if self._careful and self._waits_for_careful(lane):
            return False
        has_work = len(lane.queue) > 0 and len(lane.in_flight) < TURNS_IN_FLIGHT
        return has_work and self.outbox.has_room(durable=lane.durable)

    def _waits_for_careful(self, lane: Lane) -> bool:
        """Whether something else might end the process in the turn of a suspect if the lane began now."""
        lanes = self._lanes.values()
        if lane.careful:
            return any(other.suspect or other.in_flight for other in lanes)
        return any(other.suspect or (other.careful and len(other.queue)) for other in lanes)

    def _busy(self) -> bool:
        journal = self._journal
        unwritten = journal is not None and journal.dirty and not journal.store.problem
        if self.outbox.unsafe or self._uncommitted or unwritten:
            return True
        return any(self._may_begin(lane) or lane.in_flight for lane in self._lanes.values())

    def _idle_s(self, timeout_s: float) -> float:
        if not self._waits_since_ns:
            return timeout_s
        due_ns = self._waits_since_ns + self._commit_wait_ns
        return min(timeout_s, max(0, due_ns - self._now_ns()) / 1e9)


def _careful_first(lane: Lane) -> bool:
    return not lane.careful


def _nothing(_pipeline: str, _letter: DeadLetter) -> None: ...
