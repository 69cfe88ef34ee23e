"""When an answer is ended before the model ends it: what would follow cannot change its score.

Two reasons, both recorded with the answer. `settled`: every metric says that the score stays as it is, whatever comes.
`loop`: the answer repeats itself, token by token, far longer than any reference does; greedy decoding seldom leaves a
loop, since the same tokens are the likeliest after the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from qlora_ray.scoring.metrics.metric import Metric, Settling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ours: answers are looked at once in so many tokens, since that takes about 0.1 ms an answer.
CHECK_EVERY_TOKENS = 8
# A tokenizer may still change the end of a text when more tokens come: half a character, and spaces before punctuation
# that `clean_up_tokenization_spaces` removes ("do n't" becomes "don't").
UNSTABLE_CHARACTERS = 8
# Said twice is not yet a loop: of 2,000 solutions of GSM8K, one says 27 tokens twice in a row ("6 cups of water came
# out").
MIN_LOOP_REPEATS = 3
# Ours: twice the longest stretch that says the same three times or more in those solutions, 15 of Qwen's tokens ("5
# cars + 5 cars + 5 cars"). In the 1,542 queries of the shipped task there is none.
MIN_LOOP_TOKENS = 32
# Ours: where the references of these rows repeat themselves longer, so much longer an answer may.
LOOP_PER_REFERENCE_REPEAT = 2

EarlyFinish = Literal["settled", "loop"]


class EarlyEnd:
    """Says of each answer, as it grows, whether it may end here.

    Args:
        metrics: What the answers are measured by; each knows when a score is settled (`Settling`).
        references: The expected answer of each row.
        alternatives: Other answers of each row that are as right; None: there are none.
        tokenizer: Of the model that answers.
        finds_loops: Whether answers that repeat themselves end: only greedy ones repeat themselves for ever.
    """

    def __init__(
        self,
        metrics: Sequence[Settling],
        references: Sequence[str],
        *,
        alternatives: Sequence[Sequence[str]] | None = None,
        tokenizer: PreTrainedTokenizerBase,
        finds_loops: bool,
    ) -> None:
        self._metrics = metrics
        others = [()] * len(references) if alternatives is None else alternatives
        self._expected = [(reference, *rest) for reference, rest in zip(references, others, strict=True)]
        self._tokenizer = tokenizer
        self._min_loop_tokens: int | None = None
        encoded = tokenizer(list(references), add_special_tokens=False, verbose=False)["input_ids"]
        self._reference_tokens = list(map(len, encoded))
        if finds_loops and all(metric.settles_in_loops for metric in metrics):
            longest = max(map(measure_repeat, encoded), default=0)
            self._min_loop_tokens = max(MIN_LOOP_TOKENS, LOOP_PER_REFERENCE_REPEAT * longest)

    def find(self, row: int, tokens: Sequence[int], *, max_new_tokens: int) -> tuple[EarlyFinish, int] | None:
        """Returns why an answer may end, and how many of its tokens are kept; None where it goes on.

        A settled answer still gets as many tokens as its reference has: people read it beside that.

        A loop is cut where the whole answer would have been cut in it, so that it ends with the same tokens.

        Args:
            row: The row that is answered.
            tokens: The answer so far, without an end token.
            max_new_tokens: Tokens that it may have.
        """
        period = find_loop(tokens, min_tokens=self._min_loop_tokens) if self._min_loop_tokens is not None else None
        if period is not None:
            return "loop", len(tokens) - (len(tokens) - max_new_tokens) % period
        if len(tokens) < self._reference_tokens[row]:
            return None
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()[:-UNSTABLE_CHARACTERS]
        if text and all(metric.is_settled(text, right) for metric in self._metrics for right in self._expected[row]):
            return "settled", len(tokens)
        return None


def make_early_end(
    metrics: Sequence[Metric],
    references: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    is_greedy: bool,
    alternatives: Sequence[Sequence[str]] | None = None,
) -> EarlyEnd | None:
    """Returns what ends answers early; None where a metric, such as one of the user's own, may look at all of them."""
    settling = [metric for metric in metrics if isinstance(metric, Settling)]
    if not settling or len(settling) < len(metrics):
        return None
    return EarlyEnd(settling, references, alternatives=alternatives, tokenizer=tokenizer, finds_loops=is_greedy)


def find_loop(tokens: Sequence[int], *, min_tokens: int) -> int | None:
    """Returns the period that the last tokens repeat, at least three times and over `min_tokens` tokens; else None."""
    for period in range(1, len(tokens) // MIN_LOOP_REPEATS + 1):
        num_tokens = max(min_tokens, MIN_LOOP_REPEATS * period)
        if num_tokens > len(tokens):
            return None
        if tokens[-period:] != tokens[-2 * period : -period]:
            continue
        if tokens[-num_tokens:-period] == tokens[-num_tokens + period :]:
            return period
    return None


def measure_repeat(tokens: Sequence[int]) -> int:
    """Returns the tokens of the longest stretch that says the same three times or more; 0 without one."""
    values = np.asarray(tokens)
    longest = 0
    for period in range(1, len(values) // MIN_LOOP_REPEATS + 1):
        breaks = np.flatnonzero(np.concatenate(([True], values[period:] != values[:-period], [True])))
        num_same = int(np.diff(breaks).max()) - 1
        if num_same >= (MIN_LOOP_REPEATS - 1) * period:
            longest = max(longest, num_same + period)
    return longest
