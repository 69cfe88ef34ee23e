"""Reads the tools that a row offers, and the calls of them that an assistant makes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_ray.data.examples import RowProblem, ToolCall
from qlora_ray.data.reading import find_half_character, parse_json

# Turns of sharegpt's dialects whose text is the call as JSON: LLaMA-Factory's name, and ms-swift's.
CALL_ROLES = ("function_call", "tool_call")
# Where an assistant's calls stand: today's key, and OpenAI's earlier one for a single call.
CALL_KEYS = ("tool_calls", "function_call")
CALL_SHAPE = '{"name": ..., "arguments": {...}}'


def read_tools(value: object) -> tuple[dict[str, Any], ...]:
    """The tools of a row's `tools` column, each as `{"type": "function", "function": {...}}`, which templates expect.

    Args:
        value: A list of JSON schemas of functions, wrapped or bare, or JSON text of it. None or empty: no tools.

    Raises:
        RowProblem: If it is anything else.
    """
    if isinstance(value, str) and value.strip():
        value = _parse(value, "'tools' must hold a list of tools")
    if not value or (isinstance(value, float) and math.isnan(value)):
        return ()
    tools = []
    for number, item in enumerate([value] if isinstance(value, Mapping) else _as_list(value, "tools"), start=1):
        tool = _parse(item, f"tool {number} must be an object") if isinstance(item, str) else item
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(tool, Mapping) or not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise RowProblem(f"tool {number} must be a function with a name, got {_shorten(item)}")
        tools.append({**tool} if "function" in tool else {"type": "function", "function": {**tool}})
    return tuple(tools)


def tells_tools(text: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a system text holds the schemas of all tools already, as Hermes' rows do beside their `tools` column.

    A name that is only mentioned is no schema: name, description and parameters must be there, names in quotes.
    """
    return bool(tools) and all(_tells(text, tool["function"]) for tool in tools)


def _tells(text: str, function: Mapping[str, Any]) -> bool:
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    names = [str(function["name"]), *(properties if isinstance(properties, Mapping) else ())]
    description = function.get("description")
    first_line = description.strip().partition("\n")[0] if isinstance(description, str) else ""
    escaped = json.dumps(first_line, ensure_ascii=False)[1:-1]
    is_described = first_line in text or escaped in text
    # As JSON quotes a name, or as Python does.
    return is_described and all(f'"{name}"' in text or f"'{name}'" in text for name in names)


def read_calls(value: object, number: int) -> tuple[ToolCall, ...]:
    """The calls of one turn.

    Args:
        value: A list of calls, one call, or JSON text of either. A call is OpenAI's, with a `function`, or bare.
        number: The turn's place in the row, from 1, for messages.

    Raises:
        RowProblem: If a call has no name, or arguments that are no object.
    """
    if isinstance(value, str):
        value = _parse(value, f"turn {number} must hold a tool call, {CALL_SHAPE}")
    calls = []
    for item in [value] if isinstance(value, Mapping) else _as_list(value, f"turn {number}: tool calls"):
        call = _parse(item, f"turn {number} must hold a tool call, {CALL_SHAPE}") if isinstance(item, str) else item
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise RowProblem(f"turn {number} must hold a tool call with a name, {CALL_SHAPE}, got {_shorten(item)}")
        call_id = call.get("id")
        arguments = _read_arguments(function.get("arguments"), number)
        calls.append(ToolCall(str(function["name"]), arguments, "" if call_id is None else str(call_id)))
    return tuple(calls)


def _read_arguments(value: object, number: int) -> str:
    """The arguments as JSON text; what was text already stays as it was written."""
    rule = f"turn {number} must have a tool call's arguments as a JSON object"
    if value is None or (isinstance(value, str) and not value.strip()):
        return "{}"
    try:
        parsed = _parse(value, rule) if isinstance(value, str) else value
        if not isinstance(parsed, Mapping):
            raise RowProblem(f"{rule}, got {_shorten(value)}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, RowProblem):
            raise
        raise RowProblem(f"{rule}, got what JSON cannot hold ({error})") from None


def _parse(text: str, rule: str) -> object:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        raise RowProblem(f"{rule} as JSON, got {_shorten(text)}") from None
    half = find_half_character(value)
    if half is not None:
        raise RowProblem(half)
    return value


def _as_list(value: object, what: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise RowProblem(f"{what} must be a list, got a {type(value).__name__}")
    return list(value)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shorten(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
