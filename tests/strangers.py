"""Somebody else's ONNX files, built by hand, and the two ways to pack them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundles import running_model
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.model import bundle
from export.cli import main
from export.derive import PackSpec
from export.pack_onnx import pack_onnx


def graph(
    folder: Path,
    nodes: list,
    *,
    x: list | None = None,
    y: list | None = None,
    x_type: int = TensorProto.FLOAT,
    y_type: int = TensorProto.FLOAT,
    constants: dict[str, np.ndarray] | None = None,
    domains: tuple[str, ...] = (),
) -> Path:
    """A graph from x to y; by default (batch, 4, 2) to (batch, 2)."""
    made = helper.make_graph(
        nodes,
        "stranger",
        [helper.make_tensor_value_info("x", x_type, x or ["batch", 4, 2])],
        [helper.make_tensor_value_info("y", y_type, y or ["batch", 2])],
        initializer=[numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = folder / "stranger.onnx"
    path.write_bytes(helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def means(last: list, **options) -> tuple[list, dict]:
    """Means over the samples as m, then the nodes given. Arguments for `graph`."""
    return [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), *last], {
        "constants": {"axes": np.array([1], np.int64), **options.pop("constants", {})},
        **options,
    }


def classifier(folder: Path) -> Path:
    nodes, options = means([helper.make_node("Softmax", ["m"], ["y"])])
    return graph(folder, nodes, **options)


def streaming(folder: Path) -> Path:
    path = folder / "running.onnx"
    path.write_bytes(running_model(length=4, channels=2))
    return path


def pack(model: Path, *, samples: Path | np.ndarray | None = None, seed: int = 0, **spec) -> bundle.Bundle:
    target = model.with_name("packed.edge")
    pack_onnx(model, PackSpec(**{"layout": "NTC", **spec}), target=target, samples=samples, seed=seed)
    return bundle.read(target)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pack", *map(str, arguments)])
