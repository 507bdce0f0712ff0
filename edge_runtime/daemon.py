"""Builds everything from the config, starts it, stops it. The only file that knows all rooms."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

import edge_runtime
from edge_runtime.config import Config, PipelineSettings
from edge_runtime.delivery.ledger import Ledger, LedgerView
from edge_runtime.delivery.overload import InputQueue
from edge_runtime.device.memory import rss_mb
from edge_runtime.errors import ConfigError
from edge_runtime.loop import Connection, Lane, Loop
from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.session import Session, load_onnxruntime
from edge_runtime.monitor.hdrlog import LatencyLog
from edge_runtime.monitor.latency import StageRecorder, StageSummary, Timed
from edge_runtime.mqtt.client import CallbackClient
from edge_runtime.mqtt.presence import Presence, State
from edge_runtime.mqtt.publications import Publications
from edge_runtime.mqtt.topics import Routes, Tree, parse_source, plan_connections
from edge_runtime.records import InputSpec, Outgoing
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.decode import make_decoder
from edge_runtime.stream.pipeline import Clock, Pipeline
from edge_runtime.stream.window import WindowSettings
from edge_runtime.worker import Worker

log = logging.getLogger(__name__)

INLINE_LIMIT_NS = 1_000_000
IDLE_S = 0.25
STOP_S = 0.8
NS = 1e9


class Summary(msgspec.Struct, frozen=True):
    """What a run came to. balanced: the ledger's equations hold. drained: all accepted work was finished."""

    uptime_s: float
    drained: bool
    balanced: bool
    ledger: LedgerView
    latency: dict[str, dict[Timed, StageSummary]]
    latency_log: str
    rss_mb: float


class Daemon:
    """A configured device: models loaded and proven, pipelines built, connections planned; `run` does the rest."""

    def __init__(self, config: Config, path: str, *, clock: Clock = Clock()) -> None:  # noqa: B008  immutable
        """path: of the config, for messages. Raises ConfigError, BundleError, ProviderError, DependencyError."""
        self._config, self._clock = config, clock
        self._state: State = "online"
        self.boot_id = secrets.token_hex(8)
        self._tree = Tree(config.mqtt.root, config.node.id)
        self._presence = Presence(self._tree.status, self.boot_id)
        self.bundles = {name: read(Path(model.bundle)) for name, model in config.models.items()}
        self.sessions = {name: Session(self.bundles[name], model.session()) for name, model in config.models.items()}
        self._ledger = Ledger()
        self._recorders = {name: StageRecorder(name) for name in config.pipelines}
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
            now_ns=clock.monotonic_ns,
        )
        self._started_ns = clock.monotonic_ns()
        self._next_metrics_ns = self._started_ns
        self._stop_asked = False

    def run(self) -> Summary:
        """Serve until asked to stop by SIGTERM or SIGINT; drain, say goodbye, sum up."""
        self._take_signals()
        for connection in self._connections:
            connection.client.start()
        log.info("started", extra={"node": self._config.node.id, "pipelines": list(self._config.pipelines)})
        try:
            while not self._stop_asked:
                self.loop.step(IDLE_S)
                self._do_what_is_due()
            drained = self.loop.drain(self._clock.monotonic_ns() + int(self._config.node.drain_s * NS))
        finally:
            self._write_latency()
        view = self.loop.account()
        for connection in self._connections:
            connection.client.stop(STOP_S)
        if self._worker is not None and drained:
            self._worker.stop()
        log.info("stopped", extra={"drained": drained, "balanced": not view.imbalances})
        return self._summary(view, drained=drained)

    def stop(self) -> None:
        """Ask `run` to end; callable from a signal handler or another thread."""
        self._stop_asked = True

    def describe(self) -> dict[str, Any]:
        """The `info` document: what runs here, and on what."""
        ort = load_onnxruntime()
        return {
            "version": edge_runtime.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "onnxruntime": ort.__version__,
            "providers": ort.get_available_providers(),
            "pid": os.getpid(),
            "boot_id": self.boot_id,
            "models": {name: _model_info(self.bundles[name], self.sessions[name]) for name in self.sessions},
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
            client = CallbackClient(
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
        manifest = session.manifest
        spec = manifest.input
        try:
            window = _resolve_window(settings.window, spec)
            channels = settings.source.channels or len(settings.source.fields) or len(spec.channels)
            if channels != len(spec.channels):
                raise ValueError(f"source has {channels} channels, {session.model_id} takes {len(spec.channels)}")
            decode = make_decoder(settings.source, channels)
            decider = Decider(settings.decide, labels=manifest.labels, threshold=manifest.threshold)
        except ValueError as error:
            raise ConfigError(path, f"pipelines.{name}", str(error)) from error
        pipeline = Pipeline(
            name,
            spec=spec,
            window=window,
            decode=decode,
            predictor=session,
            decider=decider,
            recorder=self._recorders[name],
            ledger=self._ledger,
            run_id=self.boot_id,
            max_age_ns=int(settings.queue.max_age_s * NS),
            publish=settings.publish,
            clock=self._clock,
        )
        inline = settings.execution == "inline" or (
            settings.execution == "auto" and session.infer_ns <= INLINE_LIMIT_NS
        )
        log.info(
            "pipeline_ready",
            extra={
                "pipeline": name,
                "model": session.model_id,
                "infer_ms": round(session.infer_ns / 1e6, 4),
                "execution": "inline" if inline else "worker",
            },
        )
        queue = InputQueue(settings.queue, max_streams=settings.max_streams)
        return Lane(pipeline, queue, self._recorders[name], connections[name], inline=inline)

    def _make_publications(self) -> Publications:
        qos: dict[str, int] = {name: pipeline.result_qos for name, pipeline in self._config.pipelines.items()}
        return Publications(self._tree, result_qos=qos, dead_letters=self._config.dead_letters)

    def _birth(self) -> list[Outgoing]:
        """What every new connection begins with."""
        since_unix_s = self._clock.unix_ns() / NS
        return [
            self._presence.message(self._state, since_unix_s=since_unix_s),
            self._publications.info(self.describe()),
        ]

    def _do_what_is_due(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._latency_log.due(now_ns):
            self._write_latency()
        if now_ns >= self._next_metrics_ns:
            self._next_metrics_ns = now_ns + int(self._config.node.metrics_interval_s * NS)
            self._publish_metrics(now_ns)

    def _write_latency(self) -> None:
        now_ns, unix_ns = self._clock.monotonic_ns(), self._clock.unix_ns()
        self._latency_log.write(self._recorders.values(), now_ns=now_ns, unix_ns=unix_ns)

    def _publish_metrics(self, now_ns: int) -> None:
        view = self.loop.account()
        problems = [str(found) for found in view.imbalances]
        problems += [self._latency_log.problem] if self._latency_log.problem else []
        for connection in self._connections:
            problems += [f"{name}: {why}" for name, why in connection.client.refused_filters.items()]
        self._tell_state("degraded" if problems else "online")
        document = {
            "uptime_s": round((now_ns - self._started_ns) / NS, 1),
            "problems": problems,
            "ledger": view,
            "latency": self._latency(),
            "rss_mb": round(rss_mb(), 1),
        }
        self.loop.publish(self._publications.metrics(document))

    def _tell_state(self, state: State) -> None:
        if state != self._state:
            self._state = state
            log.warning("state_changed", extra={"state": state})
            self.loop.publish(self._presence.message(state, since_unix_s=self._clock.unix_ns() / NS))

    def _latency(self) -> dict[str, dict[Timed, StageSummary]]:
        return {name: recorder.summary() for name, recorder in self._recorders.items()}

    def _summary(self, view: LedgerView, *, drained: bool) -> Summary:
        return Summary(
            uptime_s=(self._clock.monotonic_ns() - self._started_ns) / NS,
            drained=drained,
            balanced=not view.imbalances,
            ledger=view,
            latency=self._latency(),
            latency_log=str(self._latency_log.path),
            rss_mb=rss_mb(),
        )

    def _take_signals(self) -> None:
        def on_signal(number: int, _frame: FrameType | None) -> None:
            if self._stop_asked:
                os._exit(128 + number)
            self._stop_asked = True

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)


def _nothing() -> list[Outgoing]:
    return []


def _resolve_window(window: WindowSettings, spec: InputSpec) -> WindowSettings:
    """The window with the bundle's length and hop filled in. Raises ValueError when the lengths differ."""
    if window.samples not in (0, spec.length):
        raise ValueError(f"window.samples = {window.samples}, the model takes {spec.length}")
    return msgspec.structs.replace(window, samples=spec.length, hop=window.hop or spec.hop)


def _model_info(bundle: Bundle, session: Session) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "precision": manifest.precision,
        "sha256": bundle.digest,
        "provider": session.settings.provider,
        "infer_ms": round(session.infer_ns / 1e6, 4),
    }
