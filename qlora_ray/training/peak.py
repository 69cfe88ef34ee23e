"""How much memory training took."""

from __future__ import annotations

import resource

import torch

from qlora_ray.training.checkpoint import TrialState

# Of a report's metrics, and of what training says of a report that is owed.
PEAK_METRIC = "peak_memory_bytes"


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: reserved by torch on a GPU, resident of the whole process on a CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reported_peak_bytes(state: TrialState, *, device: str) -> float:
    """A report's peak: of the training to it and of its evaluation, which may be another process's.

    Args:
        state: The state that owes the report.
        device: Where it is evaluated.
    """
    return max(state.unreported.get(PEAK_METRIC, 0), peak_memory_bytes(device))
