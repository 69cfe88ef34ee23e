"""How the rows of one step, of all trials, become micro-batches: forwards and backwards of rows of like length.

Rows are padded to the longest of their micro-batch, so many micro-batches waste little on padding; each micro-batch
costs a time of its own whatever is in it (launching kernels, dequantizing the base), so few micro-batches are better.
The cut that is cheapest is found exactly. It depends on lengths alone and on no clock: the same rows are always cut
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What a micro-batch costs by itself, as tokens that could have been computed instead: dequantizing NF4 costs about 250
# tokens on a GPU (the arithmetic is at SATURATION_TOKENS in hardware/packing.py); a micro-batch of the embedded base on
# 2 CPU cores costs about 200 (27 ms for 59 tokens, 98 ms for 690).
MICRO_BATCH_COST_TOKENS = 256


@dataclass(frozen=True)
class StepRow:
    """One row of a trial's step.

    Attributes:
        trial: The trial's position among those that step.
        index: The row's number within the trial's effective batch.
        row: Its number in the training data.
        num_tokens: Its length.
    """

    trial: int
    index: int
    row: int
    num_tokens: int


def cut_micro_batches(rows: Sequence[StepRow], *, max_tokens: int) -> list[list[StepRow]]:
    """Cuts rows into micro-batches of at most `max_tokens` padded tokens each; a longer single row is a micro-batch of
    its own.

    Returns:
        The micro-batches, longest rows first (what does not fit is found out early); rows of a micro-batch by trial and
        index.
    """
    ordered = sorted(rows, key=lambda row: (-row.num_tokens, row.row, row.trial, row.index))
    micro_batches = [
        ordered[start:end] for start, end in _cheapest_cuts([row.num_tokens for row in ordered], max_tokens)
    ]
    return [sorted(micro_batch, key=lambda row: (row.trial, row.index)) for micro_batch in micro_batches]


def padding_of(rows: Sequence[StepRow]) -> list[int]:
    """Padding tokens of each row of a micro-batch."""
    longest = max(row.num_tokens for row in rows)
    return [longest - row.num_tokens for row in rows]


def _cheapest_cuts(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """(start, end) of each micro-batch over falling lengths, with the fewest padded tokens where each micro-batch costs
    MICRO_BATCH_COST_TOKENS of its own.

    From the shortest row up: the cheapest cut of the rows from `start` on is a micro-batch of some of them, and the
    cheapest cut of the rest, which is known by then.
    """
    num_rows = len(lengths)
    costs, ends = np.zeros(num_rows + 1), np.zeros(num_rows, dtype=np.int64)
    for start in range(num_rows - 1, -1, -1):
        most = min(num_rows - start, max(1, max_tokens // lengths[start]))
        options = costs[start + 1 : start + 1 + most] + lengths[start] * np.arange(1, most + 1)
        best = int(options.argmin())
        costs[start], ends[start] = options[best] + MICRO_BATCH_COST_TOKENS, start + 1 + best
    cuts: list[tuple[int, int]] = []
    while not cuts or cuts[-1][1] < num_rows:
        start = cuts[-1][1] if cuts else 0
        cuts.append((start, int(ends[start])))
    return cuts
