"""How large a trial is: what the memory model says of it alone."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.hardware.trial_size import TrialSizes
from tests.unit.hardware_fixtures import LLAMA_8B, gpu, node, plan

GIB = 2**30
SIZES = TrialSizes(LLAMA_8B, plan(node("a", gpu("NVIDIA H200")), model=LLAMA_8B).placements[0])


def count(lora: dict[str, Any] | None = None, **training: Any) -> int:
    training = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "optim": "adamw_torch", **training}
    values = {"lora": {"r": 16, "target_modules": "all-linear", **(lora or {})}, "training": training}
    return SIZES.count_bytes(SweepConfig.model_validate({**values, "search": {"space": {"lora.r": {"choices": [4]}}}}))


@pytest.mark.parametrize(
    "larger",
    [
        {"lora": {"r": 64}},
        {"lora": {"modules_to_save": ["lm_head"]}},
        {"per_device_train_batch_size": 8},
        {"gradient_checkpointing": False},
    ],
)
def test_what_wants_more_memory_is_larger(larger: dict[str, Any]) -> None:
    assert count(**larger) > count()


def test_what_wants_less_memory_is_smaller() -> None:
    assert count({"target_modules": "attention-qv"}) < count()
    assert count(optim="adamw_8bit") < count()


def test_a_rank_counts_as_its_parameters_do() -> None:
    # Llama 3 8B: per rank and layer 2 x 4096 (q, o), 4096 + 1024 twice (k, v) and 4096 + 14336 thrice (the MLP), of 32
    # layers; weight, gradient and two moments of 4 bytes each.
    num_parameters = 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    grown = count({"r": 32}) - count({"r": 16})
    assert grown == pytest.approx(16 * num_parameters * 16, rel=0.15)
