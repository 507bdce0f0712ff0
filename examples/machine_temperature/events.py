"""What the daemon's pipeline said about the replayed series, held against the offline model and against the labels.

    python examples/machine_temperature/events.py build/machine-temperature.jsonl

The file is what `edge-runtime replay --offline` wrote with this folder's device.toml.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import recipe

from edge_runtime import config
from edge_runtime.errors import EdgeRuntimeError
from edge_runtime.model import bundle
from edge_runtime.model.session import Session
from edge_runtime.records import Floats, Result, Segment, StageTimes
from edge_runtime.stream.decide import ERROR, Decider

NOT_TIMED = dict.fromkeys(StageTimes.__struct_fields__, 0.0)
DEVICE = Path(__file__).with_name("device.toml")


class Replayed(NamedTuple):
    """results: one a window, in order. events: alarms that ended, in order."""

    results: list[Result]
    events: list[Segment]


class _Line(msgspec.Struct):
    topic: str
    payload: msgspec.Raw


def replayed(path: Path) -> Replayed:
    """The documents of a replay. Raises OSError, msgspec.DecodeError."""
    results, events = [], []
    for text in path.read_bytes().splitlines():
        line = msgspec.json.decode(text, type=_Line)
        kind = line.topic.split("/")[-2]
        if kind == "out":
            results.append(msgspec.convert({**msgspec.json.decode(line.payload), "lat_ms": NOT_TIMED}, Result))
        elif kind == "event":
            events.append(msgspec.json.decode(line.payload, type=Segment))
    return Replayed(results, events)


def offline() -> tuple[Floats, list[bool]]:
    """The error of every window of the series, (n,), and whether the alarm is on after it, without the pipeline."""
    settings = config.load(DEVICE)
    pipeline = settings.pipelines["temperature"]
    session = Session(
        bundle.read(Path(settings.models[pipeline.model].bundle)), settings.models[pipeline.model].session()
    )
    cut = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(recipe.series().values, recipe.LENGTH))
    errors: Floats = session.predict(cut)[:, 0]
    decider = Decider(pipeline.decide, labels=(), threshold=session.manifest.threshold)
    return errors, [decider.follow("machine-1", {ERROR: error}, 0).state.on for error in errors.tolist()]


def anomalies() -> list[tuple[int, int]]:
    """First and last labelled sample of each anomaly, Unix seconds."""
    found = recipe.series()
    edges = np.flatnonzero(np.diff(found.labels, prepend=0, append=0)).reshape(-1, 2)
    return [(int(found.unix_s[start]), int(found.unix_s[stop - 1])) for start, stop in edges]


def on_unix_s(event: Segment) -> float:
    """When the alarm went on: the end of the first window, with whose first sample the event starts."""
    return event.start + (recipe.LENGTH - 1) * recipe.PERIOD_S


def where(event: Segment) -> str:
    """Which anomaly's window the alarm lies in, or that it lies in none."""
    on_s = on_unix_s(event)
    for number, (first_s, last_s) in enumerate(anomalies(), start=1):
        if on_s <= last_s and event.end >= first_s:
            return f"anomaly {number}, {(on_s - first_s) / 3600:.1f} h after its window begins"
    return "no label (training span)" if recipe.TRAIN_FROM <= on_s < recipe.TEST_FROM else "no label: a false alarm"


def table(found: Replayed) -> Iterator[str]:
    errors, on = offline()
    scores = np.array([result.score for result in found.results])
    if len(scores) != len(errors):
        raise ValueError(f"{len(scores)} results, {len(errors)} windows offline")
    differ = sum(result.alarm != alarm for result, alarm in zip(found.results, on, strict=True))
    largest = np.abs(scores - errors).max()
    yield f"{len(scores):,} results; from the offline model errors differ by at most {largest:.2g}, alarms in {differ}"
    for number, (first_s, last_s) in enumerate(anomalies(), start=1):
        yield f"anomaly {number}: {_utc(first_s)} to {_utc(last_s)}"
    for event in found.events:
        lasted = f"{_utc(on_unix_s(event))} to {_utc(event.end)}"
        yield f"alarm {lasted}, peak {event.peak_score:6.2f} at {_utc(event.peak_at)}: {where(event)}"


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    try:
        print("\n".join(table(replayed(Path(sys.argv[1])))))
    except (EdgeRuntimeError, OSError) as error:
        sys.exit(str(error))
