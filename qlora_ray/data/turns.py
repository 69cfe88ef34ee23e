"""Reads one turn of a conversation: who speaks, what is said, and what its keys ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from qlora_ray.data.examples import Role, RowProblem, ToolCall, Turn
from qlora_ray.data.notes import Note, Notes
from qlora_ray.data.tool_calls import CALL_KEYS, CALL_ROLES, read_calls

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
    **dict.fromkeys(CALL_ROLES, "assistant"),
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
# What a model thinks before it answers: the first is DeepSeek's and Qwen's key, the second gpt-oss's, the third that of
# vLLM and OpenRouter. Templates read one of them, so all are handed to them.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# How a turn says whether it is trained: OpenAI's weight of 0 or 1, axolotl's train and training, and others.
TRAINED_KEYS = ("weight", "train", "training", "trainable", "loss")
# How a turn says that it is not: torchtune's masked.
MASKED_KEYS = ("masked", "mask")
KEYS_BY_ROLE: dict[Role, tuple[str, ...]] = {
    "assistant": (*REASONING_KEYS, *CALL_KEYS),
    "tool": ("tool_call_id", "name"),
}
# By which the parts of a message are told from a list that a tool returned.
PART_TYPES = ("text", "image", "image_url", "audio", "video")
# Parts of an answer that are reasoning: Anthropic's and Mistral's name, and OpenAI's.
REASONING_TYPES = ("thinking", "reasoning")
YES = (True, 1, "true", "1")
NO = (False, 0, "false", "0")


def read_turn(item: Mapping[str, object], number: int, notes: Notes) -> Turn | None:
    """One turn; None for a system turn without text.

    Args:
        item: The turn's object, with role and content (or from and value).
        number: Its place in the row, from 1, for messages.
        notes: Counts what is not used of it.

    Raises:
        RowProblem: If nobody knows who speaks, or there is no text.
    """
    name = _first(item, ROLE_KEYS)
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise RowProblem(f"turn {number} must be by system, user, assistant or tool, got role {name!r}")
    content = _first(item, CONTENT_KEYS)
    calls = _read_calls(item, role, number)
    if is_call(item):
        calls, content = (*calls, *read_calls(content, number)), ""
    elif role == "tool":
        content = _read_result(content, number)
    reasoning = ""
    if role == "assistant":
        reasoning = _read_reasoning(item, number)
        content, thought = _take_reasoning_parts(content, number)
        reasoning = reasoning or thought
    if isinstance(content, list | tuple):
        content = _join_parts(content, number)
    is_asked_for = _read_trained(item, role, number, notes)
    used = (*ROLE_KEYS, *CONTENT_KEYS, *TRAINED_KEYS, *MASKED_KEYS, *KEYS_BY_ROLE.get(role, ()))
    for key, value in item.items():
        # Parquet fills in absent keys as null.
        if key not in used and value not in (None, [], {}, ""):
            notes[Note("turn", f"with a key {key!r}, which is not used")] += 1
    if role == "system" and isinstance(content, str | None) and not (content or "").strip():
        notes[Note("system turn", "without text, left out")] += 1
        return None
    if content is None and calls:
        content = ""
    if not isinstance(content, str) or not (content.strip() or calls or role == "tool"):
        raise RowProblem(
            f"turn {number} ({role}) must hold text, got {'nothing' if not content else repr(content)[:40]}"
        )
    return Turn(
        role,
        content,
        reasoning=reasoning,
        is_asked_for=is_asked_for,
        tool_calls=calls,
        call_id=_read_name(item, "tool_call_id") if role == "tool" else "",
        name=_read_name(item, "name") if role == "tool" else "",
    )


def is_call(item: Mapping[str, object]) -> bool:
    """Whether the text of a turn's object is a tool call, as its role says."""
    return str(_first(item, ROLE_KEYS)).strip().lower() in CALL_ROLES


def _first(item: Mapping[str, object], keys: tuple[str, ...]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _read_calls(item: Mapping[str, object], role: Role, number: int) -> tuple[ToolCall, ...]:
    value = _first(item, CALL_KEYS)
    if not value:
        return ()
    if role != "assistant":
        raise RowProblem(f"turn {number} must be by the assistant to call tools, got role {role!r}")
    return read_calls(value, number)


def _read_result(content: object, number: int) -> str:
    """What a tool returned, as text: an object is written as JSON, and nothing at all is an empty text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list | tuple) and any(
        isinstance(part, Mapping) and part.get("type") in PART_TYPES for part in content
    ):
        return _join_parts(content, number)
    try:
        return json.dumps(content, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowProblem(f"turn {number} (tool) must hold text or JSON, got {error}") from None


def _read_name(item: Mapping[str, object], key: str) -> str:
    value = item.get(key)
    return "" if value is None else str(value)


def _read_reasoning(item: Mapping[str, object], number: int) -> str:
    value = _first(item, REASONING_KEYS)
    if isinstance(value, list | tuple):
        value = _join_parts(value, number)
    if value is not None and not isinstance(value, str):
        raise RowProblem(f"turn {number} must have its reasoning as text, got a {type(value).__name__}")
    return value if value and value.strip() else ""


def _take_reasoning_parts(content: object, number: int) -> tuple[object, str]:
    """The content without its parts that are reasoning, and their text: `{"type": "thinking", "thinking": ...}`."""
    if not isinstance(content, list | tuple):
        return content, ""
    rest: list[object] = []
    texts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in REASONING_TYPES:
            texts.append(_read_reasoning({REASONING_KEYS[0]: part.get("text"), **part}, number))
        else:
            rest.append(part)
    return rest, "".join(texts)


def _read_trained(item: Mapping[str, object], role: Role, number: int, notes: Notes) -> bool:
    """Whether no key of the turn says that it is not trained."""
    is_trained = True
    for key in (*TRAINED_KEYS, *MASKED_KEYS):
        value = item.get(key)
        if value is None:
            continue
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in (*YES, *NO):
            raise RowProblem(f"turn {number} must have {key!r} as 0 or 1, true or false, got {value!r}")
        is_asked_for = (word in YES) != (key in MASKED_KEYS)
        if word in YES and is_asked_for and role != "assistant":
            notes[Note(f"{role} turn", f"with {key!r} that asks for training: only answers are trained")] += 1
        is_trained = is_trained and is_asked_for
    return is_trained


def _join_parts(parts: Sequence[object], number: int) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowProblem(f"turn {number} must hold text only, got a part of type {kind!r}")
        texts.append(str(part["text"]))
    return "".join(texts)
