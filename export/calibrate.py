"""Which windows a quantization may look at, and the ranges that activations take on them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.records import Floats
from export.front_end import Feed, activations
from export.recipe import Split, Splits

if TYPE_CHECKING:
    import onnx

CALIBRATION_WINDOWS = 256
METHODS = ("minmax", "percentile", "entropy")
BINS = 8192
PERCENTILE = 99.99  # of the values stay inside the range, half of the others are above it
LEVELS = 256
ENTROPY_STEPS = 64  # ranges that are tried, from 1/8 of the largest magnitude up
SMALLEST_STEP = ENTROPY_STEPS // 8


class Range(NamedTuple):
    """Lowest and highest value that a tensor shall represent, in its unit."""

    low: float
    high: float


def calibration(splits: Splits, *, seed: int) -> Floats:
    """Windows of the train split to calibrate with. Raises ExportError as `check_disjoint` does."""
    windows = drawn(splits.train.inputs, seed=seed)
    check_disjoint({name: getattr(splits, name) for name in splits.__struct_fields__}, windows)
    return windows


def drawn(windows: Floats, *, seed: int) -> Floats:
    """At most CALIBRATION_WINDOWS of them, in their order."""
    size = min(CALIBRATION_WINDOWS, len(windows))
    chosen = np.sort(np.random.default_rng(seed).choice(len(windows), size=size, replace=False))
    found: Floats = windows[chosen]
    return found


def check_disjoint(splits: dict[str, Split], calibrate: Floats) -> None:
    """Raises ExportError when one window, bit for bit, stands in two splits, or in calibration and one that judges."""
    parts = {name: split.inputs for name, split in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if one in parts and other in parts:
            refuse_overlap(one, parts[one], other, parts[other])
    for name in sorted(parts.keys() - {"train"}):
        refuse_overlap("calibration", calibrate, name, parts[name])


def refuse_overlap(one: str, windows: Floats, other: str, others: Floats) -> None:
    """Raises ExportError when a window, bit for bit, stands in both; one, other: what they are called."""
    known = {_digest(window): index for index, window in enumerate(windows)}
    shared = [(known[digest], index) for index, window in enumerate(others) if (digest := _digest(window)) in known]
    if shared:
        first, second = shared[0]
        raise ExportError(
            f"{len(shared)} windows of {other} are also in {one} (first: {one}[{first}] = {other}[{second}]); "
            "the measured accuracy would mean nothing"
        )


def _digest(window: Floats) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(window).tobytes()).digest()


def check_method(method: str) -> None:
    """Raises ExportError for an unknown one; "distribution" is one, because ONNX Runtime takes it for int8 and then
    destroys the model.
    """
    if method not in METHODS:
        raise ExportError(f"calibration method {method!r}, wanted one of {', '.join(METHODS)}")


def ranges(body: onnx.ModelProto, feeds: list[Feed], *, method: str, session: dict[str, str]) -> dict[str, Range]:
    """The range of every float32 tensor that the body reads from its inputs or makes.

    feeds: batches of what the body takes. method: minmax takes every value in; percentile leaves the outermost
    0.01 % out; entropy takes the range with the least divergence (Kullback-Leibler) between the values and their
    LEVELS quantized ones. The last two run the body a second time and hold one histogram a tensor.
    Raises ExportError when a tensor is NaN or infinite on the windows.
    """
    check_method(method)
    outer: dict[str, Range] = {}
    for found in activations(body, feeds, session):
        for name, values in found.items():
            outer[name] = _wider(outer.get(name), name, values)
    if method == "minmax":
        return outer
    counts = {name: np.zeros(BINS, np.int64) for name in outer}
    for found in activations(body, feeds, session):
        for name, values in found.items():
            counts[name] += _counts(values, outer[name])
    narrow = _percentile if method == "percentile" else _entropy
    return {name: narrow(counts[name], outer[name]) for name in outer}


def _wider(known: Range | None, name: str, values: Floats) -> Range:
    if not values.size:
        return known or Range(0.0, 0.0)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ExportError(f"calibration: {name!r} is NaN or infinite on the windows")
    return Range(min(low, known.low), max(high, known.high)) if known else Range(low, high)


def _counts(values: Floats, outer: Range) -> npt.NDArray[np.int64]:
    """How many values fall into each of BINS equal parts of the range; zeros, which int8 holds exactly, left out."""
    width = outer.high - outer.low
    if not width > 0:
        return np.zeros(BINS, np.int64)
    flat = values.ravel()
    places = ((flat[flat != 0] - np.float32(outer.low)) * np.float32(BINS / width)).astype(np.int32)
    return np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)


def _percentile(counts: npt.NDArray[np.int64], outer: Range) -> Range:
    total = counts.sum()
    if not total:
        return outer
    share = np.cumsum(counts) / total
    outside = (100 - PERCENTILE) / 200
    first, last = int(np.searchsorted(share, outside)), int(np.searchsorted(share, 1 - outside))
    width = (outer.high - outer.low) / BINS
    return Range(outer.low + first * width, outer.low + min(last + 1, BINS) * width)


def _entropy(counts: npt.NDArray[np.int64], outer: Range) -> Range:
    """Both ends are clipped at the same magnitude, so that a tensor without negative values keeps its zero."""
    total = counts.sum()
    if not total:
        return outer
    largest = max(-outer.low, outer.high)
    best, least = outer, np.inf
    for step in range(SMALLEST_STEP, ENTROPY_STEPS + 1):
        limit = largest * step / ENTROPY_STEPS
        tried = Range(max(outer.low, -limit), min(outer.high, limit))
        if tried.low < tried.high and (divergence := _divergence(counts, outer, tried)) < least:
            best, least = tried, divergence
    return best


def _divergence(counts: npt.NDArray[np.int64], outer: Range, tried: Range) -> float:
    """Of the values, clipped to a range, from what LEVELS equal steps over it tell about them."""
    width = (outer.high - outer.low) / BINS
    first = round((tried.low - outer.low) / width)
    last = max(round((tried.high - outer.low) / width), first + 1)
    inside = counts[first:last].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    held = inside > 0
    share = np.bincount(level, inside, LEVELS) / np.maximum(np.bincount(level, held, LEVELS), 1)
    told = np.where(held, share[level], 0.0)
    p, q = _smooth(clipped / clipped.sum()), _smooth(told / max(told.sum(), 1.0))
    return float(np.sum(p * np.log(p / q)))


def _smooth(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    smoothed = shares + 1e-6
    return np.asarray(smoothed / smoothed.sum())
