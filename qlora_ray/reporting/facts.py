"""Values of records as words: bytes, seconds and times by the names of their keys, nested mappings as tables."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_ray import console
from qlora_ray.console import format_duration
from qlora_ray.pages.blocks import Table
from qlora_ray.reporting.axes import format_number, format_value
from qlora_ray.reporting.trials import as_number

UNITS = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
# Keys of records that hold seconds since 1970.
TIME_KEYS = ("opened", "closed")


def format_bytes(num_bytes: float | None) -> str:
    """`1.42 GiB`; `-` for None."""
    if num_bytes is None:
        return "-"
    for unit, size in UNITS:
        if abs(num_bytes) >= size:
            return f"{format_number(num_bytes / size)} {unit}"
    return f"{num_bytes:.0f} B"


def format_time(seconds: float | None) -> str:
    """A time since 1970 in UTC, to the second; `-` for None."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def format_count(number: float | None) -> str:
    """A whole number with its thousands apart; `-` for None."""
    return "-" if number is None else f"{number:,.0f}"


def format_loss(loss: float | None) -> str:
    """A loss to four decimals, as the sweep prints it; smaller ones to four digits; `-` for None and NaN."""
    return "-" if loss is None or math.isnan(loss) else console.format_score(loss, digits=4)


def format_score(score: float | None) -> str:
    """A metric's mean, as the sweep prints it; `-` for None and NaN."""
    return "-" if score is None or math.isnan(score) else console.format_score(score)


def plural(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_fact(key: str, value: Any) -> str:
    """A record's value in the unit that its key names."""
    number = as_number(value)
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
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            yield from flatten({str(place): one for place, one in enumerate(value)}, path)
        else:
            yield path, "none" if value == {} else value
