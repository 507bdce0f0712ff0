"""Builds everything from the config, starts it, stops it. The only file that knows all rooms."""

from __future__ import annotations

import gc
import logging
import os
import platform
from pathlib import Path
from typing import Any

import msgspec

import edge_runtime
from edge_runtime.config import Config, PipelineSettings
from edge_runtime.delivery.ledger import Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.device.clock import kernel_clock
from edge_runtime.device.heat import heat
from edge_runtime.device.memory import rss_mb
from edge_runtime.errors import ConfigError
from edge_runtime.loop import Connection, Lane, Loop
from edge_runtime.metrics import Meter, problems
from edge_runtime.model.gate import proven
from edge_runtime.model.manifest import Manifest
from edge_runtime.model.session import Session, load_onnxruntime
from edge_runtime.model.threads import choose_threads
from edge_runtime.monitor.hdrlog import LatencyLog
from edge_runtime.monitor.latency import Deadline, NoRecorder, StageRecorder, StageSummary, Timed
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.presence import Presence, State
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.topics import Routes, Tree, parse_source, plan_connections
from edge_runtime.records import InputSpec, Outgoing
from edge_runtime.stop import StopSignal
from edge_runtime.stream.arrays import json_reader
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.decode import Decoder, make_decoder
from edge_runtime.stream.pipeline import Clock, Pipeline
from edge_runtime.stream.rows import make_rows_decoder
from edge_runtime.stream.states import StateSettings, StreamStates
from edge_runtime.stream.window import WindowSettings
from edge_runtime.worker import Worker

log = logging.getLogger(__name__)

IDLE_S = 0.25
REVIEW_S = 10.0
GOODBYE_S = 0.6
NS = 1e9


class Summary(msgspec.Struct, frozen=True):
    """What a run came to.

    balanced: the ledger's equations hold. drained: all accepted work was finished. deadlines: of those that have one.
    latency_log: "" when there is none.
    """

    uptime_s: float
    drained: bool
    balanced: bool
    ledger: LedgerView
    latency: dict[str, dict[Timed, StageSummary]]
    deadlines: dict[str, Deadline]
    latency_log: str
    rss_mb: float


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
        self._ledger = Ledger()
        self._recorders = make_recorders(config)
        self._heat = heat()
        self._latency_log = LatencyLog(
            Path(config.node.state_dir) / "latency", config.latency, now_ns=clock.monotonic_ns()
        )
        self._publications = self._make_publications()
        connections = self._connect()
        self.lanes = {name: self._lane(name, item, path, connections) for name, item in config.pipelines.items()}
        self._worker = Worker() if any(not lane.inline for lane in self.lanes.values()) else None
        self._connections = list(dict.fromkeys(connections.values()))
        self.loop = Loop(
            self._connections,
            self.lanes.values(),
            ledger=self._ledger,
            publications=self._publications,
            worker=self._worker,
            max_waiting=max(1, config.mqtt.max_outgoing // 2),
            now_ns=clock.monotonic_ns,
        )
        self._trust_clocks()
        self._started_ns = self._review_due_ns = clock.monotonic_ns()
        self._greeted = False
        self._meter = Meter(
            self.lanes,
            self._connections,
            self._recorders,
            models={name: self.sessions[item.model].model_id for name, item in config.pipelines.items()},
            boot_id=self.boot_id,
            every_s=config.node.metrics_interval_s,
            started_ns=self._started_ns,
        )

    def run(self, stop: StopSignal) -> Summary:
        """Serve until asked to stop; drain, say goodbye, sum up."""
        for connection in self._connections:
            connection.client.start()
        log.info("started", extra={"node": self._config.node.id, "pipelines": list(self._config.pipelines)})
        gc.freeze()  # what the start has made stays: no collection between messages has to look at it again
        try:
            while not stop.asked:
                self.loop.step(IDLE_S)
                self._do_what_is_due()
            deadline_ns = self._clock.monotonic_ns() + int(self._config.node.drain_s * NS)
            drained = self.loop.drain(deadline_ns)
        finally:
            gc.unfreeze()
            self._write_latency()
            self._latency_log.close()
        self._say_goodbye(deadline_ns + int(GOODBYE_S * NS))
        view = self.loop.account()
        if drained:
            self.close()
        log.info("stopped", extra={"drained": drained, "balanced": not view.imbalances})
        return self._summary(view, drained=drained)

    def close(self) -> None:
        """Free what was opened for running; for a daemon that is built and never run."""
        if self._worker is not None:
            self._worker.stop()

    def _say_goodbye(self, deadline_ns: int) -> None:
        """Stop every connection; what they still had to send is accounted for. One deadline for all of them."""
        for connection in self._connections:
            left_s = (deadline_ns - self._clock.monotonic_ns()) / NS
            connection.client.stop(min(GOODBYE_S, max(0.0, left_s)))
        self.loop.confirm()

    def describe(self) -> dict[str, Any]:
        """The `info` document: what runs here, and on what."""
        ort = load_onnxruntime()
        return {
            "version": edge_runtime.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "onnxruntime": ort.__version__,
            "providers": ort.get_available_providers(),
            "json": json_reader(),
            "pid": os.getpid(),
            "boot_id": self.boot_id,
            "models": {name: self._model_info(name) for name in self.sessions},
            "pipelines": {
                name: {"topic": settings.source.topic, "model": settings.model, "delivery": settings.delivery}
                for name, settings in self._config.pipelines.items()
            },
        }

    def _connect(self) -> dict[str, Connection]:
        """The connection of every pipeline, by its name."""
        sources = {name: parse_source(pipeline.source.topic) for name, pipeline in self._config.pipelines.items()}
        wanted = [(sources[name].filter, pipeline.source.qos) for name, pipeline in self._config.pipelines.items()]
        connections: dict[str, Connection] = {}
        for index, subscriptions in enumerate(plan_connections(wanted)):
            filters = {topic_filter for topic_filter, _ in subscriptions}
            served = [(name, source) for name, source in sources.items() if source.filter in filters]
            client_id = self._config.mqtt.client_id or f"edge-runtime-{self._config.node.id}"
            first = index == 0
            client = make_client(
                self._config.mqtt,
                client_id=client_id if first else f"{client_id}-{index + 1}",
                subscriptions=subscriptions,
                presence=self._presence if first else None,
                birth=self._birth if first else _nothing,
            )
            connection = Connection(client, Routes(served))
            connections |= dict.fromkeys((name for name, _ in served), connection)
        return connections

    def _lane(self, name: str, settings: PipelineSettings, path: str, connections: dict[str, Connection]) -> Lane:
        session = self.sessions[settings.model]
        pipeline = build_pipeline(
            self._config,
            name,
            session,
            path=path,
            ledger=self._ledger,
            run_id=self.boot_id,
            clock=self._clock,
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
        return Lane(pipeline, queue, self._recorders.get(name, NoRecorder()), connections[name], inline=inline)

    def _make_publications(self) -> Publications:
        qos: dict[str, int] = {name: pipeline.result_qos for name, pipeline in self._config.pipelines.items()}
        return Publications(self._tree, result_qos=qos, dead_letters=self._config.dead_letters)

    def _birth(self) -> list[Outgoing]:
        """What every new connection begins with; a review follows as soon as the subscriptions are answered."""
        self._greeted = True
        since_unix_s = self._clock.unix_ns() / NS
        return [
            self._presence.message(self._state, since_unix_s=since_unix_s),
            self._publications.info(self.describe()),
            *self.loop.states(),
        ]

    def _do_what_is_due(self) -> None:
        now_ns = self._clock.monotonic_ns()
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
        self.loop.retry_states()
        view = self.loop.account()
        found = problems(view, self._connections, self._recorders.values(), self._latency_log.problem)
        self._tell_state("degraded" if found else "online")
        every_s = self._config.node.metrics_interval_s
        if every_s and self._connections[0].client.connected:
            refusals, unix_ns = self.loop.publish_refusals, self._clock.unix_ns()
            document = self._meter.document(
                view, found, self._heat, publish_refusals=refusals, now_ns=now_ns, unix_ns=unix_ns
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
        )

    def _model_info(self, name: str) -> dict[str, Any]:
        session = self.sessions[name]
        manifest = session.manifest
        return {
            "name": manifest.name,
            "version": manifest.version,
            "precision": manifest.precision,
            "sha256": self._digests[name],
            "provider": session.settings.provider,
            "threads": session.settings.intra_op_threads,
            "infer_ms": round(session.infer_ns / 1e6, 4),
        }


def _nothing() -> list[Outgoing]:
    return []


def make_recorders(config: Config) -> dict[str, StageRecorder]:
    """One for each pipeline; none when nothing is to be timed."""
    if not config.latency.enabled:
        return {}
    most = config.latency.slowest
    return {
        name: StageRecorder(name, deadline_ms=settings.deadline_ms, slowest=most)
        for name, settings in config.pipelines.items()
    }


def build_pipeline(
    config: Config,
    name: str,
    session: Session,
    *,
    path: str,
    ledger: Ledger,
    run_id: str,
    clock: Clock,
) -> Pipeline:
    """The pipeline of that name over its model. path: of the config, for messages. Raises ConfigError."""
    settings = config.pipelines[name]
    try:
        window, decode, decider = fitted(settings, session.manifest)
    except ValueError as error:
        raise ConfigError(path, f"pipelines.{name}", str(error)) from error
    return Pipeline(
        name,
        spec=session.manifest.input,
        window=window,
        decode=decode,
        decode_rows=make_rows_decoder(settings.source, len(session.manifest.input.channels)),
        predictor=session,
        decider=decider,
        ledger=ledger,
        run_id=run_id,
        memory=config.mqtt.receive_maximum,
        max_age_ns=int(settings.queue.max_age_s * NS),
        states=StreamStates(session, settings.state) if session.is_streaming else None,
        publish=settings.publish,
        clock=clock,
    )


def fitted(settings: PipelineSettings, manifest: Manifest) -> tuple[WindowSettings, Decoder, Decider]:
    """Window, decoder and decision of a pipeline, held against its model. Raises ValueError when they do not fit."""
    spec, source = manifest.input, settings.source
    channels = source.channels or len(source.fields) or len(spec.channels)
    if channels != len(spec.channels):
        raise ValueError(f"source has {channels} channels, {manifest.model_id} takes {len(spec.channels)}")
    if settings.state != StateSettings() and not manifest.states:
        raise ValueError(f"state is set, but {manifest.model_id} carries none")
    if manifest.states and settings.window.hop not in (0, spec.hop):
        raise ValueError(f"window.hop = {settings.window.hop}: the state of {manifest.model_id} wants {spec.hop}")
    decider = Decider(settings.decide, labels=manifest.labels, threshold=manifest.threshold)
    return _resolve_window(settings.window, spec), make_decoder(source, channels), decider


def _resolve_window(window: WindowSettings, spec: InputSpec) -> WindowSettings:
    """The window with the bundle's length and hop filled in. Raises ValueError when the lengths differ."""
    if window.samples not in (0, spec.length):
        raise ValueError(f"window.samples = {window.samples}, the model takes {spec.length}")
    return msgspec.structs.replace(window, samples=spec.length, hop=window.hop or spec.hop)
