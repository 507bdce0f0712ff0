"""What is sent and what must come back: messages, the windows they make, the label and score of each window.

A workload's messages repeat after a period, and so do its windows. What is right, ONNX's own reference says.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import models, signals
from edge_runtime.demo import show
from edge_runtime.demo.pump import RATE_HZ, SCALE_G
from edge_runtime.model import bundle
from edge_runtime.records import Floats

FIRST_NUMBER = 1_000_000_000
PREFIX = b'{"seq":'
DIGITS = len(str(FIRST_NUMBER))
PUMP_BUNDLE = Path(show.__file__).with_name(show.BUNDLE)
PUMP_MESSAGES = 80


class Cut(msgspec.Struct, frozen=True):
    """How messages become windows. samples: in a message; length, hop: of windows; at most one window a message."""

    samples: int = 1
    length: int = 1
    hop: int = 1

    def completing(self, window: int) -> int:
        """The message that completes a window."""
        return -(-(self.length + window * self.hop) // self.samples) - 1

    def completed(self, messages: int) -> int:
        """How many windows so many messages complete."""
        return max(0, (messages * self.samples - self.length) // self.hop + 1)

    def beginning(self, window: int) -> int:
        """The message that holds a window's first sample."""
        return window * self.hop // self.samples

    def starts(self, period: int) -> list[int]:
        """Where windows begin in a signal that repeats after so many samples, until that repeats as well."""
        return [i * self.hop % period for i in range(period // math.gcd(period, self.hop))]

    @property
    def messages_per_window(self) -> float:
        return self.hop / self.samples


ONE_EACH = Cut()


class Expected(msgspec.Struct, frozen=True):
    """What is right for one window."""

    label: str
    score: float


class Model(msgspec.Struct, frozen=True):
    """onnx and bundle hold the same bytes. tolerance: of scores."""

    onnx: Path
    bundle: Path
    labels: tuple[str, ...]
    tolerance: float


class Workload(msgspec.Struct, frozen=True):
    """One model with its messages.

    bodies: message k is number k modulo their count; payloads: a file of them. number_at: where a message's number
    stands in ten digits, or -1 when it has none and the subject counts. expected: of window k, modulo their count.
    settings: of the daemon's source; window: of its window; naive: the script's options.
    """

    name: str
    model: Model
    bodies: tuple[bytes, ...]
    payloads: Path
    expected: tuple[Expected, ...]
    settings: str
    number_at: int = -1
    cut: Cut = ONE_EACH
    window: str = ""
    naive: tuple[str, ...] = ()

    @property
    def first_number(self) -> int:
        """What message 0 is called."""
        return 0 if self.number_at < 0 else FIRST_NUMBER

    def body(self, message: int) -> bytes:
        """What the generator sends as this message."""
        found, at = self.bodies[message % len(self.bodies)], self.number_at
        return found if at < 0 else found[:at] + b"%d" % (FIRST_NUMBER + message) + found[at + DIGITS :]


def build(folder: Path, names: Iterable[str]) -> dict[str, Workload]:
    """Write the models, bundles and messages of these workloads into a folder."""
    return {name: WORKLOADS[name](folder / name) for name in names}


def _feat64(path: Path) -> Workload:
    model, inputs, expected = _one_each(path, models.mlp(), shape=(1, 64))
    return _json(path, model, inputs, expected)


def _win(path: Path) -> Workload:
    model, inputs, expected = _one_each(path, models.cnn(), shape=(128, 6))
    return _json(path, model, inputs, expected)


def _win_raw(path: Path) -> Workload:
    model, inputs, expected = _one_each(path, models.cnn(), shape=(128, 6))
    bodies = tuple(values.astype("<f4").tobytes() for values in inputs)
    return msgspec.structs.replace(_workload(path, model, bodies, expected, 'format = "raw"'), naive=("--raw", "<f4"))


def _sliding(hop: int) -> Callable[[Path], Workload]:
    def make(path: Path) -> Workload:
        signal, onnx = signals.sliding(), models.cnn()
        cut = Cut(samples=1, length=128, hop=hop)
        inputs = signals.windows(signal, length=cut.length, starts=range(len(signal)))
        scores = models.reference_scores(onnx, inputs)
        signals.check_sliding(scores)
        model = _model(path, onnx, inputs[: signals.CHOSEN], n_labels=scores.shape[1])
        expected = _expected(scores[cut.starts(len(signal))], model.labels)
        found = _json(path, model, signal[:, None, :], expected)
        naive = ("--length", str(cut.length), "--hop", str(hop))
        return msgspec.structs.replace(found, cut=cut, window=f"hop = {hop}", naive=naive)

    return make


def _pump(path: Path) -> Workload:
    """The demo's bundle and messages: 0.1 s of two axes as int16."""
    found = bundle.read(PUMP_BUNDLE)
    spec, tolerance = found.manifest.input, found.manifest.tolerances["default"].absolute
    cut = Cut(samples=round(RATE_HZ * show.CHUNK_S), length=spec.length, hop=spec.hop)
    counts = signals.pump_counts(PUMP_MESSAGES, cut.samples)
    values = (counts * SCALE_G).astype(np.float32)
    inputs = signals.windows(values, length=cut.length, starts=cut.starts(len(counts)))
    scores = models.reference_scores(found.model, inputs.transpose(0, 2, 1))
    signals.check_margin(scores, 2 * tolerance)
    model = Model(path.with_suffix(".onnx"), PUMP_BUNDLE, found.manifest.labels, tolerance)
    model.onnx.write_bytes(found.model)
    bodies = tuple(part.tobytes() for part in np.split(counts, PUMP_MESSAGES))
    settings = f'format = "raw", dtype = "int16", scale = {SCALE_G}'
    made = _workload(path, model, bodies, _expected(scores, model.labels), settings)
    form = ("--raw", "<i2", "--scale", str(SCALE_G), "--channels-first")
    naive = (*form, "--length", str(cut.length), "--hop", str(cut.hop))
    return msgspec.structs.replace(made, cut=cut, window="jitter_s = 86400", naive=naive)


WORKLOADS: dict[str, Callable[[Path], Workload]] = {
    "feat64": _feat64,
    "win": _win,
    "win-raw": _win_raw,
    "samp-1": _sliding(1),
    "samp-16": _sliding(16),
    "pump": _pump,
}


def _one_each(path: Path, onnx: bytes, *, shape: tuple[int, int]) -> tuple[Model, Floats, tuple[Expected, ...]]:
    """A model with inputs it is sure of; every message is a window of its own."""
    candidates = signals.waves(shape)
    scores = models.reference_scores(onnx, candidates)
    chosen = signals.clear(scores)
    model = _model(path, onnx, candidates[chosen], n_labels=scores.shape[1])
    return model, candidates[chosen], _expected(scores[chosen], model.labels)


def _model(path: Path, onnx: bytes, golden: Floats, *, n_labels: int) -> Model:
    labels = tuple(f"state-{i}" for i in range(n_labels))
    found = Model(path.with_suffix(".onnx"), path.with_suffix(".edge"), labels, 2 * models.TOLERANCE)
    found.onnx.write_bytes(onnx)
    models.write_bundle(found.bundle, onnx, golden, labels)
    return found


def _json(path: Path, model: Model, values: Floats, expected: tuple[Expected, ...]) -> Workload:
    """values: (messages, rows, channels)."""
    bodies = tuple(_document(rows) for rows in values)
    found = _workload(path, model, bodies, expected, 'format = "json", path = "v", seq_field = "seq"')
    return msgspec.structs.replace(found, number_at=len(PREFIX))


def _document(values: Floats) -> bytes:
    """{"seq":1000000000,"v":...}: a flat list for a single row, a list of rows otherwise. values: (rows, channels)."""
    rows = [[round(float(value), 4) for value in row] for row in values]
    document = {"seq": FIRST_NUMBER, "v": rows[0] if len(rows) == 1 else rows}
    return json.dumps(document, separators=(",", ":")).encode()


def _workload(
    path: Path, model: Model, bodies: tuple[bytes, ...], expected: tuple[Expected, ...], settings: str
) -> Workload:
    """A window a message, without numbers."""
    return Workload(path.name, model, bodies, _payloads(path, bodies), expected, settings)


def _payloads(path: Path, bodies: tuple[bytes, ...]) -> Path:
    """A file of messages as the generators read it: length and bytes of each."""
    file = path.with_suffix(".payloads")
    file.write_bytes(b"".join(struct.pack("=I", len(body)) + body for body in bodies))
    return file


def _expected(scores: Floats, labels: tuple[str, ...]) -> tuple[Expected, ...]:
    return tuple(Expected(labels[int(row.argmax())], float(row.max())) for row in scores)
