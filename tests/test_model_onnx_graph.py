"""The reader of ONNX bytes sees what the onnx package sees, and fails only with its own error."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import hostile
import onnx
import pytest
from bundles import means_model, slow_model
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import edge_runtime.demo
from edge_runtime.errors import ModelError
from edge_runtime.model.bundle import read
from edge_runtime.model.onnx_graph import FIELDS, GraphFacts, Kind, read_facts

MESSAGES = {
    Kind.MODEL: onnx.ModelProto,
    Kind.GRAPH: onnx.GraphProto,
    Kind.NODE: onnx.NodeProto,
    Kind.ATTRIBUTE: onnx.AttributeProto,
    Kind.TENSOR: onnx.TensorProto,
    Kind.SPARSE_TENSOR: onnx.SparseTensorProto,
    Kind.FUNCTION: onnx.FunctionProto,
    Kind.TRAINING: onnx.TrainingInfoProto,
    Kind.EXTERNAL_ENTRY: onnx.StringStringEntryProto,
}


class ByOnnx:
    """Walks a model as the onnx package parsed it."""

    def __init__(self) -> None:
        self.operators: Counter[tuple[str, str]] = Counter()
        self.tensors: list[TensorProto] = []
        self.nesting = 0

    def graph(self, found: onnx.GraphProto, nesting: int) -> None:
        self.nesting = max(self.nesting, nesting)
        self.tensors.extend(found.initializer)
        self.sparse(found.sparse_initializer)
        self.nodes(found.node, nesting)

    def sparse(self, found: Iterable[onnx.SparseTensorProto]) -> None:
        for each in found:
            self.tensors.extend(getattr(each, name) for name in ("values", "indices") if each.HasField(name))

    def nodes(self, found: Iterable[onnx.NodeProto], nesting: int) -> None:
        for node in found:
            self.operators[node.domain, node.op_type] += 1
            self.attributes(node.attribute, nesting)

    def attributes(self, found: Iterable[onnx.AttributeProto], nesting: int) -> None:
        for attribute in found:
            self.tensors.extend([*one(attribute, "t"), *attribute.tensors])
            self.sparse([*one(attribute, "sparse_tensor"), *attribute.sparse_tensors])
            for inner in [*one(attribute, "g"), *attribute.graphs]:
                self.graph(inner, nesting + 1)


def one(attribute: onnx.AttributeProto, name: str) -> list:
    return [getattr(attribute, name)] if attribute.HasField(name) else []


def seen_by_onnx(model: bytes) -> GraphFacts:
    """The same facts, by the onnx package's own reading."""
    parsed, walk = onnx.ModelProto.FromString(model), ByOnnx()
    walk.graph(parsed.graph, 0)
    for function in parsed.functions:
        walk.nodes(function.node, 0)
        walk.attributes(function.attribute_proto, 0)
    for training in parsed.training_info:
        walk.graph(training.initialization, 0)
        walk.graph(training.algorithm, 0)
    external = [t for t in walk.tensors if t.external_data or t.data_location == TensorProto.EXTERNAL]
    return GraphFacts(
        operators=dict(walk.operators),
        functions=frozenset((f.domain, f.name) for f in parsed.functions),
        external_tensors=len(external),
        locations=tuple(sorted(e.value for t in external for e in t.external_data if e.key == "location")),
        tensors=len(walk.tensors),
        nesting=walk.nesting,
    )


def everywhere() -> bytes:
    """External tensors at every place that can hold one."""
    outside = hostile.external("a/b")
    sparse = helper.make_sparse_tensor(outside, hostile.external("c"), [4])
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], sparse_value=sparse)], "inner", [], [], [outside]
    )
    node = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    node.attribute.append(helper.make_attribute("tensors", [outside, outside]))
    node.attribute.append(helper.make_attribute("graphs", [inner]))
    node.attribute.append(helper.make_attribute("sparse", [sparse]))
    function = helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)])
    function.attribute_proto.append(helper.make_attribute("default", outside))
    model = onnx.ModelProto.FromString(hostile.model_with([node], [outside], functions=[function]))
    model.graph.sparse_initializer.append(sparse)
    training = model.training_info.add()
    training.initialization.CopyFrom(inner)
    training.algorithm.CopyFrom(inner)
    return bytes(model.SerializeToString())


def installed_models() -> list[Path]:
    """The pump's and, where the package is installed, the voice detectors of silero-vad."""
    spec = importlib.util.find_spec("silero_vad")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return [found for folder in folders for found in sorted(Path(folder, "data").glob("*.onnx"))]


PUMP = read(Path(edge_runtime.demo.__file__).with_name("pump-vibration.edge")).model
MADE = {
    "means": means_model(length=4, channels=2),
    "Loop": slow_model(length=4, channels=2),
    "nested If": hostile.nested(16),
    "external": hostile.with_external_data("../x"),
    "everywhere": everywhere(),
    "pump": PUMP,
}


@pytest.mark.parametrize("model", MADE.values(), ids=MADE)
def test_the_reader_sees_what_onnx_sees(model: bytes) -> None:
    assert read_facts(model) == seen_by_onnx(model)


def test_the_reader_sees_what_onnx_sees_in_a_strangers_models() -> None:
    models = installed_models()
    if not models:
        pytest.skip("silero-vad is not installed: pip install --no-deps silero-vad")
    for path in models:
        model = path.read_bytes()
        assert read_facts(model) == seen_by_onnx(model), path.name
    assert max(read_facts(path.read_bytes()).nesting for path in models) == 4


def test_external_tensors_are_found_wherever_a_model_can_hold_one() -> None:
    facts = read_facts(MADE["everywhere"])

    assert facts.external_tensors == facts.tensors - 2  # all but the two of the means themselves
    assert set(facts.locations) == {"a/b", "c"}


def test_every_field_that_can_hold_a_node_or_a_tensor_is_entered() -> None:
    """Held against onnx's own descriptors: a field of a newer onnx would be missing here."""
    kinds = {message.DESCRIPTOR.full_name: kind for kind, message in MESSAGES.items()}

    def holds(descriptor: Descriptor, seen: frozenset[str]) -> bool:
        if descriptor.full_name in (TensorProto.DESCRIPTOR.full_name, onnx.NodeProto.DESCRIPTOR.full_name):
            return True
        inner = [f.message_type for f in descriptor.fields if f.message_type and f.message_type.full_name not in seen]
        return any(holds(message, seen | {descriptor.full_name}) for message in inner)

    for kind, message in MESSAGES.items():
        for field in message.DESCRIPTOR.fields:
            known = FIELDS[kind].get(field.number)
            if known is not None:
                assert known.name == field.name
            elif field.message_type:
                assert not holds(field.message_type, frozenset()), f"{message.__name__}.{field.name}"
            if known is not None and field.message_type:
                assert known.kind is kinds[field.message_type.full_name]


def agree(model: bytes) -> None:
    """What is not refused is seen alike, or onnx refuses it."""
    with suppress(ModelError, DecodeError):
        assert read_facts(model) == seen_by_onnx(model)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["means", "Loop", "external", "everywhere"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_changed_bytes_never_show_the_reader_another_model(
    name: str, changes: list[tuple[int, int]], cut: int | None
) -> None:
    model = bytearray(MADE[name])
    for at, byte in changes:
        model[at % len(model)] = byte
    agree(bytes(model[: cut % len(model)] if cut else model))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_read_alike_or_refused(model: bytes) -> None:
    agree(model)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"\x3a\xff\xff\xff\xff\x0f", "a field of 4294967295 bytes where 0 are left"),
        (b"\x3a\x00\x3a\x00", "graph is given twice"),
        (b"\x38\x01", "graph has wire type 0"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x00", "no such field as 0"),
        (b"\x08" + b"\xff" * 11, "a number that does not end"),
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "op_type is not UTF-8"),
        (b"\x3a\x04\x2a\x02\x70\x02", "data_location 2"),
        (b"\x08\x01" * 1001, "more than 1,000 fields"),
        (b"\x00\x00\x00\x00ORTM", "an ORT format model"),
    ],
)
def test_malformed_bytes_are_refused_with_what_was_found(
    model: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.model.onnx_graph.MAX_FIELDS", 1000)
    with pytest.raises(ModelError, match=words):
        read_facts(model)
