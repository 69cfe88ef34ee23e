"""Values of records as words: bytes, seconds and times by the names of their keys, nested mappings as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qlora_ray.formats import format_bytes, format_duration, format_time, format_value
from qlora_ray.pages.blocks import Table
from qlora_ray.runs.typed_json import parse_number

# Keys of records that hold seconds since 1970.
TIME_KEYS = ("opened", "closed")


def format_fact(key: str, value: Any) -> str:
    """A record's value in the unit that its key names."""
    number = parse_number(value)
    if number is None:
        return format_value(value)
    if key.endswith("_bytes"):
        return format_bytes(number)
    if key in TIME_KEYS:
        return format_time(number)
    if key.endswith("_s") and not key.endswith("per_s"):
        return f"{number:.1f} s" if number < 60 else format_duration(number)
    if isinstance(value, int):
        return str(value)
    # What really ran is shown as it ran, not rounded.
    return repr(value) if number != int(number) else format_value(value)


def table_of(values: Mapping[str, Any]) -> Table:
    """Two columns: a key with its sections, and its value."""
    rows = tuple((".".join(path), format_fact(path[-1], value)) for path, value in flatten(values))
    return Table(("", "value"), rows)


def flatten(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of nested mappings with its path; an empty mapping is a leaf. Mappings in a list go by their place."""
    for key, value in values.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path)
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from flatten({str(place): item for place, item in enumerate(value)}, path)
        else:
            yield path, "none" if value == {} else value
