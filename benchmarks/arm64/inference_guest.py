"""In the guest: the instructions of a prediction by each bundle, and how far its golden vectors are off.

`python -m benchmarks.arm64.inference_guest BUNDLE…`: marks before and after each of RUNS predictions of one window, as
the daemon makes them; one line of JSON for each bundle in GOLDEN.
"""

from __future__ import annotations

import gc
import itertools
import sys
from pathlib import Path

import msgspec

from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings
from export.arm64.counter import mark
from export.arm64.runs import RUNS, WARM_UP

GOLDEN = "golden.jsonl"
CLOCK_NS = 1_000_000
"""Each look at the clock: how often a session runs at its warm-up must not depend on the time."""


class Proof(msgspec.Struct, frozen=True):
    """refused: why its golden vectors do not hold, "" when they do. error, allowed: of the outputs, absolute."""

    refused: str = ""
    error: float = 0.0
    allowed: float = 0.0


def main(paths: list[str]) -> None:
    with Path(GOLDEN).open("wb") as lines:
        lines.writelines(msgspec.json.encode(_run(Path(path))) + b"\n" for path in paths)


def _run(path: Path) -> Proof:
    bundle = read(path)
    try:
        session = Session(bundle, SessionSettings(), now_ns=itertools.count(step=CLOCK_NS).__next__)
    except EdgeRuntimeError as error:
        for _ in range(RUNS + 1):
            mark()
        return Proof(refused=str(error))
    window, state = bundle.golden.inputs[:1], session.initial()
    for run in range(WARM_UP + RUNS):
        if run == WARM_UP:
            gc.collect()
            gc.disable()
            mark()
        if session.is_streaming:
            _, (state,) = session.step(window, [state])
        else:
            session.predict(window)
        if run >= WARM_UP:
            mark()
    gc.enable()
    return Proof(error=session.golden_error, allowed=bundle.manifest.tolerances[session.family].absolute)


if __name__ == "__main__":
    main(sys.argv[1:])
