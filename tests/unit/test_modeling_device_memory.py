"""A device without room, told from other errors by what torch and Python really raise."""

from __future__ import annotations

import pytest
import torch

from qlora_ray.modeling.device_memory import as_out_of_memory, is_out_of_memory

# As torch 2.13 words it where the address space is limited (RLIMIT_AS).
NOT_MAPPED = "unable to mmap 247769200 bytes from file </models/model.safetensors>: Cannot allocate memory (12)"


def test_what_torch_raises_on_a_cpu_without_room_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert not isinstance(caught.value, torch.OutOfMemoryError)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(NOT_MAPPED),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate"),
    ],
)
def test_every_lack_of_memory_is_raised_as_one_error(error: Exception) -> None:
    assert is_out_of_memory(error)
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"^(CUDA|MemoryError|unable to mmap|DefaultCPUAlloc)"),
        as_out_of_memory(),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes cannot be multiplied"), ValueError("DefaultCPUAllocator: a file of that name")],
)
def test_another_error_stays_what_it_is(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error), match=r".") as caught, as_out_of_memory():
        raise error
    assert caught.value is error
