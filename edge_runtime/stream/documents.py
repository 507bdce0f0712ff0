"""JSON, MessagePack and CBOR: one machinery for the rows, the bytes and the numbers inside a document."""

from __future__ import annotations

import importlib
import io
import operator
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Annotated, Any, NoReturn

import msgspec

from edge_runtime.errors import DecodeError, DependencyError
from edge_runtime.records import Floats
from edge_runtime.stream.arrays import FAST_FROM_BYTES, FastReader, array_reader
from edge_runtime.stream.source import NO_NUMBERS, Numbers, Reader, SourceSettings
from edge_runtime.stream.values import LARGEST_NUMBER, NS_PER_UNIT, frame_reader, list_reader, sequence, time_ns

Parse = Callable[[bytes], Any]
Way = Callable[[Any], Any]
ToNumbers = Callable[[str, Any], Numbers]

NUMBER = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_NUMBER)] | float
CBOR_MAX_DEPTH = 64
CBOR_TAGS = (*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)


class _MalformedError(Exception):
    """What a parser other than msgspec's says of bytes that are no document."""


def json(source: SourceSettings, channels: int) -> Reader:
    """UTF-8 text; bytes are base64 text. Long lists are read by pysimdjson, where it is installed."""
    fast = None
    if not source.fields:
        around, _, to_numbers = _shape(source, list)
        fast = array_reader(source, channels, msgspec.json.Decoder(around).decode, to_numbers)
    return _documents(source, channels, "JSON", lambda kind: msgspec.json.Decoder(kind).decode, finite=True, fast=fast)


def msgpack(source: SourceSettings, channels: int) -> Reader:
    """MessagePack; bytes are of its type bin."""
    return _documents(source, channels, "MessagePack", lambda kind: msgspec.msgpack.Decoder(kind).decode)


def cbor(source: SourceSettings, channels: int) -> Reader:
    """CBOR without tags; bytes are byte strings. Raises DependencyError when cbor2 is not installed."""
    return _documents(source, channels, "CBOR", _cbor_parser)


def _documents(
    source: SourceSettings,
    channels: int,
    name: str,
    make_parser: Callable[[Any], Parse],
    *,
    finite: bool = False,
    fast: FastReader | None = None,
) -> Reader:
    """A row of named fields, a list of rows, bytes of interleaved frames, or a nested path to either.

    finite: the format has no NaN and no infinity. fast: tried first on payloads of FAST_FROM_BYTES and more.
    """
    if source.fields and len(source.fields) != channels:
        raise ValueError(f"fields names {len(source.fields)} channels, the model takes {channels}")
    document_type, to_found, to_numbers = _shape(source, float | list[float | list[float]] | bytes)
    parse = make_parser(document_type)
    from_lists, from_frames = list_reader(source, channels, finite=finite), frame_reader(source, channels)

    def read(topic: str, payload: bytes) -> tuple[Floats, Numbers]:
        if fast is not None and len(payload) >= FAST_FROM_BYTES and (content := fast(topic, payload)) is not None:
            return content
        try:
            document = parse(payload)
        except msgspec.ValidationError as error:
            raise DecodeError(topic, "shape", str(error)) from error
        except (msgspec.DecodeError, RecursionError, _MalformedError) as error:
            raise DecodeError(topic, "malformed", f"not {name}: {error}") from error
        found = document if to_found is None else to_found(document)
        values = from_frames(topic, found)[0] if type(found) is bytes else from_lists(topic, found)
        return values, NO_NUMBERS if to_numbers is None else to_numbers(topic, document)

    return read


def _cbor_parser(kind: object) -> Parse:
    """Bytes to an object of that type.

    Tags are refused before they are read: they stand for dates, expressions and patterns, and shared values (28, 29)
    let a few bytes name a tree without end.
    """
    cbor2 = _load_cbor2()
    tagged = dict.fromkeys(CBOR_TAGS, _refuse_tag)
    make_decoder = partial(cbor2.CBORDecoder, semantic_decoders=tagged, tag_hook=_refuse_tag, max_depth=CBOR_MAX_DEPTH)
    # In a struct, because convert() works a union of its own out anew at every call.
    whole: Any = msgspec.defstruct("Whole", [("document", kind)])

    def parse(payload: bytes) -> object:
        decoder = make_decoder(io.BytesIO(payload))
        try:
            found = decoder.decode()
        except cbor2.CBORDecodeError as error:
            raise _MalformedError(f"{error}: {error.__cause__}" if error.__cause__ else str(error)) from error
        try:
            decoder.read(1)
        except cbor2.CBORDecodeEOF:
            return msgspec.convert({"document": found}, whole, builtin_types=(bytes,)).document
        raise _MalformedError("bytes after its end")

    return parse


def _refuse_tag(_found: object, _immutable: bool) -> NoReturn:
    raise ValueError("tags are not taken")


def _load_cbor2() -> ModuleType:
    """Raises DependencyError when it is not installed."""
    try:
        return importlib.import_module("cbor2")
    except ImportError as error:
        raise DependencyError("CBOR needs cbor2: pip install 'edge-runtime[cbor]'") from error


def _shape(source: SourceSettings, kind: object) -> tuple[Any, Way | None, ToNumbers | None]:
    """The type of a document, the way to its rows (None: itself), and to its sequence and time (None: not in there).

    kind: of the rows, where the source does not name what is in them.
    """
    numbers = {path: NUMBER for path in (source.seq_field, source.time_field) if path}
    if source.path:
        rows, to_rows, _ = _named(source.fields, {}) if source.fields else (kind, None, {})
        document, ways = tree_type({source.path: rows, **numbers})
        return document, _then(operator.attrgetter(ways[source.path]), to_rows), _numbers(source, ways, None)
    if source.fields:
        rows, to_rows, ways = _named(source.fields, numbers)
        return rows, to_rows, _numbers(source, ways, lambda found: found[0] if type(found) is list else found)
    if numbers:
        raise ValueError("seq_field and time_field need an object around the rows: say with path where the rows are")
    return kind, None, None


def _named(fields: tuple[str, ...], more: dict[str, Any]) -> tuple[Any, Way, dict[str, str]]:
    """The type of a row object or a list of them, the way to the numbers in them, and the attributes of a row."""
    row, ways = tree_type({**dict.fromkeys(fields, float), **more})
    get = operator.attrgetter(*(ways[name] for name in fields))
    to_row = get if len(fields) > 1 else lambda found: (get(found),)

    def to_rows(found: object) -> object:
        return list(map(to_row, found)) if type(found) is list else to_row(found)

    return row | Annotated[list[row], msgspec.Meta(min_length=1)], to_rows, ways  # type: ignore[valid-type]


def tree_type(leaves: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    """A struct type whose leaves lie at dotted paths, and the dotted attributes of each path."""
    tree: dict[str, dict[str, Any]] = {}
    for path, kind in leaves.items():
        head, _, tail = path.partition(".")
        tree.setdefault(head, {})[tail] = kind
    fields: list[tuple[str, Any]] = []
    names: dict[str, str] = {}
    ways: dict[str, str] = {}
    for i, (head, below) in enumerate(tree.items()):
        attribute = f"f{i}"
        names[attribute] = head
        if "" in below:
            if len(below) > 1:
                raise ValueError(f"{head!r} is named both as a value and as an object around one")
            fields.append((attribute, below[""]))
            ways[head] = attribute
            continue
        inner, inner_ways = tree_type(below)
        fields.append((attribute, inner))
        ways |= {f"{head}.{tail}": f"{attribute}.{way}" for tail, way in inner_ways.items()}
    return msgspec.defstruct("Document", fields, rename=names, frozen=True), ways


def _then(first: Way, second: Way | None) -> Way:
    return first if second is None else lambda value: second(first(value))


def _numbers(source: SourceSettings, ways: dict[str, str], to_holder: Way | None) -> ToNumbers | None:
    """to_holder: from the document to what has those attributes; None: itself."""
    to_seq = operator.attrgetter(ways[source.seq_field]) if source.seq_field else None
    to_time = operator.attrgetter(ways[source.time_field]) if source.time_field else None
    ns = NS_PER_UNIT[source.time_unit]
    if not (to_seq or to_time):
        return None

    def read(topic: str, document: object) -> Numbers:
        holder = document if to_holder is None else to_holder(document)
        seq = to_seq(holder) if to_seq else None
        if type(seq) is float:
            seq = sequence(topic, seq)
        return seq, time_ns(topic, to_time(holder), ns) if to_time else None

    return read
