"""What every payload format must do, in every shape a payload may have."""

from __future__ import annotations

import base64
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import cbor2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import DecodeError
from edge_runtime.records import Message, Properties, Samples
from edge_runtime.stream.decode import DECODERS, SourceSettings, make_decoder
from edge_runtime.stream.documents import CBOR_MAX_DEPTH

CHANNELS = 3
ROWS = [[1.5, -2.0, 3.25], [4.0, 5.5, -6.75], [0.0, 8.0, 9.5]]
REASONS = {"empty", "too_large", "content_type", "malformed", "shape", "not_finite", "property"}
LIMIT = 4096
MOST_MEMORY_BYTES = 2_000_000


def frames(rows: object) -> bytes:
    return np.asarray(rows, dtype="<f4").tobytes()


def text(value: object) -> bytes:
    def encoded(found: object) -> object:
        return base64.b64encode(found).decode() if isinstance(found, bytes) else repr(found)

    return json.dumps(value, default=encoded).encode()


ENCODERS: dict[str, Callable[[Any], bytes]] = {"json": text, "msgpack": msgspec.msgpack.encode, "cbor": cbor2.dumps}
CONTENT_TYPES = {
    "raw": "application/octet-stream",
    "json": "application/json",
    "msgpack": "application/msgpack",
    "cbor": "application/cbor",
}
NAMES = {"fields": ("x", "y", "z")}
IN_PATH = {"path": "d.acc", "seq_field": "n"}


def named(row: list[float]) -> dict[str, object]:
    return {"x": row[0], "temperature": "warm", "y": row[1], "z": row[2]}


def in_path(value: object) -> dict[str, object]:
    return {"n": 7, "other": [[{}]], "d": {"acc": value}}


SHAPES: dict[str, tuple[dict[str, Any], object, list[list[float]]]] = {
    "rows": ({}, ROWS, ROWS),
    "single row": ({}, ROWS[0], ROWS[:1]),
    "bytes": ({}, frames(ROWS), ROWS),
    "named fields": (NAMES, named(ROWS[0]), ROWS[:1]),
    "rows of named fields": (NAMES, [named(row) for row in ROWS], ROWS),
    "nested path": (IN_PATH, in_path(ROWS), ROWS),
    "nested path to a row": (IN_PATH, in_path(ROWS[0]), ROWS[:1]),
    "nested path to named fields": ({**IN_PATH, **NAMES}, in_path([named(row) for row in ROWS]), ROWS),
    "bytes at path": (IN_PATH, in_path(frames(ROWS)), ROWS),
}


def held(samples: Samples) -> None:
    """What every Samples promises."""
    assert samples.values.dtype == np.float32
    assert samples.values.ndim == 2
    assert samples.values.shape[1] == CHANNELS
    assert len(samples.values) >= 1
    assert np.isfinite(samples.values).all()


class Case:
    """One format in one shape: its source, a valid payload, and the values in it."""

    def __init__(self, form: str, shape: str) -> None:
        fields, value, self.values = SHAPES[shape]
        self.form, self.shape = form, shape
        self.source = SourceSettings(topic="t", format=form, max_payload_bytes=LIMIT, **fields)
        self.payload = frames(ROWS) if form == "raw" else ENCODERS[form](value)
        self.decoder = make_decoder(self.source, CHANNELS)

    def decode(self, payload: bytes) -> Samples:
        return self.decoder(Message(topic="t", payload=payload, received_ns=5), "s")

    def refusal(self, payload: bytes) -> str:
        with pytest.raises(DecodeError) as caught:
            self.decode(payload)
        assert caught.value.reason in REASONS
        assert caught.value.detail
        return caught.value.reason

    def outcome(self, payload: bytes) -> str:
        try:
            held(self.decode(payload))
        except DecodeError as error:
            return error.reason
        return "samples"


CASES = [Case("raw", "bytes"), *(Case(form, shape) for form in ENCODERS for shape in SHAPES)]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.form}, {case.shape}")
every_document = pytest.mark.parametrize("form", ENCODERS)


def test_every_format_is_under_this_contract() -> None:
    assert {case.form for case in CASES} == set(DECODERS) == set(CONTENT_TYPES)


@every_case
def test_what_was_sent_is_what_comes_out(case: Case) -> None:
    samples = case.decode(case.payload)

    assert samples.values.tolist() == case.values
    assert (samples.stream, samples.received_ns) == ("s", 5)
    assert samples.seq == (7 if case.source.seq_field else None)


@every_case
def test_scale_and_offset_apply_to_every_shape(case: Case) -> None:
    decoder = make_decoder(msgspec.structs.replace(case.source, scale=2.0, offset=-1.0), CHANNELS)

    samples = decoder(Message(topic="t", payload=case.payload, received_ns=5), "s")

    assert samples.values.tolist() == [[number * 2 - 1 for number in row] for row in case.values]


@every_case
def test_the_content_type_finds_the_same_decoder(case: Case) -> None:
    configured = "json" if case.form != "json" else "msgpack"
    decoder = make_decoder(msgspec.structs.replace(case.source, format=configured), CHANNELS)
    properties = Properties(content_type=CONTENT_TYPES[case.form])

    samples = decoder(Message(topic="t", payload=case.payload, received_ns=5, properties=properties), "s")

    assert samples.values.tolist() == case.values


@every_case
def test_a_truncated_payload_is_refused_or_a_shorter_one(case: Case) -> None:
    frame_bytes = 4 * CHANNELS
    for size in range(len(case.payload)):
        part = case.payload[:size]
        if case.form == "raw" and size and size % frame_bytes == 0:
            assert case.decode(part).values.tolist() == case.values[: size // frame_bytes]
        else:
            assert case.refusal(part) == ("empty" if not size else "shape" if case.form == "raw" else "malformed")


@every_case
def test_bytes_after_the_end_are_refused(case: Case) -> None:
    assert case.refusal(case.payload + b"\x01") == ("shape" if case.form == "raw" else "malformed")


@every_case
def test_payloads_are_bounded(case: Case) -> None:
    assert case.refusal(b"") == "empty"
    assert case.refusal(b"\x00" * (LIMIT + 1)) == "too_large"


WRONG_AT_PATH: dict[str, object] = {
    "text": "warm",
    "null": None,
    "bool": True,
    "map": {"a": 1},
    "text in a row": [["1", "2", "3"]],
    "null in a row": [None, 1, 2],
    "bool in a row": [[True, False, True]],
    "map in a row": [[{}, {}, {}]],
    "bytes in a row": [[frames([1])] * 3],
    "bytes for a row": [frames(ROWS[0])],
    "nested too deep": [[[1, 2, 3]]],
    "ragged rows": [[1, 2, 3], [1, 2]],
    "row beside a number": [1, [2], 3],
    "no rows": [],
    "empty rows": [[], []],
    "too few channels": [[1, 2]],
    "too many channels": [1, 2, 3, 4],
    "a number": 1,
    "no bytes": b"",
    "part of a frame": frames(ROWS)[:-1],
}


@every_document
@pytest.mark.parametrize("where", ["at the root", "at a path"])
@pytest.mark.parametrize("wrong", WRONG_AT_PATH)
def test_a_value_of_the_wrong_kind_is_refused(form: str, where: str, wrong: str) -> None:
    case = Case(form, "rows" if where == "at the root" else "nested path")
    value = WRONG_AT_PATH[wrong]

    assert case.refusal(ENCODERS[form](value if where == "at the root" else in_path(value))) == "shape"


@every_document
@pytest.mark.parametrize("wrong", ["1", None, True, [1], {}, b"\0\0\0\0", 2**63, -1, 1.5])
def test_a_field_or_a_message_number_of_the_wrong_kind_is_refused(form: str, wrong: object) -> None:
    if not isinstance(wrong, int | float) or isinstance(wrong, bool):
        named_row = Case(form, "named fields")
        assert named_row.refusal(ENCODERS[form]({**named(ROWS[0]), "y": wrong})) == "shape"
    numbered = Case(form, "nested path")
    assert numbered.refusal(ENCODERS[form]({**in_path(ROWS), "n": wrong})) == "shape"


@every_document
@pytest.mark.parametrize(
    "value", [{"x": 1, "y": 2}, [], [{"x": 1, "y": 2, "z": 3}, {}], 1, [[1, 2, 3]], b"\0" * 12], ids=repr
)
def test_a_document_without_the_named_fields_is_refused(form: str, value: object) -> None:
    assert Case(form, "rows of named fields").refusal(ENCODERS[form](value)) == "shape"


@every_document
@pytest.mark.parametrize("number", [1e39, -1e300, 2**63 * 2**100])
def test_a_number_beyond_float32_is_refused(form: str, number: float) -> None:
    payload = ENCODERS[form]([[1.0, float(number), 2.0]])

    assert Case(form, "rows").refusal(payload) == "not_finite"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", DECODERS)
def test_numbers_that_are_not_finite_are_refused(form: str, number: float) -> None:
    rows = [[1.0, float(number), 2.0]]
    if form == "raw":
        assert Case("raw", "bytes").refusal(frames(rows)) == "not_finite"
        return
    assert Case(form, "bytes").refusal(ENCODERS[form](frames(rows))) == "not_finite"
    assert Case(form, "rows").refusal(ENCODERS[form](rows)) == ("malformed" if form == "json" else "not_finite")


def test_cbor_and_messagepack_take_numbers_of_every_width() -> None:
    numbers = [0, 23, 255, 65535, 2**32 - 1, 2**64 - 1, -1, -(2**63), 0.5]
    narrow = b"\x83\xf9\x3c\x00\xfa\x3f\x80\x00\x00\x01"

    for form in ("msgpack", "cbor"):
        for i in range(0, len(numbers), CHANNELS):
            row = numbers[i : i + CHANNELS]
            assert Case(form, "rows").decode(ENCODERS[form](row)).values.tolist() == [[np.float32(n) for n in row]]
    assert Case("cbor", "rows").decode(narrow).values.tolist() == [[1.0, 1.0, 1.0]]


def test_no_tag_is_taken_from_a_cbor_document() -> None:
    case = Case("cbor", "nested path")
    before, after = case.payload.split(b"\x65other")

    taken = {tag for tag in range(2**16) if case.outcome(before + b"\x65other" + tag_of(tag) + after) != "malformed"}

    assert taken == set()
    assert case.outcome(tag_of(55799) + case.payload) == "malformed"


def tag_of(number: int) -> bytes:
    size = "B" if number < 2**8 else "H"
    return bytes([0xD8 if size == "B" else 0xD9]) + struct.pack(f">{size}", number)


HOSTILE: dict[str, dict[str, bytes]] = {
    "cbor": {
        "shared value that holds itself": b"\xd8\x1c\x81\xd8\x1d\x00",
        "shared row named often": b"\x98\xc8\xd8\x1c\x83\x01\x02\x03" + b"\xd8\x1d\x00" * 199,
        "big number": b"\x83\xc2\x59\x08\x00" + b"\xff" * 2048 + b"\x01\x02",
        "decimal fraction": b"\x83\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01\x01\x02",
        "big float": b"\x83\xc5\x82\x1a\x7f\xff\xff\xff\x01\x01\x02",
        "pattern": b"\xd8\x23\x6d(a{9999}){999}",
        "date": b"\xc1\x1b" + b"\xff" * 8,
        "undefined": b"\x83\xf7\xf7\xf7",
        "simple value": b"\x83\xe5\xf8\xff\x01",
        "break alone": b"\xff",
        "deep": b"\x81" * 4000,
        "deep without lengths": b"\x9f" * 4000,
        "deep tags": b"\xc6" * 4000,
        "array of 2^64-1": b"\x9b" + b"\xff" * 8,
        "nested arrays of 2^32": (b"\x9b\x00\x00\x00\x01" + b"\0" * 4) * 50,
        "array of 2^26": b"\x9a\x04\x00\x00\x00" * 60,
        "map of 2^63": b"\xbb\x7f" + b"\xff" * 7,
        "bytes of 2^63": b"\x5b\x7f" + b"\xff" * 7,
        "bytes of 2^31": b"\x5a\x7f\xff\xff\xff",
        "text of 2^40": b"\x7b\x00\x00\x01" + b"\0" * 5,
        "number as key": b"\xa1\x01\x02",
        "list as key": b"\xa1\x81\x01\x02",
        "map as key": b"\xa1\xa1\x01\x02\x03",
        "bytes as key": b"\xa1\x41a\x02",
        "not UTF-8": b"\xa1\x61\xff\x02",
    },
    "msgpack": {
        "never used byte": b"\xc1",
        "extension": b"\x93\xd4\x05\x00\x01\x02",
        "date": b"\x93\xd6\xff\x00\x00\x00\x00\x01\x02",
        "deep": b"\x91" * 4000,
        "deep maps": b"\x81\xa1a" * 1300,
        "array of 2^32": b"\xdd" + b"\xff" * 4,
        "nested arrays of 2^28": b"\xdd\x10\x00\x00\x00" * 60,
        "map of 2^32": b"\xdf" + b"\xff" * 4,
        "bytes of 2^32": b"\xc6" + b"\xff" * 4,
        "text of 2^32": b"\xdb" + b"\xff" * 4,
        "number as key": b"\x81\x01\x02",
        "not UTF-8": b"\x81\xa1\xff\x02",
    },
    "json": {
        "deep": b"[" * 4000,
        "deep objects": b'{"d":' * 800,
        "big number": b"[" + b"9" * 4000 + b",1,2]",
        "large exponent": b"[1e999999999,1,2]",
        "NaN": b"[NaN,1,2]",
        "not base64": b'"A-_="',
        "base64 without its padding": b'"AAAAAAAAAAAAAAA"',
        "base64 in two lines": b'"AAAA\\nAAAAAAAAAAAA"',
        "not UTF-8": b'{"\xff":1}',
        "half a surrogate": b'"\\ud800"',
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("form", "what"), [(form, what) for form, found in HOSTILE.items() for what in found], ids=lambda word: word
)
def test_hostile_payloads_are_refused_in_little_memory(form: str, what: str, shape: str) -> None:
    case = Case(form, shape)
    tracemalloc.start()
    try:
        reason = case.refusal(HOSTILE[form][what])
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert reason in {"malformed", "shape"}
    assert most_bytes < MOST_MEMORY_BYTES


def test_a_skipped_part_of_a_document_may_be_as_deep_as_the_bound() -> None:
    case = Case("cbor", "named fields")

    def holding(depth: int) -> bytes:
        deep: object = 1
        for _ in range(depth):
            deep = [deep]
        return cbor2.dumps({**named(ROWS[0]), "other": deep})

    assert case.decode(holding(CBOR_MAX_DEPTH - 1)).values.tolist() == ROWS[:1]
    assert case.refusal(holding(CBOR_MAX_DEPTH + 1)) == "malformed"


@every_case
@given(payload=st.binary(max_size=300))
def test_no_bytes_make_a_decoder_fail_in_another_way_than_it_says(case: Case, payload: bytes) -> None:
    assert case.outcome(payload) in {"samples", *REASONS}


@every_case
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 6))
def test_a_damaged_payload_is_decoded_or_refused(case: Case, seed: int, edits: int) -> None:
    chance = random.Random(seed)
    damaged = bytearray(case.payload)
    for _ in range(edits):
        damage(damaged, chance)

    assert case.outcome(bytes(damaged)) in {"samples", *REASONS}


MARKS = b"\x00\x5b\x5f\x7b\x80\x9b\x9f\xbb\xc2\xc4\xc6\xd8\xd9\xdc\xdd\xdf\xf7\xfb\xff" + b'[]{}",:-e9'


def damage(payload: bytearray, chance: random.Random) -> None:
    """Overwrite, insert, cut out or repeat something somewhere."""
    at = chance.randrange(len(payload) + 1)
    kind = chance.randrange(4)
    if kind == 0:
        payload[at : at + 1] = bytes([chance.choice(MARKS)])
    elif kind == 1:
        payload[at:at] = chance.randbytes(chance.randrange(1, 9))
    elif kind == 2:
        del payload[at : at + chance.randrange(1, 9)]
    else:
        payload[at:at] = payload[at : at + chance.randrange(1, 40)]


@pytest.mark.parametrize("form", DECODERS)
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=CHANNELS, max_size=CHANNELS),
        min_size=1,
    )
)
def test_every_float32_survives_every_format(form: str, rows: list[list[float]]) -> None:
    wanted = np.array(rows, dtype=np.float32)
    decoder = make_decoder(SourceSettings(topic="t", format=form), CHANNELS)

    for payload in [frames(rows)] if form == "raw" else [ENCODERS[form](rows), ENCODERS[form](frames(rows))]:
        samples = decoder(Message(topic="t", payload=payload, received_ns=5), "s")
        assert np.array_equal(samples.values, wanted)
