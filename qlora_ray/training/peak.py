"""How much memory training took."""

from __future__ import annotations

import resource

import torch


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: reserved by torch on a GPU, resident of the whole process on a CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
