"""python -m benchmarks.import_cost libraries|run: what importing costs this interpreter, as JSON.

libraries: those the daemon runs on, alone. run: all that `edge-runtime run` imports until its config is read.
"""

from __future__ import annotations

import gc
import importlib
import sys
import time
from pathlib import Path

KIB_A_MIB = 1024
LIBRARIES = ("msgspec", "numpy", "paho.mqtt.client")
RUN = (
    "edge_runtime.__main__",
    "edge_runtime.config",
    "edge_runtime.daemon",
    "edge_runtime.logs",
    "edge_runtime.supervisor",
)


def main(subject: str) -> None:
    """Print time, memory and names of the modules that were not there before."""
    gc.disable()  # as `edge-runtime run` does while it starts
    names = {"libraries": LIBRARIES, "run": RUN}[subject]
    before, held = set(sys.modules), resident_mib()
    begun_ns, begun_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    for name in names:
        importlib.import_module(name)
    if subject == "run":
        sys.modules["edge_runtime.model.session"].load_onnxruntime()
    else:
        importlib.import_module("onnxruntime")
    ended_ns, ended_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
    now, added = resident_mib(), sorted(set(sys.modules) - before)
    import json  # noqa: PLC0415  not among what is measured

    found = {
        "ms": round((ended_ns - begun_ns) / 1e6, 2),
        "cpu_ms": round((ended_cpu_ns - begun_cpu_ns) / 1e6, 2),
        "rss_mib": round(now[0] - held[0], 2),
        "anonymous_mib": round(now[1] - held[1], 2),
        "modules": added,
    }
    print(json.dumps(found))


def resident_mib() -> tuple[float, float]:
    """All of this process, and its anonymous part (proc(5), status)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return kib["VmRSS"] / KIB_A_MIB, kib["RssAnon"] / KIB_A_MIB


if __name__ == "__main__":
    main(sys.argv[1])
