"""What would run: the configuration validated, models proven, the broker reached, no message taken."""

from __future__ import annotations

import msgspec

from edge_runtime.config import Config
from edge_runtime.daemon import Daemon
from edge_runtime.mqtt.probe import ask
from edge_runtime.mqtt.topics import parse_source


class PipelineCheck(msgspec.Struct, frozen=True):
    """One pipeline as it would run.

    threads: inside one operator. infer_ms: one window, median at warm-up. golden_error: largest deviation.
    """

    name: str
    topic: str
    filter: str
    model: str
    precision: str
    provider: str
    threads: int
    infer_ms: float
    golden_error: float
    execution: str


class CheckReport(msgspec.Struct, frozen=True):
    """broker: "" when it was reached and every subscription granted, else what is wrong."""

    node: str
    url: str
    broker: str
    pipelines: list[PipelineCheck]

    @property
    def ok(self) -> bool:
        return not self.broker


def check(config: Config, path: str) -> CheckReport:
    """Raises what the daemon would raise at start. The store is left alone: a daemon that runs may have it."""
    unkept = {name: msgspec.structs.replace(item, delivery="memory") for name, item in config.pipelines.items()}
    daemon = Daemon(msgspec.structs.replace(config, pipelines=unkept), path)
    pipelines = []
    for name, settings in config.pipelines.items():
        session = daemon.sessions[settings.model]
        pipelines.append(
            PipelineCheck(
                name=name,
                topic=settings.source.topic,
                filter=parse_source(settings.source.topic).filter,
                model=session.model_id,
                precision=session.manifest.precision,
                provider=session.settings.provider,
                threads=session.settings.intra_op_threads,
                infer_ms=session.infer_ns / 1e6,
                golden_error=session.golden_error,
                execution="inline" if daemon.lanes[name].inline else "worker",
            )
        )
    daemon.close()
    return CheckReport(config.node.id, config.mqtt.url, probe_broker(config), pipelines)


def probe_broker(config: Config) -> str:
    """Connect and subscribe under a client id of its own, so that a running daemon keeps its session; what is wrong."""
    filters = [(parse_source(p.source.topic).filter, int(p.source.qos)) for p in config.pipelines.values()]
    answer = ask(config.mqtt, client_id=f"edge-runtime-{config.node.id}-check", subscriptions=filters)
    return answer.problem or "; ".join(f"{name}: {why}" for name, why in answer.refused.items())
