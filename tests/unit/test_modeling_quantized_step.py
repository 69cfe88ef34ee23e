"""The doctor's step: a real one on this machine's CPU, and what is said where it cannot be taken."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch

from qlora_ray.modeling import quantized_step
from qlora_ray.modeling.quantized_step import try_quantized_step


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cpu_takes_the_step_in_both_formats(dtype: str) -> None:
    assert try_quantized_step("cpu", compute_dtype=dtype) is None


def test_the_error_of_nf4_is_well_within_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized_step, "MAX_ERROR", 0.0)
    said = try_quantized_step("cpu", compute_dtype="fp32")
    assert said == "the 4-bit layer's outputs are off by 0.08 on average"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_told_in_one_line() -> None:
    said = try_quantized_step("cuda:0", compute_dtype="fp16")
    assert said is not None and "\n" not in said and "CUDA" in said


def test_an_optimizer_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", lambda self: None)
    assert (
        try_quantized_step("cpu", compute_dtype="fp32")
        == "8-bit AdamW's first step moved a weight by 0.0000, not by 0.01"
    )
