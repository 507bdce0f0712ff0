"""Which numeric family a CPU is of, and what a session does about it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import REFERENCE, means_manifest, means_model, write_means_bundle

from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import Golden, read, write
from edge_runtime.model.family import numeric_family
from edge_runtime.model.manifest import Parity, Tolerance
from edge_runtime.model.session import Session, SessionSettings, create, family_of

VNNI = "avx512f avx512dq avx512bw avx512vl avx512_vnni"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n"


def cpu(folder: Path, flags: str) -> Path:
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: some CPU\nflags\t\t: {flags}\nbugs\t: \n\nprocessor\t: 1\n")
    return path


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (f"fpu avx2 {VNNI}", "vnni"),
        ("fpu avx2 avx512f avx512_vnni", "avx2"),
        ("fpu avx2 avx_vnni", "vnni"),
        ("fpu avx2 avx512f", "avx2"),
        ("fpu avx2 fma", "avx2"),
        ("fpu sse4_2", ""),
        ("", ""),
    ],
)
def test_an_x86_is_of_the_family_that_its_flags_say(tmp_path: Path, flags: str, wanted: str) -> None:
    assert numeric_family(cpu(tmp_path, flags)) == wanted


def test_a_64_bit_arm_is_neon_and_what_cannot_be_read_is_of_no_family(tmp_path: Path) -> None:
    (tmp_path / "arm").write_text(ARM)
    (tmp_path / "odd").write_bytes(b"\xff\xfe\nflags\nFeatures")

    assert numeric_family(tmp_path / "arm") == "neon"
    assert numeric_family(tmp_path / "odd") == ""
    assert numeric_family(tmp_path / "missing") == ""


def test_another_provider_than_the_cpu_is_of_no_family(tmp_path: Path) -> None:
    haswell = cpu(tmp_path, "avx2")

    assert family_of(SessionSettings(), haswell) == "avx2"
    assert family_of(SessionSettings(provider="CUDAExecutionProvider"), haswell) == ""


@pytest.mark.parametrize(
    ("flags", "wanted"), [("avx2", "1"), (f"avx2 {VNNI}", "0"), ("avx2 avx512_vnni", "1"), ("", "1")]
)
def test_int8_is_made_exact_where_it_would_saturate_whatever_the_manifest_says(
    tmp_path: Path, flags: str, wanted: str
) -> None:
    key = "session.x64quantprecision"
    model = means_model(length=4, channels=2)

    made = create(model, settings=SessionSettings(), entries={key: "0"}, cpuinfo=cpu(tmp_path, flags))

    assert made.get_session_options().get_session_config_entry(key) == wanted


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle of means: avx2 and neon are certified, and neon must give what no CPU gives: 0.1 more."""
    manifest = msgspec.structs.replace(
        means_manifest(),
        tolerances={"default": Tolerance(0.2), "avx2": Tolerance(1e-6), "neon": Tolerance(1e-4)},
        parity={"avx2": Parity("measured here", 0.0, 0.0), "neon": Parity("told by a liar", 0.1)},
    )
    inputs = np.random.default_rng(0).random((6, 4, 2), dtype=np.float32)
    golden = Golden(inputs, inputs.mean(axis=1), {"neon": inputs.mean(axis=1) + np.float32(0.1)})
    path = tmp_path / "means.edge"
    write(path, manifest, model=means_model(length=4, channels=2), golden=golden, reference=REFERENCE, card="")
    return path


def test_a_device_is_held_to_what_its_own_family_must_give(path: Path, tmp_path: Path) -> None:
    on_avx2 = Session(read(path), SessionSettings(), cpuinfo=cpu(tmp_path, "avx2"))
    assert (on_avx2.family, on_avx2.golden_error < 1e-6) == ("avx2", True)

    (tmp_path / "cpuinfo").write_text(ARM)
    with pytest.raises(BundleError, match=r"outputs differ by 0\.1, allowed 0\.0001 \(neon\)"):
        Session(read(path), SessionSettings(), cpuinfo=tmp_path / "cpuinfo")


@pytest.mark.parametrize("flags", [f"avx2 {VNNI}", "sse4_2"])
def test_a_device_whose_family_was_not_measured_is_held_to_the_default(path: Path, tmp_path: Path, flags: str) -> None:
    assert Session(read(path), SessionSettings(), cpuinfo=cpu(tmp_path, flags)).family == "default"


def test_a_bundle_from_before_there_were_families_is_read(tmp_path: Path) -> None:
    found = read(write_means_bundle(tmp_path / "old.edge"))

    assert (found.manifest.parity, found.golden.family_outputs) == ({}, {})
    assert found.golden.expected("vnni") is found.golden.outputs
    assert Session(found, SessionSettings()).family == "default"
