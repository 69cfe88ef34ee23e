"""How the rows of one step, of all trials, become passes: forwards and backwards of rows of like length.

Rows are padded to the longest of their pass, so many passes waste little on padding; each pass costs a time of its
own whatever is in it (launching kernels, dequantizing the base), so few passes are better. The cut that is cheapest
is found exactly. It depends on lengths alone and on no clock: the same rows are always cut alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What a pass costs by itself, as tokens that could have been computed instead: dequantizing NF4 costs 250-335 tokens
# on T4, A10, A100 and H200 whatever the model's width (design notes, FUSED_TRAINING.md); a pass of the embedded base
# on 2 CPU cores costs about as much in launching alone (docs/measured.md).
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

    Cuts are only made where the length changes or the limit forces one, so the work grows with the number of
    different lengths squared, not with the rows.
    """
    ends = [at for at in range(1, len(lengths)) if lengths[at] != lengths[at - 1]] + [len(lengths)]
    starts = [0, *ends[:-1]]
    best: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
    for last, end in enumerate(ends):
        options = []
        for first in range(last, -1, -1):
            start = starts[first]
            longest = lengths[start]
            rows_per_pass = max(1, max_tokens // longest)
            num_passes = -(-(end - start) // rows_per_pass)
            cost = best[first][0] + longest * (end - start) + TOKENS_PER_PASS * num_passes
            options.append((cost, first, rows_per_pass))
        cost, first, rows_per_pass = min(options, key=lambda option: option[0])
        start = starts[first]
        cuts = [(at, min(at + rows_per_pass, end)) for at in range(start, end, rows_per_pass)]
        best.append((cost, best[first][1] + cuts))
    return best[-1][1]
