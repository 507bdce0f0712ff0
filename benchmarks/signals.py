"""What the sensors measure: inputs whose windows differ in label or score, so that a wrong window is seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edge_runtime.demo.pump import FAULTS, PUMPS, Pump, to_int16
from edge_runtime.records import Floats

SEED = 21
CANDIDATES, CHOSEN = 96, 16
CLEAR_MARGIN = 0.02
SLIDING_SEED, SLIDING_SAMPLES, SLIDING_CHANNELS = 9, 384, 6
SLIDING_MARGIN = 0.005
SHIFTS = (-16, -2, -1, 1, 2, 16)
DISTANCE = 1e-3
APART = 0.95
PUMP_SEED, PUMP_SEGMENTS = 5, 8


class SignalError(Exception):
    """Windows of a signal resemble each other too much: a mistake might go unseen."""


def waves(shape: tuple[int, int]) -> Floats:
    """Candidates (CANDIDATES, length, channels): slow waves with an offset per channel, rounded as a sensor would."""
    random = np.random.default_rng(SEED)
    time = np.linspace(0, 1, shape[0])[:, None]
    size = (CANDIDATES, 1, shape[1])
    found = random.normal(0, 1, size) * np.sin(2 * np.pi * (random.uniform(1, 20, size) * time + random.random(size)))
    return np.round(found + random.normal(0, 0.6, size), 4).astype(np.float32)


def clear(scores: Floats) -> list[int]:
    """Indices of CHOSEN candidates with a clear winner, dealt over the labels in turn. Raises SignalError."""
    ordered = np.sort(scores, axis=1)
    found = np.flatnonzero(ordered[:, -1] - ordered[:, -2] > CLEAR_MARGIN)
    by_label: dict[int, list[int]] = {}
    for i in found:
        by_label.setdefault(int(scores[i].argmax()), []).append(int(i))
    chosen: list[int] = []
    while len(chosen) < CHOSEN and any(by_label.values()):
        chosen += [indices.pop(0) for indices in by_label.values() if indices]
    if len(by_label) < 3 or len(chosen) < CHOSEN:
        raise SignalError(f"{len(found)} clear candidates of {len(by_label)} labels")
    return chosen[:CHOSEN]


def sliding() -> Floats:
    """One period of a stream, (SLIDING_SAMPLES, SLIDING_CHANNELS): it changes its manner every few dozen samples."""
    random = np.random.default_rng(SLIDING_SEED)
    parts: list[npt.NDArray[np.float64]] = []
    left, size = SLIDING_SAMPLES, (1, SLIDING_CHANNELS)
    while left:
        n = min(int(random.integers(24, 64)), left)
        amplitudes, rates = random.normal(0, 1.2, size), random.uniform(0.01, 0.35, size)
        offsets, phases = random.normal(0, 0.8, SLIDING_CHANNELS), random.random(size)
        parts.append(amplitudes * np.sin(2 * np.pi * (rates * np.arange(n)[:, None] + phases)) + offsets)
        left -= n
    return np.round(np.concatenate(parts), 4).astype(np.float32)


def check_sliding(scores: Floats) -> None:
    """Raises SignalError unless nearly every window differs from those a few samples beside it.

    scores: of the window that begins at each sample of the period.
    """
    labels, best = scores.argmax(axis=1), scores.max(axis=1)
    for shift in SHIFTS:
        differ = (np.roll(labels, shift) != labels) | (np.abs(np.roll(best, shift) - best) > DISTANCE)
        if differ.mean() < APART:
            raise SignalError(f"{differ.mean():.0%} of windows differ from those {shift} samples away")
    check_margin(scores, SLIDING_MARGIN)


def check_margin(scores: Floats, margin: float) -> None:
    """Raises SignalError when the two best labels of a window are so close that rounding could swap them."""
    ordered = np.sort(scores, axis=1)
    least = float((ordered[:, -1] - ordered[:, -2]).min())
    if least < margin:
        raise SignalError(f"the best label leads by {least:.3g}, wanted {margin:.3g}")


def pump_counts(messages: int, samples: int) -> npt.NDArray[np.int16]:
    """One period of the demo's sensor, (messages * samples, axes): pumps that are well and pumps that are not."""
    names, faults = list(PUMPS), (None, *FAULTS)
    per_segment = messages * samples // PUMP_SEGMENTS
    parts = []
    for i in range(PUMP_SEGMENTS):
        pump = Pump(PUMPS[names[i % len(names)]], 10 * PUMP_SEED + i)
        pump.chunk(per_segment)
        fault = faults[i % len(faults)]
        if fault is not None:
            pump.fail(fault)
            pump.chunk(per_segment)
        parts.append(to_int16(pump.chunk(per_segment)))
    return np.concatenate(parts)


def windows(period: Floats, *, length: int, starts: Iterable[int]) -> Floats:
    """(windows, length, channels) of a signal that repeats. period: (samples, channels)."""
    return np.stack([np.take(period, range(start, start + length), axis=0, mode="wrap") for start in starts])
