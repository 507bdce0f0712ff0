from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import DecodeError
from edge_runtime.records import Message, Properties
from edge_runtime.stream.decode import DECODERS, SourceSettings, make_decoder

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
        ({"format": "raw", "path": "a"}, "for format json"),
        ({"seq_field": "n"}, "path"),
        ({"fields": ("a",), "seq_field": "a.n"}, "both as a value and as an object"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_decoder(source(**fields), 1)


@pytest.mark.parametrize("form", sorted(DECODERS))
@given(payload=st.binary(max_size=200))
def test_no_bytes_make_a_decoder_fail_in_another_way_than_it_says(form: str, payload: bytes) -> None:
    decoder = make_decoder(source(format=form), 2)

    try:
        samples = decoder(message(payload), "s")
    except DecodeError:
        return

    assert samples.values.shape[1] == 2
    assert len(samples.values) >= 1
    assert np.isfinite(samples.values).all()


@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1
    )
)
def test_what_a_producer_wrote_as_raw_or_json_is_what_comes_out(rows: list[list[float]]) -> None:
    values = np.array(rows, dtype="<f4")

    assert np.array_equal(decode(values.tobytes(), 3, format="raw").values, values)
    assert np.array_equal(decode(json.dumps(rows).encode(), 3).values, values)
