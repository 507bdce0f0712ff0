"""One bundle file: a stored zip with the model, its manifest, golden vectors, reference and card.

Only the five member names below are allowed, each listed in the manifest with size and sha256, so that
nothing in the file is unaccounted for. Reading never touches the file system beyond the one file.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.errors import MALFORMED, BundleError
from edge_runtime.model.family import FAMILIES
from edge_runtime.model.manifest import DEFAULT, FileEntry, Manifest, Reference, contradictions
from edge_runtime.model.policy import judge
from edge_runtime.records import Floats

MANIFEST, MODEL, GOLDEN, REFERENCE, CARD = "manifest.json", "model.onnx", "golden.npz", "reference.json", "card.md"
MEMBERS = (MODEL, GOLDEN, REFERENCE, CARD)
MAX_BUNDLE_BYTES = 512 * 1024 * 1024
MAX_TEXT_BYTES = 4 * 1024 * 1024
"""Of the manifest, the reference and the card each."""
INPUTS, OUTPUTS = "inputs.npy", "outputs.npy"
ROUNDING = 1e-6
FAMILY_OUTPUTS = {f"outputs_{family}.npy": family for family in FAMILIES}
NPY_MAGIC = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z][0-9]*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), \} *\n"
)


class Golden(msgspec.Struct, frozen=True):
    """Windows, and what the graph must return for them.

    inputs: (n, ...) in the model's layout. outputs: (n, ...). family_outputs: numeric family to its own (n, ...), of
    those that were measured and differ in any bit.
    """

    inputs: Floats
    outputs: Floats
    family_outputs: dict[str, Floats] = {}

    def expected(self, family: str) -> Floats:
        """What a CPU of this family must return; (n, ...)."""
        return self.family_outputs.get(family, self.outputs)


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle in memory. digest: sha256 of the file. model: the ONNX bytes."""

    path: str
    digest: str
    manifest: Manifest
    model: bytes
    golden: Golden
    reference: Reference
    card: str


def read(path: Path) -> Bundle:
    """Read and verify one bundle file; its model refers to nothing that is not allowed.

    Raises BundleError naming the file and what is wrong with it.
    """
    bundle = parse(path, read_bytes(path))
    judge(bundle.path, bundle.model, bundle.manifest.session)
    return bundle


def read_bytes(path: Path) -> bytes:
    """The whole file, which must be a regular one and not too large. Raises BundleError."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BundleError(str(path), "not a regular file")
            if found.st_size > MAX_BUNDLE_BYTES:
                raise BundleError(str(path), f"{found.st_size} bytes, larger than the limit of {MAX_BUNDLE_BYTES}")
            return file.read(found.st_size)
    except OSError as error:
        raise BundleError(str(path), f"cannot be read: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse(path: Path, raw: bytes) -> Bundle:
    """Verify the bytes of a bundle file, but for what its model refers to. path: named in errors.

    Raises BundleError naming what is wrong.
    """
    members = _members(path, raw)
    manifest = _manifest(path, members.pop(MANIFEST))
    _check_files(path, manifest, members)
    _check_manifest(path, manifest)
    golden = _golden(path, manifest, members[GOLDEN])
    _check_outputs(path, manifest, golden)
    try:
        reference = msgspec.json.decode(members[REFERENCE], type=Reference)
        card = members[CARD].decode()
    except MALFORMED as error:
        raise BundleError(str(path), f"{REFERENCE} or {CARD} is malformed: {error}") from error
    return Bundle(str(path), hashlib.sha256(raw).hexdigest(), manifest, members[MODEL], golden, reference, card)


def write(path: Path, manifest: Manifest, *, model: bytes, golden: Golden, reference: Reference, card: str) -> None:
    """Write a bundle atomically; manifest.files is filled in here.

    Equal inputs give equal bytes: members are stored in a fixed order with a fixed time.
    """
    buffer = io.BytesIO()
    of_families: dict[str, Any] = {
        f"outputs_{name}": golden.family_outputs[name] for name in sorted(golden.family_outputs)
    }
    np.savez(buffer, inputs=golden.inputs, outputs=golden.outputs, **of_families)
    contents = {MODEL: model, GOLDEN: buffer.getvalue(), REFERENCE: encode(reference), CARD: card.encode()}
    files = {name: FileEntry(hashlib.sha256(body).hexdigest(), len(body)) for name, body in contents.items()}
    final = msgspec.structs.replace(manifest, files=files)
    _check_manifest(path, final)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, body in {MANIFEST: encode(final), **contents}.items():
                archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), body)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def encode(value: msgspec.Struct) -> bytes:
    """Indented JSON, so that a person can read it with unzip -p."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _members(path: Path, raw: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            _check_entries(path, archive.infolist(), len(raw))
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise BundleError(str(path), f"not a whole bundle (damaged zip): {error}") from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename for entry in entries]
    if sorted(names) != sorted((MANIFEST, *MEMBERS)):
        raise BundleError(str(path), f"holds {sorted(names)}, wanted {sorted((MANIFEST, *MEMBERS))}")
    if problem := _lies(entries, size):
        raise BundleError(str(path), problem)
    for entry in entries:
        if entry.filename in (MANIFEST, REFERENCE, CARD) and entry.file_size > MAX_TEXT_BYTES:
            raise BundleError(str(path), f"{entry.filename}: {entry.file_size} bytes, allowed {MAX_TEXT_BYTES}")


def _lies(entries: list[zipfile.ZipInfo], size: int) -> str:
    """What is not plainly stored in a zip of that many bytes, "" when all is."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or not entry.file_size == entry.compress_size <= size:
            return f"{entry.filename} is compressed or lies about its size; members are stored plain"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            return f"{entry.filename} is a link or a special file; members are regular files"
    if (total := sum(entry.file_size for entry in entries)) > size:
        return f"members of {total} bytes in a zip of {size} lie over one another"
    return ""


def _manifest(path: Path, raw: bytes) -> Manifest:
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except MALFORMED as error:
        raise BundleError(str(path), f"{MANIFEST}: {error}") from error


def _check_files(path: Path, manifest: Manifest, members: dict[str, bytes]) -> None:
    if sorted(manifest.files) != sorted(MEMBERS):
        raise BundleError(str(path), f"manifest lists {sorted(manifest.files)}, wanted {sorted(MEMBERS)}")
    for name, entry in manifest.files.items():
        found = hashlib.sha256(members[name]).hexdigest()
        if len(members[name]) != entry.size or found != entry.sha256:
            raise BundleError(
                str(path),
                f"{name}: {len(members[name])} bytes with sha256 {found[:12]}…, "
                f"manifest says {entry.size} bytes with {entry.sha256[:12]}…",
            )


def _golden(path: Path, manifest: Manifest, raw: bytes) -> Golden:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = sorted(archive.namelist())
            own = [name for name in FAMILY_OUTPUTS if name in names]
            if names != sorted([INPUTS, OUTPUTS, *own]):
                raise ValueError(f"holds {names}, wanted {INPUTS}, {OUTPUTS} and at most {', '.join(FAMILY_OUTPUTS)}")
            if problem := _lies(archive.infolist(), len(raw)):
                raise ValueError(problem)
            family_outputs = {FAMILY_OUTPUTS[name]: _floats(archive.read(name)) for name in own}
            golden = Golden(_floats(archive.read(INPUTS)), _floats(archive.read(OUTPUTS)), family_outputs)
    except (ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(str(path), f"{GOLDEN} is malformed: {error}") from error
    wanted = manifest.input.shape()
    if golden.inputs.shape[1:] != wanted or len(golden.inputs) < 1:
        raise BundleError(str(path), f"{GOLDEN}: inputs are {golden.inputs.shape}, wanted (n, {wanted})")
    if golden.outputs.ndim < 2 or len(golden.outputs) != len(golden.inputs) or not golden.outputs.size:
        shapes = f"outputs are {golden.outputs.shape} for {len(golden.inputs)} inputs"
        raise BundleError(str(path), f"{GOLDEN}: {shapes}, wanted (n, ...)")
    return golden


def _check_outputs(path: Path, manifest: Manifest, golden: Golden) -> None:
    """Golden outputs that can prove something, and that are as far apart as the manifest says."""
    allowed, largest = manifest.tolerances[DEFAULT].absolute, float(np.abs(golden.outputs).max())
    if allowed >= largest:
        vain = f"tolerance {allowed:g} for outputs of at most {largest:g}: anything would pass"
        raise BundleError(str(path), f"{MANIFEST}: {vain}")
    for family in sorted({*golden.family_outputs, *manifest.parity}):
        if problem := _family_problem(manifest, family, golden.expected(family), like=golden.outputs):
            raise BundleError(str(path), f"{GOLDEN}: outputs of {family} {problem}")


def _family_problem(manifest: Manifest, family: str, outputs: Floats, *, like: Floats) -> str:
    """What is wrong with the outputs that a family must give, "" when nothing is."""
    if family not in manifest.parity:
        return f"are there, {MANIFEST} says nothing of how they were measured"
    if outputs.shape != like.shape:
        return f"are {outputs.shape}, wanted {like.shape} as by default"
    if outputs is not like and not np.isfinite(outputs).all():
        return "hold NaN or infinity"
    found, told = float(np.abs(outputs.astype(np.float64) - like).max()), manifest.parity[family].from_default
    if math.isclose(found, told, rel_tol=ROUNDING, abs_tol=ROUNDING):
        return ""
    return f"differ from the default by {found:.3g}, {MANIFEST} says {told:.3g}"


def _floats(raw: bytes) -> Floats:
    """A float32 array of the NumPy format as np.savez writes it, whose header must account for every byte.

    The header is matched, not evaluated. Raises ValueError, TypeError.
    """
    start = len(NPY_MAGIC) + 2
    body_start = start + int.from_bytes(raw[len(NPY_MAGIC) : start], "little")
    header = NPY_HEADER.fullmatch(raw[start:body_start])
    if not raw.startswith(NPY_MAGIC) or header is None:
        raise ValueError("not version 1.0 of the NumPy format")
    descr, fortran, sizes = (group.decode() for group in header.groups())
    dtype = np.dtype(descr)
    if dtype != np.float32 or fortran == "True":
        raise ValueError(f"an array of {dtype}, wanted float32 in C order")
    shape = tuple(int(number) for number in sizes.split(",") if number.strip())
    body = raw[body_start:]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"shape {shape} does not fit {len(body)} bytes")
    return np.frombuffer(body, np.float32).reshape(shape)


def _check_manifest(path: Path, manifest: Manifest) -> None:
    for fact in contradictions(manifest):
        raise BundleError(str(path), f"{MANIFEST}: {fact}")
