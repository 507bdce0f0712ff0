from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import means_manifest, means_model, write_means_bundle

from edge_runtime.errors import BundleError
from edge_runtime.model.bundle import read, write
from edge_runtime.model.manifest import Parity, Tolerance


def claimed(*, tolerance: float = 0.6, **claim: float) -> dict:
    """Changes by which a manifest claims neon."""
    allowed = {"default": {"absolute": 0.6}, "neon": {"absolute": tolerance}}
    return {"tolerances": allowed, "parity": {"neon": {**CLAIM, **claim}}}


CLAIM = {"how": "measured here", "from_default": 0.5, "from_float32": None}
WINDOWS, MEANS = np.ones((2, 4, 2), np.float32), np.ones((2, 2), np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_means_bundle(tmp_path / "means.edge")


def rewrite(path: Path, **members: bytes | None) -> None:
    """Replace members (None removes one) and mend the manifest's hashes, as a careful liar would."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    given = {name.replace("_", "."): body for name, body in members.items()}
    manifest = json.loads(given.pop("manifest.json", None) or contents["manifest.json"])
    contents = {name: body for name, body in {**contents, **given}.items() if body is not None}
    for name, entry in manifest["files"].items():
        if name in contents:
            entry.update(sha256=hashlib.sha256(contents[name]).hexdigest(), size=len(contents[name]))
    contents["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in contents.items():
            archive.writestr(name, body)


def changed_manifest(path: Path, **changes: object) -> bytes:
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    for key, value in changes.items():
        at = manifest
        *parents, last = key.split("__")
        for parent in parents:
            at = at[parent]
        at[last] = value
    return json.dumps(manifest).encode()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_what_was_written_is_what_is_read(path: Path) -> None:
    bundle = read(path)

    assert bundle.manifest.model_id == "means@1.0.0"
    assert bundle.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert bundle.golden.inputs.shape == (6, 4, 2)
    assert bundle.card == "# means\n"
    assert not path.with_name(path.name + ".part").exists()


def test_equal_contents_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    assert path.read_bytes() == write_means_bundle(tmp_path / "again.edge").read_bytes()


def test_a_bundle_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in {0, 1, 30, *range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"means\.edge: "):
            read(path)


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    before = read(path)
    for at in range(0, len(whole), 211):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            after = read(path)
        except BundleError:
            continue
        assert (after.manifest, after.model, after.card) == (before.manifest, before.model, before.card)


def test_a_member_that_is_not_what_the_manifest_hashed_is_named(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["model.onnx"] += b"\0"
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in contents.items():
            archive.writestr(name, body)

    with pytest.raises(BundleError, match=r"model\.onnx: \d+ bytes with sha256"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 9}, "schema 9"),
        ({"name": "../evil"}, "name '../evil'"),
        ({"version": "one"}, "version 'one'"),
        ({"labels": ["a", "a"]}, "labels repeat"),
        ({"labels": []}, "without labels"),
        ({"input__channels": []}, "no input channels"),
        ({"input__units": ["1"]}, "1 units for 2 channels"),
        ({"input__length": 0}, "window of 0 samples"),
        ({"input__length": 8}, "golden.npz: inputs are"),
        ({"input__rate_hz": -1.0}, "rate_hz -1.0"),
        ({"input__layout": "NT"}, "layout NT with 2 channels"),
        ({"tolerances": {}}, "no default tolerance"),
        ({"output__kind": "error"}, "error without a threshold"),
        ({"output__kind": "error", "threshold": 1.0}, "error with labels"),
        ({"tolerances__neon": {"absolute": 1.0}}, r"tolerances for the families \['neon'\], parity for \[\]"),
        ({"parity": {"neon": CLAIM}}, r"tolerances for the families \[\], parity for \['neon'\]"),
        ({"tolerances__sse": {"absolute": 1.0}, "parity": {"sse": CLAIM}}, r"parity for \['sse'\], known families are"),
        ({"parity": {"neon": {**CLAIM, "how": "x" * 201}}}, "length <= 200"),
        ({"tolerances__default": {"absolute": 0}}, "tolerance 0 of default, wanted more than 0"),
        ({"tolerances__default": {"absolute": -1.0}}, "tolerance -1 of default, wanted more than 0"),
        (
            {"tolerances__default": {"absolute": 1e300}},
            "tolerance 1e.300 for outputs of at most 0.* anything would pass",
        ),
        (claimed(tolerance=0.7), "tolerance 0.7 of neon, wanted at most the default, 0.6"),
        (claimed(from_default=-0.5), "parity of neon: -0.5 from the default, wanted 0 to its tolerance, 0.6"),
        (claimed(from_default=0.7), "parity of neon: 0.7 from the default, wanted 0 to its tolerance, 0.6"),
        (claimed(from_float32=-1.0), "parity of neon: -1 from float32, wanted 0 or more"),
        ({"surprise": 1}, "surprise"),
        ({"labels": "no list"}, "labels"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path: Path, changes: dict, words: str) -> None:
    rewrite(path, manifest_json=changed_manifest(path, **changes))

    with pytest.raises(BundleError, match=words):
        read(path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"card_md": None}, "holds"),
        ({"more_txt": b"x"}, "holds"),
        ({"golden_npz": b"no zip"}, "golden.npz is malformed"),
        ({"golden_npz": npz(inputs=np.zeros((2, 4, 2), np.float32))}, "golden.npz is malformed"),
        ({"golden_npz": npz(inputs=np.zeros((2, 4, 2)), outputs=np.zeros((2, 2)))}, "an array of float64"),
        (
            {"golden_npz": npz(inputs=np.zeros((2, 4, 2), np.float32), outputs=np.zeros((3, 2), np.float32))},
            r"outputs are \(3, 2\) for 2 inputs",
        ),
        (
            {"golden_npz": npz(inputs=np.zeros((2, 4, 2), np.float32), outputs=np.array(["a", "b"]))},
            "an array of <U1",
        ),
        ({"golden_npz": npz(inputs=np.zeros((2, 4, 2), np.float32), outputs=np.float32(1))}, r"outputs are \(\)"),
        ({"golden_npz": npz(inputs=WINDOWS, outputs=MEANS[:, :0])}, r"outputs are \(2, 0\) for 2 inputs"),
        ({"golden_npz": npz(inputs=WINDOWS, outputs=0 * MEANS)}, "tolerance 1e-05 for outputs of at most 0: anything"),
        ({"reference_json": b"{"}, "reference.json or card.md is malformed"),
        ({"card_md": b"\xff"}, "reference.json or card.md is malformed"),
    ],
)
def test_members_that_are_missing_extra_or_malformed_are_refused(path: Path, members: dict, words: str) -> None:
    rewrite(path, **members)

    with pytest.raises(BundleError, match=words):
        read(path)


def with_neon(path: Path) -> Path:
    """The bundle claims neon; its golden file holds nothing of it yet."""
    rewrite(path, manifest_json=changed_manifest(path, **claimed()))
    return path


def test_outputs_of_a_family_are_read_beside_the_default(path: Path) -> None:
    rewrite(with_neon(path), golden_npz=npz(inputs=WINDOWS, outputs=MEANS, outputs_neon=MEANS * 1.5))

    golden = read(path).golden
    assert golden.expected("neon").tolist() == [[1.5, 1.5]] * 2
    assert golden.expected("avx2").tolist() == golden.outputs.tolist() == [[1.0, 1.0]] * 2


def test_outputs_of_families_are_written_as_they_are_read(path: Path, tmp_path: Path) -> None:
    rewrite(with_neon(path), golden_npz=npz(inputs=WINDOWS, outputs=MEANS, outputs_neon=MEANS * 1.5))
    made = read(path)

    for name in ("one.edge", "two.edge"):
        write(tmp_path / name, made.manifest, model=made.model, golden=made.golden, reference=made.reference, card="")

    again = read(tmp_path / "one.edge")
    assert again.manifest.parity == {"neon": Parity("measured here", 0.5)}
    assert np.array_equal(again.golden.family_outputs["neon"], made.golden.family_outputs["neon"])
    assert (tmp_path / "one.edge").read_bytes() == (tmp_path / "two.edge").read_bytes()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"outputs_sse": MEANS}, r"holds \['inputs.npy', 'outputs.npy', 'outputs_sse.npy'\], wanted"),
        ({"outputs_": MEANS}, "holds .*wanted"),
        ({"outputs_default": MEANS}, "holds .*wanted"),
        ({"inputs_neon": WINDOWS}, "holds .*wanted"),
        ({"outputs_avx2": MEANS}, "outputs of avx2 are there, manifest.json says nothing of how"),
        ({"outputs_neon": MEANS[:1]}, r"outputs of neon are \(1, 2\), wanted \(2, 2\) as by default"),
        ({"outputs_neon": MEANS.reshape(2, 2, 1)}, r"outputs of neon are \(2, 2, 1\), wanted \(2, 2\)"),
        ({"outputs_neon": MEANS * np.nan}, "outputs of neon hold NaN or infinity"),
        ({"outputs_neon": MEANS * np.float32(np.inf)}, "outputs of neon hold NaN or infinity"),
        ({}, "outputs of neon differ from the default by 0, manifest.json says 0.5"),
        ({"outputs_neon": MEANS * np.float32(1.1)}, "outputs of neon differ from the default by 0.1, .* says 0.5"),
        ({"outputs_neon": MEANS.astype(np.float64)}, "an array of float64"),
        ({"outputs_neon": np.asfortranarray(np.eye(2, dtype=np.float32) + 1)}, "wanted float32 in C order"),
        ({"outputs_neon": np.array([print, print], dtype=object)}, "not version 1.0|golden.npz is malformed"),
    ],
)
def test_outputs_of_a_family_are_held_to_the_rules_of_the_others(path: Path, arrays: dict, words: str) -> None:
    rewrite(with_neon(path), golden_npz=npz(inputs=WINDOWS, outputs=MEANS, **arrays))

    with pytest.raises(BundleError, match=words):
        read(path)


def test_outputs_of_a_family_that_are_there_twice_are_refused(path: Path) -> None:
    golden = io.BytesIO(npz(inputs=WINDOWS, outputs=MEANS, outputs_neon=MEANS))
    with zipfile.ZipFile(golden, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("outputs_neon.npy", b"")
    rewrite(with_neon(path), golden_npz=golden.getvalue())

    with pytest.raises(BundleError, match="holds .*wanted"):
        read(path)


def test_a_golden_file_with_pickled_objects_is_never_unpickled(path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    buffer = io.BytesIO()
    np.savez(buffer, inputs=np.array([Bomb()], dtype=object), outputs=np.zeros(1))
    rewrite(path, golden_npz=buffer.getvalue())

    with pytest.raises(BundleError, match="golden"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_compressed_members_are_refused_so_that_no_zip_bomb_unpacks(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents["card.md"] = b"\0" * 50_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in contents.items():
            archive.writestr(name, body)

    with pytest.raises(BundleError, match="compressed"):
        read(path)


@pytest.mark.parametrize("manifest", [b"{", b'{"name":"\xff"}', b"[" * 100_000])
def test_a_manifest_that_cannot_be_read_is_refused(path: Path, manifest: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in {**contents, "manifest.json": manifest}.items():
            archive.writestr(name, body)

    with pytest.raises(BundleError, match=r"manifest.json: "):
        read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for wrong in (tmp_path / "none.edge", tmp_path):
        with pytest.raises(BundleError, match=str(wrong)):
            read(wrong)


def test_a_manifest_that_would_be_refused_is_not_written(tmp_path: Path) -> None:
    manifest = msgspec.structs.replace(means_manifest(), tolerances={"neon": Tolerance(1.0)})

    with pytest.raises(BundleError, match="no default tolerance"):
        write_means_bundle(tmp_path / "x.edge", manifest, model=means_model(length=4, channels=2))
    assert not (tmp_path / "x.edge").exists()
