"""Reads one turn of a conversation: who speaks, what is said, and what its keys ask for."""

from __future__ import annotations

from collections.abc import Mapping

from qlora_ray.data.examples import Role, RowProblem, Turn
from qlora_ray.data.notes import Note, Notes

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
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")
# What a model thinks before it answers: the first is DeepSeek's and Qwen's key, the second gpt-oss's. Templates read
# either one, so both are handed to them.
REASONING_KEYS = ("reasoning_content", "thinking")
# How a turn says whether it is trained: OpenAI's weight of 0 or 1, axolotl's train and training, and others.
TRAINED_KEYS = ("weight", "train", "training", "trainable", "loss")
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
        raise RowProblem(f"turn {number} must be by system, user or assistant, got role {name!r}")
    if item.get("tool_calls"):
        raise RowProblem(f"turn {number} must hold text only, got tool_calls")
    content = _first(item, CONTENT_KEYS)
    if isinstance(content, list | tuple):
        content = _join_parts(content, number)
    reasoning = _read_reasoning(item, number) if role == "assistant" else ""
    is_asked_for = _read_trained(item, role, number, notes)
    used = (*ROLE_KEYS, *CONTENT_KEYS, *TRAINED_KEYS, *(REASONING_KEYS if role == "assistant" else ()))
    for key, value in item.items():
        # Parquet fills in absent keys as null.
        if key not in used and value not in (None, [], {}, ""):
            notes[Note("turn", f"with a key {key!r}, which is not used")] += 1
    if role == "system" and isinstance(content, str | None) and not (content or "").strip():
        notes[Note("system turn", "without text, left out")] += 1
        return None
    if not isinstance(content, str) or not content.strip():
        raise RowProblem(
            f"turn {number} ({role}) must hold text, got {'nothing' if not content else repr(content)[:40]}"
        )
    return Turn(role, content, reasoning=reasoning, is_asked_for=is_asked_for)


def _first(item: Mapping[str, object], keys: tuple[str, ...]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _read_reasoning(item: Mapping[str, object], number: int) -> str:
    value = _first(item, REASONING_KEYS)
    if isinstance(value, list | tuple):
        value = _join_parts(value, number)
    if value is not None and not isinstance(value, str):
        raise RowProblem(f"turn {number} must have its reasoning as text, got a {type(value).__name__}")
    return value if value and value.strip() else ""


def _read_trained(item: Mapping[str, object], role: Role, number: int, notes: Notes) -> bool:
    """Whether no key of the turn says that it is not trained."""
    is_trained = True
    for key in TRAINED_KEYS:
        value = item.get(key)
        if value is None:
            continue
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in (*YES, *NO):
            raise RowProblem(f"turn {number} must have {key!r} as 0 or 1, true or false, got {value!r}")
        if word in YES and role != "assistant":
            notes[Note(f"{role} turn", f"with {key!r} that asks for training: only answers are trained")] += 1
        is_trained = is_trained and word in YES
    return is_trained


def _join_parts(parts: list[object] | tuple[object, ...], number: int) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowProblem(f"turn {number} must hold text only, got a part of type {kind!r}")
        texts.append(str(part["text"]))
    return "".join(texts)
