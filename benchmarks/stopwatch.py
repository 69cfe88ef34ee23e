"""Time and memory of an arm: monotonic seconds around finished work, and the peak since it began."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Linux: writing 5 there sets the peak of the resident set back to what it is now (proc_pid_clear_refs, man7.org).
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
STATUS = Path("/proc/self/status")


@dataclass
class Run:
    """What one arm of one repetition did.

    Attributes:
        seconds: Of the timed steps of all trials.
        setup_s: Of what came before: adapters, optimizers, the first step.
        peak_bytes: Of the process on a CPU, allocated by torch on a GPU; None where it cannot be measured.
        losses: Mean training loss of each trial over its timed steps.
        padding_share: Of the tokens that went through the base.
    """

    seconds: float = 0.0
    setup_s: float = 0.0
    peak_bytes: int | None = None
    losses: dict[str, float] = field(default_factory=dict)
    padding_share: float = 0.0


class Stopwatch:
    """Reads the clock when the device has done what it was given.

    Args:
        device: `cpu` or `cuda:0`.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._was_reset = True

    def now(self) -> float:
        """Seconds; only differences mean something."""
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Peak memory is measured from now on."""
        if self._device != "cpu":
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            CLEAR_REFS.write_text(RESET_PEAK)
        except OSError:
            # The peak would be the highest of all arms so far.
            self._was_reset = False

    def peak_bytes(self) -> int | None:
        """Peak memory since `reset_peak`."""
        if self._device != "cpu":
            import torch

            return int(torch.cuda.max_memory_allocated())
        return read_peak(STATUS.read_text()) if self._was_reset else None


def read_peak(status: str) -> int | None:
    """Bytes of VmHWM in the text of /proc/self/status."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios of neighbouring measurements: what drifts in both cancels out."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))
