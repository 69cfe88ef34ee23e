"""How large a micro-batch and how many trials at once the device takes: the plan, corrected by what it showed."""

from __future__ import annotations

from collections.abc import Sequence

from qlora_ray.training.packed.meter import PeakMeter
from qlora_ray.training.packed.trial import PackedTrial


class Limits:
    """The caps on tokens per micro-batch and on slots.

    Both begin as planned. Measured micro-batches lower and raise them within the plan; running out of memory lowers
    the plan itself, for good.

    Args:
        slots: Trials at once, as planned.
        max_tokens: Padded tokens per micro-batch, as planned.
        meter: Measures micro-batches.

    Attributes:
        max_tokens: The cap of the step that runs.
    """

    def __init__(self, *, slots: int, max_tokens: int, meter: PeakMeter) -> None:
        self._planned_tokens = max_tokens
        self._token_bound = self.max_tokens = max_tokens
        self._slot_bound = slots
        self._meter = meter

    def correct(self, trials: Sequence[PackedTrial], *, num_here: int, longest_row: int) -> int:
        """Sets `max_tokens` for a step by what earlier micro-batches took; returns the slots beside it.

        Args:
            trials: The trials that take this step.
            num_here: All trials in memory, those that wait included.
            longest_row: Tokens of the step's longest row, which is never cut.
        """
        fitting = min(self._token_bound, self._meter.max_tokens(self._planned_tokens))
        self.max_tokens = max(longest_row, fitting)
        return self._meter.max_trials(
            now=num_here,
            bytes_per_trial=max(trial.num_bytes for trial in trials),
            num_tokens=self.max_tokens,
            planned=self._slot_bound,
        )

    def halve_tokens(self, *, longest_row: int) -> bool:
        """Halves micro-batches, down to one row; False if they have one row already."""
        if self.max_tokens <= longest_row:
            return False
        self._token_bound = max(longest_row, self.max_tokens // 2)
        return True

    def lower_slots(self, slots: int) -> int:
        """Plans with no more slots than these from now on, and returns them."""
        self._slot_bound = slots
        return slots
