"""How many tokens an answer may have, which prompts and references do not fit, and what cut answers do to a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qlora_ray.scoring.split import EvaluationSplit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Ours: of the longest reference. A right answer need not have the reference's words.
MARGIN = 0.25
# Ours: one more row seldom changes the number.
MULTIPLE = 8
# Ours: below it a model that greets before it answers is cut.
MIN_NEW_TOKENS = 16
# data.max_length's default: what was trained on rows no longer than that has learnt no longer answers. A model that
# never stops is asked for so many tokens in every row, so that they are the cost of an evaluation.
MAX_NEW_TOKENS = 512
# Ours, where nothing says how long an answer is: about 200 words.
NEW_TOKENS_WITHOUT_REFERENCES = 256
# What a prompt and its answer have to fit in.
# Texts per tokenizer call: bounds the memory of its encodings.
BATCH_TEXTS = 4096
LIMITS = "the model's positions or evaluate.max_length"


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens answers may have, and what of prompts and answers that cuts.

    Attributes:
        max_new_tokens: Tokens an answer may have.
        num_cut_prompts: Prompts that lose tokens on the left, being longer than the limit.
        num_short_answers: Answers that have fewer tokens, as their prompts take too many of the limit.
        num_references: Answered rows with a reference.
        num_long_references: Of them, those whose reference is longer than `max_new_tokens`.
    """

    max_new_tokens: int
    num_cut_prompts: int = 0
    num_short_answers: int = 0
    num_references: int = 0
    num_long_references: int = 0

    def notes(self, name: str) -> list[str]:
        """Returns what does not fit, a sentence each; `name` is what the rows are called."""
        notes = []
        if self.num_long_references:
            notes.append(
                f"{name}: {self.num_long_references} of {self.num_references} references are longer than "
                f"evaluate.max_new_tokens ({self.max_new_tokens}): such answers are cut. Raise it."
            )
        if self.num_cut_prompts:
            notes.append(
                f"{name}: {self.num_cut_prompts} prompts were longer than the room there is ({LIMITS}), and lost their "
                "beginning"
            )
        if self.num_short_answers:
            notes.append(
                f"{name}: {self.num_short_answers} answers had fewer than {self.max_new_tokens} tokens to spend, for "
                f"lack of room ({LIMITS})"
            )
        return notes


def resolve_max_new_tokens(requested: int | Literal["auto"], reference_tokens: Sequence[int]) -> int:
    """Returns how many tokens an answer may have.

    Args:
        requested: `evaluate.max_new_tokens`. `auto`: the longest reference and a quarter more, in steps of 8, from 16
            to 512; 256 without references.
        reference_tokens: As `count_reference_tokens` returns them, for all rows that may ever be answered: with a
            number of only some of them, answers could not be added to later.
    """
    if requested != "auto":
        return requested
    if not reference_tokens:
        return NEW_TOKENS_WITHOUT_REFERENCES
    wanted = math.ceil(max(reference_tokens) * (1 + MARGIN) / MULTIPLE) * MULTIPLE
    return min(max(wanted, MIN_NEW_TOKENS), MAX_NEW_TOKENS)


def count_reference_tokens(
    split: EvaluationSplit, *, tokenizer: PreTrainedTokenizerBase, num_rows: int | None = None
) -> list[int]:
    """Returns each reference's tokens, its end token included, for the first `num_rows` rows.

    A template may put more than the text into an answer (Qwen3's empty thoughts), and a row may have been cut: the
    larger count of the text and of the row's own answer counts.

    Args:
        split: The rows whose references are counted.
        tokenizer: The tokenizer of the model that answers.
        num_rows: Rows to count, from the first; None: all.
    """
    references = split.references[:num_rows]
    lengths: list[int] = []
    for start in range(0, len(references), BATCH_TEXTS):
        batch = list(references[start : start + BATCH_TEXTS])
        encoded = tokenizer(batch, add_special_tokens=False, padding=False, truncation=False, verbose=False)
        lengths += map(len, encoded["input_ids"])
    in_rows = (
        sum(mask[len(prompt) :])
        for mask, prompt in zip(split.completion_mask[:num_rows], split.prompt_ids[:num_rows], strict=True)
    )
    return [max(length + 1, own) for length, own in zip(lengths, in_rows, strict=True)]


def measure_token_budget(
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    limit: int | None,
    reference_tokens: Sequence[int] = (),
) -> TokenBudget:
    """Returns the tokens that answers may have, and how many prompts, answers and references are cut.

    Args:
        prompt_ids: The tokens of each prompt.
        max_new_tokens: Tokens that an answer may have.
        limit: Tokens of a prompt and its answer; None: any number.
        reference_tokens: The length of each reference.
    """
    num_cut = num_short = 0
    # One after the other: all prompts at once are more than a large split leaves room for.
    for ids in prompt_ids:
        [prompt], [budget] = fit_prompts([ids], limit=limit, max_new_tokens=max_new_tokens)
        num_cut += len(prompt) < len(ids)
        num_short += budget < max_new_tokens
    return TokenBudget(
        max_new_tokens=max_new_tokens,
        num_cut_prompts=num_cut,
        num_short_answers=num_short,
        num_references=len(reference_tokens),
        num_long_references=sum(num > max_new_tokens for num in reference_tokens),
    )


def read_positions(config: Any) -> int | None:
    """Returns the positions a model was made for, or None if its config (transformers') names no limit."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)


def find_limit(positions: int | None, max_length: int | None) -> int | None:
    """Returns the tokens that a prompt and its answer may have: the model's positions, or `evaluate.max_length`."""
    return min((limit for limit in (positions, max_length) if limit is not None), default=None)


def fit_prompts(
    prompt_ids: Sequence[Sequence[int]], *, limit: int | None, max_new_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Returns the prompts as the model sees them, and the new tokens each may have.

    Args:
        prompt_ids: The tokens of each prompt.
        limit: Tokens of a prompt and its answer; None: any number.
        max_new_tokens: Tokens that an answer may have.
    """
    prompts = [_cut_left(ids, limit=limit, max_new_tokens=max_new_tokens) for ids in prompt_ids]
    return prompts, [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in prompts]


def _cut_left(ids: Sequence[int], *, limit: int | None, max_new_tokens: int) -> list[int]:
    """Returns the prompt's end, if it leaves too few tokens for an answer; half of `limit` stays prompt at least."""
    if limit is None or len(ids) < limit:
        return list(ids)
    return list(ids[-max(limit - max_new_tokens, limit // 2, 1) :])
