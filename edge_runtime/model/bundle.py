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
import zipfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_runtime.errors import BundleError
from edge_runtime.records import Floats, InputSpec

__all__ = [
    "Budgets",
    "Bundle",
    "FileEntry",
    "Golden",
    "Histogram",
    "InputSpec",
    "Manifest",
    "OutputKind",
    "OutputSpec",
    "Provenance",
    "Reference",
    "Tolerance",
    "encode",
    "read",
    "write",
]

MANIFEST, MODEL, GOLDEN, REFERENCE, CARD = "manifest.json", "model.onnx", "golden.npz", "reference.json", "card.md"
MEMBERS = (MODEL, GOLDEN, REFERENCE, CARD)
SCHEMA = 1
MAX_BUNDLE_BYTES = 512 * 1024 * 1024
NAME_PATTERN = "[A-Za-z0-9_-]{1,64}"
VERSION_PATTERN = r"[0-9]+\.[0-9]+\.[0-9]+"
RATES_HZ = (1e-6, 1e9)

OutputKind = Literal["scores", "logits", "reconstruction", "error"]
ERROR_KINDS: tuple[OutputKind, ...] = ("reconstruction", "error")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one member. size in bytes."""

    sha256: str
    size: int


class OutputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graph's output is.

    scores: (batch, labels) in [0, 1]. logits: (batch, labels) raw. reconstruction: the input's shape.
    error: (batch, 1) reconstruction error, computed inside the graph.
    """

    name: str
    kind: OutputKind


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far an output may be from the golden one: absolute, in units of the output."""

    absolute: float


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the export was asked to keep. max_drop: of the metric, absolute. None = not asked."""

    max_drop: float | None = None
    p95_ms: float | None = None
    size_kb: float | None = None


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model comes from. tools: package name to version. steps: in order."""

    recipe: str
    seed: int
    tools: dict[str, str]
    steps: tuple[str, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the device must know of a model.

    labels: one per score; empty for a reconstruction. threshold: of the reconstruction error above which
    a window is an anomaly. session: extra ONNX Runtime session config entries. tolerances: numeric family
    ("default" is always there) to how exactly the golden outputs must be met.
    """

    schema: int
    name: str
    version: str
    precision: str
    input: InputSpec
    output: OutputSpec
    labels: tuple[str, ...]
    tolerances: dict[str, Tolerance]
    files: dict[str, FileEntry]
    provenance: Provenance
    threshold: float | None = None
    session: dict[str, str] = {}
    budgets: Budgets = Budgets()

    @property
    def model_id(self) -> str:
        return f"{self.name}@{self.version}"


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Counts between edges; the first and last bin are open. len(counts) == len(edges) - 1 + 2."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the training data looked like, for drift: per-channel window mean and deviation, and the scores."""

    features: dict[str, Histogram]
    scores: dict[str, Histogram]
    n: int


class Golden(msgspec.Struct, frozen=True):
    """inputs: (n, ...) in the model's layout. outputs: (n, ...) the graph's output for them."""

    inputs: Floats
    outputs: Floats


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
    """Read and verify one bundle file.

    Raises BundleError naming the file and what is wrong with it.
    """
    raw = _read_bytes(path)
    members = _members(path, raw)
    manifest = _manifest(path, members.pop(MANIFEST))
    _check_files(path, manifest, members)
    _check_manifest(path, manifest)
    golden = _golden(path, manifest, members[GOLDEN])
    try:
        reference = msgspec.json.decode(members[REFERENCE], type=Reference)
        card = members[CARD].decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(str(path), f"{REFERENCE} or {CARD} is malformed: {error}") from error
    return Bundle(str(path), hashlib.sha256(raw).hexdigest(), manifest, members[MODEL], golden, reference, card)


def write(path: Path, manifest: Manifest, *, model: bytes, golden: Golden, reference: Reference, card: str) -> None:
    """Write a bundle atomically; manifest.files is filled in here.

    Equal inputs give equal bytes: members are stored in a fixed order with a fixed time.
    """
    buffer = io.BytesIO()
    np.savez(buffer, inputs=golden.inputs, outputs=golden.outputs)
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


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BUNDLE_BYTES:
            raise BundleError(str(path), f"{size} bytes, larger than the limit of {MAX_BUNDLE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(str(path), f"cannot be read: {error.strerror}") from error


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
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise BundleError(
                str(path), f"{entry.filename} is compressed or lies about its size; members are stored plain"
            )


def _manifest(path: Path, raw: bytes) -> Manifest:
    try:
        return msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
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


def _check_manifest(path: Path, manifest: Manifest) -> None:
    spec = manifest.input
    problems = [
        (manifest.schema != SCHEMA, f"schema {manifest.schema}, this version reads {SCHEMA}"),
        (not re.fullmatch(NAME_PATTERN, manifest.name), f"name {manifest.name!r}, wanted {NAME_PATTERN}"),
        (
            not re.fullmatch(VERSION_PATTERN, manifest.version),
            f"version {manifest.version!r}, wanted 1.2.3",
        ),
        (not spec.channels, "no input channels"),
        (len(spec.units) != len(spec.channels), f"{len(spec.units)} units for {len(spec.channels)} channels"),
        (
            spec.length < 1 or spec.hop < 1,
            f"window of {spec.length} samples with hop {spec.hop}, both must be at least 1",
        ),
        (not RATES_HZ[0] <= (spec.rate_hz or 1.0) <= RATES_HZ[1], f"rate_hz {spec.rate_hz}, wanted {RATES_HZ}"),
        (spec.layout == "NT" and len(spec.channels) != 1, f"layout NT with {len(spec.channels)} channels, wanted 1"),
        ("default" not in manifest.tolerances, "no default tolerance"),
        (len(set(manifest.labels)) != len(manifest.labels), f"labels repeat: {manifest.labels}"),
        (
            manifest.output.kind in ERROR_KINDS and manifest.threshold is None,
            f"{manifest.output.kind} without a threshold",
        ),
        (manifest.output.kind not in ERROR_KINDS and not manifest.labels, f"{manifest.output.kind} without labels"),
        (manifest.output.kind in ERROR_KINDS and bool(manifest.labels), f"{manifest.output.kind} with labels"),
    ]
    for wrong, fact in problems:
        if wrong:
            raise BundleError(str(path), f"{MANIFEST}: {fact}")


def _golden(path: Path, manifest: Manifest, raw: bytes) -> Golden:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if sorted(entries) != ["inputs.npy", "outputs.npy"]:
                raise ValueError(f"holds {sorted(entries)}, wanted inputs.npy and outputs.npy")
            if any(e.compress_type != zipfile.ZIP_STORED or e.file_size > len(raw) for e in entries.values()):
                raise ValueError("members are compressed or lie about their size")
            golden = Golden(_floats(archive.read("inputs.npy")), _floats(archive.read("outputs.npy")))
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(str(path), f"{GOLDEN} is malformed: {error}") from error
    wanted = manifest.input.shape()
    if golden.inputs.shape[1:] != wanted or len(golden.inputs) < 1:
        raise BundleError(str(path), f"{GOLDEN}: inputs are {golden.inputs.shape}, wanted (n, {wanted})")
    if golden.outputs.ndim < 2 or len(golden.outputs) != len(golden.inputs):
        shapes = f"outputs are {golden.outputs.shape} for {len(golden.inputs)} inputs"
        raise BundleError(str(path), f"{GOLDEN}: {shapes}, wanted (n, ...)")
    return golden


def _floats(raw: bytes) -> Floats:
    """A float32 array of the NumPy format, whose header must account for every byte. Never unpickles."""
    file = io.BytesIO(raw)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of the NumPy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype != np.float32 or fortran:
        raise ValueError(f"an array of {dtype}, wanted float32 in C order")
    body = raw[file.tell() :]
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"shape {shape} does not fit {len(body)} bytes")
    return np.frombuffer(body, np.float32).reshape(shape)
