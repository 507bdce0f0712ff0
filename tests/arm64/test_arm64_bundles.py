"""Every bundle of the repository on every core: gated there, its labels equal, its outputs as exact as they can be.

None of the committed bundles is static int8 as a whole: that is shown on one made here, whose sums are added by hand.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import onnx
import pytest
import saturating
from bundles import REFERENCE, means_manifest, means_model
from guest import CHECKOUT, LIMIT_S, OUT, ROOT, SYSTEMS, TIMEOUT_S, Guest, once
from onnx import numpy_helper
from test_committed_bundles import BUNDLES, labels, packed_labels

from benchmarks.arm64.arithmetic import arithmetic, output_step
from benchmarks.arm64.golden import proof
from edge_runtime.model.bundle import Bundle, Golden, read, write
from edge_runtime.model.manifest import OutputSpec, Tolerance

pytestmark = pytest.mark.timeout(TIMEOUT_S)

Found = dict[Path, dict[str, Any]]


@pytest.fixture(scope="session")
def all_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose sums need 32 bit and whose golden outputs were added up by hand."""
    manifest = means_manifest(length=saturating.IN, labels=("x",))
    manifest = msgspec.structs.replace(
        manifest,
        input=msgspec.structs.replace(manifest.input, layout="NT"),
        output=OutputSpec("y", "logits"),
        labels=tuple(f"class{i}" for i in range(saturating.OUT)),
        tolerances={"default": Tolerance(1e-9)},
    )
    path, inputs = tmp_path_factory.mktemp("bundles") / "all_int8.edge", saturating.windows()
    golden = Golden(inputs, saturating.by_hand(inputs))
    write(path, manifest, model=saturating.int8(), golden=golden, reference=REFERENCE, card="")
    return path


@pytest.fixture(scope="session")
def outputs(arm64: Callable[[str], Guest], all_int8: Path) -> Callable[[str, str], Found]:
    """What all bundles give on a core, of one process, since an emulated start takes seconds."""

    @once
    def run(suite: str, core: str) -> Found:
        paths = [f"{CHECKOUT}/{path.relative_to(ROOT)}" for path in BUNDLES] + [f"{OUT}/{all_int8.name}"]
        program = [f"{CHECKOUT}/tests/arm64/bundle_outputs.py", *paths]
        done: subprocess.CompletedProcess[str] = arm64(suite).run(core, program, limit_s=LIMIT_S, out=all_int8.parent)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(zip([*BUNDLES, all_int8], map(json.loads, done.stdout.splitlines()), strict=True))

    return run


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
@pytest.mark.parametrize(("suite", "core"), SYSTEMS)
def test_a_committed_bundle_passes_the_gate_with_its_labels_and_outputs(
    suite: str, core: str, path: Path, outputs: Callable[[str, str], Found]
) -> None:
    judge(read(path), outputs(suite, core)[path])


@pytest.mark.parametrize(("suite", "core"), SYSTEMS)
def test_integers_are_added_as_integers(
    suite: str, core: str, all_int8: Path, outputs: Callable[[str, str], Found]
) -> None:
    judge(read(all_int8), outputs(suite, core)[all_int8])


def test_how_exact_a_graph_must_be_is_read_off_it() -> None:
    pump = read(ROOT / "edge_runtime" / "demo" / "pump-vibration.edge").model
    logits_scale = next(t for t in onnx.load_from_string(pump).graph.initializer if t.name == "logits_scale")

    assert arithmetic(means_model(length=4, channels=2)) == "float32"
    assert arithmetic(saturating.int8()) == "static int8"
    assert arithmetic(pump) == "mixed"
    assert output_step(pump, "scores") == numpy_helper.to_array(logits_scale) / 2
    assert output_step(saturating.int8(), "y") == saturating.Y_SCALE


def test_int8_weights_that_are_dequantized_at_load_are_held_to_float32() -> None:
    model = quantized_twice(then="Softmax")
    of_weights_alone = onnx.load_from_string(model)
    del of_weights_alone.graph.node[:2]
    of_weights_alone.graph.node[0].input[0] = "x"

    assert (arithmetic(model), output_step(model, "y")) == ("mixed", None)
    assert arithmetic(of_weights_alone.SerializeToString()) == "float32"


def test_what_a_step_of_an_unknown_graph_does_to_its_outputs_is_not_guessed() -> None:
    golden = np.ones((2, 3), np.float32)
    bundle = SimpleNamespace(
        model=quantized_twice(then="Exp"),
        golden=SimpleNamespace(outputs=golden),
        manifest=SimpleNamespace(output=SimpleNamespace(name="y"), tolerances={"default": Tolerance(1e9)}),
    )

    assert proof(cast("Bundle", bundle), golden).refused == ""
    assert proof(cast("Bundle", bundle), golden + np.float32(1e-6)).refused.startswith("mixed: ")


def quantized_twice(then: str) -> bytes:
    """The input in int8 and the weights of a MatMul after it, each dequantized before, and a node after that."""
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    weights = numpy_helper.from_array(np.ones((3, 3), np.int8), "w8")
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        onnx.helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["x32"]),
        onnx.helper.make_node("MatMul", ["x32", "w32"], ["logits"]),
        onnx.helper.make_node("DequantizeLinear", ["w8", "scale", "zero"], ["w32"]),
        onnx.helper.make_node(then, ["logits"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], initializer=[scale, zero, weights])
    return bytes(onnx.helper.make_model(graph).SerializeToString())


def judge(bundle: Bundle, found: dict[str, Any]) -> None:
    manifest = bundle.manifest

    assert found["refused"] == ""
    assert found["family"] == "neon"
    assert labels(manifest, found["scores"]) == packed_labels(manifest, bundle.golden)
    assert found["golden_error"] <= manifest.tolerances[manifest.certified("neon")].absolute
    assert proof(bundle, np.array(found["outputs"], np.float32)).refused == ""
