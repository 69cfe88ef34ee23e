"""What models are asked: the rows of a split, with or without worked examples before them, and prompts from files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Data, Evaluate
from qlora_ray.data import Example, PreparedData, TokenizedSplit, Turn
from qlora_ray.data.preparation import read_examples
from qlora_ray.data.template_trial import check_template
from qlora_ray.data.templates import choose_template
from qlora_ray.data.tokenized import COLUMNS
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.evaluation.prompt_sets.few_shot import (
    FewShot,
    draw_examples,
    find_examples,
    mask_last_answer,
    tokenize_whole,
)
from qlora_ray.evaluation.prompt_sets.files import PromptRow, find_prompt_file, read_prompts
from qlora_ray.scoring.token_budget import (
    NEW_TOKENS_WITHOUT_REFERENCES,
    count_reference_tokens,
    find_limit,
    resolve_max_new_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stands where a prompt has no answer: templates render an answer to show where the prompt ends.
NO_ANSWER = "-"


@dataclass(frozen=True)
class PromptSet:
    """Rows to be asked in one way.

    Attributes:
        name: `0-shot`, `3-shot`, or a prompt file's stem.
        rows: As tokens; the loss counts the last answer only.
        ids: What pairs a row between models, one per row.
        num_answered: The first so many rows are answered.
        has_references: Whether answers can be scored, and rows have a loss.
        num_shots: Examples before each question.
        num_dropped_shots: Examples left out, over all rows, as they do not fit the positions.
        max_new_tokens: Tokens that an answer may have.
        whole: The set that these are the first rows of; None: this one.
    """

    name: str
    rows: TokenizedSplit
    ids: list[str]
    num_answered: int
    has_references: bool = True
    num_shots: int = 0
    num_dropped_shots: int = 0
    max_new_tokens: int = NEW_TOKENS_WITHOUT_REFERENCES
    whole: PromptSet | None = None

    def first(self, num_rows: int) -> PromptSet:
        """The first rows, all of them answered; still the same set, which an evaluation may go on with."""
        ids = self.ids[:num_rows]
        rows = self.rows.first(num_rows)
        return dataclasses.replace(self, rows=rows, ids=ids, num_answered=len(ids), whole=self.whole or self)

    @property
    def fingerprint(self) -> str:
        """sha256 over every token, reference and id."""
        digest = hashlib.sha256()
        for column in COLUMNS:
            values = [*getattr(self.rows, column)]
            # Evaluations of before there were alternatives go on.
            if column != "alternatives" or any(values):
                digest.update(json.dumps(values).encode())
        digest.update(json.dumps(self.ids).encode())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """What decides the set, for settings.json."""
        whole = self.whole or self
        return {
            "num_rows": len(whole.rows),
            "num_answered": self.num_answered,
            "evaluate": {"max_new_tokens": self.max_new_tokens},
            "num_shots": self.num_shots,
            "num_dropped_shots": self.num_dropped_shots,
            "fingerprint": whole.fingerprint,
        }


def choose_split(prepared: PreparedData, requested: str) -> tuple[TokenizedSplit | None, str]:
    """Returns the rows to evaluate on and why these; None for `none`.

    Args:
        prepared: The tokenized train, validation and test rows.
        requested: auto, test, validation or none.

    Raises:
        ConfigError: If the split is not there.
    """
    if requested == "none":
        return None, "no rows: --split none"
    if requested == "auto":
        if prepared.test is not None:
            return prepared.test, "test: rows that no trial was chosen by"
        return prepared.validation, "validation: there are no test rows (data.test)"
    split = prepared.splits.get(requested)
    if split is None:
        raise ConfigError(f"--split {requested}: the data must have that split, got none. Name it with data.test.")
    return split, f"{requested}: as --split says"


def make_prompt_sets(
    split: TokenizedSplit,
    *,
    data: Data,
    data_seed: int,
    evaluate: Evaluate,
    tokenizer: PreTrainedTokenizerBase,
    max_positions: int | None,
    max_rows: int | None = None,
    heads: Mapping[str, Head] | None = None,
) -> list[PromptSet]:
    """Returns the split's rows once for each number of shots in `evaluate.shots`.

    Args:
        split: As `prepare_data` made it.
        max_rows: Takes the first so many rows only; all of them are answered.
        max_positions: What the model was made for; None if it has no limit.
        heads: Those whose labels `prepare_data` read beside the rows.

    Raises:
        DataError: If train has too few examples that are not in the split.
        ConfigError: If shots are asked of plain text.
    """
    num_rows = len(split) if max_rows is None else min(max_rows, len(split))
    num_answered = num_rows if max_rows is not None else min(num_rows, evaluate.max_rows or num_rows)
    rows = _last_answers(split, num_rows)
    # Of all rows of the set, answered or not: more answers may join those that are there.
    reference_tokens = count_reference_tokens(rows, tokenizer=tokenizer)
    max_new_tokens = resolve_max_new_tokens(evaluate.max_new_tokens, reference_tokens)
    zero = PromptSet("0-shot", rows, [str(row) for row in range(num_rows)], num_answered, max_new_tokens=max_new_tokens)
    shots = list(dict.fromkeys(evaluate.shots))
    if shots == [0]:
        return [zero]
    examples = read_examples(data, data_seed=data_seed, heads=heads)
    if examples["train"][0].is_text:
        raise ConfigError(
            f"evaluate.shots must be [0] for plain text, which has no questions, got {shots}. Use --shots 0."
        )
    asked = find_examples(examples[split.name], split, data=data, tokenizer=tokenizer)
    drawn = draw_examples(examples["train"], held_out=examples[split.name], num=max(shots), seed=evaluate.shot_seed)
    maker = FewShot(
        zero.rows,
        asked[:num_rows],
        drawn,
        choose_template(data.template, tokenizer),
        tokenizer,
        max_new_tokens,
        find_limit(max_positions, evaluate.max_length),
    )
    return [zero if num == 0 else _with_shots(zero, maker, num) for num in shots]


def make_file_set(
    name: str | Path,
    *,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    max_positions: int | None,
    max_new_tokens: int | Literal["auto"] = "auto",
    max_length: int | None = None,
) -> PromptSet:
    """Returns a prompt file's rows, rendered by the data's template; all of them are answered.

    Args:
        max_positions: What the model was made for; None if it has no limit.
        max_new_tokens, max_length: Of the config's `evaluate`.

    Raises:
        DataError: If the file cannot be read, or a prompt cannot be rendered or leaves no position for an answer.
    """
    prompts = read_prompts(name)
    examples = [_with_system(prompt, data.system_prompt) for prompt in prompts]
    template = choose_template(data.template, tokenizer)
    if template.name == "chat":
        check_template(tokenizer)
    stem = find_prompt_file(name).stem
    rows = tokenize_whole(stem, examples, template=template, tokenizer=tokenizer, last_only=True)
    limit = find_limit(max_positions, max_length)
    for prompt, prompt_ids in zip(prompts, rows.prompt_ids, strict=True):
        if limit is not None and len(prompt_ids) >= limit:
            what = f"the model's {limit} positions" if limit == max_positions else f"evaluate.max_length ({limit})"
            raise DataError(
                f"{prompt.where}: a prompt must leave room in {what}, got {len(prompt_ids)} tokens. Shorten it."
            )
    has_references = all(prompt.reference is not None for prompt in prompts)
    ids = [prompt.id for prompt in prompts]
    is_whole = has_references and not any(prompt.is_partial for prompt in prompts)
    reference_tokens = count_reference_tokens(rows, tokenizer=tokenizer) if is_whole else []
    return PromptSet(
        stem,
        _last_answers(rows, len(rows)),
        ids,
        len(rows),
        has_references=has_references,
        max_new_tokens=resolve_max_new_tokens(max_new_tokens, reference_tokens),
    )


def _with_shots(zero: PromptSet, maker: FewShot, num_shots: int) -> PromptSet:
    rows, num_dropped = maker.make(num_shots)
    return dataclasses.replace(
        zero, name=f"{num_shots}-shot", rows=rows, num_shots=num_shots, num_dropped_shots=num_dropped
    )


def _last_answers(split: TokenizedSplit, num_rows: int) -> TokenizedSplit:
    """The first rows, with a loss on the last answer only, or on all of a plain text."""
    masks = zip(split.completion_mask[:num_rows], split.prompt_ids[:num_rows], strict=True)
    return TokenizedSplit.of(
        split.name,
        split.input_ids[:num_rows],
        [mask_last_answer(mask, len(prompt)) for mask, prompt in masks],
        split.prompt_ids[:num_rows],
        split.references[:num_rows],
        split.alternatives[:num_rows],
        {head: split.labels(head)[:num_rows].tolist() for head in split.heads},
    )


def _with_system(prompt: PromptRow, system_prompt: str | None) -> Example:
    turns = prompt.example.turns if prompt.reference is not None else (*prompt.turns, Turn("assistant", NO_ANSWER))
    if system_prompt and turns[0].role != "system":
        turns = (Turn("system", system_prompt), *turns)
    return Example(turns, prompt.where, prompt.tools)
