"""The model alone: `session.run` in a hot loop, which the floor adds to the echo, and at a rate, which costs more.

python -m benchmarks.bare model.onnx: one line of JSON, percentiles in µs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import onnxruntime as ort

from benchmarks.results import PACED_HZ, percentile

WARM_UP, CALLS = 200, 4000
PACED_CALLS = 1000


class Times(msgspec.Struct, frozen=True):
    """Of one call, wall clock, µs: n in a hot loop; paced_n at PACED_HZ, asleep until each is due."""

    p50_us: float
    p99_us: float
    n: int
    paced_p50_us: float
    paced_p99_us: float
    paced_n: int


def measure(model: str, calls: int) -> Times:
    """Batch 1, one thread, a prepared input, the output by name. calls: in the hot loop."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options)
    x = session.get_inputs()[0]
    names, feed = [session.get_outputs()[0].name], {x.name: np.zeros((1, *x.shape[1:]), np.float32)}
    run, now_ns, paced = session.run, time.perf_counter_ns, min(calls, PACED_CALLS)

    def call_us() -> float:
        begin_ns = now_ns()
        run(names, feed)
        return (now_ns() - begin_ns) / 1e3

    hot_us = [call_us() for _ in range(WARM_UP + calls)][WARM_UP:]
    return Times(*_percentiles(hot_us), calls, *_percentiles(_paced(call_us, paced)), paced)


def _paced(call_us: Callable[[], float], calls: int) -> list[float]:
    """On an absolute schedule; a call that is late is made at once."""
    begin_s, found = time.perf_counter(), []
    for i in range(calls):
        time.sleep(max(0.0, begin_s + i / PACED_HZ - time.perf_counter()))
        found.append(call_us())
    return found


def _percentiles(times_us: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    ordered = sorted(times_us)
    return round(percentile(ordered, 50), 2), round(percentile(ordered, 99), 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--calls", type=int, default=CALLS)
    args = parser.parse_args()
    print(msgspec.json.encode(measure(args.model, args.calls)).decode())
