"""From the settings of a pipeline and its model to the pipeline itself."""

from __future__ import annotations

import msgspec

from edge_runtime.config import Config, PipelineSettings
from edge_runtime.delivery.ledger import Ledger
from edge_runtime.errors import ConfigError
from edge_runtime.model.manifest import Manifest
from edge_runtime.model.session import Session
from edge_runtime.monitor.latency import StageRecorder
from edge_runtime.records import InputSpec
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.decode import Decoder, make_decoder
from edge_runtime.stream.pipeline import Clock, Pipeline
from edge_runtime.stream.rows import make_rows_decoder
from edge_runtime.stream.states import StateSettings, StreamStates
from edge_runtime.stream.window import WindowSettings

NS = 1e9


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
    keep: bool = False,
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
        keep=keep,
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
