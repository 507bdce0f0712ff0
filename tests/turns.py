"""Turns of a pipeline as emit leaves them, for tests of what comes after."""

from __future__ import annotations

import numpy as np

from edge_runtime.records import Result, StageTimes, Turn, Window

MS = 1_000_000
TIMES = StageTimes(queue=0.1, decode=0.2, window=0.3, wait=0.4, infer=0.5, decide=0.6)


def turn(*, received_ms: list[int], decided_ms: int, pipeline: str = "vibration", stream: str = "press") -> Turn:
    """One result and one window per time of receipt; the result of window i has id "i"."""
    found = Turn(pipeline, [], 0)
    found.emitted_ns, found.decided_ns = [received * MS for received in received_ms], decided_ms * MS
    found.windows = [_window(stream, received * MS) for received in received_ms]
    found.results = [_result(pipeline, stream, str(i)) for i in range(len(received_ms))]
    return found


def columns(turn: Turn) -> dict[str, list[int]]:
    """Every duration a turn has spent, in ns, by stage."""
    found: dict[str, list[int]] = {}
    for stage, durations_ns, times in turn.spent:
        found.setdefault(stage, []).extend(durations_ns * times)
    return found


def _window(stream: str, received_ns: int) -> Window:
    return Window(
        stream=stream,
        values=np.zeros((1, 1), np.float32),
        first_seq=1,
        last_seq=2,
        t0_unix_ns=0,
        t1_unix_ns=1,
        by_receipt=True,
        received_ns=received_ns,
        missing=0,
        gap=False,
        key="k",
        ordinal=0,
    )


def _result(pipeline: str, stream: str, name: str) -> Result:
    return Result(
        v=1,
        id=name,
        pipeline=pipeline,
        stream=stream,
        model="means@1.0.0",
        label="ok",
        score=1.0,
        scores={"ok": 1.0},
        alarm=None,
        t0=0.0,
        t1=1.0,
        n=1,
        seq=(1, 2),
        missing=0,
        flags=(),
        lat_ms=TIMES,
    )
