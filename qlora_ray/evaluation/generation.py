"""Greedy answers to prompts: batched with left padding, the same as each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import GenerationConfig

from qlora_ray.errors import DataError
from qlora_ray.evaluation.inference import Precision, evaluating, input_device, longest_first, map_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """One text per prompt, in the prompts' order.

    Attributes:
        num_cut_prompts: Prompts that lost tokens on the left, being longer than the model's positions.
        num_short_answers: Prompts answered with fewer than `max_new_tokens` to spend, for lack of positions.
    """

    texts: list[str]
    num_cut_prompts: int
    num_short_answers: int


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
) -> Answers:
    """Returns each prompt's greedy continuation up to its end token, without special tokens and outer space.

    Prompts share a batch only with prompts that have as many tokens to spend, so a long neighbour shortens no
    answer. The model's own sampling settings and penalties do not apply.

    Raises:
        DataError: a prompt is empty.
        torch.OutOfMemoryError: one prompt alone does not fit the device.
    """
    texts = [""] * len(prompt_ids)

    def keep(batch: Sequence[Answer]) -> None:
        for answer in batch:
            texts[answer.row] = answer.text

    answer_in_batches(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=precision,
        on_batch=keep,
    )
    limit = max_positions(model.config)
    return Answers(texts, *count_limited(prompt_ids, limit=limit, max_new_tokens=max_new_tokens))


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
) -> None:
    """Answers prompts as `generate_answers` does, and hands each batch over as soon as it is finished.

    Which prompts share a batch does not depend on `done`: what is left is answered in the batches that it would have
    been in, so that an interrupted run goes on to the same answers.

    Args:
        on_batch: Called with the answers of each finished batch.
        done: Rows that need no answer any more.

    Raises:
        DataError: a prompt is empty.
        torch.OutOfMemoryError: one prompt alone does not fit the device.
    """
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise DataError(f"evaluation: row {row} must have a prompt to answer, got no tokens. Drop the row.")
    limit = max_positions(model.config)
    prompts, budgets = _fit(prompt_ids, limit=limit, max_new_tokens=max_new_tokens)
    end_ids = _end_token_ids(model, tokenizer)
    pad_id = next((one for one in (tokenizer.pad_token_id, *end_ids) if one is not None), 0)

    with evaluating(model, precision=precision):
        device = input_device(model)
        for budget in sorted(set(budgets)):
            config = _greedy(max_new_tokens=budget, end_ids=end_ids, pad_id=pad_id)

            def run(batch: Sequence[int], config: GenerationConfig = config) -> list[list[int]]:
                return _generate(model, [prompts[row] for row in batch], config=config, device=device)

            rows = longest_first(prompts, [row for row, one in enumerate(budgets) if one == budget])
            size = batch_size
            for start in range(0, len(rows), batch_size):
                left = [row for row in rows[start : start + batch_size] if row not in done]
                largest = 0
                for batch, answers in map_batches(left, run, batch_size=size):
                    on_batch(
                        [_read_answer(tokenizer, *one, end_ids=end_ids) for one in zip(batch, answers, strict=True)]
                    )
                    largest = max(largest, len(batch))
                if largest < len(left):
                    # Halved for lack of memory: batches stay small.
                    size = largest


def count_limited(prompt_ids: Sequence[Sequence[int]], *, limit: int | None, max_new_tokens: int) -> tuple[int, int]:
    """Returns `Answers.num_cut_prompts` and `num_short_answers` of these prompts, in a model of `limit` positions."""
    prompts, budgets = _fit(prompt_ids, limit=limit, max_new_tokens=max_new_tokens)
    return (
        sum(len(cut) < len(ids) for cut, ids in zip(prompts, prompt_ids, strict=True)),
        sum(budget < max_new_tokens for budget in budgets),
    )


def max_positions(config: Any) -> int | None:
    """Returns the positions a model was made for, or None if its config (transformers') names no limit."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(config, "max_position_embeddings", None)


def _fit(
    prompt_ids: Sequence[Sequence[int]], *, limit: int | None, max_new_tokens: int
) -> tuple[list[list[int]], list[int]]:
    """Returns the prompts as the model sees them, and the new tokens each may have."""
    prompts = [_cut_left(ids, limit=limit, max_new_tokens=max_new_tokens) for ids in prompt_ids]
    return prompts, [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in prompts]


def _cut_left(ids: Sequence[int], *, limit: int | None, max_new_tokens: int) -> list[int]:
    """Returns the prompt's end, with room for an answer (at least half of `limit` stays prompt), if it is too long."""
    if limit is None or len(ids) < limit:
        return list(ids)
    return list(ids[-max(limit - max_new_tokens, limit // 2, 1) :])


def _end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that end an answer: the tokenizer's, which training ends rows with, and the model's own."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({one for one in ids if isinstance(one, int)})


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
    model: Any, prompts: list[list[int]], *, config: GenerationConfig, device: torch.device
) -> list[list[int]]:
    """Returns the new tokens after each prompt, up to the batch's longest answer."""
    longest = max(len(ids) for ids in prompts)
    padded = [[config.pad_token_id] * (longest - len(ids)) + ids for ids in prompts]
    attention = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    output = model.generate(
        input_ids=torch.tensor(padded, device=device),
        attention_mask=torch.tensor(attention, device=device),
        generation_config=config,
    )
    return output[:, longest:].tolist()


def _read_answer(tokenizer: PreTrainedTokenizerBase, row: int, answer: list[int], *, end_ids: list[int]) -> Answer:
    """Returns the text before the first end token: an end or pad token need not be a special one."""
    end = next((at for at, token in enumerate(answer) if token in end_ids), None)
    text = str(tokenizer.decode(answer[:end], skip_special_tokens=True)).strip()
    if end is None:
        return Answer(row, text, len(answer), "length")
    return Answer(row, text, end, "stop")
