"""Searched parameters as axes: where a value lies between the ends of its range, and what stands at the ticks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qlora_ray.formats import format_number, format_value, short_path, shorten
from qlora_ray.runs.typed_json import parse_number

# A choice of many words would push the chart aside.
MAX_LABEL = 18
# Ticks nearer than this to an end, of the axis's length, would run into its label.
TICK_GAP = 0.1
NICE_STEPS = (1, 2, 5)
# With more round values than this on a log axis, only powers of ten are left.
MAX_LOG_VALUES = 6


@dataclass(frozen=True)
class Axis:
    """One searched parameter: a list of choices, or a range on a linear or a log scale."""

    path: str
    kind: Literal["choice", "linear", "log"]
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def name(self) -> str:
        """The key without its section: `learning_rate`."""
        return short_path(self.path)

    def place(self, value: Any) -> float | None:
        """Where a value lies, from 0 to 1; None for one that is not on the axis."""
        if self.kind == "choice":
            found = next((i for i, choice in enumerate(self.choices) if encode(choice) == encode(value)), None)
            return None if found is None else self._choice_place(found)
        number = parse_number(value)
        if number is None or (self.kind == "log" and number <= 0):
            return None
        low, high = self._scale(self.low), self._scale(self.high)
        return (self._scale(number) - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Places and their labels: every choice; of a range the ends, and round values or the middle in between."""
        if self.kind == "choice":
            return [
                (self._choice_place(i), shorten(format_value(choice), MAX_LABEL))
                for i, choice in enumerate(self.choices)
            ]
        if self.high <= self.low:
            return [(0.5, format_number(self.low))]
        inner = log_values(self.low, self.high) if self.kind == "log" else [(self.low + self.high) / 2]
        placed = [(place, value) for value in inner if TICK_GAP < (place := self.place(value) or 0.0) < 1 - TICK_GAP]
        ends = [(0.0, self.low), (1.0, self.high)]
        return [(place, format_number(value)) for place, value in sorted([*placed, *ends])]

    def _choice_place(self, index: int) -> float:
        return index / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.kind == "log" else value


def read_axes(space: Mapping[str, Any], params: Iterable[Mapping[str, Any]]) -> tuple[Axis, ...]:
    """The axes of a space as the manifest has it; of parameters it does not name, from the trials' own values."""
    params = list(params)
    axes = [axis for path, words in space.items() if (axis := _read_axis(str(path), words)) is not None]
    known = {axis.path for axis in axes}
    others = dict.fromkeys(path for point in params for path in point if path not in known)
    for path in others:
        values = [point[path] for point in params if path in point]
        axes.append(axis_of_values(path, values))
    return tuple(axes)


def axis_of_values(path: str, values: Iterable[Any], *, log: bool = False) -> Axis:
    """An axis that spans the values; a choice if any of them is not a number.

    Args:
        path: The axis's name: a parameter's config path, or `loss`.
        values: The trials' values.
        log: Whether it is to be logarithmic; with a value of 0 or below it is linear all the same.
    """
    values = list(values)
    numbers = [number for value in values if (number := parse_number(value)) is not None]
    if len(numbers) < len(values) or not numbers:
        distinct = {encode(value): value for value in values}
        return Axis(path, "choice", choices=tuple(distinct[key] for key in sorted(distinct)))
    is_log = log and min(numbers) > 0
    return Axis(path, "log" if is_log else "linear", low=min(numbers), high=max(numbers))


def _read_axis(path: str, words: Any) -> Axis | None:
    if not isinstance(words, Mapping):
        return None
    choices = words.get("choices")
    if isinstance(choices, list) and choices:
        return Axis(path, "choice", choices=tuple(choices))
    low, high = parse_number(words.get("low")), parse_number(words.get("high"))
    if low is None or high is None:
        return None
    return Axis(path, "log" if words.get("log") and low > 0 else "linear", low=low, high=high)


def encode(value: Any) -> str:
    """A value as text that tells it from any other; 8 and 8.0 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def log_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between two positive numbers; only powers of ten where these are many."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    values = [step * power for power in powers for step in NICE_STEPS if low <= step * power <= high]
    return values if len(values) <= MAX_LOG_VALUES else [power for power in powers if low <= power <= high]
