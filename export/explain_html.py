"""What `explain` found as one page of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from export import html_page
from export.artifact import listed
from export.explain import Explanation, Node, grouped
from export.html_page import Bar, Column, bars, figures, folded, listing, paragraph, section, table
from export.reasons import KINDS

SHOWN = 16
"""Bars of a plot; the table under it has everything."""


def page(told: Explanation) -> str:
    """A whole document that needs no network."""
    return html_page.page(
        told.name,
        [
            f"<h1>{escape(told.name)}</h1>",
            figures(_figures(told)),
            section("Worth knowing", listing(told.warnings)),
            _times(told),
            _floats(told),
            _bytes(told),
            _layers(told),
            section("What was done", listing(told.steps, ordered=True)),
        ],
    )


def _figures(told: Explanation) -> list[tuple[str, str]]:
    before = told.original
    found = [
        ("a window, one thread", f"{told.run_us:.1f} µs"),
        ("ONNX file", _kb(told.size.total)),
        ("computed in", told.precision),
        ("of the time in int8", f"{told.share('int8'):.0%}"),
    ]
    if before is None:
        return found
    timed = before.latency
    as_fast = f"as fast as before ({timed.speedup_q1:.2f} to {timed.speedup_q3:.2f})"
    smaller = f"smaller than before ({_kb(before.size)})"
    return [*found, (as_fast, f"{timed.speedup:.2f}x"), (smaller, f"{before.size / told.size.total:.1f}x")]


def _times(told: Explanation) -> str:
    kinds = [
        Bar(kind, told.share(kind), f"{_us(nodes)}, {told.share(kind):.0%}, {len(nodes)} nodes", kind)
        for kind in KINDS
        if (nodes := told.of_kind(kind))
    ]
    slowest = sorted(told.nodes, key=lambda node: -node.us)[:SHOWN]
    slow = [Bar(f"{n.op} {n.name}", n.us, f"{n.us:.1f} µs, {n.share:.0%}", n.kind) for n in slowest]
    columns = [Column("operator"), Column("node"), Column("computed in"), Column("µs", is_number=True)]
    columns += [Column("share", is_number=True), Column("why not in int8")]
    rows = [[n.op, n.name, n.kind, f"{n.us:.1f}", f"{n.share:.1%}", n.why] for n in told.nodes]
    note = (
        f"ONNX Runtime's own profile of {told.runs} runs on this machine, one window at a time; {told.overhead_us:.1f} "
        "µs taken off each node, which the profile itself costs. A conversion goes from int8 to float or back; shape "
        "nodes compute sizes."
    )
    return section(
        "Time by node",
        paragraph(note),
        bars(kinds, title="Share of the time by what nodes compute in"),
        bars(slow, title="Time of the slowest nodes"),
        folded(f"All {len(told.nodes)} nodes, in the order in which they run", table(columns, rows)),
    )


def _floats(told: Explanation) -> str:
    columns = [Column("why"), Column("operators"), Column("µs", is_number=True), Column("nodes", is_number=True)]
    rows = [
        [why, listed(Counter(node.op for node in nodes)), f"{sum(node.us for node in nodes):.1f}", str(len(nodes))]
        for why, nodes in grouped(told).items()
    ]
    left = paragraph(str(told.islands))
    return section("Not computed in int8", table(columns, rows) if rows else "", left)


def _bytes(told: Explanation) -> str:
    size = told.size
    parts = [Bar(part, count, f"{_kb(count)}, {count / size.total:.0%}") for part, count in size.parts.items() if count]
    columns = [Column("constant"), Column("type"), Column("shape"), Column("used by"), Column("bytes", is_number=True)]
    rows = [[t.name, t.dtype, " x ".join(map(str, t.shape)), t.reader, str(t.size)] for t in size.tensors]
    return section(
        "Size",
        bars(parts, title="Bytes of the ONNX file by what they are"),
        folded(f"All {len(rows)} constants, the largest first", table(columns, rows)),
    )


def _layers(told: Explanation) -> str:
    rows = [
        Bar(
            f"{layer.op} {layer.name}",
            noise(layer.snr_db),
            f"{layer.snr_db:.1f} dB, {noise(layer.snr_db):.2%}; alone in float32 {layer.gain_db:+.1f} dB",
        )
        for layer in told.sensitivity
    ]
    note = (
        "Noise in the model's output when only this layer is computed in int8, and its signal-to-noise ratio; then "
        "what that ratio gains when only this layer stays float32 in an int8 model. The most harmful first."
    )
    plot = bars(rows, title="Noise in the output by layer")
    whose = paragraph(f"Of {told.untaken}") if told.untaken else ""
    return section("Sensitivity by layer", whose, paragraph(note), plot) if rows else ""


def noise(snr_db: float) -> float:
    """Size of the noise as a share of the signal's."""
    return float(10 ** (-snr_db / 20))


def _us(nodes: Sequence[Node]) -> str:
    return f"{sum(node.us for node in nodes):.1f} µs"


def _kb(count: int) -> str:
    return f"{count / 1000:.1f} KB"
