"""The gate: a bundle is proven on this device, in a process of its own with limits, before anything here loads it.

The child (`proof.py`) does the checks and may die of them; this side holds the clock and turns every way of ending
into a report. A report is kept under `state_dir/gate`, so that a bundle is proven once per version of the runtime.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Literal, NamedTuple, cast

import msgspec

import edge_runtime
from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import Bundle, parse, read_bytes
from edge_runtime.model.session import SessionSettings, load_onnxruntime

log = logging.getLogger(__name__)

CHILD = ("-m", "edge_runtime.model.proof")
OUTPUT_BYTES = 64 * 1024
"""What the child may print; its report has 2 kB."""
INHERITED = ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""The only variables of our environment that the child sees: where an accelerator's libraries lie, and which it is."""
OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Failed to allocate", "Unable to allocate", "annot allocate memory")

CheckName = Literal["file", "members", "policy", "session", "finite", "latency", "memory"]
CHECKS: tuple[CheckName, ...] = ("file", "members", "policy", "session", "finite", "latency", "memory")
Positive = Annotated[float, msgspec.Meta(gt=0)]


class GateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle may cost while it is proven.

    memory_mb: of the whole process (address space; with a GPU its writable part). cpu_s: processor time of all
    threads. timeout_s: by the clock. p95_ms: of one window, None for the bundle's own budget.
    """

    memory_mb: Annotated[float, msgspec.Meta(ge=256)] = 1200.0
    cpu_s: Annotated[int, msgspec.Meta(ge=1)] = 30
    timeout_s: Positive = 60.0
    p95_ms: Positive | None = None


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
    """One line the child prints: a check that is done, or at last the proof."""

    check: Check | None = None
    proof: Proof | None = None


class Order(msgspec.Struct, frozen=True):
    """What the child is asked to prove. path: absolute. digest: the sha256 it must have."""

    path: str
    digest: str
    session: SessionSettings
    settings: GateSettings


class GateReport(msgspec.Struct, frozen=True):
    """reason: one sentence saying what was found and what was allowed, "" when ok. digest: sha256 of the bundle.

    model, onnxruntime, p95_ms, peak_rss_mb stay empty when the bundle was refused before they were known.
    """

    ok: bool
    bundle: str
    digest: str
    model: str
    edge_runtime: str
    onnxruntime: str
    provider: str
    settings: GateSettings
    checks: tuple[Check, ...]
    p95_ms: float | None
    peak_rss_mb: float | None
    reason: str


class _Ended(NamedTuple):
    """How the child ended. code: exit status, or minus the signal. output: at most one byte above the limit."""

    code: int
    output: bytes
    timed_out: bool


def proven(path: Path, settings: GateSettings, *, session: SessionSettings, state_dir: Path) -> Bundle:
    """The bundle, from the very bytes that passed the gate, now or when its report was kept.

    Raises BundleError with the reason when it is refused, DependencyError.
    """
    raw = read_bytes(path)
    wanted = GateReport(
        ok=True,
        bundle=str(path),
        digest=hashlib.sha256(raw).hexdigest(),
        model="",
        edge_runtime=edge_runtime.__version__,
        onnxruntime=str(load_onnxruntime().__version__),
        provider=session.provider,
        settings=settings,
        checks=(),
        p95_ms=None,
        peak_rss_mb=None,
        reason="",
    )
    name = f"{wanted.digest[:32]}-{wanted.edge_runtime}-{wanted.onnxruntime}-{wanted.provider}.json"
    kept = state_dir / "gate" / name
    if not _is_kept(kept, wanted):
        report = gate(path, settings, session=session, digest=wanted.digest)
        _keep(kept, report)
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
    """Prove a bundle in a child process. digest: the sha256 it must have; by default what the file has now.

    Raises BundleError when no child can be started, or the file cannot be read.
    """
    digest = digest or hashlib.sha256(read_bytes(path)).hexdigest()
    order = Order(str(path.resolve()), digest, session, settings)
    try:
        ended = _run_child(order)
    except OSError as error:
        raise BundleError(str(path), f"cannot be proven, no process for it: {error}") from error
    checks, proof = _read_lines(ended.output)
    failed = _failure(ended, checks, proof, order)
    if failed is not None:
        proof = None
        checks += [] if failed in checks else [failed]
    return GateReport(
        ok=failed is None,
        bundle=str(path),
        digest=digest,
        model=proof.model if proof else "",
        edge_runtime=edge_runtime.__version__,
        onnxruntime=proof.onnxruntime if proof else "",
        provider=session.provider,
        settings=settings,
        checks=tuple(checks),
        p95_ms=proof.p95_ms if proof else None,
        peak_rss_mb=proof.peak_rss_mb if proof else None,
        reason=failed.detail if failed else "",
    )


def _failure(ended: _Ended, checks: list[Check], proof: Proof | None, order: Order) -> Check | None:
    """The check that was not ok or that the child did not survive; None when all of them and the proof are there."""
    if checks and not checks[-1].ok:
        return checks[-1]
    if tuple(check.name for check in checks) == CHECKS and proof and proof.digest == order.digest and ended.code == 0:
        return None
    died_in = CHECKS[min(len(checks), len(CHECKS) - 1)]
    return Check(died_in, ok=False, detail=_death(ended, order.settings), ms=0.0)


def too_much_memory(settings: GateSettings) -> str:
    return f"needs more memory than gate.memory_mb = {settings.memory_mb:g} allows"


def _run_child(order: Order) -> _Ended:
    """Start it in an empty folder, in a session of its own; nothing of it is left afterwards. Raises OSError."""
    timed_out = threading.Event()
    with tempfile.TemporaryDirectory(prefix="edge-runtime-gate-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-B", *CHILD, msgspec.json.encode(order).decode()],
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def end_late() -> None:
            timed_out.set()
            end()

        timer = threading.Timer(order.settings.timeout_s, end_late)
        timer.start()
        try:
            with cast("IO[bytes]", process.stdout) as pipe:
                output = pipe.read(OUTPUT_BYTES + 1)
        finally:
            timer.cancel()
            timer.join()
            end()  # before it is waited for: until then the number is its own
            code = process.wait()
    return _Ended(code, output, timed_out.is_set())


def _environment(folder: str) -> dict[str, str]:
    """Few threads keep the address space small; the modules are those that we ourselves import."""
    own = {name: os.environ[name] for name in INHERITED if name in os.environ}  # noqa: TID251  handed on, not read
    modules = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return {
        **own,
        "HOME": folder,
        "LC_ALL": "C.UTF-8",
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": modules,
    }


def _read_lines(output: bytes) -> tuple[list[Check], Proof | None]:
    """What the child reported, in order; anything else it printed is passed over."""
    checks: list[Check] = []
    proof = None
    for raw in output[:OUTPUT_BYTES].splitlines():
        with suppress(msgspec.DecodeError, RecursionError):
            line = msgspec.json.decode(raw, type=Line)
            checks += [line.check] if line.check else []
            proof = line.proof or proof
    return checks, proof


def _death(ended: _Ended, settings: GateSettings) -> str:
    """One sentence on a child that ended without its report."""
    if ended.timed_out:
        return f"not finished after gate.timeout_s = {settings.timeout_s:g} s"
    if len(ended.output) > OUTPUT_BYTES:
        return f"printed more than {OUTPUT_BYTES} bytes"
    if ended.code == -signal.SIGXCPU:
        return f"used more than gate.cpu_s = {settings.cpu_s} s of processor time"
    last = (ended.output.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1][:200]
    if any(words in last for words in OUT_OF_MEMORY):
        return too_much_memory(settings)
    if ended.code < 0:
        return f"ended the process that loaded it by {_signal_name(-ended.code)}, wanted an answer: {last!a}"
    return f"the process that loaded it ended with status {ended.code} and no report: {last!a}"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def _is_kept(path: Path, wanted: GateReport) -> bool:
    """Whether a report lies there that says the same was proven by the same versions within the same bounds."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=GateReport)
    except (OSError, msgspec.DecodeError):
        return False
    keys = ("ok", "digest", "edge_runtime", "onnxruntime", "provider", "settings")
    return all(getattr(found, key) == getattr(wanted, key) for key in keys)


def _keep(path: Path, report: GateReport) -> None:
    """Write the report where it is looked for next time; a warning when that cannot be done."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        log.warning("gate_report_not_kept", extra={"path": str(path), "reason": error.strerror or str(error)})
