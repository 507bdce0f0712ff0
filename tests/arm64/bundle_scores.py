"""What bundles give on this processor, a line of JSON each, for tests that start a Python of another one.

`python bundle_scores.py CPUINFO BUNDLE…`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.session import Session, SessionSettings


def scores(session: Session, bundle: Bundle) -> list[list[float]]:
    """What the daemon decides on, golden window by golden window of one stream."""
    found, state = [], session.initial()
    for window in bundle.golden.inputs:
        if session.is_streaming:
            of_window, (state,) = session.step(window[None], [state])
        else:
            of_window = session.predict(window[None])
        found.append(of_window[0].tolist())
    return found


def main(cpuinfo: Path, paths: list[str]) -> None:
    for bundle in map(read, map(Path, paths)):
        try:
            session = Session(bundle, SessionSettings(), cpuinfo=cpuinfo)
        except BundleError as error:
            line = {"refused": error.fact}
        else:
            line = {"family": session.family, "error": session.golden_error, "scores": scores(session, bundle)}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
