"""What a model is made of and where its time and bytes go on this machine: facts, and one page of text.

`explain_html.page` shows the same facts as one page of HTML.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_runtime.errors import ExportError
from edge_runtime.model import bundle as bundles
from edge_runtime.model.bundle import Bundle
from edge_runtime.records import Floats
from export import signature
from export.artifact import DEQUANTIZE, Artifact, listed, parse
from export.islands import Islands, of_graph
from export.measure import Latency, latency
from export.node_times import NodeTime, of_window, profile
from export.probe import Failure
from export.reasons import FOLDED, KINDS, LOAD_ONLY, Kind, Reasons, kind_of
from export.sensitivity import Sensitivity, sensitivity
from export.signature import Graph, Tensor
from export.sizes import Size, sizes

if TYPE_CHECKING:
    import onnx

    from export.candidate import Measured
    from export.search import Outcome
    from export.space import Chain

BOUNDARY = "front_end"
"""The tensor that our own export gives this name, in a bundle that does not say where its front-end ends."""
NUMBERS = ("float32", "float64", "int32", "int64", "bool")
SEED = 0
MUCH, TOO_MUCH = 0.2, 0.5
"""Shares of the time or the bytes that are worth a warning."""
SHOWN = 8
"""Nodes, constants and layers on the page of text; the page of HTML has all."""
BAR = 20


class Node(msgspec.Struct, frozen=True):
    """One node as ONNX Runtime runs it. why: it is not int8, "" where it is, or nobody wanted it to be."""

    name: str
    op: str
    kind: Kind
    us: float
    share: float
    why: str


class Original(msgspec.Struct, frozen=True):
    """What the model was before. size: bytes. latency: of the model now, beside the one before in turn."""

    size: int
    latency: Latency


class Explanation(msgspec.Struct, frozen=True):
    """One window at a time on one thread of this machine.

    run_us: median of a run without a profile. overhead_us: what the profile cost at each node, taken off. nodes: in
    the order in which they run. size: bytes of the ONNX file. steps: what was done to the model. sensitivity: the most
    harmful layer first; of the static int8 that was not chosen, and why, where untaken says so.
    """

    name: str
    precision: str
    run_us: float
    overhead_us: float
    runs: int
    nodes: tuple[Node, ...]
    islands: Islands
    size: Size
    steps: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...]
    original: Original | None
    warnings: tuple[str, ...]
    untaken: str = ""

    def __str__(self) -> str:
        return text(self)

    def of_kind(self, kind: Kind) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.kind == kind)

    def share(self, kind: Kind) -> float:
        """Of the time of all nodes."""
        return sum(node.share for node in self.of_kind(kind))


def explain(
    artifact: Artifact,
    *,
    windows: Floats,
    original: Artifact | None = None,
    chain: Chain = (),
    sensitivity: Sequence[Sensitivity] = (),
    feed: Mapping[str, Any] | None = None,
) -> Explanation:
    """Profile the artifact in a child process and say what it is made of.

    windows: (n, ...) float32 in the model's layout, of which the first is run. chain: the moves that made it. feed:
    the graph's other inputs by name. Raises ExportError when it does not load or run.
    """
    before = None
    if original is not None:
        timed = latency(original, artifact, windows[:1], seed=0)
        if isinstance(timed, Failure):
            raise ExportError(f"{artifact.name}: timed beside the original, it {timed.reason}")
        before = Original(len(original.model), timed)
    ran = profile(artifact, {**of_window(artifact, windows), **(feed or {})})
    graph = parse(ran.graph)
    nodes = _nodes(artifact, graph.graph, ran.nodes, _kept(chain))
    told = Explanation(
        name=artifact.name,
        precision=artifact.precision,
        run_us=ran.run_us,
        overhead_us=ran.overhead_us,
        runs=ran.runs,
        nodes=nodes,
        islands=of_graph(graph),
        size=sizes(artifact),
        steps=artifact.steps,
        sensitivity=tuple(sensitivity),
        original=before,
        warnings=(),
    )
    return msgspec.structs.replace(told, warnings=tuple(_warnings(told, artifact, graph)))


def explain_bundle(bundle: Bundle, *, sensitivity: Sequence[Sensitivity] = ()) -> Explanation:
    """The same of a bundle, run on its first golden window and the state that a stream begins with."""
    manifest = bundle.manifest
    artifact = Artifact(
        name=manifest.model_id,
        precision=manifest.precision,
        model=bundle.model,
        input=manifest.input.name,
        output=manifest.output.name,
        steps=manifest.provenance.steps,
        front_end=_boundary(bundle.model),
        session=manifest.session,
    )
    feed: dict[str, Any] = {state.input: np.zeros(state.shape, state.dtype) for state in manifest.states}
    feed |= {scalar.name: np.full(scalar.shape, scalar.value, scalar.dtype) for scalar in manifest.scalars}
    return explain(artifact, windows=bundle.golden.inputs, feed=feed, sensitivity=sensitivity)


def _boundary(model: bytes) -> str:
    """Where the front-end ends, as far as its name tells; "" without one."""
    made = {name for node in parse(model).graph.node for name in node.output}
    return BOUNDARY if BOUNDARY in made else ""


def explain_file(path: Path) -> Explanation:
    """The same of a bundle, or of an ONNX file, which is run on noise. Raises BundleError, ExportError."""
    if zipfile.is_zipfile(path):
        return explain_bundle(bundles.read(path))
    graph = signature.read(path)
    if not graph.inputs:
        raise ExportError(f"{path}: the graph takes nothing, wanted a window")
    feed = {tensor.name: _noise(graph, tensor) for tensor in graph.inputs}
    artifact = Artifact(
        name=path.name,
        precision=graph.precision,
        model=graph.model,
        input=graph.inputs[0].name,
        output=graph.outputs[0].name,
        steps=graph.steps,
        front_end=_boundary(graph.model),
    )
    return explain(artifact, windows=feed.pop(artifact.input), feed=feed)


def _noise(graph: Graph, tensor: Tensor) -> npt.NDArray[Any]:
    """A first window for an input: noise for numbers with a fraction, else zeros. Only the first axis may be open."""
    open_axes = [axis for axis in tensor.shape[1:] if axis is None]
    if not tensor.has_rank or open_axes or tensor.dtype not in NUMBERS:
        raise ExportError(f"{graph.file}: {tensor} cannot be made up; pack it, and explain the bundle")
    shape = [1 if axis is None else axis for axis in tensor.shape]
    random = np.random.default_rng(SEED).standard_normal(shape)
    return random.astype(tensor.dtype) if tensor.dtype.startswith("float") else np.zeros(shape, tensor.dtype)


def explain_outcome(outcome: Outcome) -> Explanation:
    """The same of what a search chose, beside the original. Raises ExportError when nothing was chosen.

    Where it is not static int8, the sensitivity is that of the static int8 which came nearest.
    """
    task, chosen = outcome.task, outcome.chosen
    if chosen is None or chosen.artifact is None:
        raise ExportError(f"{task.name}: nothing was chosen, so that there is nothing to explain")
    studied = chosen if _is_static(chosen) else _nearest(outcome, chosen)
    layers = () if studied is None else _layers_of(outcome, studied)
    untaken = "" if studied is None or studied is chosen else _untaken(outcome, studied)
    told = explain(
        chosen.artifact,
        windows=task.validation.inputs,
        original=outcome.measured[0].artifact,
        chain=chosen.chain,
        sensitivity=layers,
    )
    return msgspec.structs.replace(told, name=f"{task.name}: {chosen.name}", untaken=untaken)


def _is_static(measured: Measured) -> bool:
    return bool(measured.chain) and measured.chain[-1].kind == "int8"


def _nearest(outcome: Outcome, chosen: Measured) -> Measured | None:
    """The static int8 that was tried of the chosen network, else of any, with the smallest drop; None without one."""
    tried = [m for m in outcome.measured if _is_static(m) and m.artifact is not None and m.validation is not None]
    return min(tried, key=lambda m: (m.chain[:-1] != chosen.chain, m.drop), default=None)


def _layers_of(outcome: Outcome, static: Measured) -> tuple[Sensitivity, ...]:
    parent = next((m.artifact for m in outcome.measured if m.chain == static.chain[:-1]), None)
    if parent is None:
        return ()
    scheme, method = (str(static.chain[-1].settings[name]) for name in ("scheme", "method"))
    return sensitivity(parent, outcome.task.calibrate, scheme=scheme, method=method)


def _untaken(outcome: Outcome, measured: Measured) -> str:
    reasons = next((v.reasons for m, v in zip(outcome.measured, outcome.verdicts, strict=True) if m is measured), ())
    return f"{measured.name}, which was not chosen: {'; '.join(reasons)}"


def _kept(chain: Chain) -> frozenset[str]:
    """Nodes that the moves left in float32 on purpose."""
    kept = (move.settings.get("keep", ()) for move in chain)
    return frozenset(name for names in kept if isinstance(names, tuple) for name in names)


def _nodes(
    artifact: Artifact, graph: onnx.GraphProto, times: Sequence[NodeTime], kept: frozenset[str]
) -> tuple[Node, ...]:
    reasons = Reasons(artifact, kept)
    front = reasons.front_of(graph)
    outputs = {node.name: node.output[0] for node in graph.node}
    total = sum(time.us for time in times) or 1.0
    found = []
    for time in times:
        kind: Kind = "front-end" if time.name in front else kind_of(time)
        why = reasons.why(time, kind, outputs.get(time.name, ""))
        found.append(Node(time.name, time.op, kind, time.us, time.us / total, why))
    return tuple(found)


def _warnings(told: Explanation, artifact: Artifact, graph: onnx.ModelProto) -> list[str]:
    """What costs time or bytes, or is not what it seems."""
    found = []
    moved, front, shapes = told.of_kind("conversion"), told.share("front-end"), told.of_kind("shape")
    if moved:
        ops = listed(Counter(node.op for node in moved))
        found.append(f"left-over conversions cost time: {ops}, {_us(moved):.1f} us, {told.share('conversion'):.0%}")
    if told.islands.islands:
        groups = "; ".join(listed(island) for island in told.islands.islands)
        found.append(f"float islands, where values go from int8 to float and back: {groups}")
    if front > TOO_MUCH:
        found.append(
            f"the front-end takes {front:.0%} of the time and stays float32: were everything else free, the model "
            f"would be {1 / front:.1f}x as fast"
        )
    if told.share("shape") > MUCH:
        found.append(
            f"{len(shapes)} nodes compute shapes, {_us(shapes):.1f} us, {told.share('shape'):.0%}: with a fixed batch "
            "axis ONNX Runtime computes them while loading"
        )
    found += _byte_warnings(told)
    if artifact.session.get(FOLDED) == "1":
        found.append(f"{LOAD_ONLY}; that saves storage, not time or memory")
    constants = {tensor.name for tensor in graph.graph.initializer}
    again = [node for node in graph.graph.node if node.op_type == DEQUANTIZE and node.input[0] in constants]
    if again:
        found.append(f"{len(again)} int8 constants are made float32 again in every run")
    if told.precision.startswith("int8") and not told.of_kind("int8"):
        found.append("nothing is computed in int8")
    if told.original is not None and told.original.latency.speedup_q3 < 1:
        found.append(f"slower than before: {speed(told.original)}")
    return found


def _byte_warnings(told: Explanation) -> list[str]:
    parts, total = told.size.parts, told.size.total
    around = parts["nodes"] + parts["tensor types"]
    found = []
    if around > MUCH * total:
        found.append(f"{around / total:.0%} of the file describe the graph (nodes, names, types), not weights")
    if parts["front-end constants"] > TOO_MUCH * total:
        found.append(f"{parts['front-end constants'] / total:.0%} of the file are constants of the front-end")
    return found


def _us(nodes: Sequence[Node]) -> float:
    return sum(node.us for node in nodes)


def text(told: Explanation) -> str:
    """One page for a terminal."""
    sections = [
        _headline(told),
        _times(told),
        _floats(told),
        _bytes(told),
        _layers(told),
        "\n".join(["What was done", *(f"  {step}" for step in told.steps)]) if told.steps else "",
        "\n".join(["Worth knowing", *(f"  {fact}" for fact in told.warnings)]) if told.warnings else "",
    ]
    return "\n\n".join(section for section in sections if section)


def _headline(told: Explanation) -> str:
    before = ""
    if told.original is not None:
        before = f"; before: {told.original.size / 1000:.1f} KB; now {speed(told.original)}"
    return f"{told.name}, {told.precision}: {told.size.total / 1000:.1f} KB, {told.run_us:.1f} us a window{before}"


def speed(original: Original) -> str:
    """How fast the model is beside the one before."""
    found = original.latency
    return f"{found.speedup:.2f}x as fast ({found.speedup_q1:.2f} to {found.speedup_q3:.2f})"


def _times(told: Explanation) -> str:
    taken = f"{told.overhead_us:.1f} us taken off each node, which the profile itself costs"
    lines = [f"Time by node (one window, one thread, {told.runs} runs; {taken})"]
    for kind in KINDS:
        if nodes := told.of_kind(kind):
            ops = listed(Counter(node.op for node in nodes))
            lines.append(f"  {kind:10} {_us(nodes):9.1f} us {told.share(kind):4.0%} {_bar(told.share(kind))} {ops}")
    lines.append("  slowest:")
    slowest = sorted(told.nodes, key=lambda node: -node.us)[:SHOWN]
    return "\n".join([*lines, *(f"    {n.us:9.1f} us {n.share:4.0%} {n.kind:10} {n.op} {n.name}" for n in slowest)])


def _floats(told: Explanation) -> str:
    """Nodes by the reason why they are not int8, the most time first."""
    groups = grouped(told)
    lines = [f"  {_us(nodes):9.1f} us  {why}: {listed(Counter(n.op for n in nodes))}" for why, nodes in groups.items()]
    return "\n".join(["Not computed in int8", *lines, f"  {told.islands}"]) if groups else f"  {told.islands}".strip()


def grouped(told: Explanation) -> dict[str, list[Node]]:
    """Nodes by the reason why they are not int8, the most time first."""
    groups: dict[str, list[Node]] = {}
    for node in told.nodes:
        if node.why:
            groups.setdefault(node.why, []).append(node)
    return dict(sorted(groups.items(), key=lambda group: -_us(group[1])))


def _bytes(told: Explanation) -> str:
    size = told.size
    lines = [
        f"  {part:22} {count / 1000:9.1f} KB {count / size.total:4.0%} {_bar(count / size.total)}"
        for part, count in size.parts.items()
        if count
    ]
    largest = [f"    {t.size / 1000:9.1f} KB {t.dtype} {t.shape} {t.reader} {t.name}" for t in size.tensors[:SHOWN]]
    return "\n".join(["Size", *lines, "  largest:", *largest])


def _layers(told: Explanation) -> str:
    if not told.sensitivity:
        return ""
    lines = [
        f"  {layer.snr_db:6.1f} dB {layer.gain_db:+6.1f} dB  {layer.op} {layer.name}"
        for layer in told.sensitivity[:SHOWN]
    ]
    whose = f" of {told.untaken}" if told.untaken else ""
    what = "SNR of the output when only this layer is int8; what it gains when only this layer stays float32"
    return "\n".join([f"Sensitivity{whose}", f"  {what}", *lines])


def _bar(share: float) -> str:
    return f"{'#' * round(share * BAR):{BAR}}"
