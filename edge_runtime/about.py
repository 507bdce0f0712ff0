"""The `info` document: what runs here, and on what."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import edge_runtime
from edge_runtime.config import Config
from edge_runtime.device.machine import cpu_name
from edge_runtime.model.session import Session, load_onnxruntime
from edge_runtime.stream.arrays import json_reader


def about(
    config: Config, sessions: Mapping[str, Session], digests: Mapping[str, str], *, boot_id: str
) -> dict[str, Any]:
    """sessions, digests: of the bundles, by the name of the model in the config."""
    ort = load_onnxruntime()
    bench = config.remote_bench
    offered = {
        "max_request_bytes": bench.max_request_bytes,
        "timeout_s": bench.timeout_s,
        "cpu": cpu_name(platform.machine()),
    }
    return {
        "version": edge_runtime.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "onnxruntime": ort.__version__,
        "providers": ort.get_available_providers(),
        "json": json_reader(),
        "pid": os.getpid(),
        "boot_id": boot_id,
        "models": {name: _model(session, digests[name]) for name, session in sessions.items()},
        "pipelines": {
            name: {"topic": settings.source.topic, "model": settings.model, "delivery": settings.delivery}
            for name, settings in config.pipelines.items()
        },
        **({"remote_bench": offered} if config.node.allow_remote_bench else {}),
    }


def _model(session: Session, digest: str) -> dict[str, Any]:
    manifest = session.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "precision": manifest.precision,
        "sha256": digest,
        "provider": session.settings.provider,
        "threads": session.settings.intra_op_threads,
        "infer_ms": round(session.infer_ns / 1e6, 4),
    }
