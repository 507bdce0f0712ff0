"""The model alone: `session.run` in a hot loop, which the floor adds to the echo.

python -m benchmarks.bare model.onnx: one line of JSON, percentiles in µs.
"""

from __future__ import annotations

import argparse
import time

import msgspec
import numpy as np
import onnxruntime as ort

from benchmarks.results import percentile

WARM_UP, CALLS = 200, 4000


class Times(msgspec.Struct, frozen=True):
    """Of one call, wall clock, µs."""

    p50_us: float
    p99_us: float
    n: int


def measure(model: str, calls: int) -> Times:
    """Batch 1, one thread, a prepared input, the output by name."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options)
    x = session.get_inputs()[0]
    names, feed = [session.get_outputs()[0].name], {x.name: np.zeros((1, *x.shape[1:]), np.float32)}
    run, now_ns, times_ns = session.run, time.perf_counter_ns, []
    for _ in range(WARM_UP + calls):
        begin_ns = now_ns()
        run(names, feed)
        times_ns.append(now_ns() - begin_ns)
    ordered = sorted(ns / 1e3 for ns in times_ns[WARM_UP:])
    return Times(round(percentile(ordered, 50), 2), round(percentile(ordered, 99), 2), calls)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--calls", type=int, default=CALLS)
    args = parser.parse_args()
    print(msgspec.json.encode(measure(args.model, args.calls)).decode())
