"""Reads one value of a row: a text, or a list of turns in the words of messages or of sharegpt."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from qlora_ray.data.examples import Role, Turn

# sharegpt's names and those of its dialects, next to the ones that chat templates use.
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


class RowProblem(ValueError):
    """What is wrong with one row; the caller knows where the row stands, and counts."""


def read_text(value: object, column: str, num_converted: Counter[str]) -> str:
    """Returns a column's value as text, as it was written.

    Args:
        value: What the row holds.
        column: The column's name, for messages.
        num_converted: Counts by column the numbers and booleans that became text.

    Raises:
        RowProblem: If there is no text: null, NaN, blank, or a list or object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowProblem(f"{column!r} must hold text, got nothing")
    if isinstance(value, bool | int | float):
        num_converted[column] += 1
        return str(value)
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} must hold text, got a {type(value).__name__}")
    if not value.strip():
        raise RowProblem(f"{column!r} must hold text, got {'an empty text' if not value else 'blanks only'}")
    return value


def looks_like_turns(value: object) -> bool:
    """Whether the value is a list of objects with a role (or from)."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value)


def read_turns(value: object, column: str) -> tuple[Turn, ...]:
    """Reads a conversation.

    Raises:
        RowProblem: Unless it is `system? (user+ assistant+)+`, with text in every turn.
    """
    if not looks_like_turns(value) or not isinstance(value, list | tuple):
        got = "nothing" if value is None or value == [] else f"a {type(value).__name__}"
        raise RowProblem(f"{column!r} must hold a list of turns with role and content (or from and value), got {got}")
    turns = tuple(_read_turn(item, number) for number, item in enumerate(value, start=1))
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise RowProblem(f"a system turn must come first, got one as turn {roles.index('system', 1) + 1}")
    if "assistant" not in roles:
        raise RowProblem("a conversation must hold an answer, got no assistant turn")
    if "user" not in roles[: roles.index("assistant")]:
        raise RowProblem("a user turn must come before the first answer, got none")
    if roles[-1] != "assistant":
        raise RowProblem("a conversation must end with an answer, got a user turn last")
    return turns


def _read_turn(item: Mapping[str, object], number: int) -> Turn:
    name = item.get("role") or item.get("from")  # parquet fills in absent keys as null
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise RowProblem(f"turn {number} must be by system, user or assistant, got role {name!r}")
    if item.get("tool_calls"):
        raise RowProblem(f"turn {number} must hold text only, got tool_calls")
    content = item.get("content") if item.get("content") is not None else item.get("value")
    if isinstance(content, list | tuple):
        content = _join_parts(content, number)
    if not isinstance(content, str) or not content.strip():
        raise RowProblem(
            f"turn {number} ({role}) must hold text, got {'nothing' if not content else repr(content)[:40]}"
        )
    return Turn(role, content)


def _join_parts(parts: list[object] | tuple[object, ...], number: int) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowProblem(f"turn {number} must hold text only, got a part of type {kind!r}")
        texts.append(str(part["text"]))
    return "".join(texts)
