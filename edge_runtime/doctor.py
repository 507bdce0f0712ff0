"""What may be wrong here, before it goes wrong: machine, ONNX Runtime, configuration, models, broker, clock, disk."""

from __future__ import annotations

import os
import platform
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec

from edge_runtime.config import Config, load
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.device import board, clock, machine, runtime, storage
from edge_runtime.errors import BundleError, ConfigError, EdgeRuntimeError
from edge_runtime.findings import Finding, fail, ok, warn
from edge_runtime.model.bundle import read
from edge_runtime.model.child import printable
from edge_runtime.model.gate import GateReport, gate
from edge_runtime.model.manifest import Manifest
from edge_runtime.mqtt import examine as mqtt
from edge_runtime.mqtt.topics import parse_source
from edge_runtime.pipelines import fitted
from edge_runtime.recovery import STORE
from edge_runtime.stream.arrays import json_reader

DEMO_BUNDLE = "pump-vibration.edge"
MOST_COMMITS, COMMITS_S, COMMIT_BYTES = 50, 1.0, 1000


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
    folder = Path(config.node.state_dir)
    state = storage.state_folder(folder)
    yield from state
    if state[0].status != "fail" and folder.is_dir():
        yield from _delivery(config, folder)
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


def _delivery(config: Config, folder: Path) -> Iterator[Finding]:
    """What an earlier run could not use, and what a commit takes on this disk, for each tier that has any."""
    aside = sorted(path.name for path in folder.glob(f"{STORE}.*"))
    if aside:
        advice = "they may hold results that were never sent; delete them when nobody needs them"
        yield warn("store", f"unsound, and moved aside in {folder}: {', '.join(aside)}", advice)
    tiers = sorted({pipeline.delivery for pipeline in config.pipelines.values()} - {"memory"})
    try:
        yield from [_commit(config, tier, _commits_ms(folder, config.store, sync=tier == "full")) for tier in tiers]
    except OSError as error:
        yield fail("commit", f"{folder}: {error.strerror}", "free some space, or name another node.state_dir")


def _commit(config: Config, tier: str, took_ms: list[float]) -> Finding:
    """How long results wait for their commit, against the deadlines."""
    if not took_ms:
        return fail("commit", f"{tier}: nothing can be committed in node.state_dir", "see state_dir and disk")
    median_ms, wait_ms = took_ms[len(took_ms) // 2], config.store.wait_ms
    found = f"{tier}: {median_ms:.2g} ms a commit here, the longest of {len(took_ms)}: {took_ms[-1]:.2g} ms"
    found += f"; after store.commit_wait_ms = {wait_ms:g}" if wait_ms else ""
    late = [
        f"pipelines.{name}.deadline_ms = {pipeline.deadline_ms:g}"
        for name, pipeline in config.pipelines.items()
        if pipeline.delivery == tier and 0 < pipeline.deadline_ms < median_ms + wait_ms
    ]
    if late:
        advice = "a result leaves after its commit: choose a shorter wait, a lower tier, or a later deadline"
        return warn("commit", f"{found}: too late for {', '.join(late)}", advice)
    return ok("commit", found)


def _commits_ms(folder: Path, settings: StoreSettings, *, sync: bool) -> list[float]:
    """How long commits of one small turn take, ascending, in a store of doctor's own. Raises OSError."""
    took_ms: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as own:
        store = Store(Path(own) / STORE, settings)
        store.load()
        deadline_s = time.perf_counter() + COMMITS_S
        while len(took_ms) < MOST_COMMITS and time.perf_counter() < deadline_s:
            store.put(0, bytes(COMMIT_BYTES))
            start_s = time.perf_counter()
            if not store.commit(sync=sync):
                break
            took_ms.append((time.perf_counter() - start_s) * 1e3)
        store.close()
    return sorted(took_ms)


def _broker(config: Config) -> Iterator[Finding]:
    sources = [pipeline.source for pipeline in config.pipelines.values()]
    client_id = config.mqtt.client_id or f"edge-runtime-{config.node.id}"
    yield from mqtt.examine(
        config.mqtt,
        client_id=f"{client_id}-doctor",
        subscriptions=[(parse_source(source.topic).filter, int(source.qos)) for source in sources],
        payload_bytes=max(source.max_payload_bytes for source in sources),
    )
