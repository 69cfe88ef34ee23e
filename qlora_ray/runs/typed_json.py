"""Frozen dataclasses from JSON and back. Reading is lenient: files of older and newer versions have other keys."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from qlora_ray.runs.files import to_plain_json

Record = TypeVar("Record")

# The field of a dataclass that takes the keys no other field has.
EXTRA = "extra"
_OLD_KEY, _OLD_VALUES = "old_key", "old_values"


def renamed(*, key: str | None = None, values: Mapping[str, str] | None = None) -> Any:
    """A field, None by default, that files of older versions have under another key, or with other values."""
    return dataclasses.field(default=None, metadata={_OLD_KEY: key, _OLD_VALUES: values or {}})


def parse_record(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A dataclass from a JSON object.

    Every field must have a default: it is taken where the object lacks the key, or has a value of another type. Unknown
    keys go into the field `extra` where the class has one, and are ignored where it has none.

    Args:
        kind: A dataclass whose fields are plain JSON types, enums, mappings, tuples of one type, or such dataclasses.
        data: The object. Numbers that are not finite count as absent.
    """
    rest, known = dict(data), {}
    types_of = _types_of(kind)  # type: ignore[arg-type]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name == EXTRA:
            continue
        value = rest.pop(_key_of(field, rest), None)
        if isinstance(value, str):
            value = field.metadata.get(_OLD_VALUES, {}).get(value, value)
        parsed = _parse(types_of[field.name], value)
        if parsed is not None:
            known[field.name] = parsed
    if EXTRA in types_of:
        known[EXTRA] = rest
    return kind(**known)


def find_type_error(kind: Any, value: Any, *, where: str = "") -> str | None:
    """The first value that `parse_record` takes for absent because it is of another type; None if there is none.

    Args:
        kind: As for `parse_record`, or the type of one of its fields.
        value: The JSON value. Null, empty text and numbers that are not finite are of every type; null in a list is
            not.
        where: The value's key, as `dataset.num_rows`; empty for a whole object.

    Returns:
        A phrase such as `dataset.num_rows must be an object, got list`.
    """
    if kind is Any or value is None:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kind = next(choice for choice in arguments if choice is not types.NoneType)
        return find_type_error(kind, value, where=where)
    parts: Iterable[tuple[Any, Any, str]]
    if origin is tuple and isinstance(value, list | tuple):
        if None in value and not _takes_none(arguments[0]):
            return f"{where}[{value.index(None)}] must be {_describe_type(arguments[0])}, got null"
        parts = ((arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    elif origin not in (None, tuple) and isinstance(value, Mapping):
        parts = ((arguments[1], item, f"{where}.{key}") for key, item in value.items())
    elif dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        prefix = f"{where}." if where else ""
        keys = {field.name: _key_of(field, value) for field in dataclasses.fields(kind) if field.name != EXTRA}
        types_of = _types_of(kind)  # type: ignore[arg-type]
        parts = ((types_of[name], value.get(key), f"{prefix}{key}") for name, key in keys.items())
    else:
        is_absent = value == "" or (isinstance(value, float) and not math.isfinite(value))
        if is_absent or _parse(kind, value) is not None:
            return None
        return f"{where} must be {_describe_type(kind)}, got {type(value).__name__}"
    found = (find_type_error(part, item, where=key) for part, item, key in parts)
    return next((error for error in found if error is not None), None)


def to_json(value: Any) -> Any:
    """A dataclass, or anything with dataclasses in it, as JSON values; numbers that are not finite become None."""
    return to_plain_json(_unfold(value))


@cache
def _types_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _key_of(field: dataclasses.Field[Any], data: Mapping[str, Any]) -> str:
    """The key that an object has for a field: its name, or that of older versions."""
    old_key = field.metadata.get(_OLD_KEY)
    return field.name if field.name in data or old_key is None else old_key


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "a list"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    return names.get(kind, "an object")


def _parse(kind: Any, value: Any) -> Any:
    """The value as this type; None where it is of another."""
    if kind is Any or value is None:
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _parse(next(choice for choice in arguments if choice is not types.NoneType), value)
    if origin is tuple:
        return _parse_items(arguments[0], value) if isinstance(value, list | tuple) else None
    if origin is not None:
        return _parse_mapping(value, *arguments) if isinstance(value, Mapping) else None
    if dataclasses.is_dataclass(kind):
        return parse_record(kind, value) if isinstance(value, Mapping) else None  # type: ignore[arg-type]
    if issubclass(kind, Enum):
        return next((member for member in kind if member.value == value), None)
    if kind is bool:
        return value if isinstance(value, bool) else None
    if kind is str:
        return None if isinstance(value, dict | list) else str(value) or None
    return parse_number(value, kind)


def _parse_items(kind: Any, values: Iterable[Any]) -> tuple[Any, ...]:
    """The items of this type; others are left out, or None where the type allows it."""
    parsed = (_parse(kind, value) for value in values)
    return tuple(item for item in parsed if item is not None or _takes_none(kind))


def _parse_mapping(values: Mapping[Any, Any], key_type: type, kind: Any) -> dict[Any, Any]:
    """As `_parse_items`; keys are text in JSON."""
    if key_type is int:
        values = {int(key): value for key, value in values.items() if str(key).isdecimal()}
    parsed = {key: _parse(kind, value) for key, value in values.items()}
    return {key: value for key, value in parsed.items() if value is not None or _takes_none(kind)}


def _takes_none(kind: Any) -> bool:
    return kind is Any or types.NoneType in get_args(kind)


def parse_number(value: Any, kind: type[float] | type[int] = float) -> Any:
    """The value if it is a finite number, else None; whole numbers stay whole where a float is asked for."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        return None
    return int(value) if kind is int else value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number of hundreds of digits, which no float holds
        return False


def _unfold(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        unfolded = {field.name: _unfold(getattr(value, field.name)) for field in dataclasses.fields(value)}
        extra = unfolded.pop(EXTRA, {})
        return {**unfolded, **extra}
    if isinstance(value, Mapping):
        return {key: _unfold(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unfold(item) for item in value]
    return value.value if isinstance(value, Enum) else value
