"""TOML to structs: what a device is told to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edge_runtime.delivery.ledger import NO_PIPELINE
from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.delivery.store import StoreSettings
from edge_runtime.errors import ConfigError
from edge_runtime.model.compare import RemoteBenchSettings
from edge_runtime.model.gate import GateSettings
from edge_runtime.model.manifest import NAME_PATTERN
from edge_runtime.model.session import INLINE_LIMIT_MS, SessionSettings
from edge_runtime.monitor.latency import LatencySettings
from edge_runtime.mqtt.publications import DeadLetterSettings
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.mqtt.topics import Tree, overlaps, parse_source
from edge_runtime.settings import decode, read_toml
from edge_runtime.stream.decide import DecideSettings
from edge_runtime.stream.source import SourceSettings
from edge_runtime.stream.source import check as check_source
from edge_runtime.stream.states import StateSettings
from edge_runtime.stream.window import WindowSettings

LEAST_METRICS_INTERVAL_S = 0.1
LEAST_WATCHDOG_S = 2.0
FILE_KEYS = ("ca", "cert", "key", "password_file")


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This device. Raises ValueError for metrics more often than every LEAST_METRICS_INTERVAL_S, a shorter watchdog_s.

    metrics_interval_s: 0 = none. inline_limit_ms: a model that takes longer for one window runs on the worker thread.
    drain_s: how long a stop may take to finish what was accepted. watchdog_s: how long the loop, or a run of a model,
    may stand still before the process is ended; 0 = for ever. allow_remote_bench: measure candidates that come by MQTT.
    """

    id: str
    state_dir: str = "/var/lib/edge-runtime"
    metrics_interval_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0
    inline_limit_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] = INLINE_LIMIT_MS
    drain_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 4.0
    watchdog_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    allow_remote_bench: bool = False

    def __post_init__(self) -> None:
        if 0 < self.metrics_interval_s < LEAST_METRICS_INTERVAL_S:
            raise ValueError(
                f"metrics_interval_s = {self.metrics_interval_s}, wanted 0 or at least {LEAST_METRICS_INTERVAL_S}"
            )
        if 0 < self.watchdog_s < LEAST_WATCHDOG_S:
            raise ValueError(f"watchdog_s = {self.watchdog_s}, wanted 0 or at least {LEAST_WATCHDOG_S}")


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bundle and how it runs; a relative path is taken from the config file's folder.

    intra_op_threads: "auto" measures at the start how many are worth it.
    """

    bundle: str
    provider: str = "CPUExecutionProvider"
    intra_op_threads: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto"] = 1
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = 64

    def session(self) -> SessionSettings:
        """With one thread where the number is yet to be measured."""
        threads = 1 if self.intra_op_threads == "auto" else self.intra_op_threads
        return SessionSettings(self.provider, threads, self.max_batch)


class PipelineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One pipeline: source, model, window (by default the bundle's), state, decision, queue.

    publish: a result per window, or only when label or alarm change. execution: inline in the network thread, on
    the worker thread, or by the time one window takes at warm-up. delivery: what is acknowledged survives nothing, an
    end of the process (`normal`), or a loss of power (`full`).
    deadline_ms: a result written later than this after its last message was received is a miss, 0 for none.
    """

    source: SourceSettings
    model: str
    window: WindowSettings = WindowSettings()
    state: StateSettings = StateSettings()
    decide: DecideSettings = DecideSettings()
    queue: QueueSettings = QueueSettings()
    delivery: Literal["memory", "normal", "full"] = "normal"
    publish: Literal["window", "change"] = "window"
    result_qos: Literal[0, 1] = 1
    execution: Literal["auto", "inline", "worker"] = "auto"
    max_streams: Annotated[int, msgspec.Meta(ge=1)] = 1024
    deadline_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)] = 0.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole configuration file."""

    node: NodeSettings
    mqtt: MqttSettings
    models: dict[str, ModelSettings]
    pipelines: dict[str, PipelineSettings]
    latency: LatencySettings = LatencySettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    gate: GateSettings = GateSettings()
    store: StoreSettings = StoreSettings()
    remote_bench: RemoteBenchSettings = RemoteBenchSettings()


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError naming file, key, what was found and what is allowed.
    """
    return parse(read_toml(path), path)


def parse(table: dict[str, object], path: Path) -> Config:
    """Check an already parsed table; relative paths in it are taken from path's folder."""
    config = decode(table, Config, path=str(path))
    _check_names(config, str(path))
    _check_sources(config, str(path))
    _check_remote_bench(config, str(path))
    folder = path.resolve().parent
    models = {
        name: msgspec.structs.replace(model, bundle=str(folder / model.bundle)) for name, model in config.models.items()
    }
    mqtt = config.mqtt
    node = msgspec.structs.replace(config.node, state_dir=str(folder / config.node.state_dir))
    files = {key: str(folder / found) for key in FILE_KEYS if (found := getattr(mqtt, key))}
    return msgspec.structs.replace(config, node=node, models=models, mqtt=msgspec.structs.replace(mqtt, **files))


def _check_names(config: Config, path: str) -> None:
    named = [("node.id", config.node.id)]
    named += [(f"models.{name}", name) for name in config.models]
    named += [(f"pipelines.{name}", name) for name in config.pipelines]
    for key, name in named:
        if name == NO_PIPELINE:
            raise ConfigError(path, key, f"found the name {name!r}, which stands for no pipeline")
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(path, key, f"found the name {name!r}, wanted {NAME_PATTERN}")
    if not config.pipelines:
        raise ConfigError(path, "pipelines", "found none, wanted at least one [pipelines.NAME]")
    for name, pipeline in config.pipelines.items():
        if pipeline.model not in config.models:
            known = ", ".join(config.models) or "none"
            raise ConfigError(path, f"pipelines.{name}.model", f"found {pipeline.model!r}, allowed: {known}")
        if pipeline.deadline_ms and not config.latency.enabled:
            raise ConfigError(path, f"pipelines.{name}.deadline_ms", "latency.enabled = false: nothing is timed")


def _check_remote_bench(config: Config, path: str) -> None:
    mqtt = config.mqtt
    if config.node.allow_remote_bench and not (mqtt.password_file or mqtt.cert):
        problem = "found true without credentials for the broker, wanted mqtt.username and mqtt.password_file, or"
        raise ConfigError(path, "node.allow_remote_bench", f"{problem} mqtt.cert and mqtt.key: others send what is run")
    if config.node.allow_remote_bench and mqtt.protocol == "3.1.1":
        problem = 'found true with mqtt.protocol = "3.1.1", which has no request and response; wanted "5"'
        raise ConfigError(path, "node.allow_remote_bench", problem)


def _check_sources(config: Config, path: str) -> None:
    try:
        tree = Tree(config.mqtt.root, config.node.id)
    except ValueError as error:
        raise ConfigError(path, "mqtt.root", str(error)) from error
    for name, pipeline in config.pipelines.items():
        key = f"pipelines.{name}.source.topic"
        try:
            source = parse_source(pipeline.source.topic)
        except ValueError as error:
            raise ConfigError(path, key, str(error)) from error
        try:
            check_source(pipeline.source)
        except ValueError as error:
            raise ConfigError(path, f"pipelines.{name}.source", str(error)) from error
        if overlaps(source.filter, tree.everything):
            raise ConfigError(
                path, key, f"{source.filter!r} overlaps {tree.everything!r}: the daemon would take its own results"
            )
        if config.mqtt.protocol == "3.1.1" and (pipeline.source.seq_property or pipeline.source.time_property):
            raise ConfigError(path, f"pipelines.{name}.source", "MQTT 3.1.1 has no user properties; use fields")
        if pipeline.queue.blocks and not pipeline.source.qos:
            problem = 'QoS 0 cannot be held back: found "block" with source.qos = 0, wanted source.qos = 1 with it'
            raise ConfigError(path, f"pipelines.{name}.queue.when_full", problem)
        if config.mqtt.receive_maximum <= pipeline.queue.max and not pipeline.queue.blocks:
            raise ConfigError(
                path,
                f"pipelines.{name}.queue.max",
                f"found {pipeline.queue.max}, wanted less than mqtt.receive_maximum = {config.mqtt.receive_maximum}, "
                "or the broker holds back what the queue's rule should decide on",
            )
