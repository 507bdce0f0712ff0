"""TOML in, settings structs out; what does not fit is an error that says where, what was found and what was wanted.

A settings struct is a `msgspec.Struct` of texts, numbers, booleans, Literals, tuples, other structs and dicts of them.
Bounds are `msgspec.Meta` constraints, and a `__post_init__` that raises ValueError is reported at its table's key.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import inspect

from edge_runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)
Number = inspect.IntType | inspect.FloatType

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MOST_SHOWN = 80
_LARGEST_FLOAT_BITS = 1023


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises ConfigError naming the file and, for a syntax error, the line.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(path), "", f"not UTF-8 (at line {line})") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = len(text.splitlines())
        problem = str(error).replace("at end of document", f"at end of document, line {last}")
        raise ConfigError(str(path), "", f"not TOML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(str(path), "", "not TOML: nested too deeply") from error
    except ValueError as error:
        raise ConfigError(str(path), "", f"a number or date in it is impossible: {error}") from error


def decode(table: Mapping[str, Any], type_: type[T], *, path: str) -> T:
    """The struct that a parsed TOML table describes. path: names the file in errors.

    Raises ConfigError at the first unknown or missing key, or value that does not fit.
    """
    return cast("T", _value(table, inspect.type_info(type_), _Place(path, "")))


class _Place(NamedTuple):
    """Where in the file we are. key: dotted, "" at the top."""

    path: str
    key: str

    def child(self, name: str) -> _Place:
        written = name if _BARE_KEY.fullmatch(name) else _quote(name)
        return _Place(self.path, f"{self.key}.{written}" if self.key else written)

    def item(self, index: int) -> _Place:
        return _Place(self.path, f"{self.key}[{index}]")

    def error(self, problem: str) -> ConfigError:
        return ConfigError(self.path, self.key, problem)


def _value(value: object, wanted: inspect.Type, place: _Place) -> object:
    match wanted, value:
        case inspect.UnionType(), _:
            return _any_of(value, wanted, place)
        case inspect.StructType(), Mapping():
            return _struct(value, wanted, place)
        case inspect.DictType(), Mapping():
            return _dict(value, wanted, place)
        case inspect.VarTupleType() | inspect.TupleType(), list() if _length_fits(len(value), wanted):
            return _tuple(value, wanted, place)
    if _fits(value, wanted):
        return float(cast("float", value)) if isinstance(wanted, inspect.FloatType) else value
    hint = _nearest(value, wanted.values) if isinstance(wanted, inspect.LiteralType) else ""
    raise place.error(f"found {_found(value)}, wanted {_wanted(wanted)}{hint}")


def _struct(table: Mapping[str, Any], wanted: inspect.StructType, place: _Place) -> object:
    fields = {field.encode_name: field for field in wanted.fields}
    for key, value in table.items():
        if key not in fields:
            allowed = f"allowed: {', '.join(fields)}" if fields else "no keys are allowed here"
            hint = _nearest(key, fields)
            raise place.child(key).error(f"unknown key, found {_found(value)}; {allowed}{hint}")
    for key, field in fields.items():
        if field.required and key not in table:
            raise place.child(key).error(f"missing, wanted {_wanted(field.type)}")
    values = {fields[key].name: _value(value, fields[key].type, place.child(key)) for key, value in table.items()}
    try:
        return wanted.cls(**values)
    except ValueError as error:
        raise place.error(str(error)) from error


def _dict(table: Mapping[str, Any], wanted: inspect.DictType, place: _Place) -> dict[str, object]:
    for key in table:
        if not _fits(key, wanted.key_type):
            raise place.child(key).error(f"found the name {_found(key)}, wanted {_wanted(wanted.key_type)}")
    if not _length_fits(len(table), wanted):
        raise place.error(f"found {_found(table)}, wanted {_wanted(wanted)}")
    return {key: _value(value, wanted.value_type, place.child(key)) for key, value in table.items()}


def _tuple(values: list[Any], wanted: inspect.VarTupleType | inspect.TupleType, place: _Place) -> tuple[object, ...]:
    types = (wanted.item_type,) * len(values) if isinstance(wanted, inspect.VarTupleType) else wanted.item_types
    return tuple(_value(value, types[i], place.item(i)) for i, value in enumerate(values))


def _any_of(value: object, wanted: inspect.UnionType, place: _Place) -> object:
    """What the alternative for this kind of value makes of it; TOML has no null, so None is never one."""
    alternatives = _alternatives(wanted)
    if len(alternatives) == 1:
        return _value(value, alternatives[0], place)
    for alternative in alternatives:
        if _takes(value, alternative):
            return _value(value, alternative, place)
    raise place.error(f"found {_found(value)}, wanted {_wanted(wanted)}")


def _takes(value: object, wanted: inspect.Type) -> bool:
    """Whether this is the alternative meant; what is inside a table or an array is looked at later."""
    if isinstance(wanted, inspect.StructType | inspect.DictType):
        return isinstance(value, Mapping)
    if isinstance(wanted, inspect.VarTupleType | inspect.TupleType):
        return isinstance(value, list)
    return _fits(value, wanted)


def _alternatives(wanted: inspect.UnionType) -> list[inspect.Type]:
    return [type_ for type_ in wanted.types if not isinstance(type_, inspect.NoneType)]


def _fits(value: object, wanted: inspect.Type) -> bool:
    match wanted:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _within(value, wanted)
        case inspect.FloatType():
            return _is_finite_number(value) and _within(cast("float", value), wanted)
        case inspect.StrType():
            return isinstance(value, str) and _text_fits(value, wanted)
        case inspect.LiteralType():
            return any(type(value) is type(choice) and value == choice for choice in wanted.values)
        case inspect.StructType() | inspect.DictType() | inspect.VarTupleType() | inspect.TupleType():
            return False
    raise TypeError(f"{wanted} cannot be a setting")


def _text_fits(text: str, wanted: inspect.StrType) -> bool:
    """NUL stands neither in paths nor in MQTT's texts."""
    return "\x00" not in text and _length_fits(len(text), wanted) and _matches(text, wanted.pattern)


def _is_finite_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= _LARGEST_FLOAT_BITS


def _within(value: float, wanted: Number) -> bool:
    return (
        (wanted.ge is None or value >= wanted.ge)
        and (wanted.gt is None or value > wanted.gt)
        and (wanted.le is None or value <= wanted.le)
        and (wanted.lt is None or value < wanted.lt)
        and (wanted.multiple_of is None or value % wanted.multiple_of == 0)
    )


def _length_fits(
    length: int, wanted: inspect.StrType | inspect.DictType | inspect.VarTupleType | inspect.TupleType
) -> bool:
    if isinstance(wanted, inspect.TupleType):
        return length == len(wanted.item_types)
    return length >= (wanted.min_length or 0) and (wanted.max_length is None or length <= wanted.max_length)


def _matches(value: str, pattern: str | None) -> bool:
    return pattern is None or re.search(pattern, value) is not None


def _found(value: object) -> str:
    """A value as the file has it, shortened."""
    match value:
        case bool():
            text = "true" if value else "false"
        case str():
            text = _quote(value if len(value) <= _MOST_SHOWN else value[:_MOST_SHOWN] + "…")
        case int() if value.bit_length() > _LARGEST_FLOAT_BITS:
            text = f"an integer of {value.bit_length()} bits"
        case int() | float():
            text = repr(value)
        case list():
            text = f"an array of {len(value)}"
        case Mapping():
            text = f"a table with {', '.join(map(str, value))}"[:_MOST_SHOWN] if value else "an empty table"
        case _:
            text = f"the {type(value).__name__} {value}"
    return text


def _quote(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _wanted(wanted: inspect.Type) -> str:
    match wanted:
        case inspect.UnionType():
            text = " or ".join(map(_wanted, _alternatives(wanted)))
        case inspect.LiteralType(values=choices):
            text = ("one of " if len(choices) > 1 else "") + ", ".join(map(_found, choices))
        case inspect.BoolType():
            text = "true or false"
        case inspect.IntType():
            text = f"an integer{_bounds(wanted)}"
        case inspect.FloatType():
            text = f"a number{_bounds(wanted)}"
        case inspect.StrType():
            text = f"a text{_lengths(wanted, 'character')}" + (f" like {wanted.pattern}" if wanted.pattern else "")
        case inspect.StructType():
            text = f"a table with {', '.join(field.encode_name for field in wanted.fields)}"
        case inspect.DictType():
            text = f"a table{_lengths(wanted, 'key')}"
        case inspect.TupleType() | inspect.VarTupleType():
            text = _wanted_array(wanted)
        case _:
            raise TypeError(f"{wanted} cannot be a setting")
    return text


def _wanted_array(wanted: inspect.VarTupleType | inspect.TupleType) -> str:
    if isinstance(wanted, inspect.VarTupleType):
        return f"an array{_lengths(wanted, 'item')}, each {_wanted(wanted.item_type)}"
    return f"an array of {len(wanted.item_types)} items"


def _bounds(wanted: Number) -> str:
    parts = (
        ("at least", wanted.ge),
        ("above", wanted.gt),
        ("at most", wanted.le),
        ("below", wanted.lt),
        ("divisible by", wanted.multiple_of),
    )
    return _joined(f"{words} {bound}" for words, bound in parts if bound is not None)


def _lengths(wanted: inspect.StrType | inspect.DictType | inspect.VarTupleType, item: str) -> str:
    parts = (("at least", wanted.min_length), ("at most", wanted.max_length))
    return _joined(f"{words} {bound} {item}{'' if bound == 1 else 's'}" for words, bound in parts if bound is not None)


def _joined(parts: Iterable[str]) -> str:
    text = " and ".join(parts)
    return f" of {text}" if text.startswith("at ") else f" {text}" if text else ""


def _nearest(word: object, allowed: Iterable[object]) -> str:
    """A question that offers the allowed word most like this one, "" when none is near."""
    if not isinstance(word, str):
        return ""
    import difflib  # noqa: PLC0415  only for a mistake

    by_lower = {choice.lower(): choice for choice in allowed if isinstance(choice, str)}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
