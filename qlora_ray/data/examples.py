"""A row as it was read, and the same row in canonical form: what the steps of data preparation hand on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool", "text"]


@dataclass(frozen=True)
class Row:
    """A row as it stands in its source.

    `where` is `file:line`, `file row n` or `hub-id split row n`, counted from 1. A row that could not be read
    carries its `problem` and no values, so that all bad rows of a file are counted in one message.
    """

    where: str
    values: Mapping[str, object] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered row that is tokenized by itself. `ends_answer` asks for the end token's id behind it."""

    text: str
    is_trained: bool
    ends_answer: bool = False


class RowProblem(ValueError):
    """What is wrong with one row; the caller knows where the row stands, and counts."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by an assistant; `arguments` is a JSON object as text."""

    name: str
    arguments: str = "{}"
    call_id: str = ""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        input: alpaca's second field, which the instruction template shows apart.
        reasoning: What an assistant thinks before it answers; only chat templates know where it goes.
        is_asked_for: Of an answer: whether the loss counts it.
        tool_calls: Of an answer: the tools that it calls. Its content may then be empty.
        call_id: Of a tool's turn: the call that it answers.
        name: Of a tool's turn: the tool.
    """

    role: Role
    content: str
    input: str = ""
    reasoning: str = ""
    is_asked_for: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether the loss counts it."""
        return self.role in ("assistant", "text") and self.is_asked_for

    @property
    def full_content(self) -> str:
        """The content, followed by the input where there is one."""
        return f"{self.content}\n\n{self.input}" if self.input else self.content

    @property
    def key(self) -> str:
        """What makes two turns the same: all that is said and called."""
        return "\n".join([self.full_content, *(f"{call.name} {call.arguments}" for call in self.tool_calls)])


@dataclass(frozen=True)
class Example:
    """A row in canonical form: `system? (user+ assistant (tool+ assistant)*)+`, or a single `text` turn, trained whole.

    `tools` are the JSON schemas of the functions that the assistant may call. `alternatives` are answers that are as
    right as the last turn. `labels` are the numbers of the classes that auxiliary heads are to find, in the heads'
    order (data/labels.py); known only once the training rows are.
    """

    turns: tuple[Turn, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = ()
    alternatives: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the row is plain text, with no question and no answer."""
        return self.turns[0].role == "text"

    @property
    def answer(self) -> str:
        """The last answer as it was written; empty for plain text."""
        return "" if self.is_text else self.turns[-1].content

    @property
    def prompt_key(self) -> str:
        """What makes two prompts the same: everything before the last answer, case and whitespace apart.

        System turns are left out: one system prompt is shared by all rows, and says nothing about leakage.
        """
        turns = self.turns if self.is_text else self.turns[:-1]
        return _normalize("\n".join(turn.key for turn in turns if turn.role != "system"))

    @property
    def answer_key(self) -> str:
        """What makes two answers the same: all that is said and called, case and whitespace apart."""
        return "" if self.is_text else _normalize(self.turns[-1].key)


def divide(example: Example) -> list[Example]:
    """A conversation for each answer that is trained: the turns up to it, and it alone trained."""
    turns = example.turns
    return [
        replace(example, turns=(*(replace(turn, is_asked_for=False) for turn in turns[:end]), turns[end]))
        for end in range(len(turns))
        if turns[end].is_trained
    ]


def _normalize(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
