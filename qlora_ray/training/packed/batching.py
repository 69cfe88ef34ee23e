"""How the rows of one step, of all trials, become passes: forwards and backwards of rows of like length.

Rows are padded to the longest of their pass, so many passes waste little on padding; each pass costs a time of its
own whatever is in it (launching kernels, dequantizing the base), so few passes are better. The cut that is cheapest
is found exactly. It depends on lengths alone and on no clock: the same rows are always cut alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What a pass costs by itself, as tokens that could have been computed instead: dequantizing NF4 costs 250-335 tokens
# on T4, A10, A100 and H200 whatever the model's width (design notes, FUSED_TRAINING.md); a pass of the embedded base
# on 2 CPU cores costs about 200 (27 ms for 59 tokens, 98 ms for 690).
TOKENS_PER_PASS = 256


@dataclass(frozen=True)
class StepRow:
    """One row of a trial's step.

    Attributes:
        member: The trial's position among those that step.
        index: The row's number within the trial's effective batch.
        row: Its number in the training data.
        num_tokens: Its length.
    """

    member: int
    index: int
    row: int
    num_tokens: int


def cut_passes(rows: Sequence[StepRow], *, max_tokens: int) -> list[list[StepRow]]:
    """Cuts rows into passes of at most `max_tokens` padded tokens each; a longer single row is a pass of its own.

    Returns:
        The passes, longest rows first (what does not fit is found out early); rows of a pass by trial and index.
    """
    ordered = sorted(rows, key=lambda row: (-row.num_tokens, row.row, row.member, row.index))
    passes = [ordered[start:end] for start, end in _cheapest_cuts([row.num_tokens for row in ordered], max_tokens)]
    return [sorted(rows_of_pass, key=lambda row: (row.member, row.index)) for rows_of_pass in passes]


def padding_of(rows: Sequence[StepRow]) -> list[int]:
    """Padding tokens of each row of a pass."""
    longest = max(row.num_tokens for row in rows)
    return [longest - row.num_tokens for row in rows]


def _cheapest_cuts(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """(start, end) of each pass over falling lengths, with the least padded tokens plus TOKENS_PER_PASS per pass.

    From the shortest row up: the cheapest cut of the rows from `start` on is a pass of some of them, and the cheapest
    cut of the rest, which is known by then.
    """
    num_rows = len(lengths)
    costs, ends = np.zeros(num_rows + 1), np.zeros(num_rows, dtype=np.int64)
    for start in range(num_rows - 1, -1, -1):
        most = min(num_rows - start, max(1, max_tokens // lengths[start]))
        options = costs[start + 1 : start + 1 + most] + lengths[start] * np.arange(1, most + 1)
        best = int(options.argmin())
        costs[start], ends[start] = options[best] + TOKENS_PER_PASS, start + 1 + best
    cuts: list[tuple[int, int]] = []
    while not cuts or cuts[-1][1] < num_rows:
        start = cuts[-1][1] if cuts else 0
        cuts.append((start, int(ends[start])))
    return cuts
