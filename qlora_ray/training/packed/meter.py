"""What micro-batches really take on this device, and how many tokens and trials that leaves room for.

The memory model (hardware/memory.py) is the prior; peak = fixed + per_token * tokens, fitted to measured micro-batches,
corrects it. Only a GPU is measured: a CPU's allocator gives back nothing that could be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Micro-batches before the fit is believed, and how many of the latest it looks at.
FEWEST_MICRO_BATCHES = 6
LATEST_MICRO_BATCHES = 64
# Reserved over allocated was 1.02-1.18 on measured rows (hardware/memory.py): what the limit must leave free.
FRAGMENTATION = 1.1


@dataclass(frozen=True)
class PeakFit:
    """Allocated bytes of a micro-batch: `fixed_bytes` + `bytes_per_token` * its padded tokens."""

    fixed_bytes: float
    bytes_per_token: float

    def predict(self, num_tokens: int) -> float:
        """Bytes reserved at the peak of a micro-batch."""
        return FRAGMENTATION * (self.fixed_bytes + self.bytes_per_token * num_tokens)


class PeakMeter:
    """Measures micro-batches and answers what fits.

    Args:
        limit_bytes: What this process may reserve; None measures nothing.
        reset: Starts a measurement.
        read: Peak allocated bytes since.
    """

    def __init__(
        self,
        limit_bytes: int | None,
        *,
        reset: Callable[[], None] = torch.cuda.reset_peak_memory_stats,
        read: Callable[[], int] = torch.cuda.max_memory_allocated,
    ) -> None:
        self.limit_bytes = limit_bytes
        self._reset = reset
        self._read = read
        self._seen: list[tuple[int, int]] = []

    def begin(self) -> None:
        """Starts to measure a micro-batch; `end` follows it."""
        if self.limit_bytes is not None:
            self._reset()

    def end(self, num_tokens: int) -> None:
        """After a micro-batch of so many padded tokens."""
        if self.limit_bytes is not None:
            self._seen = [*self._seen[1 - LATEST_MICRO_BATCHES :], (num_tokens, self._read())]

    def forget(self) -> None:
        """After trials came or went: the fixed part is another one."""
        self._seen.clear()

    def fit(self) -> PeakFit | None:
        """Least squares over the latest micro-batches; None before there are enough of different lengths."""
        if len(self._seen) < FEWEST_MICRO_BATCHES or len({tokens for tokens, _ in self._seen}) < 2:
            return None
        mean_tokens = sum(tokens for tokens, _ in self._seen) / len(self._seen)
        mean_bytes = sum(peak for _, peak in self._seen) / len(self._seen)
        spread = sum((tokens - mean_tokens) ** 2 for tokens, _ in self._seen)
        slope = sum((tokens - mean_tokens) * (peak - mean_bytes) for tokens, peak in self._seen) / spread
        slope = max(slope, 0.0)
        return PeakFit(mean_bytes - slope * mean_tokens, slope)

    def max_tokens(self, planned: int) -> int:
        """Padded tokens a micro-batch may have: as planned, or what measured micro-batches say still fits."""
        fit = self.fit()
        if fit is None or self.limit_bytes is None or fit.predict(planned) <= self.limit_bytes:
            return planned
        room = self.limit_bytes / FRAGMENTATION - fit.fixed_bytes
        return max(1, int(room / fit.bytes_per_token)) if fit.bytes_per_token > 0 else planned

    def max_trials(self, *, now: int, bytes_per_trial: int, num_tokens: int, planned: int) -> int:
        """Returns how many trials fit: at most as planned, at least those that are here.

        Args:
            now: Trials that are in memory now.
            bytes_per_trial: What one more takes: weights, gradients and moments.
            num_tokens: Padded tokens of the longest micro-batch.
            planned: Slots by the plan.
        """
        fit = self.fit()
        if fit is None or self.limit_bytes is None or bytes_per_trial <= 0:
            return planned
        room = (self.limit_bytes - fit.predict(num_tokens)) / FRAGMENTATION
        return max(now, min(planned, now + int(room // bytes_per_trial)))
