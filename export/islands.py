"""What ONNX Runtime makes of a quantized graph: what it fused to int8, and what stayed float between quantizers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ExportError
from export import probe
from export.artifact import DEQUANTIZE, QDQ, Artifact, is_integer, listed, parse
from export.probe import Failure

if TYPE_CHECKING:
    import onnx


class Islands(msgspec.Struct, frozen=True):
    """Counts by operator type, after all optimizations of ONNX Runtime on this machine.

    integer: operators that compute on int8. quantizers: QuantizeLinear and DequantizeLinear that are left; each costs
    time. islands: one entry for each group of float operators between a DequantizeLinear and a QuantizeLinear, where
    values go from int8 to float and back.
    """

    integer: Counter[str]
    quantizers: Counter[str]
    islands: tuple[Counter[str], ...]

    def __str__(self) -> str:
        kinds = Counter(listed(island) for island in self.islands).most_common()
        within = f" ({'; '.join(f'{count} of {kind}' for kind, count in kinds)})" if kinds else ""
        return (
            f"ONNX Runtime computes {listed(self.integer)} in int8; left over: {listed(self.quantizers)}; "
            f"float islands: {len(self.islands)}{within}"
        )


def islands(artifact: Artifact) -> Islands:
    """Optimize the graph in a child process and look at the result. Raises ExportError when it cannot be loaded."""
    raw = probe.optimized(artifact)
    if isinstance(raw, Failure):
        raise ExportError(f"{artifact.name}: ONNX Runtime {raw.reason} while loading the graph")
    return of_graph(parse(raw))


def of_graph(proto: onnx.ModelProto) -> Islands:
    """The same for a graph that is optimized already."""
    nodes = proto.graph.node
    constants = {tensor.name for tensor in proto.graph.initializer}
    integer = Counter(node.op_type for node in nodes if is_integer(node) and node.op_type not in QDQ)
    quantizers = Counter(node.op_type for node in nodes if node.op_type in QDQ)
    left = {
        name for node in nodes if node.op_type == DEQUANTIZE and node.input[0] not in constants for name in node.output
    }
    entered = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    found = [
        group
        for group in _groups([node for node in nodes if not is_integer(node)])
        if any(name in left for node in group for name in node.input)
        and any(name in entered for node in group for name in node.output)
    ]
    return Islands(integer, quantizers, tuple(Counter(node.op_type for node in group) for group in found))


def _groups(nodes: list[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Nodes that pass tensors to each other, directly or through others of them."""
    groups: list[tuple[set[str], list[onnx.NodeProto]]] = []
    for node in nodes:  # in topological order, so what a node reads is known already
        joined = [group for group in groups if not group[0].isdisjoint(node.input)]
        tensors = set(node.output).union(*(group[0] for group in joined))
        members = [member for group in joined for member in group[1]]
        groups = [group for group in groups if group[0].isdisjoint(node.input)]
        groups.append((tensors, [*members, node]))
    return [members for _, members in groups]
