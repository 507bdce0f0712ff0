"""Messages of one sample each, decoded together: what each is by itself, or nothing at all."""

from __future__ import annotations

import json
import random
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import DecodeError
from edge_runtime.records import Message, Properties, Rows
from edge_runtime.stream import rows
from edge_runtime.stream.decode import SourceSettings, make_decoder
from edge_runtime.stream.rows import make_rows_decoder

LIMIT = 500
IN_PATH = {"path": "d.v", "seq_field": "h.n", "time_field": "h.t", "time_unit": "ms"}
SOURCES: dict[str, SourceSettings] = {
    "json root": SourceSettings(topic="t", max_payload_bytes=LIMIT),
    "json path": SourceSettings(topic="t", max_payload_bytes=LIMIT, **IN_PATH),
    "json scaled": SourceSettings(topic="t", max_payload_bytes=LIMIT, path="v", seq_field="n", scale=1e30, offset=-2.0),
    "json fields": SourceSettings(topic="t", max_payload_bytes=LIMIT, fields=("x", "y"), seq_field="n"),
    "json fields in path": SourceSettings(topic="t", max_payload_bytes=LIMIT, fields=("x", "y"), path="d"),
    "json properties": SourceSettings(topic="t", max_payload_bytes=LIMIT, seq_property="n", time_property="t"),
    "msgpack": SourceSettings(topic="t", max_payload_bytes=LIMIT, format="msgpack", **IN_PATH),
    "raw": SourceSettings(topic="t", max_payload_bytes=LIMIT, format="raw", seq_property="n"),
    "raw int16": SourceSettings(topic="t", max_payload_bytes=LIMIT, format="raw", dtype="int16", scale=0.5),
}
NUMBERS = [0, 1, -2.5, 3.25e-7, 7, 1e30, -0.0, 2.0**128 - 2.0**103, 2.0**128 - 2.0**104, 10**18]
ODD = ["bad", "empty", "two rows", "nested row", "row too long", "row too short", "no number", "huge", "fraction",
       "negative", "text", "null", "NaN", "brackets", "typed", "as json", "spaces", "too large", "half",
       "twice"]  # fmt: skip


@pytest.fixture(params=["pysimdjson", "msgspec"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON lists of any length are read by either."""
    if request.param == "msgspec":
        monkeypatch.setitem(sys.modules, "simdjson", None)
    else:
        pytest.importorskip("simdjson", reason="pysimdjson is not installed")
        monkeypatch.setattr(rows, "JOINED_FROM_CHANNELS", 1)


def row_in(value: object, n: object, source: SourceSettings) -> object:
    """The document around a row."""
    if source.fields and isinstance(value, list) and value:
        value = {"x": value[0], "y": value[-1], "label": "warm"}
    if source.path == "d.v":
        return {"h": {"n": n, "t": 12.5}, "more": {"a": None}, "d": {"v": value}}
    if source.path:
        return {"n": n, source.path: value}
    return value | {"n": n} if isinstance(value, dict) else value


def good(n: int, values: list[float], source: SourceSettings) -> bytes:
    if source.format == "raw":
        return np.array([int(v) % 100 for v in values], source.dtype).tobytes()
    document = row_in(values, n, source)
    return json.dumps(document).encode() if source.format == "json" else msgspec.msgpack.encode(document)


def odd(kind: str, n: int, values: list[float], source: SourceSettings) -> Message:
    """Something that is not just one good sample, or only looks as if it were not."""
    encode = msgspec.msgpack.encode if source.format == "msgpack" else lambda found: json.dumps(found).encode()
    whole = good(n, values, source)
    altered: dict[str, object] = {
        "two rows": [values, values],
        "nested row": [values],
        "row too long": [*values, 1.0],
        "row too short": values[1:],
        "no number": ["x", 1],
        "huge": [1e300] * len(values),
        "text": "[1,2]",
        "null": None,
        "NaN": [float("nan")] * len(values),
    }
    if kind in altered and source.format != "raw":
        return Message("t", encode(row_in(altered[kind], n, source)), 0)
    if kind in ("fraction", "negative") and source.format != "raw":
        return Message("t", encode(row_in(values, {"fraction": n + 0.5, "negative": -1}[kind], source)), 0)
    payloads = {
        "bad": b"{", "empty": b"", "brackets": whole.replace(b"{", b'{"z":[1],', 1), "spaces": whole + b" \n",
        "too large": whole + b" " * LIMIT, "half": whole[: len(whole) // 2], "twice": whole + whole,
    }  # fmt: skip
    types = {"typed": "application/octet-stream", "as json": "application/json; charset=utf-8"}
    return Message("t", payloads.get(kind, whole), 0, properties=Properties(content_type=types.get(kind, "")))


def numbered(message: Message, n: int) -> Message:
    properties = msgspec.structs.replace(message.properties, user=(("n", str(n)), ("t", str(n / 8))))
    return msgspec.structs.replace(message, properties=properties, received_ns=n)


def one_by_one(source: SourceSettings, channels: int, messages: list[Message]) -> Rows | None:
    """What a decoder of single messages says; None when a message is bad or has more than one row."""
    decode = make_decoder(source, channels)
    try:
        found = [decode(message, "s") for message in messages]
    except DecodeError:
        return None
    if any(len(samples.values) != 1 for samples in found):
        return None
    seqs = [samples.seq for samples in found if samples.seq is not None]
    times_ns = [samples.sensor_unix_ns for samples in found if samples.sensor_unix_ns is not None]
    return Rows(np.concatenate([samples.values for samples in found]), seqs or None, times_ns or None)


def same(found: Rows, wanted: Rows) -> bool:
    equal = found.values.dtype == wanted.values.dtype and found.values.tobytes() == wanted.values.tobytes()
    return equal and (found.seqs, found.sensor_unix_ns) == (wanted.seqs, wanted.sensor_unix_ns)


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from([*ODD, *["good"] * 40]), min_size=1, max_size=6),
    channels=st.sampled_from([1, 2]),
    seed=st.integers(0, 10_000),
)
def test_together_they_are_what_each_is_by_itself_or_nothing(name, kinds, channels, seed) -> None:
    source, rng = SOURCES[name], random.Random(seed)
    channels = len(source.fields) or channels
    messages = []
    for n, kind in enumerate(kinds):
        values = [rng.choice(NUMBERS) for _ in range(channels)]
        message = Message("t", good(n, values, source), 0) if kind == "good" else odd(kind, n, values, source)
        messages.append(numbered(message, n))

    found = make_rows_decoder(source, channels)(messages)
    wanted = one_by_one(source, channels, messages)

    assert found is None or (wanted is not None and same(found, wanted))


def test_a_row_too_long_is_not_made_up_for_by_one_too_short() -> None:
    decode = make_rows_decoder(SourceSettings(topic="t", path="v"), 2)

    assert decode([Message("t", body, 0) for body in (b'{"v":[1,2,3]}', b'{"v":[4]}')]) is None
    assert decode([Message("t", body, 0) for body in (b'{"v":[1,2],"w":[3,4]}', b'{"v":[]}')]) is None
    single = make_rows_decoder(SourceSettings(topic="t", path="v"), 1)
    assert single([Message("t", body, 0) for body in (b'{"v":[1]}', b'{"v":[]}')]) is None


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("channels", [1, 2, 40])
def test_good_samples_are_decoded_together(name: str, channels: int) -> None:
    source = SOURCES[name]
    channels = len(source.fields) or channels
    rng = np.random.default_rng(3)
    values = rng.integers(-90, 90, (64, channels)).astype(float).tolist()
    messages = [numbered(Message("t", good(n, row, source), 0), n) for n, row in enumerate(values)]

    found = make_rows_decoder(source, channels)(messages)
    wanted = one_by_one(source, channels, messages)

    assert found is not None
    assert wanted is not None
    assert same(found, wanted)


def test_a_single_channel_may_send_a_bare_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    decode = make_rows_decoder(SourceSettings(topic="t", path="v"), 1)

    bare = decode([Message("t", b'{"v":1.5}', 0), Message("t", b'{"v":2}', 0)])
    assert bare is not None
    assert bare.values.tolist() == [[1.5], [2.0]]


def test_a_content_type_that_says_what_the_source_says_anyway_changes_nothing() -> None:
    source = SourceSettings(topic="t", format="raw")
    payload = np.zeros(2, np.float32).tobytes()
    typed = {"": 2, "application/octet-stream": 2, "application/octet-stream; dtype=int16": 0, "application/json": 0}

    for text, n in typed.items():
        found = make_rows_decoder(source, 2)([Message("t", payload, 0, properties=Properties(content_type=text))] * 2)
        assert (0 if found is None else len(found.values)) == n


def test_a_format_without_a_quicker_way_has_none() -> None:
    assert make_rows_decoder(SourceSettings(topic="t", format="cbor"), 2) is None
