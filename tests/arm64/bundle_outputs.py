"""In the guest: what each bundle gives on this processor, a line of JSON each, by the runtime's own gate and session.

`python bundle_outputs.py BUNDLE…`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bundle_scores import scores

from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.gate import GateSettings, gate
from edge_runtime.model.session import Session, SessionSettings, create

PATIENT = GateSettings(cpu_s=600, timeout_s=600, p95_ms=3_600_000)
"""What a bundle may take is asked of a device, not of an emulator."""


def outputs(bundle: Bundle) -> list[Any]:
    """What the graph returns for each golden window, one at a time, its state carried on."""
    manifest = bundle.manifest
    session = create(bundle.model, settings=SessionSettings(), entries=manifest.session)
    state = {spec.input: np.zeros(spec.shape, spec.dtype) for spec in manifest.states}
    scalars = {scalar.name: np.full(scalar.shape, scalar.value, scalar.dtype) for scalar in manifest.scalars}
    names = [manifest.output.name, *(spec.output for spec in manifest.states)]
    found = []
    for window in bundle.golden.inputs:
        raw, *after = session.run(names, {manifest.input.name: window[None], **scalars, **state})
        state = {spec.input: array for spec, array in zip(manifest.states, after, strict=True)}
        found.append(raw[0].tolist())
    return found


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        bundle = read(path)
        report = gate(path, PATIENT)
        line: dict[str, Any] = {"refused": report.reason}
        if report.ok:
            session = Session(bundle, SessionSettings())
            line |= {"family": report.family, "golden_error": session.golden_error}
            line |= {"outputs": outputs(bundle), "scores": scores(session, bundle)}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
