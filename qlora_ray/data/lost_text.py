"""What of a row a template leaves out or rewrites: text, reasoning, tools and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_ray.data.examples import Example, Piece, ToolCall, Turn
from qlora_ray.data.reading import parse_json

THINK_TAG = re.compile(r"</?think>")


def find_lost(example: Example, pieces: Sequence[Piece], *, last_only: bool = False) -> str | None:
    """What of a row's trained answers, or of its tools, is not in its rendering, in words; None where all is there.

    Templates trim blanks around a text, which is no loss.

    Args:
        example: The row.
        pieces: Its rendering: context and answer by turns.
        last_only: As in `templates.render`: earlier answers are context, which a template may shorten.
    """
    text = "".join(piece.text for piece in pieces)
    if not all(_shows_tool(text, tool) for tool in example.tools):
        return "the tools"
    numbers = [number for number, turn in enumerate(example.turns, start=1) if turn.role == "assistant"]
    # Context and answer stand by turns; of a plain text there is one piece.
    rendered = dict(zip(numbers[-1:] if last_only else numbers, pieces[1::2], strict=True))
    for number, turn in enumerate(example.turns, start=1):
        if not turn.is_trained or (last_only and number < len(example.turns)):
            continue
        if turn.content.strip() not in text and not (number in rendered and _shows_parts(rendered[number].text, turn)):
            return f"the text of turn {number}"
        if turn.reasoning.strip() not in text:
            return f"the reasoning of turn {number}"
        # Names and keys of a call stand among the tools too.
        if not all(_shows_call(rendered[number].text, call) for call in turn.tool_calls):
            return f"the tool calls of turn {number}"
    return None


def _shows_parts(text: str, turn: Turn) -> bool:
    """Whether reasoning that is written into an answer is there, and the answer, with other blanks around the tags.

    Qwen3's template takes `<think>` out of the content and writes it again in its own form.
    """
    parts = [part.strip() for part in THINK_TAG.split(turn.content)]
    return len(parts) > 1 and all(part in text for part in parts)


def _shows_tool(text: str, tool: Mapping[str, Any]) -> bool:
    function = tool["function"]
    description = function.get("description")
    first_line = description.strip().partition("\n")[0] if isinstance(description, str) else ""
    return _holds(text, function["name"]) and _holds(text, first_line)


def _shows_call(text: str, call: ToolCall) -> bool:
    """Whether name, keys and values are there, in JSON or in a notation of the template's own."""
    arguments = parse_json(call.arguments)
    # As Python writes an object, which no reader of tool calls parses.
    is_repr = str(arguments) in text and str(arguments) != json.dumps(arguments, ensure_ascii=False)
    return not is_repr and all(_holds(text, leaf) for leaf in (call.name, *_leaves(arguments)))


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif value is not None:
        yield value


def _holds(text: str, value: object) -> bool:
    if not isinstance(value, str):
        return json.dumps(value) in text or str(value) in text
    return any(form.strip() in text for form in (value, json.dumps(value)[1:-1], _escape(value)))


def _escape(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]
