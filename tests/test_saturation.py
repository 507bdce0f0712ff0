"""int8 on x86 without VNNI, on an emulated Haswell: it saturates, unless ONNX Runtime is told to be exact."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
import saturating
from bundles import REFERENCE, means_manifest

from edge_runtime.errors import ExportError
from edge_runtime.model.bundle import Golden, read, write
from edge_runtime.model.family import numeric_family
from edge_runtime.model.manifest import OutputSpec, Tolerance
from edge_runtime.model.session import EXACT_INT8, Session, SessionSettings, load_onnxruntime
from export import quantize
from export.families import EMULATORS

pytestmark = pytest.mark.usefixtures("emulators")

RUN_ALL = """
import sys, json, numpy as np
from edge_runtime.model.session import load_onnxruntime
ort = load_onnxruntime()
for name, (model, entries) in json.load(open('runs.json')).items():
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    np.save(f'{name}.npy', session.run(None, {'x': np.load('x.npy')})[0])
"""
PROVE = """
import sys
from pathlib import Path
from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import read
from edge_runtime.model.session import Session, SessionSettings
for cpuinfo in sys.argv[2:]:
    try:
        print(Session(read(Path(sys.argv[1])), SessionSettings(), cpuinfo=Path(cpuinfo)).golden_error)
    except BundleError as error:
        print(error.fact)
"""
NAMES = ("u8s8", "s8s8")
X = saturating.windows()


@pytest.fixture(scope="module")
def haswell() -> tuple[str, ...]:
    """The command that is Python on an emulated Haswell."""
    if not numeric_family() or numeric_family() == "neon":
        pytest.skip("only x86 emulates an x86 that runs this Python")
    try:
        return EMULATORS["avx2"].python()
    except ExportError as error:
        pytest.skip(f"{error}: install qemu-user-static to run what an x86 without VNNI does")


def native(model: bytes, entries: dict[str, str]) -> np.ndarray:
    options = load_onnxruntime().SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    made = load_onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return made.run(None, {"x": X})[0]


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    found = {"by_hand": saturating.int8(), "by_hand_7_bit": saturating.int8(64)}
    for scheme in NAMES:
        found[scheme] = quantize.static_qdq(X, scheme=scheme)(saturating.float32()).model
        found[f"{scheme}_7_bit"] = quantize.static_qdq(X, scheme=scheme, reduce_range=True)(saturating.float32()).model
    return found


@pytest.fixture(scope="module")
def emulated(
    haswell: tuple[str, ...], models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What each model returns on a Haswell, plain and as "NAME_exact"."""
    folder = tmp_path_factory.mktemp("haswell")
    np.save(folder / "x.npy", X)
    runs = {}
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model)
        runs |= {name: (f"{name}.onnx", {}), f"{name}_exact": (f"{name}.onnx", EXACT_INT8)}
    (folder / "runs.json").write_text(json.dumps(runs))
    subprocess.run([*haswell, "-c", RUN_ALL], cwd=folder, check=True, capture_output=True, timeout=120)
    return {name: np.load(folder / f"{name}.npy") for name in runs}


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest, as a share of the largest output."""
    return float(np.abs(found - wanted).max() / wanted.max())


def test_integers_are_added_as_integers_here_once_that_is_asked_for(models: dict[str, bytes]) -> None:
    assert np.array_equal(native(models["by_hand"], EXACT_INT8), saturating.by_hand(X))
    assert np.array_equal(native(models["by_hand_7_bit"], {}), saturating.by_hand(X, 64))


def test_without_vnni_large_products_saturate(emulated: dict[str, np.ndarray], models: dict[str, bytes]) -> None:
    assert 0.2 < error(emulated["by_hand"], saturating.by_hand(X)) < 0.5
    for name in NAMES:
        assert 0.2 < error(emulated[name], native(models[name], EXACT_INT8)) < 0.5


def test_without_vnni_exact_int8_gives_the_same_bits_as_with_it(
    emulated: dict[str, np.ndarray], models: dict[str, bytes]
) -> None:
    assert np.array_equal(emulated["by_hand_exact"], saturating.by_hand(X))
    for name, model in models.items():
        assert np.array_equal(emulated[f"{name}_exact"], native(model, EXACT_INT8)), name


def test_without_vnni_reduced_range_gives_the_same_bits_unasked(
    emulated: dict[str, np.ndarray], models: dict[str, bytes]
) -> None:
    assert np.array_equal(emulated["by_hand_7_bit"], saturating.by_hand(X, 64))
    for name in NAMES:
        reduced = f"{name}_7_bit"
        assert np.array_equal(emulated[reduced], native(models[reduced], {}))
        assert error(emulated[reduced], native(saturating.float32().model, {})) < 0.02


def test_a_session_is_exact_without_vnni_and_one_that_is_lied_to_fails_its_golden_vectors(
    haswell: tuple[str, ...], tmp_path: Path
) -> None:
    """The emulated Haswell reads what it is of from a file; one of them says VNNI."""
    manifest = means_manifest(labels=("x",), length=saturating.IN)
    spec = msgspec.structs.replace(manifest.input, layout="NT")
    labels = tuple(f"class{i}" for i in range(saturating.OUT))
    manifest = msgspec.structs.replace(
        manifest, input=spec, output=OutputSpec("y", "logits"), labels=labels, tolerances={"default": Tolerance(1.5)}
    )
    path, golden = tmp_path / "m.edge", Golden(X, saturating.by_hand(X))
    write(path, manifest, model=saturating.int8(), golden=golden, reference=REFERENCE, card="")
    for name, flags in (("honest", "avx2"), ("liar", "avx2 avx_vnni")):
        (tmp_path / name).write_text(f"flags : {flags}\n")

    cpuinfos = [str(tmp_path / name) for name in ("honest", "liar")]
    command = [*haswell, "-c", PROVE, str(path), *cpuinfos]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)

    honest, liar = done.stdout.splitlines()
    assert honest == "0.0"
    assert liar.startswith("golden vectors: outputs differ by 5")
    assert Session(read(path), SessionSettings()).golden_error == 0.0
