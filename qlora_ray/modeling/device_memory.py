"""Memory of the device: how much was taken at the peak, and which errors say that there is none left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from qlora_ray.platforms import read_peak_resident_bytes, read_resident_bytes

# How torch's message begins where memory of a CPU is short (torch 2.13, c10/core/impl/alloc_cpu.cpp).
CPU_ALLOCATOR = "DefaultCPUAllocator: "
# The system's words, in the RuntimeError of a file that cannot be mapped (torch 2.13, aten/src/ATen/MapAllocator.cpp).
NO_MEMORY = os.strerror(errno.ENOMEM)


def peak_memory_bytes(device: str) -> int:
    """Peak memory so far: reserved by torch on a GPU, resident of the whole process on a CPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_reserved()
    return read_peak_resident_bytes()


def used_memory_bytes(device: str) -> int | None:
    """Memory in use now: reserved by torch on a GPU, resident of the whole process on a CPU; None if unknown.

    Neither waits for the device.
    """
    if device != "cpu":
        import torch

        return torch.cuda.memory_reserved()
    return read_resident_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, a GPU or this machine, had no room for what was asked of it."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in (CPU_ALLOCATOR, NO_MEMORY))


@contextmanager
def as_out_of_memory() -> Iterator[None]:
    """Raises every error that `is_out_of_memory` as torch.OutOfMemoryError, so that a CPU's is caught as a GPU's is.

    A decorator, too.

    Raises:
        torch.OutOfMemoryError: The device had no room; its first line says for what.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error):
            raise
        message = str(error)
        # Before it torch names the check that failed in its own source.
        raise torch.OutOfMemoryError(message[max(message.find(CPU_ALLOCATOR), 0) :] or type(error).__name__) from None
