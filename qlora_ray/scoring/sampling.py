"""Sampled answers that do not depend on batches, order, resuming or padding, and that pair models.

Source: the Gumbel-max trick. The argmax of `logits / temperature + noise`, with independent standard Gumbel noise for
each token, is an exact draw from `softmax(logits / temperature)` (Gumbel, Statistical Theory of Extreme Values, 1954;
Maddison, Tarlow and Minka, A* Sampling, NeurIPS 2014, section 2). So sampling is greedy decoding of noisy logits.

The noise is a function of (seed, row, step) alone, from a counter-based generator: Philox4x64-10 (Salmon et al.,
Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) with the seed and the row as its key and the step in its counter.
Every model gets the same noise for the same row, the method of common random numbers: where two models agree on their
logits they draw the same token, so that a difference of their scores comes from the models and not from luck, and
varies less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, TopPLogitsWarper

from qlora_ray.config.schema import Evaluate
from qlora_ray.scoring.details import describe_sampling

# A float64 holds 53 bits: these, the upper ones of 64, and the half that keeps a draw off both 0 and 1.
FRACTION_BITS = 52


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: Above 0; logits are divided by it.
        top_p: Only the most likely tokens are drawn: the fewest whose probabilities, after the temperature, sum up to
            this (nucleus sampling; Holtzman et al., The Curious Case of Neural Text Degeneration, 2020).
        seed: Of the noise.
    """

    temperature: float
    top_p: float
    seed: int

    def __str__(self) -> str:
        return describe_sampling(self.to_dict())

    def to_dict(self) -> dict[str, float]:
        """What decides the draws, for settings.json."""
        return asdict(self)


def choose_sampling(evaluate: Evaluate) -> Sampling | None:
    """Returns how the config has answers drawn; None where they are greedy."""
    if evaluate.temperature == 0:
        return None
    return Sampling(evaluate.temperature, evaluate.top_p, evaluate.sample_seed)


class GumbelNoise(LogitsProcessor):
    """Makes greedy decoding of one batch a draw for each of its rows.

    Args:
        sampling: Temperature, top_p and seed.
        rows: The batch's rows: the index that each has among all prompts, by which it gets its noise.
        num_prompt_tokens: Length of the padded prompts, after which step 0 comes.
    """

    def __init__(self, sampling: Sampling, *, rows: Sequence[int], num_prompt_tokens: int) -> None:
        self.sampling = sampling
        self.rows = list(rows)
        self.num_prompt_tokens = num_prompt_tokens
        self._keep_likely = TopPLogitsWarper(sampling.top_p) if sampling.top_p < 1 else None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Returns the noisy logits in float64.

        Shapes: `input_ids` (rows, tokens so far), `scores` and the result (rows, vocabulary).
        """
        step = input_ids.shape[1] - self.num_prompt_tokens
        # The best logit becomes 0 first: however low the temperature, nothing overflows to NaN.
        wide = scores.double()
        scaled = (wide - wide.amax(dim=-1, keepdim=True)) / self.sampling.temperature
        if self._keep_likely is not None:
            scaled = self._keep_likely(input_ids, scaled)
        noise = [draw_gumbel(self.sampling.seed, row=row, step=step, num=scores.shape[-1]) for row in self.rows]
        return scaled + torch.from_numpy(np.stack(noise)).to(scores.device)


def draw_gumbel(seed: int, *, row: int, step: int, num: int) -> NDArray[np.float64]:
    """Returns standard Gumbel noise of shape (num,); a longer draw begins with the shorter one.

    NumPy promises that a bit generator's integers stay the same, and of distributions it does not (NEP 19): so the
    integers are turned into noise here.

    Args:
        seed: The evaluation's sampling seed.
        row: The prompt's number in its set.
        step: Tokens of the answer before this one.
        num: Numbers to draw, one per token of the vocabulary.
    """
    # A step has a word of the counter to itself: the word below it counts 2^64 blocks of four numbers.
    bits = np.random.Philox(key=[seed, row], counter=[0, step, 0, 0]).random_raw(num)
    uniform = ((bits >> (64 - FRACTION_BITS)) + 0.5) * 2.0**-FRACTION_BITS
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
