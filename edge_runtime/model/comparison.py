"""One process of a comparison, which may die of it: what was sent is judged, loaded, and timed in turn.

    python -m edge_runtime.model.comparison FD PARENT ORDER < REQUEST

Writes a line of JSON to FD before each step, and at last the rounds or why there are none.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from edge_runtime.errors import MALFORMED, BundleError
from edge_runtime.model import child
from edge_runtime.model.compare import Graph, Line, Order, Request, too_much_memory
from edge_runtime.model.gate import GateSettings, is_out_of_memory
from edge_runtime.model.gate import Order as GateOrder
from edge_runtime.model.paired import Rounds, time_in_turn
from edge_runtime.model.policy import judge
from edge_runtime.model.proof import limit
from edge_runtime.model.session import SessionSettings, create
from edge_runtime.records import Floats


def main(order: Order, raw: bytes, tell: Callable[[Line], None]) -> None:
    """Limit this process, then measure; whatever goes wrong is told."""
    bounds = order.settings
    limits = GateSettings(memory_mb=bounds.memory_mb, cpu_s=bounds.cpu_s, timeout_s=bounds.timeout_s)
    limit(GateOrder("", SessionSettings(), limits))
    try:
        tell(Line(rounds=_measure(order, raw, tell)))
    except BundleError as error:
        tell(Line(refused=error.fact))
    except Exception as error:  # noqa: BLE001  whatever a model makes our code do, it is the model that fails
        words = str(error) or type(error).__name__
        if isinstance(error, MemoryError) or is_out_of_memory(words):
            words = too_much_memory(bounds, words)
        tell(Line(failed=words))


def _measure(order: Order, raw: bytes, tell: Callable[[Line], None]) -> Rounds:
    """Raises BundleError for what is not allowed, and whatever a model makes ONNX Runtime raise."""
    try:
        request = msgspec.msgpack.decode(raw, type=Request)
    except MALFORMED as error:
        raise BundleError("", f"no request: {error}") from error
    window = _window(request)
    runs = []
    for name, graph in (("baseline", request.baseline), ("candidate", request.candidate)):
        runs.append(_load(name, graph, {request.input: window}, tell))
    tell(Line(begun="timing both"))
    return time_in_turn(*runs, seed=request.seed + order.process, most=request.rounds)


def _window(request: Request) -> Floats:
    wanted = 4 * math.prod(request.shape)
    if len(request.window) != wanted:
        found = f"a window of {len(request.window)} bytes"
        raise BundleError("", f"no request: {found}, wanted {wanted} of float32 for the shape {request.shape}")
    window: Floats = np.frombuffer(request.window, "<f4").reshape(request.shape).astype(np.float32)
    return window


def _load(name: str, graph: Graph, inputs: dict[str, Floats], tell: Callable[[Line], None]) -> Callable[[], object]:
    """A run of the graph; the first one is done. Raises BundleError where the policy has an objection."""
    tell(Line(begun=f"loading the {name}"))
    try:
        judge("", graph.onnx, graph.session)
    except BundleError as error:
        raise BundleError("", f"the {name}: {error.fact}") from error
    session = create(graph.onnx, settings=SessionSettings(), entries=graph.session)
    run = partial(session.run, None, inputs)
    tell(Line(begun=f"running the {name}"))
    run()
    return run


if __name__ == "__main__":
    tell, (wanted,) = child.begin(sys.argv)
    main(msgspec.json.decode(wanted, type=Order), sys.stdin.buffer.read(), tell)
    os._exit(0)  # at once: what ONNX Runtime does on its way out is not part of the comparison
