from __future__ import annotations

import base64
import inspect
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from edge_runtime.errors import DecodeError, DependencyError
from edge_runtime.records import Message, Properties
from edge_runtime.stream.decode import SourceSettings, make_decoder

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def message(payload: bytes, **fields: object) -> Message:
    return Message(topic="t", payload=payload, received_ns=5, **fields)


def source(**fields: object) -> SourceSettings:
    return SourceSettings(topic="t", **fields)


def decode(payload: bytes, channels: int = 1, properties: Properties | None = None, **fields: object):
    decoder = make_decoder(source(**fields), channels)
    return decoder(message(payload, properties=properties or Properties()), "s")


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_raw_arrays_of_every_type_come_out_in_physical_units(dtype: str) -> None:
    numbers = np.array([[1, 2], [3, 100]], dtype=np.dtype(dtype).newbyteorder("<"))

    samples = decode(numbers.tobytes(), 2, format="raw", dtype=dtype, scale=0.5, offset=1.0)

    assert samples.values.dtype == np.float32
    assert samples.values.tolist() == [[1.5, 2.0], [2.5, 51.0]]
    assert (samples.stream, samples.received_ns, samples.seq) == ("s", 5, None)


def test_large_integers_keep_their_digits_before_the_offset_is_taken_off() -> None:
    numbers = np.array([2**40 + 3], dtype="<i8")

    samples = decode(numbers.tobytes(), format="raw", dtype="int64", offset=-float(2**40))

    assert samples.values.tolist() == [[3.0]]


FLOAT32_MAX = float(np.finfo(np.float32).max)
SIGNALLING_NAN = b"\x01\x00\xa0\x7f"


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("number", [3.4028235e38, 3.4028235677973e38, -3.4028235e38, 3.4028236e38, 1e300])
def test_a_number_that_rounds_to_a_float32_is_taken_in_every_format(number: float, scale: float) -> None:
    payloads = {"raw": np.float64(number / scale).tobytes(), "json": json.dumps([number / scale]).encode()}
    payloads["msgpack"] = msgspec.msgpack.encode([number / scale])
    for form, payload in payloads.items():
        if abs(number) < 3.4028235678e38:
            samples = decode(payload, format=form, scale=scale, dtype="float64")
            assert samples.values.tolist() == [[np.copysign(FLOAT32_MAX, number)]]
        else:
            with pytest.raises(DecodeError, match="not_finite"):
                decode(payload, format=form, scale=scale, dtype="float64")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_large_floats_are_taken_and_no_kind_of_nan_is(dtype: str, scale: float) -> None:
    kind = np.dtype(dtype)
    largest = min(float(np.finfo(kind).max), FLOAT32_MAX) / 2
    numbers = np.array([[largest, -largest]] * 100, kind)

    assert np.isfinite(decode(numbers.tobytes(), 2, format="raw", dtype=dtype, scale=scale).values).all()
    quiet, signalling = kind.type(np.nan).tobytes(), {4: SIGNALLING_NAN}.get(kind.itemsize, b"\x01" + b"\xff" * 7)
    for nan in (quiet, signalling[: kind.itemsize], kind.type(-np.inf).tobytes()):
        with pytest.raises(DecodeError, match="not_finite"):
            decode(numbers.tobytes() + 2 * nan, 2, format="raw", dtype=dtype, scale=scale)


def test_integers_whose_scale_leaves_float32_are_looked_at_one_by_one() -> None:
    fine, beyond = (np.array([2**30, number], "<i8").tobytes() for number in (-5, 2**62))

    assert decode(fine, format="raw", dtype="int64", scale=1e25).values.tolist() == [
        [np.float32(2**30 * 1e25)],
        [np.float32(-5e25)],
    ]
    with pytest.raises(DecodeError, match="not_finite"):
        decode(beyond, format="raw", dtype="int64", scale=1e25)


@pytest.mark.parametrize(
    ("fields", "payload", "wanted"),
    [
        ({"fields": ("a", "b")}, {"a": 1, "b": 2.5, "other": [1]}, [[1, 2.5]]),
        ({"fields": ("a", "b")}, [{"a": 1, "b": 2}, {"a": 3, "b": 4}], [[1, 2], [3, 4]]),
        ({"fields": ("acc.x", "acc.y")}, {"acc": {"x": 1, "y": 2}}, [[1, 2]]),
        ({"path": "d.rows"}, {"d": {"rows": [[1, 2], [3, 4]]}}, [[1, 2], [3, 4]]),
        ({"path": "d", "fields": ("a", "b")}, {"d": [{"a": 1, "b": 2}]}, [[1, 2]]),
        ({"path": "d", "fields": ("a", "b")}, {"d": {"a": 1, "b": 2}}, [[1, 2]]),
        ({}, [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ({}, [1, 2], [[1, 2]]),
    ],
)
def test_json_rows_are_found_where_the_settings_say(fields: dict, payload: object, wanted: list) -> None:
    assert decode(json.dumps(payload).encode(), 2, **fields).values.tolist() == wanted


def test_a_flat_json_list_of_one_channel_is_a_run_of_samples_and_a_number_is_one() -> None:
    assert decode(b"[1,2,3]").values.tolist() == [[1], [2], [3]]
    assert decode(b"7").values.tolist() == [[7]]


@pytest.mark.parametrize(
    ("fields", "payload"),
    [
        ({"fields": ("a",), "seq_field": "n", "time_field": "t"}, {"a": 1, "n": 7, "t": 1.5}),
        ({"fields": ("a",), "seq_field": "h.n", "time_field": "h.t"}, {"a": 1, "h": {"n": 7, "t": 1.5}}),
        ({"path": "d.v", "seq_field": "n", "time_field": "d.t"}, {"n": 7, "d": {"v": [1], "t": 1.5}}),
    ],
)
def test_sequence_and_sensor_time_come_from_payload_fields(fields: dict, payload: object) -> None:
    samples = decode(json.dumps(payload).encode(), **fields)

    assert (samples.seq, samples.sensor_unix_ns) == (7, 1_500_000_000)


@pytest.mark.parametrize("form", [{"format": "raw", "dtype": "int8"}, {"format": "json"}])
def test_sequence_and_sensor_time_come_from_user_properties(form: dict) -> None:
    properties = Properties(user=(("n", "12"), ("ts", "1500")))
    payload = b"\x01" if form["format"] == "raw" else b"1"

    samples = decode(payload, properties=properties, seq_property="n", time_property="ts", time_unit="ms", **form)

    assert (samples.seq, samples.sensor_unix_ns) == (12, 1_500_000_000)


BAD = [
    (b"", {}, "empty"),
    (b"", {"format": "raw"}, "empty"),
    (b"x" * 101, {"max_payload_bytes": 100}, "too_large"),
    (b"[1,", {}, "malformed"),
    (b"hello", {}, "malformed"),
    (b"\xff\xfe", {}, "malformed"),
    (b"[NaN]", {}, "malformed"),
    (b"[Infinity]", {}, "malformed"),
    (b'["1"]', {}, "shape"),
    (b"[null]", {}, "shape"),
    (b"[true]", {}, "shape"),
    (b"[]", {}, "shape"),
    (b"[[]]", {}, "shape"),
    (b"[[1],[1,2]]", {}, "shape"),
    (b"[1,[2]]", {}, "shape"),
    (b"[[1,2]]", {}, "shape"),
    (b"[1e999]", {}, "shape"),
    (b"[1e39]", {}, "not_finite"),
    (b'{"b":1}', {"fields": ("a",)}, "shape"),
    (b"[]", {"fields": ("a",)}, "shape"),
    (b'{"a":1,"n":1.5}', {"fields": ("a",), "seq_field": "n"}, "shape"),
    (b'{"a":1,"n":-1}', {"fields": ("a",), "seq_field": "n"}, "shape"),
    (b'{"a":1,"n":1e30}', {"fields": ("a",), "seq_field": "n"}, "shape"),
    (b"[" * 200_000, {}, "shape"),
    (b'{"z":' + b"[" * 200_000 + b"]" * 200_000 + b',"a":1}', {"fields": ("a",)}, "malformed"),
    (b"\x01", {"format": "raw", "dtype": "int16"}, "shape"),
    (np.float32(np.nan).tobytes(), {"format": "raw"}, "not_finite"),
    (np.float64(1e300).tobytes(), {"format": "raw", "dtype": "float64"}, "not_finite"),
    (b"\x01", {"format": "raw", "dtype": "int8", "seq_property": "n"}, "property"),
]


@pytest.mark.parametrize(("payload", "fields", "reason"), BAD)
def test_a_bad_payload_is_refused_with_its_reason(payload: bytes, fields: dict, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(payload, **{"max_payload_bytes": 1_000_000, **fields})

    assert caught.value.reason == reason
    assert len(str(caught.value)) > len(reason) + 5


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "x", "-1", "1.5", ""])
def test_a_sequence_property_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        decode(b"1", properties=Properties(user=(("n", text),)), seq_property="n")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fields": ("a", "b")}, "names 2 channels"),
        ({"format": "raw", "path": "a"}, "raw takes user properties"),
        ({"seq_field": "n"}, "path"),
        ({"fields": ("a",), "seq_field": "a.n"}, "both as a value and as an object"),
        ({"fields": ("a",), "dtype": "int16"}, "fields asks for named numbers"),
        ({"clock_synced": True}, "wanted time_field or time_property"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_decoder(source(**fields), 1)


COUNTS = [[100, -200], [300, -400]]
FRAMES = np.array(COUNTS, dtype="<i2").tobytes()
ENCODED = {
    "application/json": json.dumps(COUNTS).encode(),
    "application/senml+json": json.dumps(COUNTS).encode(),
    "Application/JSON; charset=UTF-8": json.dumps(COUNTS).encode(),
    'application/json;charset="utf-8"': json.dumps(COUNTS).encode(),
    "application/msgpack": msgspec.msgpack.encode(COUNTS),
    "application/x-msgpack": msgspec.msgpack.encode(FRAMES),
    "application/vnd.msgpack": msgspec.msgpack.encode(COUNTS),
    "application/vnd.acme.v2+msgpack": msgspec.msgpack.encode(FRAMES),
    "application/cbor": b"\x48" + FRAMES,
    "application/senml+cbor": b"\x48" + FRAMES,
    "application/octet-stream": FRAMES,
    "application/octet-stream;shape=2x2": FRAMES,
    "application/octet-stream; dtype=i32 ; shape=2x2": np.array(COUNTS, dtype="<i4").tobytes(),
    "": FRAMES,
}


def typed(payload: bytes, content_type: str, **fields: object):
    return decode(payload, 2, Properties(content_type=content_type), **fields)


@pytest.mark.parametrize("content_type", ENCODED)
def test_the_content_type_goes_before_the_configured_format(content_type: str) -> None:
    samples = typed(ENCODED[content_type], content_type, format="raw", dtype="int16", scale=0.5)

    assert samples.values.tolist() == [[50, -100], [150, -200]]


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_every_type_has_its_name_and_a_short_one_in_a_content_type(dtype: str) -> None:
    payload = np.array([[1, 2], [3, 100]], dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
    short = {"i": "i", "u": "u", "f": "f"}[dtype[0]] + "".join(c for c in dtype if c.isdigit())

    for name in (dtype, short):
        assert typed(payload, f"application/octet-stream;dtype={name}").values.tolist() == [[1, 2], [3, 100]]


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("text/plain", "'text/plain', known are application/octet-stream, application/json, "),
        ("json", "known are"),
        ("text/x+json", "known are"),
        ("application/", "known are"),
        (";", "known are"),
        (" ", "known are"),
        ("application/jsonx", "known are"),
        ("application/json;charset=latin-1", "charset=latin-1, wanted utf-8"),
        ("application/json;dtype=i16", "dtype=i16"),
        ("application/cbor;shape=2x2", "shape=2x2"),
        ("application/octet-stream;dtype=i12", "dtype=i12, known are int8, "),
        ("application/octet-stream;dtype=", "dtype=, known are int8, "),
        ("application/octet-stream;dtype", "wanted name=value"),
        ("application/octet-stream;shape=2", "wanted rows x channels"),
        ("application/octet-stream;shape=0x2", "wanted rows x channels"),
        ("application/octet-stream;shape=2x2x1", "wanted rows x channels"),
        ("application/octet-stream;shape=\u0662x\u0662", "wanted rows x channels"),
        ("application/octet-stream;shape=2x" + "9" * 200, "wanted rows x channels"),
        ("application/octet-stream;shape=4x1", "shape=4x1, wanted 2 channels"),
        ("application/octet-stream;" + "x" * 60_000, "60025 characters, wanted at most 255"),
        ("application/json" + ";" * 60_000, "wanted at most 255"),
    ],
)
def test_a_content_type_that_is_not_understood_is_refused(content_type: str, words: str) -> None:
    with pytest.raises(DecodeError) as caught:
        typed(FRAMES, content_type, format="raw", dtype="int16")

    assert caught.value.reason == "content_type"
    assert words in caught.value.detail


@pytest.mark.parametrize("shape", ["1x2", "3x2", "999999999x2"])
def test_a_payload_that_is_not_of_the_shape_it_says_is_refused(shape: str) -> None:
    with pytest.raises(DecodeError, match=f"2 rows, its content type says {shape}") as caught:
        typed(FRAMES, f"application/octet-stream;shape={shape}", format="raw", dtype="int16")

    assert caught.value.reason == "shape"


def test_bytes_without_numbers_do_not_come_in_where_the_source_asks_for_a_message_number() -> None:
    with pytest.raises(DecodeError, match="no place for the source's seq_field") as caught:
        typed(FRAMES, "application/octet-stream", path="v", seq_field="n")

    assert caught.value.reason == "content_type"


def test_content_types_without_number_leave_nothing_behind() -> None:
    decoder = make_decoder(source(format="raw", dtype="int16"), 2)
    choose = inspect.getclosurevars(decoder).nonlocals["choose"]
    parsed = inspect.getclosurevars(choose).nonlocals["parsed"]

    for rows in range(1, 1001):
        properties = Properties(content_type=f"application/octet-stream;shape={rows}x2")
        decoder(message(FRAMES[:4] * rows, properties=properties), "s")

    assert 1 <= parsed.cache_info().currsize <= 32


def test_numbers_and_bytes_in_one_stream_are_scaled_alike() -> None:
    text = base64.b64encode(FRAMES).decode()

    for payload in (text, COUNTS):
        samples = decode(json.dumps({"v": payload}).encode(), 2, path="v", dtype="int16", scale=0.01, offset=1.0)
        assert samples.values.tolist() == [[2.0, -1.0], [4.0, -3.0]]


@pytest.fixture
def no_cbor2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cbor2", None)


@pytest.mark.usefixtures("no_cbor2")
def test_cbor_without_its_package_is_refused_at_the_start() -> None:
    with pytest.raises(DependencyError, match=r"pip install 'edge-runtime\[cbor\]'"):
        make_decoder(source(format="cbor"), 2)


@pytest.mark.usefixtures("no_cbor2")
def test_a_cbor_message_without_its_package_is_refused_and_others_are_not() -> None:
    with pytest.raises(DecodeError, match=r"pip install 'edge-runtime\[cbor\]'") as caught:
        typed(b"\x82\x01\x02", "application/cbor")

    assert caught.value.reason == "content_type"
    assert typed(b"[1,2]", "application/json").values.tolist() == [[1, 2]]


@pytest.mark.parametrize(("form", "absent"), [("json", "cbor2"), ("raw", "simdjson"), ("msgpack", "simdjson")])
def test_a_package_is_not_imported_for_sources_that_do_not_use_it(form: str, absent: str) -> None:
    code = (
        "import sys; from edge_runtime.stream.decode import *;"
        f"make_decoder(SourceSettings(topic='t', format={form!r}), 1); assert {absent!r} not in sys.modules"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
