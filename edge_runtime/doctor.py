"""What may be wrong here, before it goes wrong: machine, ONNX Runtime, configuration, models, broker, clock, disk."""

from __future__ import annotations

import os
import platform
import struct
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec

from edge_runtime.config import Config, load
from edge_runtime.device import board, clock, machine, runtime, storage
from edge_runtime.errors import BundleError, ConfigError, EdgeRuntimeError
from edge_runtime.findings import Finding, fail, ok
from edge_runtime.model.bundle import read
from edge_runtime.model.child import printable
from edge_runtime.model.gate import GateReport, gate
from edge_runtime.model.manifest import Manifest
from edge_runtime.mqtt import examine as mqtt
from edge_runtime.mqtt.topics import parse_source
from edge_runtime.pipelines import fitted
from edge_runtime.stream.arrays import json_reader

DEMO_BUNDLE = "pump-vibration.edge"


class Report(msgspec.Struct, frozen=True):
    """ok: nothing failed; there may be warnings."""

    ok: bool
    findings: list[Finding]


def examine(path: Path | None) -> Iterator[Finding]:
    """Findings as they are made, those of the machine first. path: of a configuration, None for the machine alone.

    Changes nothing; the broker sees a client id of doctor's own.
    """
    yield from _machine()
    with resources.as_file(resources.files("edge_runtime.demo") / DEMO_BUNDLE) as bundle:
        tried = runtime.attempt(bundle)
    yield from runtime.judge(tried, runtime.installed(), platform.machine())
    if path is None:
        return
    try:
        config = load(path)
    except ConfigError as error:
        yield fail("config", str(error), "correct the file; docs/configuration.md has every setting")
        return
    yield ok("config", f"{path}: node {config.node.id}, {len(config.models)} models, {len(config.pipelines)} pipelines")
    providers = tried.imported.providers if tried.imported else None
    yield from _models(config, path, providers)
    yield from storage.state_folder(Path(config.node.state_dir))
    yield from _broker(config)


def _machine() -> Iterator[Finding]:
    yield machine.architecture(platform.system(), platform.machine(), struct.calcsize("P") * 8)
    yield machine.python(sys.version_info[:3])
    yield machine.c_library(*platform.libc_ver())
    yield machine.processor(platform.machine(), os.cpu_count() or 1)
    yield clock.time_of_day(time.time(), clock.kernel_clock())
    yield clock.monotonic(time.get_clock_info("monotonic").resolution)
    yield from board.throttling()


def _models(config: Config, file: Path, providers: list[str] | None) -> Iterator[Finding]:
    """Each bundle verified, then proven as the daemon does it; each pipeline held against its model."""
    manifests: dict[str, Manifest] = {}
    if providers is not None:
        yield _providers(config, providers)
    for name, model in config.models.items():
        path = Path(model.bundle)
        try:
            manifests[name] = read(path).manifest
        except BundleError as error:
            advice = f"copy the bundle here again, or correct models.{name}.bundle"
            yield fail(f"model.{name}", printable(str(error)), advice)
            continue
        model_id = manifests[name].model_id
        if providers is None or model.provider not in providers:
            yield ok(f"model.{name}", f"{model_id}, verified; not run")
            continue
        report = gate(path, config.gate, session=model.session())
        yield _model(f"model.{name}", model_id, report, f"edge-runtime bundle verify --config {file} {path}")
    for name in config.pipelines:
        yield from _pipeline(config, name, manifests)


def _providers(config: Config, available: list[str]) -> Finding:
    wanted = sorted({model.provider for model in config.models.values()})
    missing = [provider for provider in wanted if provider not in available]
    if missing:
        advice = "install a build of onnxruntime that has it (NVIDIA: pip install 'edge-runtime[gpu]', without [cpu]), "
        advice += "or change models.NAME.provider"
        return fail("providers", f"{', '.join(missing)} not among {', '.join(available)}", advice)
    return ok("providers", f"{', '.join(wanted)} available")


def _model(name: str, model_id: str, report: GateReport, command: str) -> Finding:
    if not report.ok:
        advice = f"the daemon refuses it; to see each check: {command}"
        return fail(name, f"{model_id}: {report.reason}", advice)
    found = f"{report.model} is proven here: p95 of one window {report.p95_ms:.3g} ms, "
    return ok(name, f"{found}peak {report.peak_rss_mb:.0f} MB, {report.session.provider}")


def _pipeline(config: Config, name: str, manifests: dict[str, Manifest]) -> Iterator[Finding]:
    settings = config.pipelines[name]
    manifest = manifests.get(settings.model)
    if manifest is None:
        return
    try:
        window, _, _ = fitted(settings, manifest)
    except (ValueError, EdgeRuntimeError) as error:
        yield fail(f"pipeline.{name}", str(error), f"correct pipelines.{name}, or take another model")
        return
    channels = len(manifest.input.channels)
    source = settings.source
    form = f"json (lists by {json_reader()})" if source.format == "json" and not source.fields else source.format
    found = f"{form} with {channels} channels, windows of {window.samples}, hop {window.hop}"
    yield ok(f"pipeline.{name}", f"{found}: fits {manifest.model_id}")


def _broker(config: Config) -> Iterator[Finding]:
    sources = [pipeline.source for pipeline in config.pipelines.values()]
    client_id = config.mqtt.client_id or f"edge-runtime-{config.node.id}"
    yield from mqtt.examine(
        config.mqtt,
        client_id=f"{client_id}-doctor",
        subscriptions=[(parse_source(source.topic).filter, int(source.qos)) for source in sources],
        payload_bytes=max(source.max_payload_bytes for source in sources),
    )
