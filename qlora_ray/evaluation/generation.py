"""Greedy answers to prompts: batched with left padding, the same as each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise DataError(f"evaluation: row {row} must have a prompt to answer, got no tokens. Drop the row.")
    limit = _max_positions(model)
    prompts = [_cut_left(ids, limit=limit, max_new_tokens=max_new_tokens) for ids in prompt_ids]
    budgets = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids)) for ids in prompts]
    end_ids = _end_token_ids(model, tokenizer)
    pad_id = next((one for one in (tokenizer.pad_token_id, *end_ids) if one is not None), 0)
    texts = [""] * len(prompts)

    with evaluating(model, precision=precision):
        device = input_device(model)
        for budget in sorted(set(budgets)):
            config = _greedy(max_new_tokens=budget, end_ids=end_ids, pad_id=pad_id)

            def run(batch: Sequence[int], config: GenerationConfig = config) -> list[list[int]]:
                return _generate(model, [prompts[row] for row in batch], config=config, device=device)

            rows = longest_first(prompts, [row for row, one in enumerate(budgets) if one == budget])
            for batch, answers in map_batches(rows, run, batch_size=batch_size):
                for row, answer in zip(batch, answers, strict=True):
                    texts[row] = _decode(tokenizer, answer, end_ids=end_ids)
    return Answers(
        texts=texts,
        num_cut_prompts=sum(len(cut) < len(ids) for cut, ids in zip(prompts, prompt_ids, strict=True)),
        num_short_answers=sum(budget < max_new_tokens for budget in budgets),
    )


def _max_positions(model: Any) -> int | None:
    """Returns the positions the model was made for, or None if its config names no limit."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None)


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


def _decode(tokenizer: PreTrainedTokenizerBase, answer: list[int], *, end_ids: list[int]) -> str:
    """Returns the text before the first end token: an end or pad token need not be a special one."""
    end = next((at for at, token in enumerate(answer) if token in end_ids), len(answer))
    return str(tokenizer.decode(answer[:end], skip_special_tokens=True)).strip()
