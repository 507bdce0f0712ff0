"""Every bundle in the repository gives the labels it was packed with, here and on x86 without VNNI (emulated)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import ExportError
from edge_runtime.model.bundle import Golden, read
from edge_runtime.model.family import numeric_family
from edge_runtime.model.manifest import DEFAULT, Manifest
from edge_runtime.model.session import scores_of
from edge_runtime.records import Floats
from edge_runtime.stream.decide import Decider, DecideSettings
from export.families import EMULATORS

pytestmark = pytest.mark.usefixtures("emulators")

ROOT = Path(__file__).parents[1]
KEEPERS = ("edge_runtime", "export", "benchmarks", "examples", "tests")
HASWELL = "flags : fma avx avx2\n"
SCORES = ROOT / "tests" / "arm64" / "bundle_scores.py"


def committed() -> list[Path]:
    """Of git where it is there, else what lies below the folders that keep bundles."""
    try:
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", "*.edge"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        names = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        names = []
    return sorted(names or (path for folder in KEEPERS for path in (ROOT / folder).rglob("*.edge")))


BUNDLES = committed()


def labels(manifest: Manifest, scores: list[list[float]]) -> list[str]:
    decider = Decider(DecideSettings(), labels=manifest.labels, threshold=manifest.threshold)
    return [label for label, _, _ in decider.decide(scores)]


def packed_labels(manifest: Manifest, golden: Golden) -> list[str]:
    """What the outputs that were packed with it say."""
    scores: Floats = scores_of(manifest.output.kind, golden.inputs, golden.outputs)
    return labels(manifest, scores.tolist())


def run(python: tuple[str, ...], cpuinfo: Path) -> list[dict[str, Any]]:
    """What every bundle gives, all in one process, since an emulated start takes seconds."""
    command = [*python, str(SCORES), str(cpuinfo), *map(str, BUNDLES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def haswell(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, Any]]:
    if numeric_family() not in ("vnni", "avx2"):
        pytest.skip("only x86 emulates an x86 that runs this Python")
    try:
        python = EMULATORS["avx2"].python()
    except ExportError as error:
        pytest.skip(f"{error}: install qemu-user-static to run what an x86 without VNNI does")
    cpuinfo = tmp_path_factory.mktemp("haswell") / "cpuinfo"
    cpuinfo.write_text(HASWELL)
    return dict(zip(BUNDLES, run(python, cpuinfo), strict=True))


@pytest.fixture(scope="module")
def here() -> dict[Path, dict[str, Any]]:
    return dict(zip(BUNDLES, run((sys.executable,), Path("/proc/cpuinfo")), strict=True))


def test_the_demo_s_bundle_is_among_those_that_are_found() -> None:
    assert ROOT / "edge_runtime" / "demo" / "pump-vibration.edge" in BUNDLES


@pytest.mark.parametrize("machine", ["here", "haswell"])
@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.stem)
def test_a_committed_bundle_gives_its_labels_within_its_tolerance(
    path: Path, machine: str, request: pytest.FixtureRequest
) -> None:
    found, bundle = request.getfixturevalue(machine)[path], read(path)

    assert "refused" not in found, found
    assert labels(bundle.manifest, found["scores"]) == packed_labels(bundle.manifest, bundle.golden)
    assert found["error"] <= bundle.manifest.tolerances[found["family"]].absolute
    assert machine == "here" or found["family"] in ("avx2", DEFAULT)
    assert len(found["scores"]) == len(bundle.golden.inputs) > 1
