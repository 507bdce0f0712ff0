"""A bundle from somebody else's ONNX file: ask the graph, run it for golden vectors, prove the bundle, write it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle
from edge_runtime.model.bundle import Golden
from edge_runtime.model.gate import GateSettings, gate
from edge_runtime.model.manifest import (
    ERROR_KINDS,
    SCHEMA,
    Manifest,
    OutputKind,
    OutputSpec,
    Provenance,
    Reference,
    Tolerance,
    contradictions,
)
from edge_runtime.model.session import reconstruction_error, softmax
from edge_runtime.records import Floats, InputSpec
from export import signature, trial
from export.contents import float32_tolerance, int8_tolerance, reference, tools, what_it_is
from export.derive import Fact, PackSpec, Plan, derive, shortened
from export.quiet import one_line
from export.signature import Graph

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GATE = GateSettings(memory_mb=8000, cpu_s=120, timeout_s=120)
"""Generous: every device has bounds of its own."""
GOLDEN_WINDOWS = 16
REFERENCE_WINDOWS = 200
NOISE = (0.05, 1.0)
FLOAT16_TOLERANCE = 0.01
SCORE_SLACK = 1e-5
SMALLEST_SCORE = 1e-6


def read_spec(path: Path | None, flags: dict[str, Any]) -> PackSpec:
    """What the TOML file says, flags on top of it.

    Raises ExportError naming the file and the key.
    """
    where = str(path or "flags")
    try:
        table = tomllib.loads(path.read_text()) if path else {}
        return msgspec.convert({**table, **flags}, PackSpec)
    except OSError as error:
        raise ExportError(f"{where}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ExportError(f"{where}: {one_line(error).replace('$.', '')}") from error
    except ValueError as error:
        raise ExportError(f"{where}: not TOML: {one_line(error)}") from error


def adopt(
    model: Path, spec: PackSpec, *, target: Path | None, samples: Path | None, seed: int
) -> tuple[Path, tuple[Fact, ...]]:
    """Write the bundle to target, by default NAME-VERSION.edge in this folder; its path, and what was derived.

    samples: a .npy file of windows for the golden vectors; None = noise drawn by seed.
    Raises ExportError when something has to be said first, or the model does not do what was said.
    """
    graph = signature.read(model)
    plan = derive(graph, spec)
    windows = load_windows(samples, plan.input) if samples else noise(plan.input, seed=seed)
    chosen = _golden_indices(len(windows), is_streaming=bool(plan.states))
    request = trial.Request(plan.input.name, plan.output.name, plan.states, plan.scalars, tuple(chosen))
    ran = trial.run(graph.model, windows, request, name=graph.file)
    scores = _scores(graph, plan, windows, ran.outputs)
    source = samples.name if samples else f"noise, seed {seed}"
    manifest, facts = _manifest(graph, spec, plan, seed=seed, width=scores.shape[1])
    allowed, reason = _tolerance(graph, spec, plan.kind, ran, golden=chosen)
    manifest = msgspec.structs.replace(manifest, tolerances={"default": Tolerance(allowed)})
    facts += (Fact("golden", f"{len(chosen)} windows", source), Fact("tolerance", f"{allowed:.3g}", reason))
    _check(graph, manifest)
    drift = Reference({}, {}, 0)
    if samples and len(windows) >= REFERENCE_WINDOWS:
        drift = reference(plan.input, manifest.labels, windows, scores)
    described = card(graph, manifest, source=source, drift=drift)
    golden = Golden(windows[chosen], ran.outputs[chosen])
    path = target or Path(f"{manifest.name}-{manifest.version}.edge")
    with tempfile.TemporaryDirectory(prefix="edge-export-") as folder:
        made = Path(folder) / path.name
        bundle.write(made, manifest, model=graph.model, golden=golden, reference=drift, card=described)
        if reason := gate(made, GATE).reason:
            hint = "; --tolerance says what you accept" if "golden vectors: outputs differ" in reason else ""
            raise ExportError(f"{graph.file}: the gate of the runtime refuses the bundle: {reason}{hint}")
    bundle.write(path, manifest, model=graph.model, golden=golden, reference=drift, card=described)
    return path, facts


def load_windows(path: Path, spec: InputSpec) -> Floats:
    """The windows of a .npy file, float32, (n, ...) in the model's layout or (n, length, channels).

    Returns them in the model's layout. Raises ExportError naming the file.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path}: not a .npy file of windows: {one_line(error)}") from error
    plain = (spec.length, len(spec.channels))
    wanted = f"float32 (n, {', '.join(map(str, spec.shape()))}) or (n, {plain[0]}, {plain[1]})"
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or len(found) < 1:
        raise ExportError(f"{path}: {getattr(found, 'dtype', type(found).__name__)}, wanted {wanted}")
    if found.shape[1:] not in (spec.shape(), plain):
        raise ExportError(f"{path}: {found.dtype} {found.shape}, wanted {wanted}")
    if not np.isfinite(found).all():
        raise ExportError(f"{path}: holds NaN or infinity")
    return found if found.shape[1:] == spec.shape() else in_layout(found, spec)


def noise(spec: InputSpec, *, seed: int) -> Floats:
    """GOLDEN_WINDOWS consecutive windows of one stream of normal noise that swells over NOISE, after the lead-in."""
    total = spec.length + (GOLDEN_WINDOWS - 1) * spec.hop
    swell = np.linspace(*NOISE, total)[:, np.newaxis]
    stream = np.random.default_rng(seed).standard_normal((total, len(spec.channels))) * swell
    stream[: spec.lead_in] = 0.0
    starts = range(0, GOLDEN_WINDOWS * spec.hop, spec.hop)
    return in_layout(np.stack([stream[at : at + spec.length] for at in starts]).astype(np.float32), spec)


def in_layout(windows: Floats, spec: InputSpec) -> Floats:
    """Windows of (n, length, channels) in the model's layout."""
    ordered = windows.swapaxes(1, 2) if spec.channels_first else windows
    return np.ascontiguousarray(ordered).reshape(len(windows), *spec.shape())


def _golden_indices(n: int, *, is_streaming: bool) -> list[int]:
    """The first windows of a stream, or windows spread over all."""
    count = min(n, GOLDEN_WINDOWS)
    return list(range(count)) if is_streaming else [i * n // count for i in range(count)]


def _manifest(graph: Graph, spec: PackSpec, plan: Plan, *, seed: int, width: int) -> tuple[Manifest, tuple[Fact, ...]]:
    """The manifest but for its tolerance. width: of the scores."""
    labels = plan.labels or tuple(f"class{i}" for i in range(0 if plan.kind in ERROR_KINDS else width))
    if len(labels) != width and plan.kind not in ERROR_KINDS:
        raise ExportError(f"{graph.file}: {plan.kind} for {width} labels, told {len(labels)}: {', '.join(labels)}")
    steps = [f"packed from {graph.file}, sha256 {graph.sha256}, opset {graph.opset}, {graph.nodes} nodes"]
    if graph.embedded:
        steps.append(f"external data taken in: {', '.join(graph.embedded)}")
    manifest = Manifest(
        schema=SCHEMA,
        name=plan.name,
        version=spec.version,
        precision=graph.precision,
        input=plan.input,
        output=OutputSpec(plan.output.name, plan.kind),
        labels=labels,
        tolerances={},
        files={},
        provenance=Provenance(graph.file, seed, tools(), tuple(steps)),
        threshold=spec.threshold,
        states=plan.states,
        scalars=plan.scalars,
    )
    return manifest, (*plan.facts, Fact("labels", shortened(labels) or "none", "told" if spec.labels else "default"))


def _check(graph: Graph, manifest: Manifest) -> None:
    for fact in contradictions(manifest):
        raise ExportError(f"{graph.file}: {fact}")


def _scores(graph: Graph, plan: Plan, windows: Floats, raw: Floats) -> Floats:
    """What the runtime makes of the outputs: (n, labels) in [0, 1], or (n, 1) errors.

    Raises ExportError when the outputs are not what their kind says.
    """
    kind, said = plan.kind, f"{graph.file}: output {plan.output.name}"
    if raw.dtype != np.float32 or not np.isfinite(raw).all():
        raise ExportError(f"{said} holds NaN or infinity for some of the windows")
    if kind == "reconstruction":
        if raw.shape != windows.shape:
            raise ExportError(f"{said} is {raw.shape[1:]} a window, a reconstruction of {windows.shape[1:]} was wanted")
        return reconstruction_error(windows, raw)
    if raw.ndim != 2 or (kind in ("probability", "error") and raw.shape[1] != 1):
        columns = "1" if kind in ("probability", "error") else "labels"
        raise ExportError(f"{said} is (batch, {', '.join(map(str, raw.shape[1:]))}), {kind} are (batch, {columns})")
    low, high = float(raw.min()), float(raw.max())
    is_share = low >= -SCORE_SLACK and high <= 1 + SCORE_SLACK
    if kind in ("scores", "probability") and not is_share:
        raise ExportError(f"{said} runs from {low:.3g} to {high:.3g}, {kind} lie in 0 to 1; are these logits?")
    if kind == "logits" and is_share and np.allclose(raw.sum(axis=1), 1.0, atol=1e-3):
        raise ExportError(f"{said} lies in 0 to 1 and adds up to 1: these are scores, not logits")
    if kind == "error" and low < 0:
        raise ExportError(f"{said} goes down to {low:.3g}, an error is at least 0")
    if kind == "logits":
        return softmax(raw)
    return np.hstack((1 - raw, raw)) if kind == "probability" else raw


def _tolerance(
    graph: Graph, spec: PackSpec, kind: OutputKind, ran: trial.Trial, *, golden: list[int]
) -> tuple[float, str]:
    """How exactly the golden outputs must be met, and why.

    Raises ExportError when this machine itself does not meet it, optimized and plain.
    """
    outputs = ran.outputs
    if spec.tolerance is not None:
        allowed, reason = spec.tolerance, "told"
    elif graph.precision == "int8":
        allowed = max(_two_steps(outputs, outputs[golden], kind), 2 * ran.difference)
        reason = "int8: two steps of the output, or twice the difference below"
    elif graph.precision == "float16":
        allowed, reason = FLOAT16_TOLERANCE * max(1.0, float(np.abs(outputs).max())), "float16"
    else:
        allowed, reason = float32_tolerance(outputs[golden]), "float32"
    found = f"optimized and plain graph differ by {ran.difference:.2g}"
    if not ran.difference <= allowed:
        raise ExportError(f"{graph.file}: {found}, allowed {allowed:.2g} ({reason}); --tolerance says what you accept")
    return allowed, f"{reason}; {found}"


def _two_steps(outputs: Floats, golden: Floats, kind: OutputKind) -> float:
    """int8_tolerance, scores and probabilities taken back to the logits they come from."""
    if kind not in ("scores", "probability"):
        return int8_tolerance(outputs, golden, is_logits=False)
    logits = [np.log(np.clip(part, SMALLEST_SCORE, 1.0)) for part in (outputs, golden)]
    if kind == "probability":
        others = [np.log(np.clip(1 - part, SMALLEST_SCORE, 1.0)) for part in (outputs, golden)]
        logits = [np.hstack(pair) for pair in zip(others, logits, strict=True)]
    return int8_tolerance(logits[0], logits[1], is_logits=True)


def card(graph: Graph, manifest: Manifest, *, source: str, drift: Reference) -> str:
    """The model card, Markdown."""
    states = [f"- carries {s.input} {s.shape} from window to window, as {s.output}" for s in manifest.states]
    scalars = [f"- {s.name} is always {s.value:g}" for s in manifest.scalars]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.provenance.tools.items())
    origin = (
        f"Packed from `{graph.file}` (sha256 `{graph.sha256}`), a model made elsewhere. **Its accuracy was not "
        "measured**: nothing here says how good it is, or on what it was trained."
    )
    golden = (
        f"Inputs: {source}. They prove that a device computes what this model computed when it was packed, not that "
        "its answers are right."
    )
    sections = [
        f"# {manifest.name} {manifest.version}",
        origin,
        "\n".join([what_it_is(manifest), *states, *scalars]),
        f"## Golden vectors\n\n{golden}",
        f"## Reference for drift\n\n{f'histograms of {drift.n} windows of {source}' if drift.n else 'none'}",
        f"## Tools\n\n{versions}",
    ]
    return "\n\n".join(sections) + "\n"
