"""Dropout masks that are a pure function of (seed, step, row, layer, token, feature), and of nothing else.

A generator's draws depend on what was drawn before: on neighbours, on padding, on recomputation. A counter-based
hash does not: each element's 16 random bits follow from its own coordinates alone, so that an adapter drops the same
elements alone or packed, in whatever micro-batch its rows come, and again when checkpointing recomputes them.

Shapes: B rows, T tokens, D features, W = D / 2 words of 32 bits, two elements each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Odd multipliers: two of a published 32-bit hash (C. Wellons, "Prospecting for Hash Functions", 2018, lowbias32) and
# the golden ratio's (Knuth, The Art of Computer Programming, volume 3, section 6.4).
MIX_A, MIX_B, GOLDEN = 0x7FEB352D, 0x846CA68B, 0x9E3779B1
WORD = 2**32
# An element has half a word: drop probabilities come in steps of 2^-16.
LEVELS = 2**16


def mix(number: int) -> int:
    """Scatters an integer over 32 bits, so that neighbouring numbers have nothing in common."""
    number = (number ^ (number >> 16)) * MIX_A % WORD
    number = (number ^ (number >> 15)) * MIX_B % WORD
    return number ^ (number >> 16)


def row_key(seed: int, step: int, row: int) -> int:
    """Returns the 32-bit key that one row's masks in one step follow from.

    Args:
        seed: The adapter's own seed.
        step: The optimizer step, from 0.
        row: The row's number within the step's batch, from 0.
    """
    return mix(mix(mix(seed % WORD) ^ (step * GOLDEN % WORD)) ^ (row * MIX_A % WORD))


def rounded_rate(rate: float) -> float:
    """The drop probability that runs: the nearest of LEVELS steps below 1."""
    return min(round(rate * LEVELS), LEVELS - 1) / LEVELS


class DropoutMasks:
    """The masks of a micro-batch's rows, layer by layer.

    Args:
        keys: `row_key` of each row.
        rates: Drop probability of each row.
        counters: Where the hashed counters of all micro-batches are kept.
    """

    def __init__(self, keys: Sequence[int], rates: Sequence[float], *, counters: Counters) -> None:
        device = counters.device
        self._counters = counters
        self._keys_B = torch.tensor([_signed(key) for key in keys], dtype=torch.int32, device=device)
        # A signed half word is uniform over [-2^15, 2^15): its lowest `rate * LEVELS` values drop.
        lowest_kept = [round(rounded_rate(rate) * LEVELS) - LEVELS // 2 for rate in rates]
        self._lowest_kept_B = torch.tensor(lowest_kept, dtype=torch.int16, device=device)

    def kept(self, layer: int, *, rows: slice, num_tokens: int, width: int) -> Tensor:
        """Returns whether each element of a layer's input is kept: bool, [B of `rows`, T, D].

        Args:
            layer: The layer's number in the base.
            rows: Which rows of the micro-batch.
            num_tokens: T, the padded length of the micro-batch.
            width: D, the layer's number of inputs.
        """
        layer_key = _signed(mix((layer + 1) * GOLDEN % WORD))
        keys_B = (self._keys_B[rows] ^ layer_key) * _signed(MIX_A)
        words_BTW = self._counters.take(num_tokens, width) ^ keys_B[:, None, None]
        words_BTW *= _signed(MIX_B)
        # A product's low half knows nothing of its factor's high half; without this one pair of rows in ten correlates.
        words_BTW = (words_BTW ^ (words_BTW >> 15)).mul_(_signed(MIX_A))
        return words_BTW.view(torch.int16)[..., :width] >= self._lowest_kept_B[rows, None, None]


class Counters:
    """The hashed number of every (token, word), which all masks start from."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self._tables: dict[int, Tensor] = {}

    def take(self, num_tokens: int, width: int) -> Tensor:
        """The numbers of the first tokens: int32, [T, W]; they do not change as longer rows come."""
        num_words = (width + 1) // 2
        table_TW = self._tables.get(num_words)
        if table_TW is None or len(table_TW) < num_tokens:
            size = num_tokens if table_TW is None else max(num_tokens, 2 * len(table_TW))
            numbers = torch.arange(size * num_words, dtype=torch.int64, device=self.device)
            table_TW = _mix_tensor(numbers).to(torch.int32).view(size, num_words)
            self._tables[num_words] = table_TW
        return table_TW[:num_tokens]


def _mix_tensor(numbers: Tensor) -> Tensor:
    """`mix` of each number, in the signed 32-bit range (int64 in and out)."""
    numbers = (numbers ^ (numbers >> 16)) * MIX_A % WORD
    numbers = (numbers ^ (numbers >> 15)) * MIX_B % WORD
    numbers = numbers ^ (numbers >> 16)
    return torch.where(numbers >= WORD // 2, numbers - WORD, numbers)


def _signed(word: int) -> int:
    """A 32-bit word as the signed integer with the same bits."""
    return word - WORD if word >= WORD // 2 else word
