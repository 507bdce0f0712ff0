"""Builds everything from the config, starts it, stops it. The only file that knows all rooms."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import msgspec

from edge_runtime.about import about
from edge_runtime.config import Config, PipelineSettings
from edge_runtime.delivery.journal import Basis, Journal, Node
from edge_runtime.delivery.ledger import Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.delivery.parcels import Parcel
from edge_runtime.device import systemd
from edge_runtime.device.clock import kernel_clock
from edge_runtime.device.heat import heat
from edge_runtime.device.memory import rss_mb
from edge_runtime.device.wear import WearMeter, over_budget
from edge_runtime.events import NodeEvents
from edge_runtime.lanes import Connection, Lane
from edge_runtime.loop import Loop
from edge_runtime.metrics import Meter, StoreMetrics, problems, store_metrics
from edge_runtime.model.gate import proven
from edge_runtime.model.session import Session
from edge_runtime.model.threads import choose_threads
from edge_runtime.monitor.hdrlog import LatencyLog
from edge_runtime.monitor.latency import Deadline, NoRecorder, StageSummary, Timed
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.presence import Presence, State
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.sessions import KnownSessions
from edge_runtime.mqtt.topics import Routes, Tree, parse_source, plan_pipelines
from edge_runtime.pipelines import build_pipeline, make_recorders
from edge_runtime.records import DeadLetter, Outgoing
from edge_runtime.recovery import basis, open_journal, take_up
from edge_runtime.remote_bench import remote_bench
from edge_runtime.stop import StopSignal
from edge_runtime.stream.pipeline import Clock
from edge_runtime.supervisor import MODEL, Watch, signs_of_work
from edge_runtime.worker import Worker

log = logging.getLogger(__name__)

IDLE_S = 0.25
REVIEW_S = 10.0
LOOK_S = 0.25
GOODBYE_S = 0.6
NS = 1e9


class Summary(msgspec.Struct, frozen=True):
    """What a run came to.

    balanced: the ledger's equations hold. drained: all accepted work was finished. deadlines: of those that have one.
    latency_log: "" when there is none. continued: the ledger of durable pipelines counts on from earlier runs, all else
    is of this one. store: as of the end, None without one; what is kept the next run will send.
    """

    uptime_s: float
    drained: bool
    balanced: bool
    ledger: LedgerView
    latency: dict[str, dict[Timed, StageSummary]]
    deadlines: dict[str, Deadline]
    latency_log: str
    rss_mb: float
    continued: bool
    store: StoreMetrics | None


class Daemon:
    """A configured device: models loaded and proven, pipelines built, connections planned; `run` does the rest."""

    def __init__(self, config: Config, path: str, *, clock: Clock = Clock()) -> None:  # noqa: B008  immutable
        """path: of the config, for messages. Raises ConfigError, BundleError, ProviderError, DependencyError."""
        self._config, self._clock = config, clock
        self._state: State = "online"
        self.boot_id = os.urandom(8).hex()
        self._tree = Tree(config.mqtt.root, config.node.id)
        self._presence = Presence(self._tree.status, self.boot_id)
        self.sessions: dict[str, Session] = {}
        self._digests: dict[str, str] = {}
        state_dir = Path(config.node.state_dir)
        for name, model in config.models.items():
            settings = model.session()
            bundle = proven(Path(model.bundle), config.gate, session=settings, state_dir=state_dir)
            if model.intra_op_threads == "auto":
                threads = choose_threads(bundle, settings).threads
                settings = msgspec.structs.replace(settings, intra_op_threads=threads)
            self.sessions[name], self._digests[name] = Session(bundle, settings), bundle.digest
        self._ledger, self._bases = Ledger(), self._make_bases()
        self._journal: Journal | None = None
        left: list[Parcel] = []
        if self._bases:
            self._journal, left = open_journal(config, self._bases, clock)
        self._recorders = make_recorders(config)
        self._heat = heat()
        self._latency_log = LatencyLog(
            Path(config.node.state_dir) / "latency", config.latency, now_ns=clock.monotonic_ns()
        )
        self._publications = self._make_publications()
        self._connections: list[Connection] = []
        connections = self._connect()
        self.lanes = {name: self._lane(name, item, path, connections) for name, item in config.pipelines.items()}
        self._worker = Worker() if any(not lane.inline for lane in self.lanes.values()) else None
        self.loop = Loop(
            self._connections,
            self.lanes.values(),
            ledger=self._ledger,
            publications=self._publications,
            worker=self._worker,
            max_waiting=max(1, config.mqtt.max_outgoing // 2),
            journal=self._journal,
            store=config.store,
            now_ns=clock.monotonic_ns,
            unix_s=lambda: clock.unix_ns() / NS,
        )
        if self._journal is not None:
            take_up(
                self._journal,
                left,
                self.loop,
                self.lanes,
                bases=self._bases,
                ledger=self._ledger,
                publications=self._publications,
            )
        self._trust_clocks()
        self._started_ns = self._review_due_ns = clock.monotonic_ns()
        self._look_due_ns, self._greeted, self._states_due = 0, False, False
        self._meter = Meter(
            self.lanes,
            self._connections,
            self._recorders,
            models={name: self.sessions[item.model].model_id for name, item in config.pipelines.items()},
            boot_id=self.boot_id,
            every_s=config.node.metrics_interval_s,
            started_ns=self._started_ns,
            counted=self.loop.account().pipelines,
            store=lambda: store_metrics(self._journal, self.loop.outbox),
        )
        self._wear = WearMeter(now_ns=self._started_ns, budget_mb_per_day=config.store.budget_mb)
        self._events = NodeEvents(
            self._publications,
            self._connections[0].client.publish,
            connections=self._connections,
            store=self._journal.store if self._journal else None,
            problem=lambda: self.loop.outbox.problem,
            unix_s=lambda: clock.unix_ns() / NS,
        )
        self.loop.on_poison = self._tell_poison

    def run(self, stop: StopSignal) -> Summary:
        """Serve until asked to stop; drain, say goodbye, sum up."""
        for connection in self._connections:
            connection.client.start()
        log.info("started", extra={"node": self._config.node.id, "pipelines": list(self._config.pipelines)})
        gc.freeze()  # what the start has made stays: no collection between messages has to look at it again
        try:
            deadline_ns, drained = self._serve(stop)
        finally:
            gc.unfreeze()
            self._write_latency()
            self._latency_log.close()
        self._say_goodbye(deadline_ns + int(GOODBYE_S * NS))
        view = self.loop.account()
        self._close_store()
        if drained:
            self.close()
        log.info("stopped", extra={"drained": drained, "balanced": not view.imbalances})
        return self._summary(view, drained=drained)

    def _serve(self, stop: StopSignal) -> tuple[int, bool]:
        """Go round until asked to stop, watched; then finish what was begun: until when, and whether it was done."""
        signs = signs_of_work(lambda: self.loop.rounds, self._worker, self.sessions.values())
        longest_s = max(session.longest_run_s for session in self.sessions.values())
        notifier, watch = systemd.notifier(), Watch(signs, self._config.node.watchdog_s, longest_run_s=longest_s)
        interval_ns = systemd.watchdog_interval_ns()
        watchdog = systemd.Watchdog(notifier, interval_ns, sign=signs[MODEL], limit_s=watch.limit_s)
        with watch:
            notifier.ready()
            while not stop.asked:
                self.loop.step(IDLE_S)
                self._do_what_is_due()
                watchdog.feed(self._clock.monotonic_ns())
            notifier.stopping()
            deadline_ns = self._clock.monotonic_ns() + int(self._config.node.drain_s * NS)
            return deadline_ns, self.loop.drain(deadline_ns)

    def close(self) -> None:
        """Free what was opened for running; for a daemon that is built and never run."""
        if self._worker is not None:
            self._worker.stop()
        if self._journal is not None:
            self._journal.store.close()

    def _tell_poison(self, pipeline: str, letter: DeadLetter) -> None:
        self._events.tell("poison", {"pipeline": pipeline, "stream": letter.stream, "topic": letter.message.topic})

    def _close_store(self) -> None:
        """The end is in order: what is left in the store is what could not be sent."""
        if self._journal is not None:
            self._note_sessions()
            self._journal.write_node(msgspec.structs.replace(self._journal.node, clean=True))
            self._journal.commit(sync=False)
            self._journal.store.close()

    def _make_bases(self) -> dict[str, Basis]:
        """Of the durable pipelines."""
        durable = {name: item for name, item in self._config.pipelines.items() if item.delivery != "memory"}
        return {
            name: basis(item, self.sessions[item.model].manifest, self._digests[item.model])
            for name, item in durable.items()
        }

    def _say_goodbye(self, deadline_ns: int) -> None:
        """Stop every connection; what they still had to send is accounted for. One deadline for all of them."""
        for connection in self._connections:
            if connection.service is not None:
                connection.service.stop()
            left_s = (deadline_ns - self._clock.monotonic_ns()) / NS
            connection.client.stop(min(GOODBYE_S, max(0.0, left_s)))
        self.loop.confirm()

    def _connect(self) -> dict[str, Connection]:
        """The connection of every pipeline, by its name."""
        pipelines, most = self._config.pipelines, self._config.mqtt.receive_maximum
        sources = {name: parse_source(pipeline.source.topic) for name, pipeline in pipelines.items()}
        wanted = {name: (sources[name].filter, pipeline.source.qos) for name, pipeline in pipelines.items()}
        blocking = {name: min(item.queue.max, most) for name, item in pipelines.items() if item.queue.blocks}
        client_id = self._config.mqtt.client_id or f"edge-runtime-{self._config.node.id}"
        connections: dict[str, Connection] = {}
        self._known = KnownSessions(self._config.mqtt, client_id, self._before.sessions if self._before else {})
        for planned in plan_pipelines(wanted, blocking=blocking):
            first, session = not self._connections, self._known.want(client_id + planned.suffix, planned.subscriptions)
            client = make_client(
                self._config.mqtt,
                client_id=client_id + planned.suffix,
                subscriptions=planned.subscriptions,
                receive_maximum=planned.receive_maximum,
                had_session=session in self._known,
                stale=self._known.stale(session),
                presence=self._presence if first else None,
                birth=self._birth if first else list,
            )
            routes = Routes([(name, sources[name]) for name in planned.pipelines])
            self._connections.append(Connection(client, routes, session=session))
            connections |= dict.fromkeys(planned.pipelines, self._connections[-1])
        self._connections += remote_bench(self._config, self._tree, client_id)
        return connections

    def _lane(self, name: str, settings: PipelineSettings, path: str, connections: dict[str, Connection]) -> Lane:
        session = self.sessions[settings.model]
        durable, before = name in self._bases, self._before
        pipeline = build_pipeline(
            self._config,
            name,
            session,
            path=path,
            ledger=self._ledger,
            run_id=self.boot_id,
            clock=self._clock,
            keep=durable,
        )
        inline = settings.execution == "inline" or (
            settings.execution == "auto" and session.infer_ns <= self._config.node.inline_limit_ms * 1e6
        )
        log.info(
            "pipeline_ready",
            extra={
                "pipeline": name,
                "model": session.model_id,
                "infer_ms": round(session.infer_ns / 1e6, 4),
                "threads": session.settings.intra_op_threads,
                "execution": "inline" if inline else "worker",
            },
        )
        queue = InputQueue(settings.queue, max_streams=settings.max_streams)
        return Lane(
            pipeline,
            queue,
            self._recorders.get(name, NoRecorder()),
            connections[name],
            inline=inline,
            durable=durable,
            sync=settings.delivery == "full",
            careful=durable and before is not None and not before.clean,
        )

    @property
    def _before(self) -> Node | None:
        """What the run before has left of itself."""
        return self._journal.before if self._journal is not None else None

    def _note_sessions(self) -> None:
        """Remember who holds a session for us: if it is gone when we come again, messages may be, too."""
        kept = [item.session for item in self._connections if item.client.subscribed and item.service is None]
        if (journal := self._journal) is not None and (sessions := self._known.note(kept)) != journal.node.sessions:
            journal.write_node(msgspec.structs.replace(journal.node, sessions=sessions))

    def _make_publications(self) -> Publications:
        qos: dict[str, int] = {name: pipeline.result_qos for name, pipeline in self._config.pipelines.items()}
        return Publications(self._tree, result_qos=qos, dead_letters=self._config.dead_letters, boot_id=self.boot_id)

    def _birth(self) -> list[Outgoing]:
        """What every new connection begins with; a review follows as soon as the subscriptions are answered.

        The states follow behind what the client sends again, so that an older one is never the last.
        """
        self._greeted = self._states_due = True
        since_unix_s = self._clock.unix_ns() / NS
        return [
            self._presence.message(self._state, since_unix_s=since_unix_s),
            self._publications.info(about(self._config, self.sessions, self._digests, boot_id=self.boot_id)),
        ]

    def _do_what_is_due(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._states_due:
            self._states_due = False
            self.loop.states.renew()
        if now_ns >= self._look_due_ns:
            self._look_due_ns = now_ns + int(LOOK_S * NS)
            self._events.look()
        if self._latency_log.due(now_ns):
            self._write_latency()
            self._trust_clocks()
        answered = self._greeted and all(connection.client.subscribed for connection in self._connections)
        if answered or now_ns >= self._review_due_ns:
            self._review_due_ns = now_ns + int((self._config.node.metrics_interval_s or REVIEW_S) * NS)
            self._greeted = self._greeted and not answered
            self._review(now_ns)

    def _write_latency(self) -> None:
        self._heat = heat()
        self._latency_log.write(
            self._recorders.values(),
            now_ns=self._clock.monotonic_ns(),
            unix_ns=self._clock.unix_ns(),
            temperature_c=self._heat.temperature_c,
            throttled=self._heat.throttled,
        )

    def _trust_clocks(self) -> None:
        """Time the way from a sensor only while this clock, too, is true."""
        for name, settings in self._config.pipelines.items():
            if settings.source.clock_synced:
                kernel = kernel_clock()
                self.lanes[name].pipeline.transit = kernel is not None and kernel.synchronized

    def _review(self, now_ns: int) -> None:
        """Repeat what was refused, say how the node is when that has changed, and publish the metrics."""
        self.loop.states.retry()
        self.loop.outbox.review()
        self._note_sessions()
        view = self.loop.account()
        self._events.review(view)
        wear = self._wear.wear(now_ns)
        found = problems(
            view,
            self._connections,
            self._recorders.values(),
            self._latency_log.problem,
            self._journal.store.problem if self._journal else "",
            self.loop.outbox.problem,
            over_budget(wear),
        )
        self._tell_state("degraded" if found else "online")
        every_s = self._config.node.metrics_interval_s
        if every_s and self._connections[0].client.connected:
            refusals, unix_ns = self.loop.publish_refusals, self._clock.unix_ns()
            document = self._meter.document(
                view, found, self._heat, wear=wear, publish_refusals=refusals, now_ns=now_ns, unix_ns=unix_ns
            )
            self.loop.publish(self._publications.metrics(document, every_s=every_s))

    def _tell_state(self, state: State) -> None:
        if state != self._state:
            self._state = state
            log.warning("state_changed", extra={"state": state})
            self.loop.publish(self._presence.message(state, since_unix_s=self._clock.unix_ns() / NS))

    def _summary(self, view: LedgerView, *, drained: bool) -> Summary:
        return Summary(
            uptime_s=(self._clock.monotonic_ns() - self._started_ns) / NS,
            drained=drained,
            balanced=not view.imbalances,
            ledger=view,
            latency={name: recorder.summary() for name, recorder in self._recorders.items()},
            deadlines={name: found for name, recorder in self._recorders.items() if (found := recorder.deadline())},
            latency_log=str(self._latency_log.path) if self._recorders and self._latency_log.path.exists() else "",
            rss_mb=rss_mb(),
            continued=self._before is not None,
            store=store_metrics(self._journal, self.loop.outbox),
        )
