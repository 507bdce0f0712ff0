"""In the guest: what each bundle gives on this processor, a line of JSON each, by the runtime's own gate and session.

`python bundle_outputs.py BUNDLE…`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bundle_scores import scores

from edge_runtime.model.bundle import read
from edge_runtime.model.gate import GateSettings, gate
from edge_runtime.model.session import Session, SessionSettings
from export.trial import golden_outputs

PATIENT = GateSettings(cpu_s=600, timeout_s=600, p95_ms=3_600_000)
"""What a bundle may take is asked of a device, not of an emulator."""


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        bundle = read(path)
        report = gate(path, PATIENT)
        line: dict[str, Any] = {"refused": report.reason}
        if report.ok:
            session = Session(bundle, SessionSettings())
            line |= {"family": report.family, "golden_error": session.golden_error}
            line |= {"outputs": golden_outputs(bundle).tolist(), "scores": scores(session, bundle)}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
