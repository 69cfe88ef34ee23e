"""Placements as processes: each trial has an executor and a copy of the base of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from qlora_ray.errors import PlacementError
from qlora_ray.hardware import DeviceProfile, TrialDemand
from qlora_ray.hardware.plan import largest_divisor
from tests.unit.hardware_fixtures import (
    DEMAND,
    EXPECTED_PRECISION,
    GIB,
    GPUS,
    LLAMA_8B,
    MIXED,
    QWEN_3B,
    QWEN_HALF_B,
    SHAPES,
    TINY,
    cpu_node,
    gpu,
    node,
)
from tests.unit.hardware_fixtures import plan as plan_any

plan = partial(plan_any, packing="single")


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("num_cpus", [1, 3, 64])
def test_what_is_planned_fits_the_device_and_ray(name, model, num_cpus):
    nodes = [node("a", gpu(name), gpu(name, index=1), num_cpus=num_cpus)]
    try:
        (placement,) = plan(*nodes, model=SHAPES[model]).placements
    except PlacementError:
        assert (name, model) == ("NVIDIA GeForce GTX 1650", "8b")
        return
    slots = placement.slots_per_device
    assert slots >= 1
    assert slots * placement.num_gpus <= 1
    assert slots * placement.needed_bytes <= placement.available_bytes
    assert placement.needed_bytes >= 1.1 * placement.estimate.total_bytes
    assert 2 * slots * placement.num_cpus < num_cpus  # some is left for trial actors
    cap_bytes = placement.memory_cap_fraction * nodes[0].devices[0].total_memory_bytes
    assert cap_bytes >= placement.estimate.reserved_bytes
    assert slots * (cap_bytes + placement.estimate.context_bytes) <= placement.available_bytes
    assert placement.micro_batch * placement.gradient_accumulation_steps == DEMAND.effective_batch
    assert placement.precision.name == EXPECTED_PRECISION[name]
    assert placement.reason


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_bigger_gpu_never_has_fewer_slots_or_a_smaller_micro_batch(model, batch_size, capability):
    demand = replace(DEMAND, per_device_train_batch_size=batch_size, effective_batch=3 * batch_size)
    slots, micro_batches = [0], [0]
    for total_gib in [*range(4, 80, 3), 140]:
        device = DeviceProfile(0, "cuda", "some GPU", capability, total_gib * GIB, total_gib * GIB)
        try:
            (placement,) = plan(node("a", device), model=SHAPES[model], demand=demand).placements
        except PlacementError:
            assert slots[-1] == 0  # once a size fits, larger ones do too
            continue
        slots.append(placement.slots_per_device)
        micro_batches.append(placement.max_micro_batch)
    assert slots == sorted(slots)
    assert micro_batches == sorted(micro_batches)
    assert micro_batches[-1] == batch_size


def test_a_gtx_1650_with_4_gb_trains_a_3b_model():
    demand = TrialDemand(effective_batch=8, max_seq_length=512, gradient_checkpointing=True)
    (placement,) = plan(node("pc", gpu("NVIDIA GeForce GTX 1650")), model=QWEN_3B, demand=demand).placements
    assert (placement.slots_per_device, placement.num_gpus, placement.micro_batch) == (1, 1.0, 1)
    assert placement.precision.name == "fp16"
    assert placement.gradient_accumulation_steps == 8


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    demand = replace(DEMAND, per_device_train_batch_size=12, effective_batch=24, max_seq_length=1024)
    (placement,) = plan(node("a", gpu("Tesla T4")), model=LLAMA_8B, demand=demand).placements
    assert 1 < placement.max_micro_batch < 12
    assert f"{placement.max_micro_batch} of per_device_train_batch_size 12" in placement.reason
    for effective_batch in range(1, 40):
        micro_batch = largest_divisor(effective_batch, at_most=placement.max_micro_batch)
        assert effective_batch % micro_batch == 0
        assert micro_batch <= placement.max_micro_batch
    assert largest_divisor(7, at_most=placement.max_micro_batch) in (1, 7)


def test_largest_divisor_is_what_it_says():
    assert [largest_divisor(12, at_most=limit) for limit in (1, 4, 5, 11, 12, 99)] == [1, 4, 4, 6, 12, 12]


@pytest.mark.parametrize(
    ("num_cpus", "ram_gib", "settings", "slots", "threads", "words"),
    [
        (4, 64, {}, 4, 1, ""),
        (8, 4, {}, 2, 4, "memory is the limit"),  # threads make up for it
        (8, 64, {"cpus_per_slot": 4}, 2, 4, ""),
    ],
)
def test_a_cpu_node_is_shared_by_cpus_or_memory_in_fp32(num_cpus, ram_gib, settings, slots, threads, words):
    result = plan(cpu_node(num_cpus=num_cpus, ram_gib=ram_gib), model=TINY, **settings)
    (placement,) = result.placements
    assert (placement.slots_per_device, placement.num_gpus, placement.memory_cap_fraction) == (slots, 0.0, None)
    assert (placement.precision.name, placement.num_threads, result.total_slots) == ("fp32", threads, slots)
    assert threads - 0.1 < placement.num_cpus < threads
    assert words in placement.reason


def test_little_host_ram_limits_the_processes_on_a_gpu():
    (placement,) = plan(node("a", gpu("NVIDIA H200"), ram_gib=4), model=TINY).placements
    assert placement.slots_per_device == 3
    assert "RAM is the limit" in placement.reason


def test_packing_off_gives_one_slot():
    for placement in plan(*MIXED, packing="off").placements:
        assert (placement.slots_per_device, placement.num_gpus) == (1, 1.0)


def test_slots_can_be_given_and_shrink_the_micro_batch_to_fit():
    wide = replace(DEMAND, per_device_train_batch_size=16, max_seq_length=2048)
    a100 = node("a", gpu("NVIDIA A100-SXM4-80GB"))
    alone, shared = (plan(a100, model=LLAMA_8B, demand=wide, slots_per_device=slots).placements[0] for slots in (1, 6))
    assert (alone.slots_per_device, shared.slots_per_device) == (1, 6)
    assert shared.max_micro_batch < alone.max_micro_batch
    assert 6 * shared.needed_bytes <= shared.available_bytes
    assert "6 slots" in shared.reason
    with pytest.raises(PlacementError, match=r"at most 1 here, got 4: 14\.4 GiB are free"):
        plan(node("10.0.0.4", gpu("Tesla T4")), model=LLAMA_8B, slots_per_device=4)


def test_an_older_trl_is_counted_with_all_its_logits():
    new = node("a", gpu("Tesla T4"))
    old = replace(new, packages={"trl": "1.10.0"})
    logits = [plan(item).placements[0].estimate.logits_bytes for item in (new, old)]
    assert logits[0] < logits[1] / 4


def test_grouped_keys_cost_their_scores_where_flash_attention_is_not_to_be_had():
    """huggingface/transformers issue 48633."""
    long = replace(DEMAND, max_seq_length=4096)
    grouped = plan(node("a", gpu("Tesla T4")), demand=long).placements[0]
    plain = plan(node("a", gpu("Tesla T4")), demand=long, model=replace(QWEN_HALF_B, num_kv_heads=14)).placements[0]
    assert grouped.estimate.activations_bytes > plain.estimate.activations_bytes


def test_evaluation_stays_within_the_slot_and_is_cut_where_it_must():
    demand = replace(DEMAND, loss="stock", eval_batch=64, per_device_train_batch_size=1)
    (placement,) = plan(node("pc", gpu("NVIDIA GeForce GTX 1650")), demand=demand, slots_per_device=1).placements
    assert 1 <= placement.eval_batch < 64
    (roomy,) = plan(node("a", gpu("NVIDIA H200")), demand=demand, slots_per_device=1).placements
    assert roomy.eval_batch == 64
