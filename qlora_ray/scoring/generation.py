"""Answers to prompts, greedy or sampled: batched with left padding, the same as each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import Precision
from qlora_ray.data.end_tokens import find_end_ids
from qlora_ray.errors import DataError
from qlora_ray.scoring.decoding import Continuation, Decoder, Finish
from qlora_ray.scoring.early_end import EarlyEnd
from qlora_ray.scoring.inference import Route, evaluating, input_device, longest_first, map_batches, one_model
from qlora_ray.scoring.sampling import Sampling
from qlora_ray.scoring.token_budget import find_limit, fit_prompts, measure_token_budget, read_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """One text per prompt, in the prompts' order.

    Attributes:
        finishes: How each ended, as in `Answer`.
        num_cut_prompts: Prompts that lost tokens on the left, being longer than the limit.
        num_short_answers: Prompts answered with fewer tokens than `max_new_tokens`, as they leave no more of the limit.
    """

    texts: list[str]
    finishes: list[Finish]
    num_cut_prompts: int
    num_short_answers: int

    @property
    def num_cut_answers(self) -> int:
        """Answers that ended because their tokens were spent."""
        return self.finishes.count("length")


@dataclass(frozen=True)
class Answer:
    """One answer as it came.

    Attributes:
        row: The prompt's index.
        num_tokens: New tokens before the end token.
        finish: `stop` if the model ended it, `length` if its tokens were spent; `settled` or `loop` if it was ended
            early (see `early_end`).
        model: Which of several models answered.
    """

    row: int
    text: str
    num_tokens: int
    finish: Finish
    model: int = 0


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    precision: Precision,
    sampling: Sampling | None = None,
    max_length: int | None = None,
) -> Answers:
    """Returns each prompt's continuation up to its end token, without special tokens and outer space.

    Arguments as those of `generate_answers_of`, for one model that answers in full.
    """
    [answers] = generate_answers_of(
        model,
        tokenizer,
        prompt_ids,
        num_models=1,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=precision,
        sampling=sampling,
        max_length=max_length,
    )
    return answers


def generate_answers_of(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    num_models: int,
    max_new_tokens: int,
    batch_size: int,
    precision: Precision,
    route: Route = one_model,
    sampling: Sampling | None = None,
    max_length: int | None = None,
    early_end: EarlyEnd | None = None,
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> list[Answers]:
    """Returns the answers of each model, all models in the same batches.

    Prompts share a batch only with prompts that have as many tokens to spend, so a long neighbour shortens no
    answer. The model's own sampling settings and penalties do not apply.

    Args:
        num_models: How many models `route` knows; each answers all prompts.
        route: Gives the rows of a batch to their models.
        sampling: How answers are drawn, by each prompt's index, the same for all models; None: greedily.
        max_length: Tokens that a prompt and its answer may have; None: the model's positions.
        early_end: Ends answers early whose score is settled; None: none.
        on_rows: Called with the answers of each batch that is finished, those of all models counted.

    Raises:
        DataError: a prompt is empty.
        RuntimeError, MemoryError: If one prompt alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    found: dict[tuple[int, int], Answer] = {}

    def keep(batch: Sequence[Answer]) -> None:
        found.update({(answer.model, answer.row): answer for answer in batch})
        on_rows(len(batch))

    answer_in_batches(
        model,
        tokenizer,
        prompt_ids,
        num_models=num_models,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=precision,
        on_batch=keep,
        route=route,
        sampling=sampling,
        max_length=max_length,
        early_end=early_end,
    )
    limit = find_limit(read_positions(model.config), max_length)
    budget = measure_token_budget(prompt_ids, max_new_tokens=max_new_tokens, limit=limit)
    rows = range(len(prompt_ids))
    return [
        Answers(
            [found[one, row].text for row in rows],
            [found[one, row].finish for row in rows],
            budget.num_cut_prompts,
            budget.num_short_answers,
        )
        for one in range(num_models)
    ]


def answer_in_batches(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    precision: Precision,
    on_batch: Callable[[Sequence[Answer]], None],
    done: Collection[int] = (),
    num_models: int = 1,
    route: Route = one_model,
    sampling: Sampling | None = None,
    max_length: int | None = None,
    early_end: EarlyEnd | None = None,
) -> None:
    """Answers prompts as `generate_answers` does, and hands each batch over as soon as it is finished.

    Which prompts share a batch does not depend on `done`: what is left is answered in the batches that it would have
    been in, so that an interrupted run goes on to the same answers.

    Args:
        batch_size: Prompts of a batch; with several models it has as many rows for each.
        on_batch: Called with the answers of each finished batch.
        done: Rows that need no answer any more.
        num_models: How many models `route` knows; each answers all prompts.
        route: Gives the rows of a batch to their models.
        sampling: How answers are drawn, by each prompt's index; None: greedily.
        max_length: Tokens that a prompt and its answer may have; None: the model's positions.
        early_end: Ends answers early whose score is settled; None: none.

    Raises:
        DataError: a prompt is empty.
        RuntimeError, MemoryError: If one prompt alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise DataError(f"evaluation: row {row} must have a prompt to answer, got no tokens. Drop the row.")
    limit = find_limit(read_positions(model.config), max_length)
    prompts, budgets = fit_prompts(prompt_ids, limit=limit, max_new_tokens=max_new_tokens)
    end_ids = find_end_ids(tokenizer, getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    pad_id = next((token_id for token_id in (tokenizer.pad_token_id, *end_ids) if token_id is not None), 0)

    with evaluating(model, precision=precision):
        decoder = Decoder(
            model,
            end_ids=end_ids,
            pad_id=pad_id,
            device=input_device(model),
            route=route,
            sampling=sampling,
            early_end=early_end,
        )
        for budget in sorted(set(budgets)):

            def run(batch: Sequence[int], budget: int = budget) -> list[Continuation]:
                asked = [divmod(number, num_models) for number in batch]
                return decoder.continue_prompts(prompts, asked, max_new_tokens=budget)

            rows = longest_first(prompts, [row for row, own in enumerate(budgets) if own == budget])
            size = batch_size * num_models
            for start in range(0, len(rows), batch_size):
                # A prompt's numbers, one per model, stand together: batches are halved between prompts.
                left = [
                    row * num_models + one
                    for row in rows[start : start + batch_size]
                    if row not in done
                    for one in range(num_models)
                ]
                largest = 0
                for batch, answers in map_batches(left, run, batch_size=size):
                    on_batch([_read_answer(tokenizer, answer) for answer in answers])
                    largest = max(largest, len(batch))
                if largest < len(left):
                    # Halved for lack of memory: batches stay small.
                    size = largest


def _read_answer(tokenizer: PreTrainedTokenizerBase, ended: Continuation) -> Answer:
    """Returns the text before the first end token: an end or pad token need not be a special one."""
    assert ended.finish is not None
    text = str(tokenizer.decode(ended.tokens, skip_special_tokens=True)).strip()
    return Answer(ended.row, text, len(ended.tokens), ended.finish, ended.model)
