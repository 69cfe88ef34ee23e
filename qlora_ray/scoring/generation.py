"""Answers to prompts, greedy or sampled: batched with left padding, the same as each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessorList

from qlora_ray.config.schema import Precision
from qlora_ray.errors import DataError
from qlora_ray.scoring.inference import evaluating, input_device, longest_first, map_batches
from qlora_ray.scoring.sampling import GumbelNoise, Sampling
from qlora_ray.scoring.token_budget import find_limit, fit_prompts, measure_token_budget, read_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """One text per prompt, in the prompts' order.

    Attributes:
        num_cut_prompts: Prompts that lost tokens on the left, being longer than the limit.
        num_short_answers: Prompts answered with fewer tokens than `max_new_tokens`, as they leave no more of the limit.
        num_cut_answers: Answers that ended because their tokens were spent.
    """

    texts: list[str]
    num_cut_prompts: int
    num_short_answers: int
    num_cut_answers: int


@dataclass(frozen=True)
class Answer:
    """One answer as it came.

    Attributes:
        row: The prompt's index.
        num_tokens: New tokens before the end token.
        finish: `stop` if the model ended it, `length` if its tokens were spent.
    """

    row: int
    text: str
    num_tokens: int
    finish: Literal["stop", "length"]


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
    on_rows: Callable[[int], None] = lambda num_rows: None,
) -> Answers:
    """Returns each prompt's continuation up to its end token, without special tokens and outer space.

    Prompts share a batch only with prompts that have as many tokens to spend, so a long neighbour shortens no
    answer. The model's own sampling settings and penalties do not apply.

    Args:
        sampling: How answers are drawn, by each prompt's index; None: greedily.
        max_length: Tokens that a prompt and its answer may have; None: the model's positions.
        on_rows: Called with the prompts of each batch that is answered.

    Raises:
        DataError: a prompt is empty.
        RuntimeError, MemoryError: If one prompt alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    texts = [""] * len(prompt_ids)
    num_cut_answers = 0

    def keep(batch: Sequence[Answer]) -> None:
        nonlocal num_cut_answers
        for answer in batch:
            texts[answer.row] = answer.text
            num_cut_answers += answer.finish == "length"
        on_rows(len(batch))

    answer_in_batches(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=precision,
        on_batch=keep,
        sampling=sampling,
        max_length=max_length,
    )
    limit = find_limit(read_positions(model.config), max_length)
    budget = measure_token_budget(prompt_ids, max_new_tokens=max_new_tokens, limit=limit)
    return Answers(texts, budget.num_cut_prompts, budget.num_short_answers, num_cut_answers)


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
    sampling: Sampling | None = None,
    max_length: int | None = None,
) -> None:
    """Answers prompts as `generate_answers` does, and hands each batch over as soon as it is finished.

    Which prompts share a batch does not depend on `done`: what is left is answered in the batches that it would have
    been in, so that an interrupted run goes on to the same answers.

    Args:
        on_batch: Called with the answers of each finished batch.
        done: Rows that need no answer any more.
        sampling: How answers are drawn, by each prompt's index; None: greedily.
        max_length: Tokens that a prompt and its answer may have; None: the model's positions.

    Raises:
        DataError: a prompt is empty.
        RuntimeError, MemoryError: If one prompt alone does not fit the device (`device_memory.is_out_of_memory`).
    """
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise DataError(f"evaluation: row {row} must have a prompt to answer, got no tokens. Drop the row.")
    limit = find_limit(read_positions(model.config), max_length)
    prompts, budgets = fit_prompts(prompt_ids, limit=limit, max_new_tokens=max_new_tokens)
    end_ids = _end_token_ids(model, tokenizer)
    pad_id = next((token_id for token_id in (tokenizer.pad_token_id, *end_ids) if token_id is not None), 0)

    with evaluating(model, precision=precision):
        device = input_device(model)
        for budget in sorted(set(budgets)):
            config = _greedy(max_new_tokens=budget, end_ids=end_ids, pad_id=pad_id)

            def run(batch: Sequence[int], config: GenerationConfig = config) -> list[list[int]]:
                return _generate(model, prompts, batch, config=config, device=device, sampling=sampling)

            rows = longest_first(prompts, [row for row, own in enumerate(budgets) if own == budget])
            size = batch_size
            for start in range(0, len(rows), batch_size):
                left = [row for row in rows[start : start + batch_size] if row not in done]
                largest = 0
                for batch, answers in map_batches(left, run, batch_size=size):
                    on_batch(
                        [
                            _read_answer(tokenizer, *answered, end_ids=end_ids)
                            for answered in zip(batch, answers, strict=True)
                        ]
                    )
                    largest = max(largest, len(batch))
                if largest < len(left):
                    # Halved for lack of memory: batches stay small.
                    size = largest


def _end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end an answer: the tokenizer's, which training ends rows with, and the model's own."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({token_id for token_id in ids if isinstance(token_id, int)})


def _greedy(*, max_new_tokens: int, end_ids: list[int], pad_id: int) -> GenerationConfig:
    """Returns greedy decoding with every number set: what is left None, `generate` takes from the model's config."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        min_length=0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        return_dict_in_generate=False,
        use_cache=True,
    )


def _generate(
    model: Any,
    prompts: list[list[int]],
    rows: Sequence[int],
    *,
    config: GenerationConfig,
    device: torch.device,
    sampling: Sampling | None,
) -> list[list[int]]:
    """Returns the new tokens after the prompt of each row, up to the batch's longest answer."""
    batch = [prompts[row] for row in rows]
    longest = max(len(ids) for ids in batch)
    padded = [[config.pad_token_id] * (longest - len(ids)) + ids for ids in batch]
    attention = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch]
    noise = [] if sampling is None else [GumbelNoise(sampling, rows=rows, num_prompt_tokens=longest)]
    output = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(attention, device=device),
        generation_config=config,
        logits_processor=LogitsProcessorList(noise),
    )
    return output[:, longest:].tolist()


def _read_answer(tokenizer: PreTrainedTokenizerBase, row: int, answer: list[int], *, end_ids: list[int]) -> Answer:
    """Returns the text before the first end token: an end or pad token need not be a special one."""
    end = next((at for at, token in enumerate(answer) if token in end_ids), None)
    text = str(tokenizer.decode(answer[:end], skip_special_tokens=True)).strip()
    if end is None:
        return Answer(row, text, len(answer), "length")
    return Answer(row, text, end, "stop")
