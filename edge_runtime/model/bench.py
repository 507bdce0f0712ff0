"""How fast a bundle runs here: latency, throughput by batch size and threads, load time; and how to run it then."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.session import INLINE_LIMIT_MS, Session, SessionSettings
from edge_runtime.model.threads import ThreadChoice, choose_threads, counts_here

WARM_UP_SHARE = 0.2
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS_PER_ROW = 0.5
NEARLY_ALL = 0.9
NEAR_LIMIT = 0.8


class BenchRow(msgspec.Struct, frozen=True):
    """One batch size and number of threads; times of one run in ms, windows_per_s at that batch size.

    cpu_ms: processor time of all threads, one window.
    """

    batch: int
    threads: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    windows_per_s: float
    cpu_ms: float


class Advice(msgspec.Struct, frozen=True):
    """Settings for this model on this device: of models.NAME, and execution of pipelines.NAME.

    p50_ms: of one window at a sensor's pace, for each number of threads tried. window_ms: median of one window in the
    rows, windows_per_s: at max_batch, most_windows_per_s: at any batch, all with the threads chosen. enough: the share
    of the most that max_batch has to give.
    """

    intra_op_threads: int
    max_batch: int
    execution: Literal["auto", "worker"]
    p50_ms: dict[int, float]
    window_ms: float
    windows_per_s: float
    most_windows_per_s: float
    enough: float = NEARLY_ALL
    inline_limit_ms: float = INLINE_LIMIT_MS


class BenchReport(msgspec.Struct, frozen=True):
    """load_ms: read, verify, load, golden vectors, warm-up. golden_error: largest deviation. rss_mb: once loaded."""

    model: str
    precision: str
    bundle_kb: float
    load_ms: float
    golden_error: float
    rss_mb: float
    rows: list[BenchRow]
    advice: Advice | None = None


def bench(
    path: Path,
    *,
    threads: tuple[int, ...],
    provider: str,
    rss_mb: Callable[[], float],
    seconds_per_row: float = SECONDS_PER_ROW,
) -> BenchReport:
    """Measure a bundle.

    rss_mb: resident memory of this process now.

    Raises BundleError, ProviderError, DependencyError.
    """
    start_ns = time.perf_counter_ns()
    bundle = read(path)
    session = Session(bundle, SessionSettings(provider=provider))
    load_ms, loaded_mb = (time.perf_counter_ns() - start_ns) / 1e6, rss_mb()
    batches = BATCHES if session.dynamic_batch else BATCHES[:1]
    rows = []
    for count in threads:
        settings = SessionSettings(provider=provider, intra_op_threads=count)
        subject = session if settings == session.settings else Session(bundle, settings)
        rows += [_row(bundle, subject, batch, seconds_per_row) for batch in batches]
    return BenchReport(
        model=bundle.manifest.model_id,
        precision=bundle.manifest.precision,
        bundle_kb=path.stat().st_size / 1024,
        load_ms=load_ms,
        golden_error=session.golden_error,
        rss_mb=loaded_mb,
        rows=rows,
    )


def autotune(
    path: Path, *, provider: str, rss_mb: Callable[[], float], seconds_per_row: float = SECONDS_PER_ROW
) -> BenchReport:
    """Measure a bundle with every number of threads that is tried here, and advise how to run it. Raises as bench."""
    settings = SessionSettings(provider=provider)
    choice = choose_threads(read(path), settings)
    found = bench(
        path, threads=counts_here(settings), provider=provider, rss_mb=rss_mb, seconds_per_row=seconds_per_row
    )
    return msgspec.structs.replace(found, advice=advise(choice, found.rows))


def advise(choice: ThreadChoice, rows: list[BenchRow]) -> Advice:
    """rows: some with the chosen number of threads, one of them of a single window.

    The batch is the smallest that gives nearly all of the windows/s: a larger one only takes memory. So near the
    inline limit that auto could choose anew at each start, the model belongs on the worker thread.
    """
    chosen = sorted((row for row in rows if row.threads == choice.threads), key=lambda row: row.batch)
    most = max(row.windows_per_s for row in chosen)
    enough = next(row for row in chosen if row.windows_per_s >= NEARLY_ALL * most)
    near = NEAR_LIMIT * INLINE_LIMIT_MS < chosen[0].p50_ms < INLINE_LIMIT_MS / NEAR_LIMIT
    return Advice(
        intra_op_threads=choice.threads,
        max_batch=enough.batch,
        execution="worker" if near else "auto",
        p50_ms=choice.p50_ms,
        window_ms=chosen[0].p50_ms,
        windows_per_s=enough.windows_per_s,
        most_windows_per_s=most,
    )


def _row(bundle: Bundle, session: Session, batch: int, seconds: float) -> BenchRow:
    inputs = np.resize(bundle.golden.inputs, (batch, *bundle.golden.inputs.shape[1:]))
    begun_ns, warm_up_ns = time.perf_counter_ns(), int(WARM_UP_SHARE * seconds * 1e9)
    while time.perf_counter_ns() - begun_ns < warm_up_ns:
        session.predict(inputs)
    times_ns: list[int] = []
    gc.disable()
    try:
        begun_cpu_ns = time.process_time_ns()
        stop_ns = time.perf_counter_ns() + int(seconds * 1e9)
        while (start_ns := time.perf_counter_ns()) < stop_ns or not times_ns:
            session.predict(inputs)
            times_ns.append(time.perf_counter_ns() - start_ns)
        cpu_ns = time.process_time_ns() - begun_cpu_ns
    finally:
        gc.enable()
    times_ms = np.array(times_ns) / 1e6
    p50, p95, p99 = np.percentile(times_ms, (50, 95, 99))
    return BenchRow(
        batch=batch,
        threads=session.settings.intra_op_threads,
        runs=len(times_ms),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(times_ms.max()),
        windows_per_s=batch * len(times_ms) / float(times_ms.sum() / 1e3),
        cpu_ms=cpu_ns / 1e6 / (batch * len(times_ms)),
    )
