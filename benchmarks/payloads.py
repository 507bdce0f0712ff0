"""What a message costs to decode: every format for a row and for a window, beside json.loads and numpy by hand."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Callable, Iterator

import cbor2
import msgspec
import numpy as np

from benchmarks.results import Decode, Machine, percentile
from edge_runtime.records import Floats, Message, Properties
from edge_runtime.stream.decode import SourceSettings, make_decoder

SEED = 20
CHANNELS = 6
SHAPES = {"row of 6": 1, "window of 128 x 6": 128}
NAMES = ("ax", "ay", "az", "gx", "gy", "gz")
FULL_ROUNDS, QUICK_ROUNDS = 300, 5
ROUND_NS = 2_000_000
JSON, MSGPACK, CBOR, RAW = (SourceSettings(topic="t", format=name) for name in ("json", "msgpack", "cbor", "raw"))
NAMED = SourceSettings(topic="t", fields=NAMES)

Rows = list[list[float]]
Run = Callable[[], Floats]


def run(rounds: int, machine: Machine) -> Iterator[Decode]:
    """Every variant in every round, in shuffled order; a sample is a round's CPU time by its messages."""
    shuffled = random.Random(SEED)
    subjects = {(name, shape): _subject(name, rows) for shape, rows in SHAPES.items() for name in VARIANTS}
    repeats = {key: _repeats(decode) for key, (decode, _) in subjects.items()}
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in subjects}
    order = list(subjects)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for key in order:
            samples[key].append(_timed_ns(subjects[key][0], repeats[key]) / repeats[key] / 1e3)
    for (name, shape), found in samples.items():
        ordered = sorted(found)
        yield Decode(
            device=machine.device,
            git=machine.git,
            subject=name,
            shape=shape,
            payload_bytes=subjects[name, shape][1],
            rounds=rounds,
            messages=repeats[name, shape],
            p25_us=round(percentile(ordered, 25), 3),
            p50_us=round(percentile(ordered, 50), 3),
            p75_us=round(percentile(ordered, 75), 3),
        )


def _timed_ns(decode: Run, repeats: int) -> int:
    """CPU time, so that what others run meanwhile does not count."""
    begin_ns = time.thread_time_ns()
    for _ in range(repeats):
        decode()
    return time.thread_time_ns() - begin_ns


def _repeats(decode: Run) -> int:
    """How many messages take about ROUND_NS; the warm-up as well."""
    repeats = 1
    while (took_ns := _timed_ns(decode, repeats)) < ROUND_NS // 4:
        repeats *= 2
    return max(repeats * ROUND_NS // took_ns, 1)


def _subject(name: str, n_rows: int) -> tuple[Run, int]:
    """A variant with its payload, and the payload's bytes. Raises ValueError when its values are not those sent."""
    values = np.random.default_rng(SEED).normal(size=(n_rows, CHANNELS)).round(3).astype("<f4")
    decode, payload = VARIANTS[name]([[round(float(number), 3) for number in row] for row in values])
    if not np.array_equal(decode(), values):
        raise ValueError(f"{name} does not give back the values of {n_rows} rows")
    return decode, len(payload)


def _by_hand(rows: Rows) -> tuple[Run, bytes]:
    payload = json.dumps(rows).encode()
    return lambda: np.asarray(json.loads(payload), dtype=np.float32), payload


def _named_by_hand(rows: Rows) -> tuple[Run, bytes]:
    payload = _named(rows)
    return lambda: np.asarray([[row[name] for name in NAMES] for row in json.loads(payload)], dtype=np.float32), payload


def _decoded(payload: bytes, source: SourceSettings = JSON, content_type: str = "") -> tuple[Run, bytes]:
    decoder = make_decoder(source, CHANNELS)
    message = Message(topic="t", payload=payload, received_ns=0, properties=Properties(content_type=content_type))
    return lambda: decoder(message, "s").values, payload


def _bytes(rows: Rows) -> bytes:
    return np.asarray(rows, dtype="<f4").tobytes()


def _base64(rows: Rows) -> bytes:
    return json.dumps(base64.b64encode(_bytes(rows)).decode()).encode()


def _named(rows: Rows) -> bytes:
    return json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows]).encode()


VARIANTS: dict[str, Callable[[Rows], tuple[Run, bytes]]] = {
    "by hand: `json.loads` of lists, `np.asarray`": _by_hand,
    "by hand: the same of named fields": _named_by_hand,
    "`json`, named fields": lambda rows: _decoded(_named(rows), NAMED),
    "`json`, lists": lambda rows: _decoded(json.dumps(rows).encode()),
    "`json`, base64": lambda rows: _decoded(_base64(rows)),
    "`cbor`, lists": lambda rows: _decoded(cbor2.dumps(rows), CBOR),
    "`msgpack`, lists": lambda rows: _decoded(msgspec.msgpack.encode(rows), MSGPACK),
    "`cbor`, bytes": lambda rows: _decoded(cbor2.dumps(_bytes(rows)), CBOR),
    "`msgpack`, bytes": lambda rows: _decoded(msgspec.msgpack.encode(_bytes(rows)), MSGPACK),
    "`raw`": lambda rows: _decoded(_bytes(rows), RAW),
    "`raw`, by content type": lambda rows: _decoded(_bytes(rows), content_type="application/octet-stream;dtype=f32"),
}
