"""How fast a bundle runs here: latency, throughput by batch size and threads, load time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.model.bundle import Bundle, read
from edge_runtime.model.session import Session, SessionSettings

WARM_UP_SHARE = 0.2
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECONDS_PER_ROW = 0.5


class BenchRow(msgspec.Struct, frozen=True):
    """One batch size and number of threads; times of one run in ms, windows_per_s at that batch size."""

    batch: int
    threads: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    windows_per_s: float


class BenchReport(msgspec.Struct, frozen=True):
    """load_ms: read, verify, load, golden vectors, warm-up. golden_error: largest deviation. rss_mb: once loaded."""

    model: str
    precision: str
    bundle_kb: float
    load_ms: float
    golden_error: float
    rss_mb: float
    rows: list[BenchRow]


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


def _row(bundle: Bundle, session: Session, batch: int, seconds: float) -> BenchRow:
    inputs = np.resize(bundle.golden.inputs, (batch, *bundle.golden.inputs.shape[1:]))
    begun_ns, warm_up_ns = time.perf_counter_ns(), int(WARM_UP_SHARE * seconds * 1e9)
    while time.perf_counter_ns() - begun_ns < warm_up_ns:
        session.predict(inputs)
    times_ns: list[int] = []
    gc.disable()
    try:
        stop_ns = time.perf_counter_ns() + int(seconds * 1e9)
        while (start_ns := time.perf_counter_ns()) < stop_ns or not times_ns:
            session.predict(inputs)
            times_ns.append(time.perf_counter_ns() - start_ns)
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
    )
