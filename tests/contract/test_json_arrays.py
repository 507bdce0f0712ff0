"""JSON lists read by pysimdjson and by msgspec: the same Samples, or the same refusal, for every payload."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import DecodeError
from edge_runtime.records import Message
from edge_runtime.stream import arrays, documents
from edge_runtime.stream.decode import Decoder, SourceSettings, make_decoder

pytest.importorskip("simdjson", reason="pysimdjson is not installed")

LIMIT = 1 << 20
SOURCES = {
    "at the root": SourceSettings(topic="t", max_payload_bytes=LIMIT),
    "in an object": SourceSettings(topic="t", path="v", seq_field="n", max_payload_bytes=LIMIT),
    "scaled, deeper": SourceSettings(topic="t", path="d.v", seq_field="h.n", time_field="h.t", scale=-0.5, offset=2.0),
}
AROUND = {
    "at the root": b"%s",
    "in an object": b'{"n":7,"v":%s}',
    "scaled, deeper": b'{"h":{"n":7,"t":1},"d":{"v":%s}}',
}
CHANNELS = (1, 3)


@pytest.fixture(autouse=True, scope="module")
def every_length() -> Iterator[None]:
    """Lists of any length go through pysimdjson."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "FAST_FROM_BYTES", 0)
        yield


def by_msgspec(source: SourceSettings, channels: int) -> Decoder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "simdjson", None)
        return make_decoder(source, channels)


PAIRS = {
    (name, channels): (make_decoder(source, channels), by_msgspec(source, channels))
    for name, source in SOURCES.items()
    for channels in CHANNELS
}


def judged(decode: Decoder, payload: bytes) -> tuple[object, ...]:
    try:
        samples = decode(Message("t", payload, 5), "s")
    except DecodeError as error:
        return error.reason, error.detail
    return samples.values.shape, samples.values.tobytes(), samples.seq, samples.sensor_unix_ns


def same(payload: bytes) -> None:
    for fast, exact in PAIRS.values():
        assert judged(fast, payload) == judged(exact, payload)


def only_fast(monkeypatch: pytest.MonkeyPatch, source: SourceSettings, channels: int) -> Decoder:
    """A decoder that has nothing but pysimdjson for lists."""

    def unused(*_: object, **__: object) -> Callable[..., object]:
        def read(*_: object) -> object:
            raise AssertionError("read by msgspec")

        return read

    monkeypatch.setattr(documents, "list_reader", unused)
    return make_decoder(source, channels)


LISTS: dict[bytes, dict[int, object]] = {
    b"[1,2,3]": {1: [[1], [2], [3]], 3: [[1, 2, 3]]},
    b"[[1,2,3],[4,5,6]]": {1: "shape", 3: [[1, 2, 3], [4, 5, 6]]},
    b"[[1],[2],[3]]": {1: [[1], [2], [3]], 3: "shape"},
    b" [ [ 1 ,\n2 ,\t3 ] ,\r\n [ 4e0 , 5E+0 , 6.0 ] ] ": {1: "shape", 3: [[1, 2, 3], [4, 5, 6]]},
    b"[[1,2],[3,4,5,6]]": {1: "shape", 3: "shape"},
    b"[[1,2,3],[4,5]]": {1: "shape", 3: "shape"},
    b"[[1,2,3],[]]": {1: "shape", 3: "shape"},
    b"[[],[1],[2]]": {1: "shape", 3: "shape"},
    b"[1,[2],3]": {1: "shape", 3: "shape"},
    b"[1,[2,[3]]]": {1: "shape", 3: "shape"},
    b"[[[1,2,3]],[4,5,6]]": {1: "shape", 3: "shape"},
    b"[1,[2,[3],4,5,6]]": {1: "shape", 3: "shape"},
    b"[1,2]": {1: [[1], [2]], 3: "shape"},
    b"[1,2,3,4,5,6]": {1: [[1], [2], [3], [4], [5], [6]], 3: "shape"},
    b"[]": {1: "shape", 3: "shape"},
    b"[[]]": {1: "shape", 3: "shape"},
    b"[[],[],[]]": {1: "shape", 3: "shape"},
    b'[1,"2",3]': {1: "shape", 3: "shape"},
    b'["1","2","3"]': {1: "shape", 3: "shape"},
    b'["[1,2,3]"]': {1: "shape", 3: "shape"},
    b"[1,true,3]": {1: "shape", 3: "shape"},
    b"[1,null,3]": {1: "shape", 3: "shape"},
    b"[1,{},3]": {1: "shape", 3: "shape"},
    b"[{}]": {1: "shape", 3: "shape"},
    b"[9007199254740993,-9223372036854775808,18446744073709551615]": {
        1: [[2**53], [-(2**63)], [2**64]],
        3: [[2**53, -(2**63), 2**64]],
    },
    b"[18446744073709551616,1180591620717411303424,-9223372036854775809]": {
        1: [[2**64], [2**70], [-(2**63)]],
        3: [[2**64, 2**70, -(2**63)]],
    },
    b"[1e999,1,1]": {1: "shape", 3: "shape"},
    b"[1e-999,-0,-0.0]": {1: [[0.0], [0.0], [-0.0]], 3: [[0.0, 0.0, -0.0]]},
    b"[1e39,1,1]": {1: "not_finite", 3: "not_finite"},
    b"[3.4028235e38,1,1]": {1: [[np.finfo("f4").max], [1], [1]], 3: [[np.finfo("f4").max, 1, 1]]},
    b"[3.4028236e38,1,1]": {1: "not_finite", 3: "not_finite"},
    b"[NaN,1,1]": {1: "malformed", 3: "malformed"},
    b"[Infinity,1,1]": {1: "malformed", 3: "malformed"},
    b"[01,1,1]": {1: "malformed", 3: "malformed"},
    b"[1.,1,1]": {1: "malformed", 3: "malformed"},
    b"[+1,1,1]": {1: "malformed", 3: "malformed"},
    b"[1,2,3,]": {1: "malformed", 3: "malformed"},
    b"[1 2 3]": {1: "malformed", 3: "malformed"},
    b"[1,2,3": {1: "malformed", 3: "malformed"},
    b"[1,2,3]]": {1: "malformed", 3: "malformed"},
    b"[[1,2,3]": {1: "malformed", 3: "malformed"},
    b"]1,2,3[": {1: "malformed", 3: "malformed"},
    b"[1,2,\xff3]": {1: "malformed", 3: "malformed"},
    b"[1,2,3]\x00": {1: "malformed", 3: "malformed"},
    b"[" * 3000 + b"]" * 3000: {1: "shape", 3: "shape"},
    b"[1," * 3000 + b"1" + b"]" * 3000: {1: "shape", 3: "shape"},
}


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("text", LISTS, ids=lambda text: repr(text[:40]))
def test_a_list_is_judged_alike_and_rightly(text: bytes, channels: int) -> None:
    wanted = LISTS[text][channels]
    for name in ("at the root", "in an object"):
        fast, exact = (judged(decode, AROUND[name] % text) for decode in PAIRS[name, channels])
        assert fast == exact
        if isinstance(wanted, str):
            assert fast[0] == wanted
        else:
            assert fast[:2] == (np.shape(wanted), np.array(wanted, "f4").tobytes())


WHOLE = [
    b'{"n":7,"v":[[1,2,3]],"v":[[4,5,6]]}',
    b'{"v":[[1,2,3]],"n":7,"n":8}',
    b'{"n":7,"\\u0076":[1,2,3]}',
    b'{"n":7,"v":[1,2,3],"\\u0076":5}',
    b'{"n":7,"v":5,"v":[1,2,3]}',
    b'{"n":7,"s":"[1,2,3]","v":[]}',
    b'{"n":7,"s":"[1,2,3]","v":5}',
    b'{"n":7,"s":"[","v":[1,2,3],"u":"]"}',
    b'{"n":7,"s":"\\"v\\":","v":[1,2,3]}',
    b'{"n":7,"w":[1,2,3],"v":"AAAAAAAAAAAAAAAA"}',
    b'{"n":7,"w":[1],"v":[1,2,3]}',
    b'{"n":7,"v":[1,2,3],"w":[{}]}',
    b'{"n":7,"w":[1,2,3]}',
    b'{"n":7,"v":{"v":[1,2,3]}}',
    b'{"n":-1,"v":[1,2,3]}',
    b'{"n":7.5,"v":[1,2,3]}',
    b'{"n":7.0,"v":[1,2,3]}',
    b'{"n":9223372036854775808,"v":[1,2,3]}',
    b'{"n":"7","v":[1,2,3]}',
    b'{"n":[7],"v":[1,2,3]}',
    b'{"v":[1,2,3]}',
    b'[{"n":7,"v":[1,2,3]}]',
    b'{"n":7,"v":[1,2,3]',
    b'{"n":7,"v":[1,2,3]}}',
    b'{"n":7 "v":[1,2,3]}',
    b'{"n":7,"s":"\xff","v":[1,2,3]}',
    b'{"n":7,"s":"\\ud800","v":[1,2,3]}',
    b'{"n":7,"v":[1,2,3],"z":' + b'{"z":' * 900 + b"1" + b"}" * 901,
    b'{"n":7,"z":' + b"[" * 900 + b"]" * 900 + b',"v":[1,2,3]}',
    b'{"h":{"n":7,"t":-1},"d":{"v":[1,2,3]}}',
    b'{"h":{"n":7,"t":1e300},"d":{"v":[[1,2,3]]}}',
    b'{"h":{"n":7,"t":1},"d":[{"v":[1,2,3]}]}',
    b"\xef\xbb\xbf[1,2,3]",
    b'\xef\xbb\xbf{"n":7,"v":[1,2,3]}',
    b"[1,2,3]x",
    b"x[1,2,3]",
    b'"[1,2,3]"',
    b"7",
    b"[",
    b"]",
    b"][",
    b" ",
]


@pytest.mark.parametrize("payload", WHOLE, ids=lambda payload: repr(payload[:60]))
def test_a_document_is_judged_alike(payload: bytes) -> None:
    same(payload)


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-9, 9).map(str),
)
ODD = st.sampled_from(["1e999", "1E5", "01", "1.", "NaN", "-Infinity", "+1", ".5", "true", "null", '"1"', "{}", "[]"])
SPACE = st.sampled_from(["", "", " ", "\n\t ", "\r\n"])
ROWS = st.one_of(
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3), max_size=5),
    st.lists(st.lists(st.one_of(NUMBERS, NUMBERS, ODD), max_size=4), max_size=4),
    st.lists(st.one_of(NUMBERS, NUMBERS, st.lists(NUMBERS, max_size=3)), max_size=6),
)
WRAPS = [
    *(around.decode() for around in AROUND.values()),
    '{"v":%s,"n":7}',
    '{"n":7,"v":%s,"w":[1]}',
    '{"s":"[","n":7,"v":%s}',
    '{"n":7,"v":[4,5,6],"v":%s}',
    '{"n":7,"v":[%s]}',
    "\ufeff%s",
    "%s]",
    "%s ",
]


def written(rows: object, space: str) -> str:
    if isinstance(rows, str):
        return f"{space}{rows}{space}"
    return f"{space}[{','.join(written(row, space) for row in rows)}]{space}"


@given(rows=ROWS, wrap=st.sampled_from(WRAPS), space=SPACE)
def test_rows_of_every_kind_are_judged_alike(rows: list[object], wrap: str, space: str) -> None:
    same(wrap.replace("%s", written(rows, space)).encode())


@given(rows=ROWS, wrap=st.sampled_from(WRAPS), seed=st.integers(0, 2**32), edits=st.integers(1, 4))
def test_damaged_documents_are_judged_alike(rows: list[object], wrap: str, seed: int, edits: int) -> None:
    chance, payload = random.Random(seed), bytearray(wrap.replace("%s", written(rows, "")).encode())
    for _ in range(edits):
        at = chance.randrange(len(payload) + 1)
        payload[at : at + chance.choice((0, 0, 1, 3))] = chance.choice(
            [
                b"[",
                b"]",
                b",",
                b'"',
                b"{",
                b"}",
                b":",
                b"e9",
                b"-",
                b"\\",
                b" ",
                b"\xff",
                b"\x00",
                b"",
                payload[at : at + 9],
            ]
        )
    same(bytes(payload))


@pytest.mark.parametrize("name", SOURCES)
def test_rows_are_read_by_pysimdjson_whatever_came_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decode = only_fast(monkeypatch, SOURCES[name], 3)
    rows = np.random.default_rng(1).normal(size=(40, 3))
    payload = AROUND[name] % json.dumps(rows.tolist()).encode()
    for before in (b"", *LISTS, *WHOLE):
        with suppress(DecodeError, AssertionError):
            decode(Message("t", (AROUND[name] % before) if before in LISTS else before, 5), "s")
        found = decode(Message("t", payload, 5), "s").values
        assert np.array_equal(found, (rows * SOURCES[name].scale + SOURCES[name].offset).astype("f4"))


def test_what_was_decoded_stays_when_the_parser_reads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = only_fast(monkeypatch, SOURCES["at the root"], 3)

    kept = [decode(Message("t", b"[[%d,2,3]]" % i, 5), "s").values for i in range(50)]

    assert [values.tolist() for values in kept] == [[[i, 2, 3]] for i in range(50)]


def test_short_payloads_are_left_to_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "FAST_FROM_BYTES", 100)
    decode = only_fast(monkeypatch, SOURCES["at the root"], 3)

    with pytest.raises(AssertionError, match="read by msgspec"):
        decode(Message("t", b"[1,2,3]" + b" " * 92, 5), "s")
    assert decode(Message("t", b"[1,2,3]" + b" " * 93, 5), "s").values.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("broken", [None, "raises"])
def test_without_pysimdjson_msgspec_reads_them_and_says_so(monkeypatch: pytest.MonkeyPatch, broken: str | None) -> None:
    assert arrays.json_reader().startswith("simdjson ")
    monkeypatch.setitem(sys.modules, "simdjson", None)
    if broken:
        monkeypatch.delitem(sys.modules, "simdjson")
        monkeypatch.setitem(sys.modules, "csimdjson", None)

    assert arrays.json_reader() == f"msgspec {msgspec.__version__}"
    decode = make_decoder(SOURCES["at the root"], 3)
    assert decode(Message("t", b"[[1,2,3]]", 5), "s").values.tolist() == [[1, 2, 3]]
