"""Worked examples before each question: drawn from train with a seed, and left out one by one where they do not fit."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Data
from qlora_ray.data import Example, TokenizedSplit
from qlora_ray.data.templates import Template, choose_template
from qlora_ray.data.tokenizing import tokenize_rows, tokenize_split
from qlora_ray.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def draw_examples(train: Sequence[Example], *, held_out: Sequence[Example], num: int, seed: int) -> list[Example]:
    """Returns `num` examples of train, the same for the same seed; fewer shots take the first of them.

    No two have the same prompt, and none has the prompt of a row of `held_out`.

    Args:
        train: What examples are drawn from.
        held_out: The examples that are asked themselves.
        num: How many examples are drawn from train.
        seed: Decides which are drawn, and in what order.

    Raises:
        DataError: If there are not enough.
    """
    asked = {example.prompt_key for example in held_out}
    free = {example.prompt_key: example for example in train if example.prompt_key not in asked}
    if len(free) < num:
        raise DataError(
            f"evaluate.shots: {num} examples must come from train, got {len(free)} prompts of it that are not asked "
            "in the rows evaluated. Ask for fewer shots, or add training rows."
        )
    return random.Random(seed).sample(list(free.values()), num)


@dataclass(frozen=True)
class FewShot:
    """Puts examples before a split's questions.

    Args:
        rows: The split without examples; the loss counts the last answer only.
        asked: The examples that the rows are of.
        drawn: Examples that may be put before each question, the first of them first.
        max_new_tokens: Tokens that an answer may have: a prompt leaves as many of `limit`.
        limit: Tokens that a prompt and its answer may have; None: any number.
    """

    rows: TokenizedSplit
    asked: Sequence[Example]
    drawn: Sequence[Example]
    template: Template
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    limit: int | None

    def make(self, num_shots: int) -> tuple[TokenizedSplit, int]:
        """Returns the rows with as many examples as fit, at most `num_shots`, and how many were left out in all.

        A row that fits no example stays as it is.
        """
        own = self.rows
        input_ids, masks, prompt_ids = [*own.input_ids], [*own.completion_mask], [*own.prompt_ids]
        left = list(range(len(own)))
        num_dropped = 0
        for num in range(num_shots, 0, -1):
            examples = [self._prepend(self.asked[row], self.drawn[:num]) for row in left]
            found = tokenize_whole(own.name, examples, template=self.template, tokenizer=self.tokenizer, last_only=True)
            too_long = []
            for row, ids, mask, prompt in zip(
                left, found.input_ids, found.completion_mask, found.prompt_ids, strict=True
            ):
                if not self._fits(len(prompt), len(ids) - len(prompt)):
                    too_long.append(row)
                    continue
                input_ids[row], prompt_ids[row] = ids, prompt
                masks[row] = mask_last_answer(mask, len(prompt))
            left = too_long
            num_dropped += len(left)
            if not left:
                break
        return (
            TokenizedSplit.of(own.name, input_ids, masks, prompt_ids, own.references, own.alternatives),
            num_dropped,
        )

    def _fits(self, num_prompt: int, num_answer: int) -> bool:
        num_left = max(self.max_new_tokens, num_answer)
        return self.limit is None or num_prompt + num_left <= self.limit

    @staticmethod
    def _prepend(example: Example, shots: Sequence[Example]) -> Example:
        system = [turn for turn in example.turns if turn.role == "system"]
        own = [turn for turn in example.turns if turn.role != "system"]
        worked = [turn for shot in shots for turn in shot.turns if turn.role != "system"]
        # What a worked example calls is offered too; of two tools by one name it is the asked row's own.
        offered: dict[str, dict[str, Any]] = {}
        for tool in (tool for source in (example, *shots) for tool in source.tools):
            offered.setdefault(tool["function"]["name"], tool)
        return dataclasses.replace(example, turns=(*system, *worked, *own), tools=tuple(offered.values()))


def find_examples(
    examples: Sequence[Example], split: TokenizedSplit, *, data: Data, tokenizer: PreTrainedTokenizerBase
) -> list[Example]:
    """The examples that the split's rows are of, one for each row.

    Preparation drops those whose answers `max_length` cuts away, and makes a row of each answer of a conversation whose
    earlier turns the template changes.

    Args:
        examples: All rows of the split's source, in order.
        split: The rows that preparation kept.
        data: The section that the split was prepared by.
        tokenizer: The one it was prepared by.
    """
    template = choose_template(data.template, tokenizer)
    found = tokenize_rows(split.name, examples, template=template, tokenizer=tokenizer, max_length=data.max_length)
    assert len(found.examples) == len(split), f"{split.name}: {len(found.examples)} rows read, {len(split)} prepared"
    return found.examples


def tokenize_whole(
    name: str,
    examples: Sequence[Example],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    last_only: bool = False,
) -> TokenizedSplit:
    """The examples as tokens, none of them cut; `last_only` as in `data.templates.render`.

    Args:
        name: The split's name, for messages.
        examples: The rows that stand before each question, as turns.
        template: How turns are rendered, as `choose_template` returned it.
        tokenizer: Turns the text into tokens.
        last_only: Whether only the last answer counts, as in `data.templates.render`.

    Raises:
        DataError: If one cannot be rendered, or its answer has no token.
    """
    rows, _ = tokenize_split(
        name, examples, template=template, tokenizer=tokenizer, max_length=sys.maxsize, last_only=last_only
    )
    if len(rows) != len(examples):
        raise DataError(
            f"{name}: every row must have an answer of at least one token, got {len(examples) - len(rows)} without. "
            "Drop them."
        )
    return rows


def mask_last_answer(mask: Sequence[int], num_prompt: int) -> list[int]:
    """Returns the mask with the loss on what follows the prompt only; a plain text has no prompt, and keeps all."""
    return [0] * min(num_prompt, len(mask)) + list(mask[num_prompt:])
