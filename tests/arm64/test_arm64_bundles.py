"""Every bundle of the repository on every core: gated there, its labels equal, its outputs as exact as they can be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import saturating
from arithmetic import arithmetic, output_step
from bundles import REFERENCE, means_manifest, means_model
from guest import CHECKOUT, OUT, ROOT, SYSTEMS, Guest, once
from onnx import numpy_helper
from test_committed_bundles import BUNDLES, labels, packed_labels

from edge_runtime.model.bundle import Bundle, Golden, read, write
from edge_runtime.model.manifest import OutputSpec, Tolerance

LIMIT_S = 280
FLOAT32 = 1e-5
"""Of the largest output, how far float32 may be off."""
STEPS = 2
"""Of the output's quantization, how far int8 with float parts may be off."""

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


def judge(bundle: Bundle, found: dict[str, Any]) -> None:
    manifest = bundle.manifest

    assert found["refused"] == ""
    assert found["family"] == "neon"
    assert labels(manifest, found["scores"]) == packed_labels(manifest, bundle.golden)
    assert found["golden_error"] <= manifest.tolerances[manifest.certified("neon")].absolute
    assert wrong(bundle, np.array(found["outputs"], np.float32)) == ""


def wrong(bundle: Bundle, found: np.ndarray) -> str:
    """What is wrong with the outputs of the golden windows, which were made on x86, "" when nothing is."""
    golden = bundle.golden.outputs
    if found.shape != golden.shape:
        return f"shape {found.shape}, wanted {golden.shape}"
    apart = float(np.max(np.abs(found - golden)))
    kind = arithmetic(bundle.model)
    if kind == "static int8":
        return f"{kind}: not the same to the bit, {apart:.3g} apart" if found.tobytes() != golden.tobytes() else ""
    if kind == "float32":
        allowed = FLOAT32 * float(np.max(np.abs(golden)))
    else:
        step = output_step(bundle.model, bundle.manifest.output.name)
        allowed = bundle.manifest.tolerances["default"].absolute if step is None else STEPS * step
    return "" if apart <= allowed else f"{kind}: {apart:.3g} apart, allowed {allowed:.3g}"
