"""A bundle from an ONNX graph: ask the graph, run it for golden vectors, prove the bundle, write it."""

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
    DEFAULT,
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
from edge_runtime.model.session import scores_of
from edge_runtime.model.signature import SCORE_SLACK
from edge_runtime.records import Floats, InputSpec
from export import signature, trial
from export.artifact import Artifact
from export.contents import float32_tolerance, int8_tolerance, proves_nothing, reference, tools, what_it_is
from export.derive import Fact, PackSpec, Plan, derive, shortened
from export.families import certify
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


class Bundled(msgspec.Struct, frozen=True):
    """What a bundle will hold, but for the manifest's file list, and what was derived on the way there."""

    manifest: Manifest
    model: bytes
    golden: Golden
    drift: Reference
    card: str
    facts: tuple[Fact, ...]


def pack_onnx(
    model: Path | Artifact,
    spec: PackSpec,
    *,
    target: Path | None = None,
    samples: Path | Floats | None = None,
    seed: int = 0,
) -> tuple[Path, tuple[Fact, ...]]:
    """Write the bundle to target, by default NAME-VERSION.edge in this folder; its path, and what was derived.

    model: an ONNX file, or what the export steps made. samples: windows for the golden vectors, float32, (n, ...) in
    the model's layout or (n, length, channels), or a .npy file of them; None = noise drawn by seed.
    Raises ExportError when something has to be said first, the model does not do what was said, or the windows prove
    nothing.
    """
    graph = signature.of(model) if isinstance(model, Artifact) else signature.read(model)
    made = _bundled(graph, spec, samples=samples, seed=seed)
    path = target or Path(f"{made.manifest.name}-{made.manifest.version}.edge")
    for given in (model, samples):
        if isinstance(given, Path) and path.exists() and path.samefile(given):
            raise ExportError(f"{path}: is what the bundle is made of, which stays as it is; say another file with -o")
    try:
        _write(path, graph.file, made)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror}") from error
    return path, made.facts


def _bundled(graph: Graph, spec: PackSpec, *, samples: Path | Floats | None, seed: int) -> Bundled:
    plan = derive(graph, spec)
    shapes: dict[str, tuple[int | str, ...]] = {plan.input.name: ("batch", *plan.input.shape())}
    for state in plan.states:
        axes = enumerate(state.shape)
        shapes[state.input] = tuple("batch" if axis == state.batch_axis else size for axis, size in axes)
    graph = signature.shaped(graph, shapes)
    session = {**graph.session, **spec.session}
    source = f"noise, seed {seed}"
    windows = noise(plan.input, seed=seed)
    if samples is not None:
        source = samples.name if isinstance(samples, Path) else "the caller's array"
        windows = load_windows(samples, plan.input)
    chosen = _golden_indices(len(windows), is_streaming=bool(plan.states))
    request = trial.Request(plan.input.name, plan.output.name, plan.states, plan.scalars, tuple(chosen), session)
    ran = trial.run(graph.model, windows, request, name=graph.file)
    scores = _scores(graph, plan, windows, ran.outputs)
    manifest, facts = _manifest(graph, spec, plan, seed=seed, width=scores.shape[1])
    golden = Golden(windows[chosen], ran.outputs[chosen])
    allowed, reason = _tolerance(graph, spec, plan.kind, ran, golden=golden.outputs)
    manifest = msgspec.structs.replace(manifest, tolerances={DEFAULT: Tolerance(allowed)}, session=session)
    facts += tuple(
        Fact("session", f"{key} = {value}", "told" if key in spec.session else "export steps")
        for key, value in session.items()
    )
    facts += (Fact("golden", f"{len(chosen)} windows", source), Fact("tolerance", f"{allowed:.3g}", reason))
    _check(graph, manifest)
    if doubt := proves_nothing(golden.outputs, allowed):
        raise ExportError(f"{graph.file}: {doubt} ({source}); give windows of the real kind with --samples")
    manifest, golden, proven = _certified(graph, spec, manifest, golden, request)
    drift = Reference({}, {}, 0)
    if samples is not None and len(windows) >= REFERENCE_WINDOWS:
        drift = reference(plan.input, manifest.labels, windows, scores)
    described = card(spec, manifest, source=source, drift=drift)
    return Bundled(manifest, graph.model, golden, drift, described, facts + proven)


def _certified(
    graph: Graph, spec: PackSpec, manifest: Manifest, golden: Golden, request: trial.Request
) -> tuple[Manifest, Golden, tuple[Fact, ...]]:
    """Both with what was measured for each numeric family."""
    made = certify(
        graph.model,
        golden,
        manifest.tolerances[DEFAULT].absolute,
        request,
        computes_float32=spec.tolerance is None and graph.precision not in ("int8", "float16"),
    )
    claims = [(family, f"differs by {claim.from_default:.2g}", claim.how) for family, claim in made.parity.items()]
    claims += [(family, "nothing claimed", why) for family, why in made.gaps.items()]
    facts = tuple(Fact("parity", f"{family}: {found}", how) for family, found, how in claims)
    certified = msgspec.structs.replace(manifest, tolerances=made.tolerances, parity=made.parity)
    return certified, made.golden, facts


def _write(path: Path, name: str, made: Bundled) -> None:
    """Raises ExportError when the gate refuses the bundle, OSError; what was at path before is there still."""
    with tempfile.TemporaryDirectory(prefix=".edge-export-", dir=path.parent) as folder:
        proven = Path(folder) / path.name
        bundle.write(proven, made.manifest, model=made.model, golden=made.golden, reference=made.drift, card=made.card)
        if reason := gate(proven, GATE).reason:
            hint = "; --tolerance says what you accept" if "golden vectors: outputs differ" in reason else ""
            raise ExportError(f"{name}: the gate of the runtime refuses the bundle: {reason}{hint}")
        proven.replace(path)


def load_windows(samples: Path | Floats, spec: InputSpec) -> Floats:
    """Windows, float32, (n, ...) in the model's layout or (n, length, channels), as they are or of a .npy file.

    Returns them in the model's layout. Raises ExportError naming the file.
    """
    path, found = (samples, _loaded(samples)) if isinstance(samples, Path) else ("samples", samples)
    plain = (spec.length, len(spec.channels))
    wanted = f"float32 (n, {', '.join(map(str, spec.shape()))}) or (n, {plain[0]}, {plain[1]})"
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or len(found) < 1:
        raise ExportError(f"{path}: {getattr(found, 'dtype', type(found).__name__)}, wanted {wanted}")
    if found.shape[1:] not in (spec.shape(), plain):
        raise ExportError(f"{path}: {found.dtype} {found.shape}, wanted {wanted}")
    if not np.isfinite(found).all():
        raise ExportError(f"{path}: holds NaN or infinity")
    return found if found.shape[1:] == spec.shape() else in_layout(found, spec)


def _loaded(path: Path) -> object:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ExportError(f"{path}: not a .npy file of windows: {one_line(error)}") from error


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
        provenance=Provenance(graph.file, seed, tools(), graph.steps),
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
        return scores_of(kind, windows, raw)
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
    return scores_of(kind, windows, raw)


def _tolerance(
    graph: Graph, spec: PackSpec, kind: OutputKind, ran: trial.Returned, *, golden: Floats
) -> tuple[float, str]:
    """How exactly the golden outputs must be met, and why. Shares are as exact as the larger of p and 1 - p.

    Raises ExportError when this machine itself does not meet it, optimized and plain.
    """
    outputs = ran.outputs
    sized = np.maximum(golden, 1 - golden) if kind in ("scores", "probability") else golden
    if spec.tolerance is not None:
        allowed, reason = spec.tolerance, "told"
    elif graph.precision == "int8":
        allowed = max(_two_steps(outputs, golden, kind), 2 * ran.difference)
        reason = "int8: two steps of the output, or twice the difference below"
    elif graph.precision == "float16":
        allowed, reason = FLOAT16_TOLERANCE * float(np.abs(sized).max()), "float16"
    else:
        allowed, reason = float32_tolerance(sized), "float32"
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


def card(spec: PackSpec, manifest: Manifest, *, source: str, drift: Reference) -> str:
    """The model card, Markdown. source: of the golden inputs."""
    states = [f"- carries {s.input} {s.shape} from window to window, as {s.output}" for s in manifest.states]
    scalars = [f"- {s.name} is always {s.value:g}" for s in manifest.scalars]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.provenance.tools.items())
    origin = (
        f"Packed from `{manifest.provenance.recipe}`. **Its accuracy was not measured**: nothing here says how good it "
        "is, or on what it was trained."
    )
    golden = (
        f"Inputs: {source}. They prove that a device computes what this model computed when it was packed, not that "
        "its answers are right."
    )
    sections = [
        f"# {manifest.name} {manifest.version}",
        origin,
        f"Source: {spec.source}" if spec.source else "",
        "\n".join([what_it_is(manifest), *states, *scalars]),
        f"## Golden vectors\n\n{golden}",
        f"## Reference for drift\n\n{f'histograms of {drift.n} windows of {source}' if drift.n else 'none'}",
        f"## Licence\n\n{spec.licence.strip()}" if spec.licence else "",
        f"## Tools\n\n{versions}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"
