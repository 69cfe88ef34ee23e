"""Reads one value of a row: a text, or a list of turns in the words of messages or of sharegpt."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from qlora_ray.data.examples import RowProblem, Turn
from qlora_ray.data.notes import Note, Notes
from qlora_ray.data.reading import find_half_character, parse_json
from qlora_ray.data.turns import CONTENT_KEYS, ROLE_KEYS, is_call, read_turn

# How Python writes a list of objects, or an object, whose first key is a text.
PYTHON_TURNS = re.compile(r"\s*[\[({\s]*\{\s*['\"]")
CLOSING = {role: Note(f"{role} turn", "after the last answer, left out") for role in ("user", "tool")}
UNTRAINED = Note("turn", "after the last answer that is trained, left out")


def read_text(value: object, column: str, notes: Notes) -> str:
    """Returns a column's value as text, as it was written.

    Args:
        value: What the row holds.
        column: The column's name, for messages.
        notes: Counts by column the numbers and booleans that became text.

    Raises:
        RowProblem: If there is no text: null, NaN, blank, or a list or object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowProblem(f"{column!r} must hold text, got nothing")
    if isinstance(value, bool | int | float):
        notes[Note("value", f"of {column!r} written as a number or a truth value, trained as text")] += 1
        # As JSON has it: true, and not Python's True.
        return json.dumps(value)
    if not isinstance(value, str):
        raise RowProblem(f"{column!r} must hold text, got a {type(value).__name__}")
    if not value.strip():
        raise RowProblem(f"{column!r} must hold text, got {'an empty text' if not value else 'blanks only'}")
    return value


def as_turns(value: object) -> list[Mapping[str, object]] | None:
    """The turns' objects, however a file holds them; None for anything else.

    A csv file has a list as JSON text, or as Python writes it (pandas' to_csv), and a hub dataset may have a dict of
    lists, one for each key.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = _parse_turns(value)
    if isinstance(value, Mapping):
        keys = [key for key in (*ROLE_KEYS, *CONTENT_KEYS) if isinstance(value.get(key), list | tuple)]
        lists = {key: item for key, item in value.items() if isinstance(item, list | tuple)}
        if len(keys) < 2 or len({len(item) for item in lists.values()}) != 1:
            return None
        value = [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
    if not isinstance(value, list | tuple) or not value:
        return None
    is_turns = all(isinstance(item, Mapping) and any(key in item for key in ROLE_KEYS) for item in value)
    return list(value) if is_turns else None


def _parse_turns(text: str) -> object:
    """A value by its JSON or Python text; None if it is neither."""
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip()) if PYTHON_TURNS.match(text) else None
    # What the parser raises of a text that is no literal, or too long or deep for it.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def looks_like_turns(value: object) -> bool:
    """Whether the value is a list of objects with a role (or from)."""
    return as_turns(value) is not None


def read_turns(
    value: object, column: str, notes: Notes | None = None, *, before: Sequence[Turn] = ()
) -> tuple[Turn, ...]:
    """Reads a conversation, up to its last answer that is trained.

    Args:
        value: What the row holds.
        column: The column's name, for messages.
        notes: Counts what is not used of it.
        before: Turns that other columns hold, which come first: a system text, or a history.

    Raises:
        RowProblem: Unless it is `system? user+ assistant (user | assistant | tool)*`, with text or a tool call in every
            turn and an answer that is trained.
    """
    items = as_turns(value)
    if items is None:
        got = "nothing" if value is None or value == [] else f"a {type(value).__name__}"
        raise RowProblem(f"{column!r} must hold a list of turns with role and content (or from and value), got {got}")
    half = find_half_character(items) if isinstance(value, str) else None
    if half is not None:
        # Of JSON text inside a row: the file's own escapes were looked at when it was read.
        raise RowProblem(f"{column!r}: turn {half}")
    notes = Counter() if notes is None else notes
    turns: list[Turn] = []
    for number, item in enumerate(items, start=1):
        turn = read_turn(item, number, notes)
        if turn is not None and number > 1 and is_call(item) and is_call(items[number - 2]):
            # Calls at once, each as a turn.
            last = turns.pop()
            calls = (*last.tool_calls, *turn.tool_calls)
            turn = replace(turn, tool_calls=calls, is_asked_for=last.is_asked_for and turn.is_asked_for)
        if turn is not None:
            turns.append(turn)
    if before and turns and before[0].role == turns[0].role == "system":
        # The turn's own text is the nearer one.
        before = before[1:]
    turns = [*before, *turns]
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise RowProblem(f"a system turn must come first, got one as turn {roles.index('system', 1) + 1}")
    if "assistant" not in roles:
        raise RowProblem("a conversation must hold an answer, got no assistant turn")
    if "user" not in roles[: roles.index("assistant")]:
        raise RowProblem("a user turn must come before the first answer, got none")
    if "tool" in roles[: roles.index("assistant")]:
        raise RowProblem(f"a tool turn must come after an answer, got one as turn {roles.index('tool') + 1}")
    if not any(turn.is_trained for turn in turns):
        raise RowProblem("a conversation must hold an answer that is trained, got none: each one says that it is not")
    while turns[-1].role in CLOSING:
        notes[CLOSING[turns[-1].role]] += 1
        turns.pop()
    while not turns[-1].is_trained:
        # Nothing that is trained comes after it.
        notes[UNTRAINED] += 1
        turns.pop()
    return tuple(turns)
