"""The gate: a bundle is proven on this device, in a process of its own with limits, before anything here loads it.

The child (`proof.py`) does the checks and may die of them; this side holds the clock and turns every way of ending
into a report. A report is kept under `state_dir/gate`, so that a bundle is proven once per version of the runtime.
"""

from __future__ import annotations

import hashlib
import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec

import edge_runtime
from edge_runtime.errors import MALFORMED, BundleError
from edge_runtime.model import child, kept
from edge_runtime.model.bundle import Bundle, parse, read_bytes
from edge_runtime.model.session import SessionSettings, family_of, load_onnxruntime

log = logging.getLogger(__name__)

CHILD = ("-m", "edge_runtime.model.proof")
OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Failed to allocate", "Unable to allocate", "annot allocate memory")
STATIC_TLS = "static TLS block"
"""A library that was loaded too late says that it cannot allocate memory in it: no other bound helps."""

CheckName = Literal["file", "members", "policy", "session", "finite", "latency", "memory"]
CHECKS: tuple[CheckName, ...] = ("file", "members", "policy", "session", "finite", "latency", "memory")


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle may cost while it is proven.

    memory_mb: of the whole process (address space; with a GPU its writable part). cpu_s: processor time of all
    threads. timeout_s: by the clock. p95_ms: of one window, None for the bundle's own budget.
    """

    memory_mb: Annotated[float, msgspec.Meta(ge=256, le=1_000_000)] = 1200.0
    cpu_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 30
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    p95_ms: Annotated[float, msgspec.Meta(gt=0, le=3_600_000)] | None = None


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """detail: what was found, and when it is not ok what was allowed. ms: how long the check took."""

    name: CheckName
    ok: bool
    detail: str
    ms: float


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the child says at its end, when every check was ok. digest: sha256 of the bytes it judged."""

    digest: str
    model: str
    onnxruntime: str
    p95_ms: float
    peak_rss_mb: float


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the child's report: a check that is done, or at last the proof."""

    check: Check | None = None
    proof: Proof | None = None


class Order(msgspec.Struct, frozen=True):
    """What the child is asked to prove of a file. digest: the sha256 it must have."""

    digest: str
    session: SessionSettings
    settings: GateSettings


class GateReport(msgspec.Struct, frozen=True):
    """reason: one sentence saying what was found and what was allowed, "" when ok. digest: sha256 of the bundle.

    family: numeric family of this CPU, "" for one of none, and where another provider computes.
    digest, model, onnxruntime, p95_ms, peak_rss_mb stay empty when the bundle was refused before they were known.
    Every text is safe to print, whatever the bundle made the child say.
    """

    ok: bool
    bundle: str
    digest: str
    model: str
    edge_runtime: str
    onnxruntime: str
    family: str
    session: SessionSettings
    settings: GateSettings
    checks: tuple[Check, ...]
    p95_ms: float | None
    peak_rss_mb: float | None
    reason: str


def proven(path: Path, settings: GateSettings, *, session: SessionSettings, state_dir: Path) -> Bundle:
    """The bundle, from the very bytes that passed the gate, now or when its report was kept.

    Raises BundleError with the reason when it is refused, DependencyError.
    """
    raw = read_bytes(path)
    digest = hashlib.sha256(raw).hexdigest()
    versions = (edge_runtime.__version__, str(load_onnxruntime().__version__))
    ran_as = hashlib.sha256(msgspec.json.encode((versions, session))).hexdigest()
    place = state_dir / "gate" / f"{digest[:32]}-{ran_as[:16]}.json"
    found = _kept_report(place)
    if found is None or (
        (found.ok, found.digest, found.edge_runtime, found.onnxruntime, found.family, found.session, found.settings)
        != (True, digest, *versions, family_of(session), session, settings)
    ):
        report = gate(path, settings, session=session, digest=digest)
        _keep(place, report)
        if not report.ok:
            raise BundleError(str(path), report.reason)
        log.info(
            "bundle_proven",
            extra={"bundle": str(path), "p95_ms": report.p95_ms, "peak_rss_mb": report.peak_rss_mb},
        )
    return parse(path, raw)


def gate(
    path: Path,
    settings: GateSettings = GateSettings(),  # noqa: B008  immutable
    *,
    session: SessionSettings = SessionSettings(),  # noqa: B008  immutable
    digest: str = "",
) -> GateReport:
    """Prove a bundle in a child process. digest: the sha256 it must have; by default what the file has now."""
    checks: list[Check] = []
    proof = None
    try:
        digest = digest or hashlib.sha256(read_bytes(path)).hexdigest()
        order = Order(digest, session, settings)
        arguments = str(path.absolute()), msgspec.json.encode(order).decode()
        ended = child.run(CHILD, *arguments, timeout_s=settings.timeout_s)
    except BundleError as error:
        failed: Check | None = Check("file", ok=False, detail=child.printable(error.fact), ms=0.0)
    except OSError as error:
        failed = Check("file", ok=False, detail=f"cannot be proven, no process for it: {error.strerror}", ms=0.0)
    else:
        checks, proof = _read_lines(ended.report)
        failed = _failure(ended, checks, proof, order)
    if failed is not None:
        proof = None
        checks += [] if failed in checks else [failed]
    return GateReport(
        ok=failed is None,
        bundle=child.printable(str(path)),
        digest=digest,
        model=proof.model if proof else "",
        edge_runtime=edge_runtime.__version__,
        onnxruntime=proof.onnxruntime if proof else "",
        family=family_of(session),
        session=session,
        settings=settings,
        checks=tuple(checks),
        p95_ms=proof.p95_ms if proof else None,
        peak_rss_mb=proof.peak_rss_mb if proof else None,
        reason=failed.detail if failed else "",
    )


def _failure(ended: child.Ended, checks: list[Check], proof: Proof | None, order: Order) -> Check | None:
    """The check that was not ok or that the child did not survive; None when all of them and the proof are there."""
    if checks and not checks[-1].ok:
        return checks[-1]
    if tuple(check.name for check in checks) == CHECKS and proof and proof.digest == order.digest and ended.code == 0:
        return None
    died_in = CHECKS[min(len(checks), len(CHECKS) - 1)]
    return Check(died_in, ok=False, detail=_death(ended, order.settings), ms=0.0)


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text says that there was no more memory."""
    return STATIC_TLS not in text and any(words in text for words in OUT_OF_MEMORY)


def too_much_memory(settings: GateSettings, words: str) -> str:
    """words: what is known of the need."""
    return f"needs more memory than gate.memory_mb = {settings.memory_mb:g} allows; raise it if that is meant: {words}"


def _read_lines(report: bytes) -> tuple[list[Check], Proof | None]:
    """What the child reported, in order, its texts made safe; what is not a line of a report is passed over."""
    checks: list[Check] = []
    proof = None
    for raw in report[: child.REPORT_BYTES].splitlines():
        with suppress(*MALFORMED):
            line = msgspec.json.decode(raw, type=Line)
            if line.check:
                checks.append(msgspec.structs.replace(line.check, detail=child.printable(line.check.detail)))
            if line.proof:
                model, version = child.printable(line.proof.model), child.printable(line.proof.onnxruntime)
                proof = msgspec.structs.replace(line.proof, model=model, onnxruntime=version)
    return checks, proof


def _death(ended: child.Ended, settings: GateSettings) -> str:
    """One sentence on a child that ended without its report."""
    if ended.timed_out:
        return f"not finished after gate.timeout_s = {settings.timeout_s:g} s"
    if len(ended.report) > child.REPORT_BYTES:
        return f"reported more than {child.REPORT_BYTES} bytes"
    if ended.code == -signal.SIGXCPU:
        return f"used more than gate.cpu_s = {settings.cpu_s} s of processor time"
    last = ended.last_line or "it printed nothing"
    if is_out_of_memory(last):
        return too_much_memory(settings, f"its process died: {last}")
    if ended.signal_name:
        return f"ended the process that loaded it by {ended.signal_name}, wanted an answer: {last!r}"
    return f"the process that loaded it ended with status {ended.code} and no report: {last!r}"


def _kept_report(path: Path) -> GateReport | None:
    raw = kept.read(path)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=GateReport)
    except MALFORMED:
        return None


def _keep(path: Path, report: GateReport) -> None:
    """Write the report where it is looked for next time; a warning when that cannot be done."""
    try:
        kept.write(path, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        log.warning("gate_report_not_kept", extra={"path": str(path), "reason": error.strerror or str(error)})
