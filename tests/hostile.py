"""Models and bundle files that are up to no good, as a careful attacker would write them."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bundles import REFERENCE, means_manifest, means_model, write_means_bundle
from onnx import FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, helper

from edge_runtime.model.bundle import Golden, write
from edge_runtime.model.manifest import Manifest

CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
VALUE = helper.make_tensor_value_info


def model_with(
    nodes: Sequence[NodeProto] = (),
    initializers: Sequence[TensorProto] = (),
    *,
    functions: Sequence[FunctionProto] = (),
    opsets: Sequence[OperatorSetIdProto] = (),
) -> bytes:
    """The means of (batch, 4, 2), to which the output "extra" of the nodes is added."""
    extra = nodes or [helper.make_node("Identity", ["none"], ["extra"])]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["means"], keepdims=0),
            *extra,
            helper.make_node("Add", ["means", "extra"], ["y"]),
        ],
        "hostile",
        [VALUE("x", TensorProto.FLOAT, ["batch", 4, 2])],
        [VALUE("y", TensorProto.FLOAT, ["batch", 2])],
        initializer=[
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
            helper.make_tensor("none", TensorProto.FLOAT, [2], [0, 0]),
            *initializers,
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), *opsets], functions=list(functions), ir_version=10
    )
    return bytes(model.SerializeToString())


def endless_loop() -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["keep"], ["keep_out"]), helper.make_node("Neg", ["total"], ["total_out"])],
        "round",
        [
            VALUE("i", TensorProto.INT64, []),
            VALUE("keep", TensorProto.BOOL, []),
            VALUE("total", TensorProto.FLOAT, [2]),
        ],
        [VALUE("keep_out", TensorProto.BOOL, []), VALUE("total_out", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("Gather", ["means", "first"], ["begin"], axis=0),
        helper.make_node("Loop", ["", "yes", "begin"], ["extra"], body=body),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return model_with(nodes, [yes, helper.make_tensor("first", TensorProto.INT64, [], [0])])


def memory_bomb(*, at_load: bool) -> bytes:
    """32 GB of zeros: of a constant shape, which is folded at load, or of one that depends on the input."""
    fill = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["extra"], keepdims=0),
    ]
    if at_load:
        return model_with(fill, [helper.make_tensor("size", TensorProto.INT64, [1], [1 << 33])])
    size = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Floor", ["largest"], ["zero"]),
        helper.make_node("Add", ["zero", "much"], ["count"]),
        helper.make_node("Cast", ["count"], ["size"], to=TensorProto.INT64),
    ]
    return model_with([*size, *fill], [helper.make_tensor("much", TensorProto.FLOAT, [1], [8.6e9])])


def external(location: str) -> TensorProto:
    """Two rows of two floats that lie in another file."""
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_external_data(location: str) -> bytes:
    return model_with([helper.make_node("MatMul", ["means", "outside"], ["extra"])], [external(location)])


def nested(depth: int, innermost: Sequence[NodeProto] = ()) -> bytes:
    """An If in an If in an If."""

    def branch(nodes: Sequence[NodeProto]) -> GraphProto:
        return helper.make_graph(list(nodes), "branch", [], [VALUE("out", TensorProto.FLOAT, [2])])

    nodes = list(innermost) or [helper.make_node("Identity", ["none"], ["out"])]
    plain = branch([helper.make_node("Identity", ["none"], ["out"])])
    for _ in range(depth):
        nodes = [helper.make_node("If", ["yes"], ["out"], then_branch=branch(nodes), else_branch=plain)]
    nodes[0].output[0] = "extra"
    return model_with(nodes, [helper.make_tensor("yes", TensorProto.BOOL, [], [True])])


def bundle_of(path: Path, model: bytes, *, manifest: Manifest | None = None) -> Path:
    return write_means_bundle(path, manifest, model=model)


def bundle_that_expects(path: Path, outputs: np.ndarray, model: bytes | None = None) -> Path:
    """Golden inputs of ones, with any golden outputs."""
    golden = Golden(np.ones((len(outputs), 4, 2), np.float32), outputs.astype(np.float32))
    body = model or means_model(length=4, channels=2)
    write(path, means_manifest(), model=body, golden=golden, reference=REFERENCE, card="")
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, contents: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip of exactly these members, names as given."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names given twice
        for name, body in contents:
            archive.writestr(name, body)
    return path


def directory(raw: bytes | bytearray) -> int:
    """Where a zip's directory begins, by the record at its end."""
    (offset,) = struct.unpack_from("<L", raw, len(raw) - 6)
    assert raw[offset : offset + 4] == CENTRAL
    return int(offset)


def swap_bytes(path: Path, member: str, change: dict[str, int]) -> Path:
    """Change what the zip's directory and the member's own header say: size, crc, mode."""
    raw = bytearray(path.read_bytes())
    at = directory(raw)
    while raw[at : at + 4] == CENTRAL:
        name_size, extra_size, comment_size = struct.unpack_from("<HHH", raw, at + 28)
        if raw[at + 46 : at + 46 + name_size] == member.encode():
            (local,) = struct.unpack_from("<L", raw, at + 42)
            for start in (at + 16, local + 14):
                if "crc" in change:
                    struct.pack_into("<L", raw, start, change["crc"])
                if "size" in change:
                    struct.pack_into("<LL", raw, start + 4, change["size"], change["size"])
            if "mode" in change:
                struct.pack_into("<L", raw, at + 38, change["mode"] << 16)
        at += 46 + name_size + extra_size + comment_size
    path.write_bytes(raw)
    return path


def overlapping(path: Path) -> Path:
    """The card's bytes run on over the members that lie behind it, each of which is whole as well."""
    contents = members(path)
    order = ["card.md", "manifest.json", "golden.npz", "reference.json", "model.onnx"]
    pack(path, [(name, contents[name]) for name in order])
    raw = path.read_bytes()
    start = raw.index(LOCAL) + 30 + len("card.md")
    card = raw[start : directory(raw)]
    return swap_bytes(path, "card.md", {"size": len(card), "crc": zipfile.crc32(card)})


def rehash(manifest: dict, contents: dict[str, bytes]) -> None:
    """Mend the manifest's hashes and sizes, as a careful liar would."""
    for name, entry in manifest["files"].items():
        entry.update(sha256=hashlib.sha256(contents[name]).hexdigest(), size=len(contents[name]))


def npz(header: bytes, body: bytes) -> bytes:
    """golden.npz whose inputs have this header and these bytes."""
    padded = header + b" " * (117 - len(header)) + b"\n"
    inputs = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body
    buffer, outputs = io.BytesIO(), io.BytesIO()
    np.save(outputs, np.zeros((6, 2), np.float32))
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inputs.npy", inputs)
        archive.writestr("outputs.npy", outputs.getvalue())
    return buffer.getvalue()


def zip_slip(path: Path) -> None:
    pack(path, [*members(path).items(), ("../evil.txt", b"x")])


def symlink_member(path: Path) -> None:
    swap_bytes(path, "card.md", {"mode": 0o120777})


def compressed(path: Path) -> None:
    contents = members(path) | {"card.md": b"\0" * 20_000_000}
    pack(path, list(contents.items()), zipfile.ZIP_DEFLATED)


def huge_declared_size(path: Path) -> None:
    swap_bytes(path, "model.onnx", {"size": 0xFFFFFFF0})


def short_declared_size(path: Path) -> None:
    swap_bytes(path, "model.onnx", {"size": 10})


def duplicate_member(path: Path) -> None:
    contents = members(path)
    pack(path, [*contents.items(), ("model.onnx", contents["model.onnx"])])


def extra_file(path: Path) -> None:
    pack(path, [*members(path).items(), ("weights.bin", b"x")])


def missing_file(path: Path) -> None:
    pack(path, [item for item in members(path).items() if item[0] != "golden.npz"])


def manifest_with_other_sizes(path: Path) -> None:
    change_manifest(path, files__model_size=1 << 40)


def deeply_nested_manifest(path: Path) -> None:
    pack(path, list((members(path) | {"manifest.json": b'{"files":' + b"[" * 1_000_000}).items()))


def deeply_nested_reference(path: Path) -> None:
    change_member(path, "reference.json", b'{"x":' + b"[" * 1_000_000)


def card_of_five_megabytes(path: Path) -> None:
    change_member(path, "card.md", b" " * 5_000_000)


def lying_array_header(path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (6, 4, 2000000000), }"
    change_member(path, "golden.npz", npz(header, bytes(6 * 4 * 2 * 4)))


def array_header_that_is_code(path: Path) -> None:
    change_member(path, "golden.npz", npz(b"[].__class__.__base__.__subclasses__()", bytes(192)))


def change_member(path: Path, name: str, body: bytes) -> None:
    contents = members(path) | {name: body}
    manifest = json.loads(contents["manifest.json"])
    rehash(manifest, contents)
    contents["manifest.json"] = json.dumps(manifest).encode()
    pack(path, list(contents.items()))


def change_manifest(path: Path, *, files__model_size: int) -> None:
    contents = members(path)
    manifest = json.loads(contents["manifest.json"])
    manifest["files"]["model.onnx"]["size"] = files__model_size
    contents["manifest.json"] = json.dumps(manifest).encode()
    pack(path, list(contents.items()))
