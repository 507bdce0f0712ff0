"""What every bundle carries wherever its model came from: tolerance, histograms of the data, versions, description."""

from __future__ import annotations

import platform
from importlib import metadata

import numpy as np
import numpy.typing as npt

from edge_runtime.model.family import FAMILIES
from edge_runtime.model.manifest import DEFAULT, Histogram, Manifest, Reference
from edge_runtime.model.session import load_onnxruntime, softmax
from edge_runtime.records import Floats, InputSpec

FLOAT32_TOLERANCE = 1e-4
QUANTIZATION_LEVELS = 255
STEPS_ALLOWED = 2
SPREAD_WANTED = 4
"""Tolerances between the lowest and highest golden output; a graph that always says the same passes with up to 2."""
BINS = 16
SCORE_EDGES = tuple(round(i / 10, 1) for i in range(1, 10))


def float32_tolerance(outputs: Floats) -> float:
    """How far float32 outputs may be from the golden ones: FLOAT32_TOLERANCE of the largest."""
    return max(FLOAT32_TOLERANCE * float(np.abs(outputs).max()), float(np.finfo(np.float32).tiny))


def proves_nothing(golden: Floats, allowed: float) -> str:
    """Why golden outputs cannot tell this graph from one that always answers the same; "" when they can.

    golden: (n, ...) outputs. allowed: their tolerance, absolute.
    """
    spread = float(np.ptp(golden, axis=0).max())
    if spread > SPREAD_WANTED * allowed:
        return ""
    return (
        f"the {len(golden)} golden windows prove nothing: their outputs spread over {spread:.2g}, wanted more than "
        f"{SPREAD_WANTED} times the tolerance of {allowed:.2g}"
    )


def int8_tolerance(outputs: Floats, golden: Floats, *, is_logits: bool) -> float:
    """How far int8 outputs may be from the golden ones on another CPU.

    The int8 part is the same to the bit on every CPU we run on, but a float32 front-end before it differs in its last
    bits, which moves some activations by one quantization step. Allowed are STEPS_ALLOWED steps of the output, a step
    being the outputs' range over 255. Where the output is scores of logits: what the worst such change, the own logit
    up and all others down or the reverse, does to any score of the golden windows, at least FLOAT32_TOLERANCE.

    outputs: of many windows, for their range. golden: the same for the golden windows.
    """
    low, high = min(0.0, float(outputs.min())), max(0.0, float(outputs.max()))
    shift = STEPS_ALLOWED * (high - low) / QUANTIZATION_LEVELS
    if not is_logits:
        return max(shift, float32_tolerance(golden))
    scores = softmax(golden).astype(np.float64)
    up = scores * np.exp(shift) / (scores * np.exp(shift) + (1 - scores) * np.exp(-shift))
    down = scores * np.exp(-shift) / (scores * np.exp(-shift) + (1 - scores) * np.exp(shift))
    return max(float(np.max(up - scores)), float(np.max(scores - down)), FLOAT32_TOLERANCE)


def reference(spec: InputSpec, labels: tuple[str, ...], inputs: Floats, scores: Floats) -> Reference:
    """What the data looks like: "NAME.mean" and "NAME.std" of each channel's windows, and the scores.

    Features are cut at their own quantiles, so that every bin holds about the same share; scores at tenths;
    errors at their quantiles.

    inputs: (n, ...) in the model's layout. scores: (n, labels) in [0, 1], or (n, 1) errors where there are no labels.
    """
    if spec.channels_first:
        channels = inputs.reshape(len(inputs), len(spec.channels), spec.length)
    else:
        channels = inputs.reshape(len(inputs), spec.length, len(spec.channels)).swapaxes(1, 2)
    features = {}
    for index, name in enumerate(spec.channels):
        windows = channels[:, index].astype(np.float64)
        features[f"{name}.mean"] = by_quantiles(windows.mean(axis=1))
        features[f"{name}.std"] = by_quantiles(windows.std(axis=1))
    if not labels:
        return Reference(features, {"error": by_quantiles(scores[:, 0].astype(np.float64))}, len(inputs))
    return Reference(
        features, {label: counted(scores[:, i], SCORE_EDGES) for i, label in enumerate(labels)}, len(inputs)
    )


def by_quantiles(values: npt.NDArray[np.float64]) -> Histogram:
    """BINS bins of about equal counts; fewer where values repeat."""
    edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    return counted(values, tuple(float(edge) for edge in edges))


def counted(values: npt.NDArray[np.floating], edges: tuple[float, ...]) -> Histogram:
    """Counts of values below the first edge, between the edges (the lower one included), and from the last one up."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return Histogram(edges, tuple(int(count) for count in counts))


def tools(*packages: str) -> dict[str, str]:
    """Versions of what made the bundle; packages: beside those that every bundle needs."""
    found = {name: metadata.version(name) for name in sorted(("edge-runtime", "numpy", "onnx", *packages))}
    return {**found, "onnxruntime": load_onnxruntime().__version__, "python": platform.python_version()}


def what_it_is(manifest: Manifest) -> str:
    """The card's section on input, output and labels, Markdown."""
    spec = manifest.input
    channels = ", ".join(f"{name} ({unit})" for name, unit in zip(spec.channels, spec.units, strict=True))
    rate = f" at {spec.rate_hz:g} Hz" if spec.rate_hz else ""
    labels = ", ".join(manifest.labels) or f"none; an anomaly is an error above {manifest.threshold:.6g}"
    return (
        "## What it is\n\n"
        f"- precision: {manifest.precision}\n"
        f"- input: windows of {spec.length} samples, hop {spec.hop}{rate}; channels: {channels}; layout {spec.layout}\n"
        f"- output: {manifest.output.kind}\n- labels: {labels}\n"
        f"- golden vectors hold to {manifest.tolerances[DEFAULT].absolute:.3g} absolute\n"
        f"{''.join(_parity(manifest, family) for family in FAMILIES)}"
        f"- made by: {'; '.join(manifest.provenance.steps)}"
    )


def _parity(manifest: Manifest, family: str) -> str:
    """The card's line on one numeric family."""
    claim = manifest.parity.get(family)
    if claim is None:
        return f"  - {family}: not measured\n"
    equal = f"differ by {claim.from_default:.2g}" if claim.from_default else "are the same to the bit"
    float32 = "" if claim.from_float32 is None else f"; from float32 by {claim.from_float32:.2g}"
    return f"  - {family}: {claim.how}, {equal}, hold to {manifest.tolerances[family].absolute:.3g}{float32}\n"
