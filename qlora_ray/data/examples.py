"""A row as it was read, and the same row in canonical form: what the steps of data preparation hand on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["system", "user", "assistant", "text"]


@dataclass(frozen=True)
class Row:
    """A row as it stands in its source.

    `where` is `file:line`, `file row n` or `hub-id split row n`, counted from 1. A row that could not be read
    carries its `problem` and no values, so that all bad rows of a file are counted in one message.
    """

    where: str
    values: Mapping[str, object] = field(default_factory=dict)
    problem: str | None = None


class RowProblem(ValueError):
    """What is wrong with one row; the caller knows where the row stands, and counts."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        input: alpaca's second field, which the instruction template shows apart.
        reasoning: What an assistant thinks before it answers; only chat templates know where it goes.
        is_asked_for: Of an answer: whether the loss counts it.
    """

    role: Role
    content: str
    input: str = ""
    reasoning: str = ""
    is_asked_for: bool = True

    @property
    def is_trained(self) -> bool:
        """Whether the loss counts it."""
        return self.role in ("assistant", "text") and self.is_asked_for

    @property
    def full_content(self) -> str:
        """The content, followed by the input where there is one."""
        return f"{self.content}\n\n{self.input}" if self.input else self.content


@dataclass(frozen=True)
class Example:
    """A row in canonical form: `system? (user+ assistant)+`, or a single `text` turn, which is trained whole."""

    turns: tuple[Turn, ...]
    where: str

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
        return _normalize("\n".join(turn.full_content for turn in turns if turn.role != "system"))

    @property
    def pair_key(self) -> str:
        """What makes two rows the same: prompt and answer, case and whitespace apart."""
        return f"{self.prompt_key}\x00{_normalize(self.answer)}"


def divide(example: Example) -> list[Example]:
    """A conversation for each answer that is trained: the turns up to it, and it alone trained."""
    turns = example.turns
    return [
        Example((*(replace(turn, is_asked_for=False) for turn in turns[:end]), turns[end]), example.where)
        for end in range(len(turns))
        if turns[end].is_trained
    ]


def _normalize(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()
