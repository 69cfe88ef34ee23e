"""One batch of prompts, continued token by token until each answer has ended, or may end.

transformers' `generate` does it, in rounds: when half of a batch's rows have ended, the others go on without them, in a
cache of their own rows. A model that answers at length does not keep the rows of another one waiting in its batch, and
on a CPU a row that has ended costs as much as one that has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from qlora_ray.scoring.early_end import CHECK_EVERY_TOKENS, EarlyEnd
from qlora_ray.scoring.inference import Route
from qlora_ray.scoring.sampling import GumbelNoise, Sampling

Finish = Literal["stop", "length", "settled", "loop"]

# Rounds with fewer rows than this are not made smaller: their steps cost what reading the weights costs.
MIN_ROUND_ROWS = 4
# Of a round's rows, those that have to go on: with fewer it ends, and the next one has only these.
KEPT_SHARE = 0.5


@dataclass
class Continuation:
    """One prompt of a batch, and its answer so far.

    Attributes:
        row: The prompt's number among all.
        model: Which model answers it.
        tokens: The answer, without its end token.
        finish: `stop`: the model ended it; `length`: its tokens were spent; `settled`, `loop`: see `early_end`. None
            while it goes on.
    """

    row: int
    model: int
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


class Decoder:
    """Continues batches of prompts by one model, or by several that share a base.

    Args:
        model: A causal LM of transformers, in eval mode.
        end_ids: The tokens that end an answer.
        pad_id: What fills short rows.
        device: Where token ids must be.
        route: Gives the rows of a forward pass to their models.
        sampling: How answers are drawn; None: greedily.
        early_end: Ends answers whose rest is of no consequence; None: none.
    """

    def __init__(
        self,
        model: Any,
        *,
        end_ids: Sequence[int],
        pad_id: int,
        device: torch.device,
        route: Route,
        sampling: Sampling | None,
        early_end: EarlyEnd | None,
    ) -> None:
        self._model = model
        self._end_ids = list(end_ids)
        self._pad_id = pad_id
        self._device = device
        self._route = route
        self._sampling = sampling
        self._early_end = early_end
        # Not every cache can: those of recurrent layers in transformers 5.23 cannot.
        self._can_drop_rows = True

    def continue_prompts(
        self, prompts: Sequence[Sequence[int]], asked: Sequence[tuple[int, int]], *, max_new_tokens: int
    ) -> list[Continuation]:
        """Returns the answers of one batch.

        Args:
            prompts: The tokens of all prompts.
            asked: The batch: the number of a prompt, and of the model that answers it.
            max_new_tokens: Tokens that each answer may have.
        """
        batch = [Continuation(row, asks) for row, asks in sorted(asked, key=lambda one: one[1])]
        ids, attention = self._pad_left([prompts[one.row] for one in batch])
        num_prompt, num_full = ids.shape[1], ids.shape[1] + max_new_tokens
        going, cache = batch, None
        while going:
            watch = _Watch(
                going,
                num_prompt=num_prompt,
                max_new_tokens=max_new_tokens,
                end_ids=frozenset(self._end_ids),
                early_end=self._early_end,
                can_drop_rows=self._can_drop_rows,
            )
            output = self._generate(going, ids, attention, cache, watch, num_prompt=num_prompt, num_full=num_full)
            watch.look(output.sequences)
            kept = [at for at, one in enumerate(going) if one.finish is None]
            going = [going[at] for at in kept]
            if going:
                index = torch.tensor(kept, device=self._device)
                num_new = output.sequences.shape[1] - ids.shape[1]
                ids = output.sequences[index]
                attention = torch.cat([attention[index], attention.new_ones(len(kept), num_new)], dim=1)
                cache = self._drop_rows(output.past_key_values, index)
        return batch

    def _pad_left(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Returns token ids and attention mask, each [B, T]."""
        longest = max(map(len, prompts))
        ids = [[self._pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        attention = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self._device), torch.tensor(attention, device=self._device)

    def _generate(
        self,
        going: Sequence[Continuation],
        ids: Tensor,
        attention: Tensor,
        cache: Any,
        watch: _Watch,
        *,
        num_prompt: int,
        num_full: int,
    ) -> Any:
        """One round; returns its `sequences` and `past_key_values`."""
        noise = (
            []
            if self._sampling is None
            else [GumbelNoise(self._sampling, rows=[one.row for one in going], num_prompt_tokens=num_prompt)]
        )
        with self._route([one.model for one in going]):
            return self._model.generate(
                input_ids=ids,
                attention_mask=attention,
                past_key_values=cache,
                generation_config=_greedy(
                    max_new_tokens=num_full - ids.shape[1], end_ids=self._end_ids, pad_id=self._pad_id
                ),
                logits_processor=LogitsProcessorList(noise),
                stopping_criteria=StoppingCriteriaList([watch]),
            )

    def _drop_rows(self, cache: Any, index: Tensor) -> Any:
        """Returns the cache of these rows only; None, by which all tokens are read again, where it cannot drop any."""
        layers = getattr(cache, "layers", None)
        if not layers or not all(hasattr(layer, "batch_select_indices") for layer in layers):
            self._can_drop_rows = False
            return None
        cache.batch_select_indices(index)
        return cache


class _Watch(StoppingCriteria):
    """Ends the rows of a round that may end, and the round itself where too few are left."""

    def __init__(
        self,
        going: Sequence[Continuation],
        *,
        num_prompt: int,
        max_new_tokens: int,
        end_ids: frozenset[int],
        early_end: EarlyEnd | None,
        can_drop_rows: bool,
    ) -> None:
        self._going = going
        self._num_prompt = num_prompt
        self._max_new_tokens = max_new_tokens
        self._end_ids = end_ids
        self._early_end = early_end
        self._may_shrink = can_drop_rows and len(going) > MIN_ROUND_ROWS
        self._has_ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows have ended, [B]; looked for once in some tokens, and told again until then."""
        if (input_ids.shape[1] - self._num_prompt) % CHECK_EVERY_TOKENS == 0:
            self.look(input_ids)
            has_ended = [one.finish is not None for one in self._going]
            if self._may_shrink and has_ended.count(False) <= KEPT_SHARE * len(has_ended):
                has_ended = [True] * len(has_ended)
            self._has_ended = torch.tensor(has_ended, device=input_ids.device)
        if self._has_ended is None:
            self._has_ended = torch.zeros(len(self._going), dtype=torch.bool, device=input_ids.device)
        return self._has_ended

    def look(self, ids: Tensor) -> None:
        """Reads the answers so far, [B, T] with their prompts, and says of each row that has ended how it has."""
        for one, answer in zip(self._going, ids[:, self._num_prompt :].tolist(), strict=True):
            if one.finish is None:
                self._look_at(one, answer)

    def _look_at(self, one: Continuation, answer: list[int]) -> None:
        end = next((at for at, token in enumerate(answer) if token in self._end_ids), None)
        if end is not None:
            one.tokens, one.finish = answer[:end], "stop"
            return
        one.tokens = answer
        if len(answer) == self._max_new_tokens:
            one.finish = "length"
        elif self._early_end is not None:
            found = self._early_end.find(one.row, answer, max_new_tokens=self._max_new_tokens)
            if found is not None:
                one.finish, one.tokens = found[0], answer[: found[1]]


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
        return_dict_in_generate=True,
        use_cache=True,
    )
