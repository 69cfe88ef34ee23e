"""Tells a device without room from other errors: torch has a class for a GPU's lack of memory, and none for a CPU's."""

from __future__ import annotations

import errno
import os

# How torch's message begins where memory of a CPU is short (torch 2.13, c10/core/impl/alloc_cpu.cpp).
CPU_ALLOCATOR = "DefaultCPUAllocator: "
# The system's words, in the RuntimeError of a file that cannot be mapped (torch 2.13, aten/src/ATen/MapAllocator.cpp).
NO_MEMORY = os.strerror(errno.ENOMEM)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, a GPU or this machine, had no room for what was asked of it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in (CPU_ALLOCATOR, NO_MEMORY))
