from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.settings import decode, read_toml

Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]*$")]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    topic: Annotated[str, msgspec.Meta(min_length=1)]
    qos: Literal[0, 1] = 1
    fields: Annotated[tuple[str, ...], msgspec.Meta(max_length=3)] = ()
    scale: float = 1.0
    bounds: tuple[float, float] | None = None


class Queue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 256
    when_full: Literal["block", "drop_oldest", "latest_only"] = "drop_oldest"
    max_age_s: Annotated[float, msgspec.Meta(gt=0)] | None = None


class PipelineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Source
    model: str
    queue: Queue = Queue()
    retain: bool | Literal["auto"] = "auto"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    state_dir: str = "/var/lib/edge-runtime"
    min_ms: float = 1.0
    max_ms: float = 10.0

    def __post_init__(self) -> None:
        if self.min_ms > self.max_ms:
            raise ValueError(f"min_ms {self.min_ms} is above max_ms {self.max_ms}")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: Node
    pipelines: dict[Name, PipelineSettings]
    nodes: dict[str, Node] = {}


def config(text: str, tmp_path: Path) -> Config:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return decode(read_toml(path), Config, path="edge.toml")


def pipeline(**changes: Any) -> dict[str, Any]:
    return {"node": {"id": "n"}, "pipelines": {"v": {"source": {"topic": "t"}, "model": "m", **changes}}}


def source(**changes: Any) -> dict[str, Any]:
    return pipeline(source={"topic": "t", **changes})


def problem(table: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(table, Config, path="edge.toml")
    return str(caught.value)


def test_a_whole_file_becomes_structs_with_defaults_filled_in(tmp_path: Path) -> None:
    found = config(
        """
        [node]
        id = "press-hall-1"
        max_ms = 20

        [pipelines.vibration]
        source = { topic = "plant/+machine/vib", qos = 0, fields = ["x", "y"], bounds = [-1, 1.5] }
        model = "bearing"
        queue = { max = 16, max_age_s = 2 }
        retain = true
        """,
        tmp_path,
    )

    assert found == Config(
        node=Node("press-hall-1", max_ms=20.0),
        pipelines={
            "vibration": PipelineSettings(
                source=Source("plant/+machine/vib", qos=0, fields=("x", "y"), bounds=(-1.0, 1.5)),
                model="bearing",
                queue=Queue(max=16, max_age_s=2.0),
                retain=True,
            )
        },
    )
    assert type(found.node.max_ms) is float
    assert type(found.pipelines["vibration"].source.bounds[0]) is float


UNKNOWN_AND_MISSING = [
    (
        pipeline(quueue={"max": 3}),
        (
            "edge.toml: pipelines.v.quueue: unknown key, found a table with max; "
            "allowed: source, model, queue, retain; did you mean queue?"
        ),
    ),
    (
        source(Topics="x"),
        (
            'edge.toml: pipelines.v.source.Topics: unknown key, found "x"; '
            "allowed: topic, qos, fields, scale, bounds; did you mean topic?"
        ),
    ),
    (pipeline() | {"zzz": 1}, "edge.toml: zzz: unknown key, found 1; allowed: node, pipelines, nodes"),
    (
        {"node": {"ID": "n"}, "pipelines": {}},
        'edge.toml: node.ID: unknown key, found "n"; allowed: id, state_dir, min_ms, max_ms; did you mean id?',
    ),
    ({"node": {}, "pipelines": {}}, "edge.toml: node.id: missing, wanted a text"),
    (
        {"pipelines": {}},
        "edge.toml: node: missing, wanted a table with id, state_dir, min_ms, max_ms",
    ),
    (
        {"node": {"id": "n"}, "pipelines": {"v": {"model": "m", "source": {}}}},
        "edge.toml: pipelines.v.source.topic: missing, wanted a text of at least 1 character",
    ),
    ({"node": {"id": "n"}}, "edge.toml: pipelines: missing, wanted a table"),
]

WRONG_VALUES = [
    (pipeline(model=7), "edge.toml: pipelines.v.model: found 7, wanted a text"),
    (pipeline(model=True), "edge.toml: pipelines.v.model: found true, wanted a text"),
    (pipeline(model={}), "edge.toml: pipelines.v.model: found an empty table, wanted a text"),
    (pipeline(source="t"), 'found "t", wanted a table with topic, qos, fields, scale, bounds'),
    (pipeline(source=[{"topic": "t"}]), "found an array of 1, wanted a table with topic"),
    (source(scale="big"), 'edge.toml: pipelines.v.source.scale: found "big", wanted a number'),
    (source(scale=True), "pipelines.v.source.scale: found true, wanted a number"),
    (source(scale=float("nan")), "pipelines.v.source.scale: found nan, wanted a number"),
    (source(scale=float("-inf")), "pipelines.v.source.scale: found -inf, wanted a number"),
    (source(scale=10**400), "pipelines.v.source.scale: found an integer of 1329 bits, wanted a number"),
    (source(topic=""), 'source.topic: found "", wanted a text of at least 1 character'),
    (source(fields="x"), 'source.fields: found "x", wanted an array of at most 3 items, each a text'),
    (source(fields=["x", 1]), "edge.toml: pipelines.v.source.fields[1]: found 1, wanted a text"),
    (source(fields=list("abcd")), "source.fields: found an array of 4, wanted an array of at most 3 items"),
    (source(bounds=[1]), "source.bounds: found an array of 1, wanted an array of 2 items"),
    (source(bounds=[1, "x"]), 'source.bounds[1]: found "x", wanted a number'),
    (pipeline(queue={"max": 2.0}), "queue.max: found 2.0, wanted an integer of at least 1 and at most 65536"),
    (pipeline(queue={"max": 0}), "queue.max: found 0, wanted an integer of at least 1 and at most 65536"),
    (pipeline(queue={"max": 65537}), "queue.max: found 65537, wanted an integer of at least 1"),
    (pipeline(queue={"max_age_s": 0}), "queue.max_age_s: found 0, wanted a number above 0"),
    (pipeline(retain="always"), 'retain: found "always", wanted true or false or "auto"'),
    (
        pipeline(queue={"when_full": "drop_newest"}),
        (
            'edge.toml: pipelines.v.queue.when_full: found "drop_newest", '
            'wanted one of "block", "drop_oldest", "latest_only"; did you mean drop_oldest?'
        ),
    ),
    (pipeline(queue={"when_full": "BLOCK"}), '"latest_only"; did you mean block?'),
    (source(qos=2), "source.qos: found 2, wanted one of 0, 1"),
    (source(qos=True), "source.qos: found true, wanted one of 0, 1"),
    (source(qos=1.0), "source.qos: found 1.0, wanted one of 0, 1"),
    (
        {"node": {"id": "n"}, "pipelines": {"Hall 1": {}}},
        'edge.toml: pipelines."Hall 1": found the name "Hall 1", wanted a text like ^[a-z][a-z0-9_]*$',
    ),
    ({"node": {"id": "n"}, "pipelines": []}, "edge.toml: pipelines: found an array of 0, wanted a table"),
    (
        {"node": {"id": "n", "min_ms": 30}, "pipelines": {}},
        "edge.toml: node: min_ms 30.0 is above max_ms 10.0",
    ),
    (
        pipeline() | {"nodes": {"a.b": {"id": "n", "min_ms": 30}}},
        'edge.toml: nodes."a.b": min_ms 30.0 is above max_ms 10.0',
    ),
]


@pytest.mark.parametrize(("table", "expected"), UNKNOWN_AND_MISSING)
def test_an_unknown_or_missing_key_is_named_with_what_is_allowed(table: dict[str, Any], expected: str) -> None:
    assert problem(table) == expected


@pytest.mark.parametrize(("table", "expected"), WRONG_VALUES)
def test_a_value_that_does_not_fit_is_shown_beside_what_was_wanted(table: dict[str, Any], expected: str) -> None:
    found = problem(table)

    assert expected in found
    assert found.startswith("edge.toml: ")
    assert len(found) < 250


def test_the_error_carries_file_key_and_problem_apart() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(pipeline(model=7), Config, path="edge.toml")

    error = caught.value
    assert (error.path, error.key, error.problem) == ("edge.toml", "pipelines.v.model", "found 7, wanted a text")


def test_a_date_is_shown_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node\.id: found the date 2026-11-22, wanted a text"):
        config("[node]\nid = 2026-11-22\n[pipelines]", tmp_path)


def test_a_long_value_is_shortened() -> None:
    assert problem(source(scale="x" * 5000)).endswith('xxx…", wanted a number')


def test_an_unknown_key_is_told_before_a_missing_one_since_one_is_often_the_other() -> None:
    assert "did you mean topic?" in problem(pipeline(source={"topik": "t"}))


KEYS = st.sampled_from(("node", "pipelines", "v", "source", "topic", "model", "queue", "max", "id", "bounds", "ü"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


TABLES = st.dictionaries(KEYS, VALUES)


@given(table=TABLES | st.builds(lambda v: pipeline(source=v), VALUES) | st.builds(lambda v: source(bounds=v), VALUES))
def test_any_table_is_decoded_or_refused_in_one_line(table: dict[str, Any]) -> None:
    found: Config | ConfigError
    try:
        found = decode(table, Config, path="edge.toml")
    except ConfigError as error:
        found = error

    if isinstance(found, ConfigError):
        assert "\n" not in str(found)
    else:
        assert msgspec.convert(msgspec.to_builtins(found), Config) == found


@pytest.mark.parametrize(("number", "found"), [("9" * 5000, "impossible"), ("0x" + "f" * 5000, "20000 bits")])
def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path, number: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        config(f"[node]\nid = {number}\n[pipelines]", tmp_path)


class Bounded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    closed: Annotated[int, msgspec.Meta(ge=1, le=5)] = 1
    opened: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    even: Annotated[int, msgspec.Meta(multiple_of=2)] = 2
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=3)] = "a"


BOUNDED = [
    ("closed", (1, 5), (0, 6, True), "an integer of at least 1 and at most 5"),
    ("opened", (0.001, 0.999), (0, 1, 0.0, 1.0, False), "a number above 0 and below 1"),
    ("even", (0, 4), (3,), "an integer divisible by 2"),
    ("name", ("a", "abc"), ("", "abcd"), "a text of at least 1 character and at most 3 characters"),
]


@pytest.mark.parametrize(("key", "inside", "outside", "wanted"), BOUNDED)
def test_bounds_are_kept_exactly(key: str, inside: tuple[Any, ...], outside: tuple[Any, ...], wanted: str) -> None:
    for value in inside:
        assert getattr(decode({key: value}, Bounded, path="edge.toml"), key) == value
    for value in outside:
        with pytest.raises(ConfigError) as caught:
            decode({key: value}, Bounded, path="edge.toml")
        assert caught.value.problem.endswith(f", wanted {wanted}")


def test_a_type_that_cannot_come_from_toml_is_a_bug_not_a_config_error() -> None:
    class Odd(msgspec.Struct):
        when: bytes

    with pytest.raises(TypeError, match="cannot be a setting"):
        decode({"when": "x"}, Odd, path="edge.toml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[node]\nid = \n", r"not TOML: Invalid value \(at line 2, column 6\)"),
        (b"[node]\nid = 'a'\nport", r"not TOML: .* \(at end of document, line 3\)"),
        (b"[node]\nid = 'a'\n\n[node]\n", r"not TOML: .*line 4"),
        (b"[node]\nid = '\xff'\n", r"not UTF-8 \(at line 2\)"),
        (b"a = " + b"[" * 100_000, "not TOML: nested too deeply"),
    ],
)
def test_a_file_that_is_not_toml_is_refused_with_the_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=expected) as caught:
        read_toml(path)

    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read: No such file or directory"):
        read_toml(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
