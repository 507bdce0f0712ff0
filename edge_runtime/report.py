"""What the commands print: plain text of reports and summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.delivery.ledger import render
from edge_runtime.latency_report import LatencyReport, LogRange, Skipped, utc
from edge_runtime.model.child import printable
from edge_runtime.monitor.latency import StageSummary
from edge_runtime.monitor.slowest import SlowLine, WindowTimes

if TYPE_CHECKING:  # so that a command loads only what it reports on
    from edge_runtime.check import CheckReport
    from edge_runtime.daemon import Summary
    from edge_runtime.findings import Finding
    from edge_runtime.init import Written
    from edge_runtime.metrics import StoreMetrics
    from edge_runtime.model.bench import Advice, BenchReport
    from edge_runtime.model.bundle import Bundle
    from edge_runtime.model.gate import GateReport
    from edge_runtime.model.manifest import Manifest, StateSpec
    from edge_runtime.record import RecordSummary
    from edge_runtime.replay import PublishSummary, ReplaySummary

NAME_WIDTH = 16
STAGE_COLUMNS = ("stage", "count", "p50 ms", "p95 ms", "p99 ms", "max ms")
LATENCY_COLUMNS = ("pipeline", "stage", "count", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms")
SLOWEST_COLUMNS = (
    "written, UTC",
    "pipeline",
    "stream",
    "batch",
    *WindowTimes.__struct_fields__,
    "temperature",
    "throttled",
)


def summary(found: Summary) -> str:
    """Ledger, percentiles per stage, how deadlines were kept, and where the latency log lies."""
    parts = [render(found.ledger)]
    if found.continued:
        parts.append("counts of delivery `normal` and `full` go on from earlier runs; all below is of this one")
    for pipeline, stages in found.latency.items():
        if not stages:
            continue
        parts += ["", f"{pipeline}: latency", table(STAGE_COLUMNS, stage_rows(stages.items()))]
    parts += [""] if found.deadlines else []
    for pipeline, kept in found.deadlines.items():
        parts.append(f"{pipeline}: {kept.misses:,} of {kept.results:,} results later than {kept.deadline_ms:g} ms")
    parts += ["", f"latency log: {found.latency_log or 'none, nothing was recorded'}"]
    parts.append(f"ran {found.uptime_s:.1f} s, memory {found.rss_mb:.0f} MB")
    parts += _store(found.store) if found.store else []
    if not found.drained:
        parts.append("stopped before everything accepted was finished; the broker keeps what was not acknowledged")
    return "\n".join(parts)


def _store(found: StoreMetrics) -> Iterator[str]:
    """What the next start has to know."""
    if found.kept:
        yield f"kept for the next start: {found.kept:,} results, events and dead letters not confirmed"
    if found.problem:
        yield f"{found.problem}: what it could not take is lost"
    if found.quarantined:
        yield f"the store was unsound and lies at {found.quarantined}"


def stage_rows(stages: Iterable[tuple[str, StageSummary]]) -> list[tuple[str, ...]]:
    """A row per stage, of text."""
    return [
        (stage, f"{s.count:,}", f"{s.p50_ms:.3f}", f"{s.p95_ms:.3f}", f"{s.p99_ms:.3f}", f"{s.max_ms:.3f}")
        for stage, s in stages
    ]


def check(found: CheckReport) -> str:
    """What would run, and whether the broker lets it."""
    head = ("pipeline", "subscribes to", "model", "precision", "provider", "threads", "ms a window", "golden error")
    columns = (*head, "runs")
    rows = [
        (
            *(p.name, p.filter, p.model, p.precision, p.provider),
            *(str(p.threads), f"{p.infer_ms:.3f}", f"{p.golden_error:.2g}", p.execution),
        )
        for p in found.pipelines
    ]
    broker = f"broker {found.url}: {found.broker or 'reached, subscriptions granted'}"
    verdict = "ready to run" if found.ok else "not ready"
    return "\n".join([f"node {found.node}", broker, table(columns, rows), verdict])


def written(found: Written) -> str:
    """The file, and what to do with it, as commands to copy."""
    steps = [
        ("config valid, model proven, broker reached?", found.check),
        ("run it; Ctrl-C ends it", found.run),
        ("see what it says", found.subscribe),
        ("send it rows of zeros", found.publish),
    ]
    return "\n".join([f"wrote {found.path}", *(f"\n# {what}\n{command}" for what, command in steps)])


def finding(found: Finding) -> str:
    """One line, and a second one with what to do about it."""
    line = f"{found.status:<4}  {found.name:<{NAME_WIDTH}}  {found.found}"
    return f"{line}\n{'':<{NAME_WIDTH + 6}}  -> {found.advice}" if found.advice else line


def verdict(findings: Sequence[Finding]) -> str:
    """How many findings of each kind."""
    failed, warned = (sum(found.status == status for found in findings) for status in ("fail", "warn"))
    return f"{failed} failed, {warned} to look at, {len(findings) - failed - warned} ok"


def bench(found: BenchReport) -> str:
    """Percentiles by batch size and threads."""
    head = (
        f"{found.model} ({found.precision}), bundle {found.bundle_kb:.1f} kB, ready in {found.load_ms:.0f} ms, "
        f"memory {found.rss_mb:.1f} MB, golden error {found.golden_error:.2g}"
    )
    columns = ("batch", "threads", "runs", "p50 ms", "p95 ms", "p99 ms", "max ms", "windows/s", "CPU ms/window")
    rows = [
        (
            str(r.batch),
            str(r.threads),
            f"{r.runs:,}",
            *(f"{ms:.3f}" for ms in (r.p50_ms, r.p95_ms, r.p99_ms, r.max_ms)),
            f"{r.windows_per_s:,.0f}",
            f"{r.cpu_ms:.4f}",
        )
        for r in found.rows
    ]
    lines = [head, table(columns, rows)]
    return "\n".join(lines if found.advice is None else [*lines, "", *_advice(found.advice)])


def _advice(found: Advice) -> list[str]:
    """Lines to put into tables that the configuration has already."""
    tried = ", ".join(f"{threads}: {ms:.3f} ms" for threads, ms in found.p50_ms.items()) or "1 alone"
    rate, most = f"{found.windows_per_s:,.0f} windows/s", f"{found.most_windows_per_s:,.0f}"
    near = f"a window takes {found.window_ms:.3f} ms, node.inline_limit_ms is by default {found.inline_limit_ms:g}"
    lines = [
        "# under [models.NAME] of this bundle",
        f"# one window at a sensor's pace, by threads: {tried}",
        f"intra_op_threads = {found.intra_op_threads}",
        f"# {rate}: the smallest batch with {found.enough:.0%} of the most, {most}",
        f"max_batch = {found.max_batch}",
        "",
        "# under [pipelines.NAME] of each pipeline that runs it",
    ]
    if found.execution == "auto":
        return [*lines, f"# nothing: execution = auto decides alike at every start; {near}"]
    return [*lines, f"# {near}: auto could decide anew at each start", f'execution = "{found.execution}"']


def bundle(found: Bundle) -> str:
    """The manifest's main facts, then the card."""
    manifest, spec = found.manifest, found.manifest.input
    rate = f" at {spec.rate_hz:g} Hz" if spec.rate_hz else ""
    lead_in = f", {spec.lead_in} zeros before a stream" if spec.lead_in else ""
    facts = [
        ("name", manifest.model_id),
        ("precision", manifest.precision),
        ("sha256", found.digest),
        ("input", f"{spec.length} samples{rate}, hop {spec.hop}, layout {spec.layout}{lead_in}"),
        ("channels", ", ".join(f"{c} [{u}]" for c, u in zip(spec.channels, spec.units, strict=True))),
        ("output", f"{manifest.output.kind}: {', '.join(manifest.labels) or f'threshold {manifest.threshold}'}"),
        *(("state", f"{s.input} {s.shape} -> {s.output}, {_joined_along(s)}") for s in manifest.states),
        *(("scalar", f"{s.name} = {s.value:g} ({s.dtype})") for s in manifest.scalars),
        ("golden", f"{len(found.golden.inputs)} vectors, tolerance {manifest.tolerances['default'].absolute:g}"),
        *(("parity", _claimed(family, manifest)) for family in sorted(manifest.parity)),
        ("model", f"{len(found.model) / 1024:.1f} kB"),
        ("recipe", f"{manifest.provenance.recipe}, seed {manifest.provenance.seed}"),
        *(("step", step) for step in manifest.provenance.steps),
    ]
    width = max(len(name) for name, _ in facts)
    lines = [*(f"{name:<{width}}  {fact}" for name, fact in facts), "", *found.card.rstrip().split("\n")]
    return "\n".join(map(printable, lines))


def _claimed(family: str, manifest: Manifest) -> str:
    claim, allowed = manifest.parity[family], manifest.tolerances[family].absolute
    return f"{family}: {claim.how}, differs by {claim.from_default:.2g} from the golden vectors, tolerance {allowed:g}"


def _joined_along(state: StateSpec) -> str:
    return "one stream at a time" if state.batch_axis is None else f"streams joined along axis {state.batch_axis}"


def latency(found: LatencyReport) -> str:
    """What was read, percentiles per stage, and the slowest windows."""
    stages = [
        (
            printable(s.pipeline) or "-",
            printable(s.stage) or "-",
            f"{s.count:,}",
            *(f"{ms:.3f}" for ms in (s.p50_ms, s.p90_ms, s.p95_ms, s.p99_ms, s.p999_ms, s.max_ms)),
        )
        for s in found.stages
    ]
    parts = [*map(_log_range, found.files), *map(_skipped, found.skipped)]
    if found.start_unix_s is not None or found.end_unix_s is not None:
        start, end = ("..." if unix_s is None else utc(unix_s) for unix_s in (found.start_unix_s, found.end_unix_s))
        parts.append(f"range {start} to {end} UTC: intervals that lie in it, if only in part")
    parts += ["", table(LATENCY_COLUMNS, stages)]
    mixed = ", ".join(printable(f"{s.pipeline}/{s.stage}") for s in found.stages if s.mixed)
    if mixed:
        parts += ["", f"histograms of different resolution were added up, each value as exact as its own: {mixed}"]
    if found.slowest:
        rows = [_slow_window(line) for line in found.slowest]
        parts += ["", "slowest windows, ms", table(SLOWEST_COLUMNS, rows)]
    return "\n".join(parts)


def _log_range(found: LogRange) -> str:
    unfinished = f"; its last {found.unfinished_bytes:,} bytes are no whole line" if found.unfinished_bytes else ""
    if found.start_unix_s is None or found.end_unix_s is None:
        return f"{found.path}: nothing taken{unfinished}"
    covered = f"{utc(found.start_unix_s)} to {utc(found.end_unix_s)} UTC"
    return f"{found.path}: {found.histograms:,} histograms, {covered}{unfinished}"


def _skipped(found: Skipped) -> str:
    return f"{found.path}: {found.lines:,} lines skipped, the first is line {found.first_line}: {printable(found.fact)}"


def _slow_window(found: SlowLine) -> tuple[str, ...]:
    throttled = "unknown" if found.throttled is None else ", ".join(found.throttled) or "no"
    return (
        utc(found.at),
        printable(found.pipeline),
        printable(found.stream),
        str(found.batch),
        *(f"{ms:.3f}" for ms in msgspec.structs.astuple(found.lat_ms)),
        "unknown" if found.temperature_c is None else f"{found.temperature_c:.0f} °C",
        printable(throttled),
    )


def recorded(found: RecordSummary) -> str:
    """One line, and one more for each reason why something is missing."""
    count = f"{found.messages:,} messages on {found.topics:,} topics, {found.bytes:,} bytes, {found.seconds:.1f} s"
    lines = [f"{found.path}: {count}"]
    if found.disconnects:
        lines.append(f"the broker was away {found.disconnects} times: what was published then is missing")
    if found.unfinished:
        lines.append("more was still coming in when the time to finish was over: it is missing")
    return "\n".join(lines)


def published(found: PublishSummary) -> str:
    """What the broker has, and what it has not."""
    behind = "" if found.behind_s is None else f", at worst {found.behind_s * 1000:.1f} ms behind"
    lines = [f"published {found.published:,} messages in {found.seconds:.1f} s{behind}"]
    lines += [f"refused {n:,}: {reason}" for reason, n in found.refused.items()]
    lines += [f"skipped {found.retained:,} retained: state a broker had stored"] if found.retained else []
    if found.without_properties:
        lines.append(f"{found.without_properties:,} went out without their properties, which MQTT 3.1.1 does not have")
    return "\n".join(lines)


def replayed(found: ReplaySummary) -> str:
    """The ledger, and how much went in and came out."""
    lines = [render(found.ledger), f"{found.messages:,} messages replayed, {found.documents:,} documents written"]
    if found.unrouted:
        lines.append(f"skipped {found.unrouted:,} unrouted: no pipeline subscribes to their topics")
    return "\n".join(lines)


def unread(found: PublishSummary | ReplaySummary) -> str:
    """What of the recording's end was not replayed, and why."""
    return f"the last {found.unread_bytes:,} bytes of the recording are unread: {found.problem}"


def gate(found: GateReport) -> str:
    """What was checked, then the verdict."""
    rows = [(check.name, "ok" if check.ok else "refused", f"{check.ms:.1f} ms", check.detail) for check in found.checks]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {outcome:<{widths[1]}}  {ms:>{widths[2]}}  {detail}"
        for name, outcome, ms, detail in rows
    ]
    on = f"onnxruntime {found.onnxruntime}, {found.session.provider}"
    verdict = f"{found.model} is proven here: {on}" if found.ok else f"refused: {found.reason}"
    return "\n".join([f"sha256 {found.digest or 'unknown'}", *lines, verdict])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first to the left, numbers to the right."""
    lines = [list(columns), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    numeric = [all(row[i][:1].isdigit() for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
