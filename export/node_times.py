"""What ONNX Runtime runs of a model on this machine, node by node, and how long each takes: its own profile.

Run as a program it is the child that loads the model: `python -m export.node_times REQUEST`, in a folder that holds the
model and the inputs; what it finds is written beside them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.errors import ExportError
from edge_runtime.model.family import numeric_family
from edge_runtime.model.session import EXACT_INT8, FIXED_ENTRIES, load_onnxruntime
from edge_runtime.records import Floats
from export.artifact import Artifact, name_nodes, parse, parts
from export.probe import Failure, child

if TYPE_CHECKING:
    import onnx
    import onnxruntime

RUNS = 200
MIN_RUNS = 20
RUNS_S = 3.0
WARM_UP = 20
MOST_EVENTS = 400_000
"""ONNX Runtime keeps a million of a profile; each is some 700 bytes of JSON."""
MODEL, INPUTS, OPTIMIZED, FOUND = "model.onnx", "inputs.npz", "optimized.onnx", "found.json"
KERNEL = "_kernel_time"


class NodeTime(msgspec.Struct, frozen=True):
    """One node of the optimized graph, in the order in which it runs.

    us: typical time in a run, what the profile costs taken off. dtype: of its first output, as ONNX Runtime says it
    (float, uint8, int64); "" for none.
    """

    name: str
    op: str
    us: float
    dtype: str


class Profile(msgspec.Struct, frozen=True):
    """graph: ONNX bytes as ONNX Runtime runs it. nodes: its own, not those of graphs inside a node.

    run_us: median of a run without a profile. A profile costs time at every node, for small nodes more than they take
    themselves: overhead_us is what was taken off each. On a busy machine they may still add up to more than a run.
    """

    graph: bytes
    nodes: tuple[NodeTime, ...]
    run_us: float
    overhead_us: float
    runs: int


class _Request(msgspec.Struct, frozen=True):
    entries: dict[str, str]


class _Found(msgspec.Struct, frozen=True):
    nodes: tuple[NodeTime, ...]
    run_us: float
    runs: int


def profile(artifact: Artifact, feed: Mapping[str, Any]) -> Profile:
    """Optimize, run and profile the artifact in a child process, one window at a time, one thread.

    feed: every input of the graph by name. Raises ExportError when it does not load or run.
    """
    proto = parse(artifact.model)
    name_nodes(proto)
    _name_inner(proto)
    with tempfile.TemporaryDirectory(prefix="edge-export-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(proto.SerializeToString())
        np.savez(folder / INPUTS, **feed)
        request = msgspec.json.encode(_Request(artifact.session)).decode()
        done = child("export.node_times", [request], folder)
        if isinstance(done, Failure):
            raise ExportError(f"{artifact.name}: the profile of the model {done.reason}")
        found = msgspec.json.decode((folder / FOUND).read_bytes(), type=_Found)
        graph = (folder / OPTIMIZED).read_bytes()
    overhead_us = overhead([node.us for node in found.nodes], found.run_us)
    nodes = tuple(msgspec.structs.replace(node, us=node.us - overhead_us) for node in found.nodes)
    return Profile(graph, nodes, found.run_us, overhead_us, found.runs)


def _name_inner(proto: onnx.ModelProto) -> None:
    """Give nodes inside nodes names that no other has; a profile tells them by name alone."""
    for number, part in enumerate(parts(proto)):
        for index, node in enumerate(part.node):
            node.name = node.name or f"inner_{number}_{node.op_type}_{index}"


def overhead(times_us: list[float], run_us: float) -> float:
    """What the profile costs at each node: what the nodes take beyond a run, at most what the quickest one takes."""
    return max(0.0, min(*times_us, (sum(times_us) - run_us) / len(times_us)))


def of_window(artifact: Artifact, windows: Floats) -> dict[str, Floats]:
    """The feed of the first window. windows: (n, ...) float32 in the model's layout."""
    return {artifact.input: np.ascontiguousarray(windows[:1])}


def main(arguments: list[str]) -> None:
    """The child: time runs without a profile, then with one."""
    request = msgspec.json.decode(arguments[0], type=_Request)
    with np.load(INPUTS) as arrays:
        feed = {name: arrays[name] for name in arrays.files}
    plain = _session(request.entries, optimized=Path(OPTIMIZED))
    times = _timed(plain, feed, RUNS)
    nodes = len(parse(Path(OPTIMIZED).read_bytes()).graph.node)
    runs = max(MIN_RUNS, min(len(times), MOST_EVENTS // max(nodes, 1)))
    watched = _session(request.entries, optimized=None)
    _timed(watched, feed, runs)
    events = msgspec.json.decode(Path(watched.end_profiling()).read_bytes())
    found = _Found(_nodes(events), float(np.median(times)) / 1e3, runs)
    Path(FOUND).write_bytes(msgspec.json.encode(found))


def _session(entries: dict[str, str], *, optimized: Path | None) -> onnxruntime.InferenceSession:
    """As the runtime makes it, but that it writes the graph it runs, or a profile when it need not."""
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is None:
        options.enable_profiling = True
    else:
        options.optimized_model_filepath = str(optimized)
    exact = {} if numeric_family() == "vnni" else EXACT_INT8
    for key, value in {**entries, **exact, **FIXED_ENTRIES}.items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def _timed(session: onnxruntime.InferenceSession, feed: dict[str, Any], runs: int) -> list[int]:
    """Nanoseconds of each run after the warm-up, which a profile holds too."""
    for _ in range(WARM_UP):
        session.run(None, feed)
    times: list[int] = []
    stop_ns = time.perf_counter_ns() + int(RUNS_S * 1e9)
    while len(times) < runs and (len(times) < MIN_RUNS or time.perf_counter_ns() < stop_ns):
        start_ns = time.perf_counter_ns()
        session.run(None, feed)
        times.append(time.perf_counter_ns() - start_ns)
    return times


def _nodes(events: list[dict[str, Any]]) -> tuple[NodeTime, ...]:
    """One entry a node; the warm-up and what runs inside a node's own graphs are left out."""
    own = {node.name for node in parse(Path(OPTIMIZED).read_bytes()).graph.node}
    spent: dict[tuple[str, str], list[int]] = defaultdict(list)
    kinds: dict[tuple[str, str], tuple[str, str]] = {}
    for event in events:
        name = event["name"].removesuffix(KERNEL)
        if event["cat"] != "Node" or name == event["name"] or name not in own:
            continue
        told = event["args"]
        key = name, told["node_index"]
        spent[key].append(event["dur"])
        kinds[key] = told["op_name"], next(iter(next(iter(told["output_type_shape"]), {})), "")
    return tuple(
        NodeTime(key[0], kinds[key][0], _middle(times[WARM_UP:]), kinds[key][1]) for key, times in spent.items()
    )


def _middle(times: list[int]) -> float:
    """Mean of the values between the quartiles: the profile counts whole microseconds, too coarse for a median."""
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return float(np.mean(ordered[quarter : len(ordered) - quarter]))


if __name__ == "__main__":
    main(sys.argv[1:])
