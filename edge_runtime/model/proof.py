"""What the gate runs in a process of its own, because it may die: every check of one bundle, in order.

    python -m edge_runtime.model.proof FD PARENT BUNDLE ORDER

Writes a line of JSON to FD after each check and at last the proof; stops at the first check that is not ok.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from edge_runtime.errors import BundleError, DependencyError, EdgeRuntimeError
from edge_runtime.model import child
from edge_runtime.model.bundle import Bundle, parse, read_bytes
from edge_runtime.model.gate import (
    Check,
    CheckName,
    GateSettings,
    Line,
    Order,
    Proof,
    is_out_of_memory,
    too_much_memory,
)
from edge_runtime.model.policy import judge
from edge_runtime.model.session import Session, family_of, load_onnxruntime
from edge_runtime.records import Floats

OPEN_FILES = 256
SENTENCE_CHARACTERS = 1000
LATENCY_RUNS = 200
LATENCY_ROUNDS = 3
"""A round that missed the bound may have been disturbed: the best one counts."""
LATENCY_ROUND_S = 0.2
LEAST_RUNS = 20

T = TypeVar("T")
Found = tuple[T, str]
"""What a check hands to the next ones, and its detail."""


class _Refused(Exception):  # noqa: N818  it ends the proof, the report is already written
    """A check was not ok."""


def main(path: Path, order: Order, tell: Callable[[Line], None]) -> None:
    """Limit this process, then prove the bundle; each check is told when it is done."""
    limit(order)
    steps = _Steps(order.settings, tell)
    bundle = _take_bundle(steps, path, order)
    steps.take("policy", lambda: _check_policy(bundle))
    session = steps.take("session", lambda: _check_session(bundle, order))
    steps.take("finite", lambda: _check_finite(bundle, session))
    p95_ms = steps.take("latency", lambda: _check_latency(bundle, session, order.settings))
    peak_mb = steps.take("memory", lambda: _check_memory(bundle, order.settings))
    version = str(load_onnxruntime().__version__)
    tell(Line(proof=Proof(order.digest, bundle.manifest.model_id, version, round(p95_ms, 4), round(peak_mb, 1))))


def limit(order: Order) -> None:
    """Bounds that this process cannot lift again: memory, processor time, files, and a clock of its own."""
    settings = order.settings
    memory = int(settings.memory_mb * 1e6)
    # A GPU driver reserves far more addresses than it uses.
    kind = resource.RLIMIT_AS if order.session.provider == "CPUExecutionProvider" else resource.RLIMIT_DATA
    bounds = {
        kind: (memory, memory),
        resource.RLIMIT_CPU: (settings.cpu_s, settings.cpu_s + 1),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
    }
    for what, wanted in bounds.items():
        hard = resource.getrlimit(what)[1]
        soft, most = (bound if hard == resource.RLIM_INFINITY else min(bound, hard) for bound in wanted)
        resource.setrlimit(what, (soft, most))
    signal.alarm(math.ceil(settings.timeout_s) + 1)


class _Steps:
    """Takes one check after the other, with its time."""

    def __init__(self, settings: GateSettings, tell: Callable[[Line], None]) -> None:
        self._settings = settings
        self._tell = tell

    def take(self, name: CheckName, check: Callable[[], Found[T]]) -> T:
        """What the check found. Raises _Refused when it is not ok, having told why."""
        start_ns = time.perf_counter_ns()
        try:
            found, detail = check()
        except Exception as error:  # whatever a bundle makes our code do, it is the bundle that is refused
            self._say(name, start_ns, self._sentence(error), ok=False)
            raise _Refused from error
        self._say(name, start_ns, detail, ok=True)
        return found

    def _say(self, name: CheckName, start_ns: int, detail: str, *, ok: bool) -> None:
        ms = round((time.perf_counter_ns() - start_ns) / 1e6, 3)
        self._tell(Line(check=Check(name, ok, detail, ms)))

    def _sentence(self, error: Exception) -> str:
        text = error.fact if isinstance(error, BundleError) else str(error)
        words = child.printable(" ".join(text.split())[:SENTENCE_CHARACTERS])
        if isinstance(error, DependencyError):
            return words
        if isinstance(error, MemoryError) or is_out_of_memory(text):
            return too_much_memory(self._settings, words or type(error).__name__)
        return words if isinstance(error, EdgeRuntimeError) else f"cannot be judged, {type(error).__name__}: {words}"


def _take_bundle(steps: _Steps, path: Path, order: Order) -> Bundle:
    """Apart, so that the file's bytes, which may be many, are let go before the model is loaded."""
    raw = steps.take("file", lambda: _check_file(path, order.digest))
    return steps.take("members", lambda: _check_members(path, raw))


def _check_file(path: Path, digest: str) -> Found[bytes]:
    raw = read_bytes(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != digest:
        raise BundleError(str(path), f"the file changed meanwhile: sha256 {found[:12]}…, wanted {digest[:12]}…")
    return raw, f"{len(raw)} bytes"


def _check_members(path: Path, raw: bytes) -> Found[Bundle]:
    bundle = parse(path, raw)
    return bundle, f"{len(bundle.manifest.files)} members, sizes and hashes as the manifest says"


def _check_policy(bundle: Bundle) -> Found[None]:
    facts = judge(bundle.path, bundle.model, bundle.manifest.session)
    nodes, kinds = sum(facts.operators.values()), len(facts.operators)
    return None, f"{nodes} nodes of {kinds} operators, {facts.tensors} tensors, all data inside"


def _check_session(bundle: Bundle, order: Order) -> Found[Session]:
    session = Session(bundle, order.session)
    allowed = bundle.manifest.tolerances[session.family].absolute
    vectors = len(bundle.golden.inputs)
    return session, (
        f"loads, inputs and outputs as the manifest says, {vectors} golden vectors differ by "
        f"{session.golden_error:.3g}, allowed {allowed:.3g} ({_measured(bundle, session, order)})"
    )


def _measured(bundle: Bundle, session: Session, order: Order) -> str:
    """Whose golden outputs they are."""
    if claim := bundle.manifest.parity.get(session.family):
        return f"{session.family}, {claim.how}"
    return f"default, nothing was measured for {family_of(order.session) or 'this processor or provider'}"


def _check_finite(bundle: Bundle, session: Session) -> Found[None]:
    """Golden inputs, and the window of a sensor at rest."""
    silence = np.zeros((1, *bundle.manifest.input.shape()), np.float32)
    for name, inputs in (("the golden inputs", bundle.golden.inputs), ("a window of zeros", silence)):
        scores = session.predict(inputs)
        if not np.isfinite(scores).all():
            bad = int(np.count_nonzero(~np.isfinite(scores)))
            raise BundleError(bundle.path, f"{bad} of {scores.size} scores for {name} are NaN or infinite, wanted none")
    return None, "scores of the golden inputs and of a window of zeros are finite"


def _check_latency(bundle: Bundle, session: Session, settings: GateSettings) -> Found[float]:
    allowed_ms = settings.p95_ms or bundle.manifest.budgets.p95_ms or math.inf
    bound = "as gate.p95_ms says" if settings.p95_ms else "the bundle's budget, unless gate.p95_ms says otherwise"
    one = np.ascontiguousarray(bundle.golden.inputs[:1])
    best_ms = math.inf
    for _ in range(LATENCY_ROUNDS):
        best_ms = min(best_ms, _p95_ms(session, one))
        if best_ms <= allowed_ms:
            break
    else:
        found = f"p95 of one window is {best_ms:.3g} ms here, allowed {allowed_ms:.3g} ms, {bound}"
        raise BundleError(bundle.path, found)
    return best_ms, f"p95 of one window is {best_ms:.3g} ms" + (
        f", allowed {allowed_ms:.3g} ms" if math.isfinite(allowed_ms) else ", no budget"
    )


def _p95_ms(session: Session, one: Floats) -> float:
    times_ns: list[int] = []
    begun_ns = time.perf_counter_ns()
    while len(times_ns) < LATENCY_RUNS:
        start_ns = time.perf_counter_ns()
        if len(times_ns) >= LEAST_RUNS and start_ns - begun_ns > LATENCY_ROUND_S * 1e9:
            break
        session.predict(one)
        times_ns.append(time.perf_counter_ns() - start_ns)
    return float(np.percentile(times_ns, 95)) / 1e6


def _check_memory(bundle: Bundle, settings: GateSettings) -> Found[float]:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    if peak_mb > settings.memory_mb:
        raise BundleError(bundle.path, too_much_memory(settings, f"peak {peak_mb:.0f} MB resident"))
    return peak_mb, f"peak resident memory {peak_mb:.0f} MB, allowed {settings.memory_mb:g} MB"


if __name__ == "__main__":
    tell, (bundle_path, wanted) = child.begin(sys.argv)
    try:
        main(Path(bundle_path), msgspec.json.decode(wanted, type=Order), tell)
    except _Refused:
        os._exit(1)
    os._exit(0)  # at once: what ONNX Runtime does on its way out is not part of the proof
