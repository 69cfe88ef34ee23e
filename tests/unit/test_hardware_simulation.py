"""Nodes as if they had the GPUs that they claim: only where that is declared, and never beside real ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlora_ray.config.schema import Lora
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import NodeProfile, choose_precision
from qlora_ray.hardware.catalogue import CATALOGUE, find_class
from qlora_ray.hardware.device import GpuClaims
from qlora_ray.hardware.simulation import as_if, choose_arithmetic, read_claims
from qlora_ray.training.simulated_memory import SimulatedMemory
from tests.unit.hardware_fixtures import DEMAND, GIB, QWEN_HALF_B, cpu_node, gpu, node, plan


@pytest.mark.parametrize(
    ("resources", "labels", "claims"),
    [
        ({"CPU": 8, "GPU": 2, "accelerator_type:T4": 1.0}, {}, GpuClaims("T4", 2)),
        ({"GPU": 1}, {"ray.io/accelerator-type": "A100-40G"}, GpuClaims("A100-40G", 1)),
        ({"CPU": 8, "accelerator_type:T4": 1.0}, {}, None),
        ({"CPU": 8, "GPU": 1}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_claim_is_what_ray_counts_on_a_node(resources, labels, claims):
    assert read_claims(resources, labels) == claims


@pytest.mark.parametrize("gpu_class", CATALOGUE, ids=lambda item: item.name)
def test_a_node_without_gpus_has_those_that_it_claims(gpu_class):
    before = cpu_node("a", num_cpus=4)
    after = as_if(before, GpuClaims(gpu_class.name, 2))
    assert [device.index for device in after.devices] == [0, 1]
    real = gpu_class.to_device()
    for device in after.devices:
        assert device.is_simulated and device.shown_name == f"{real.name} (simulated)"
        assert replace(device, is_simulated=False, index=0) == real
    assert replace(after, devices=before.devices) == before
    assert as_if(before, None) == before


def test_a_node_with_a_gpu_of_its_own_is_what_it_is():
    real = node("a", gpu("Tesla T4"))
    assert as_if(real, GpuClaims("H100", 8)) == real


def test_a_claim_that_the_catalogue_lacks_is_the_nodes_own_problem():
    strange = as_if(cpu_node("a"), GpuClaims("T44", 1))
    with pytest.raises(PlacementError, match=r"claims what the catalogue lacks: .*got 'T44'\. Did you mean T4\?"):
        plan(strange)


def test_a_simulated_class_is_planned_like_the_real_one_and_apart_from_it():
    claimed = as_if(cpu_node("claims", num_cpus=16, ram_gib=128), GpuClaims("T4", 1))
    real = node("real", find_class("T4").to_device())
    simulated, found = (plan(one).placements[0] for one in (claimed, real))
    assert (simulated.simulates, found.simulates, simulated.gpu_class) == ("T4", None, "T4")
    for name in ("slots_per_device", "num_gpus", "engine", "precision", "micro_batch", "estimate", "available_bytes"):
        assert getattr(simulated, name) == getattr(found, name), name
    both = plan(claimed, real)
    assert {item.device_name for item in both.placements} == {"Tesla T4", "Tesla T4 (simulated)"}
    assert any(note.startswith("Tesla T4 (simulated): planned as if") for note in both.notes)
    assert "(simulated)" in both.render()


def test_a_profile_keeps_its_claims_when_it_is_written_and_read():
    before = replace(as_if(cpu_node(), GpuClaims("L4", 1)), claims=GpuClaims("L4", 1))
    assert NodeProfile.from_dict(before.to_dict()) == before


@pytest.mark.parametrize("name", ["P4", "T4", "H100"])
def test_arithmetic_is_fp32_on_a_cpu_that_stands_for_another_and_the_reason_says_what_it_would_be(name):
    real, simulated = (find_class(name).to_device(is_simulated=flag) for flag in (False, True))
    planned = choose_precision(real)
    assert choose_arithmetic(real, planned) == planned
    chosen = choose_arithmetic(simulated, choose_precision(simulated))
    assert chosen.name == "fp32" and chosen.reason.endswith(f"(simulated) would compute in {planned.name}")


def make_memory(limit_share: float) -> tuple[SimulatedMemory, int]:
    """A simulated T4 whose limit is a share of what its plan says it needs without safety."""
    (item,) = plan(
        as_if(cpu_node(num_cpus=8), GpuClaims("T4", 1)), demand=replace(DEMAND, gradient_checkpointing=False)
    ).placements
    assert item.workload is not None
    limit_bytes = int(limit_share * item.estimate.total_bytes)
    memory = SimulatedMemory(QWEN_HALF_B, item.workload, limit_bytes=limit_bytes, device_name=item.device_name)
    memory.hold_adapters(item.estimate.adapter_bytes)
    return memory, item.workload.num_tokens


def test_a_step_as_planned_fits_exactly_what_was_estimated_and_a_longer_one_does_not():
    memory, num_tokens = make_memory(1.0)
    memory.take_step(num_tokens=num_tokens, longest=512, recomputes=False)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tesla T4 \(simulated\) has \d+\.\d GiB"):
        memory.take_step(num_tokens=2 * num_tokens, longest=512, recomputes=False)


def test_what_helps_on_a_real_device_helps_on_a_simulated_one():
    memory, num_tokens = make_memory(0.8)
    with pytest.raises(torch.OutOfMemoryError):
        memory.take_step(num_tokens=num_tokens, longest=512, recomputes=False)
    memory.take_step(num_tokens=num_tokens // 2, longest=512, recomputes=False)
    memory.take_step(num_tokens=num_tokens, longest=512, recomputes=True)
    memory.take_evaluation(num_rows=1, longest=512)


def test_adapters_take_their_own_room():
    memory, num_tokens = make_memory(1.0)
    with pytest.raises(torch.OutOfMemoryError):
        memory.take_step(num_tokens=num_tokens + 16, longest=512, recomputes=False)
    memory.hold_adapters(1)
    memory.take_step(num_tokens=num_tokens + 16, longest=512, recomputes=False)
    with pytest.raises(torch.OutOfMemoryError):
        memory.hold_adapters(20 * GIB)


def test_adapters_that_leave_take_their_room_with_them_and_need_none():
    memory, num_tokens = make_memory(0.5)
    memory.hold_adapters(0)
    memory.take_step(num_tokens=1, longest=1, recomputes=True)
    assert num_tokens > 1
    with pytest.raises(torch.OutOfMemoryError):
        memory.hold_adapters(20 * GIB)
    memory.hold_adapters(10 * GIB)


def test_a_trial_by_itself_takes_what_the_memory_model_says_of_its_own_rank():
    memory, num_tokens = make_memory(1.0)
    memory.hold_trial(Lora(r=1), optim="adamw_torch")
    memory.take_step(num_tokens=num_tokens + 16, longest=512, recomputes=False)
    with pytest.raises(torch.OutOfMemoryError):
        memory.hold_trial(Lora(r=4096), optim="adamw_torch")
