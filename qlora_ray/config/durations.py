"""Lengths of time in a config: `90m`, `2h`, `1h30m`, `1d`, or seconds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_NUMBER = r"\d+(?:\.\d+)?"
_PARTS = re.compile(rf"({_NUMBER})\s*([smhd])")
_WHOLE = re.compile(rf"(?:{_NUMBER}\s*[smhd]\s*)+")


def parse_duration(value: object) -> object:
    """Returns the seconds that a text says; what is no text stays as it is, and so does a number in a text.

    Raises:
        ValueError: the text is no length of time.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if _WHOLE.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text))
    if re.fullmatch(_NUMBER, text):
        return float(text)
    raise ValueError(f"must be a length of time as 90m, 2h, 1h30m or 1d, or seconds, got {value!r}")


# A century is as good as never.
Duration = Annotated[
    Annotated[float, Field(gt=0, le=100 * 365 * 86_400)],
    BeforeValidator(parse_duration),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
