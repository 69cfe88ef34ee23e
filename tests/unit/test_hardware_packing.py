"""Placements as packs: one executor per device, one base, and a slot for each trial."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qlora_ray.config.schema import Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import DeviceProfile, Placement, Plan
from qlora_ray.hardware.packing import (
    HOLD_SHARE,
    MAX_PACKED_SLOTS,
    MIN_PACKED_SLOTS,
    PASS_TOKENS_PER_SATURATION,
    SATURATION_TOKENS,
)
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
    WIDE,
    cpu_node,
    gpu,
    node,
    plan,
)

DORA = "lora.use_dora: not packed"
LAPTOP = "NVIDIA GeForce GTX 1650"
CARDS = ["Tesla T4", "NVIDIA GeForce RTX 3090", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", LAPTOP]


def only(result: Plan) -> Placement:
    (placement,) = result.placements
    return placement


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_pack_fits_its_device_and_ray(name, model, checkpointing):
    nodes = [node("a", gpu(name), gpu(name, index=1), num_cpus=8)]
    demand = replace(DEMAND, gradient_checkpointing=checkpointing)
    try:
        placement = only(plan(*nodes, model=SHAPES[model], demand=demand))
    except PlacementError:
        assert (name, model, checkpointing) in ((LAPTOP, "8b", True), (LAPTOP, "8b", False), (LAPTOP, "3b", False))
        return
    assert placement.engine == "packed"
    assert placement.num_gpus == 1.0
    assert (placement.executors_per_device, placement.slots_per_executor) == (1, placement.slots_per_device)
    assert placement.num_threads == 4  # half of the node's: it has two devices
    assert 3.9 < placement.num_cpus < 4
    assert 1.1 * placement.estimate.total_bytes <= placement.needed_bytes <= placement.available_bytes
    parts = placement.estimate.to_dict()
    assert sum(parts.values()) == placement.estimate.total_bytes
    assert placement.max_tokens_per_micro_batch >= DEMAND.max_seq_length
    assert placement.max_micro_batch == placement.max_tokens_per_micro_batch // DEMAND.max_seq_length
    assert placement.micro_batch * placement.gradient_accumulation_steps == DEMAND.effective_batch
    assert placement.micro_batch <= placement.max_micro_batch
    assert placement.precision.name == EXPECTED_PRECISION[name]
    cap_bytes = placement.memory_cap_fraction * nodes[0].devices[0].total_memory_bytes
    assert placement.estimate.reserved_bytes <= cap_bytes
    assert cap_bytes + placement.estimate.context_bytes <= placement.available_bytes


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_bigger_gpu_never_has_fewer_slots_or_smaller_passes_for_as_many(model, capability):
    before = (0, 0)
    for total_gib in [*range(4, 80, 3), 140]:
        device = DeviceProfile(0, "cuda", "some GPU", capability, total_gib * GIB, total_gib * GIB)
        try:
            placement = only(plan(node("a", device), model=SHAPES[model], packing="packed"))
        except PlacementError:
            assert before == (0, 0)  # once a size fits, larger ones do too
            continue
        assert (placement.slots_per_device, placement.max_tokens_per_micro_batch) >= before
        before = (placement.slots_per_device, placement.max_tokens_per_micro_batch)
    assert before[0] == MIN_PACKED_SLOTS


@pytest.mark.parametrize(
    ("num_cpus", "settings", "threads"),
    [
        (8, {}, 8),
        (16, {"slots_per_device": 3, "cpus_per_slot": 2}, 6),
        (16, {"slots_per_device": 9, "cpus_per_slot": 2}, 16),
    ],
)
def test_a_cpu_node_is_one_pack_with_all_its_processors_or_those_given_per_trial(num_cpus, settings, threads):
    placement = only(plan(cpu_node(num_cpus=num_cpus, ram_gib=16), model=WIDE, **settings))
    assert (placement.engine, placement.num_gpus, placement.memory_cap_fraction) == ("packed", 0.0, None)
    assert (placement.num_threads, placement.precision.name) == (threads, "fp32")
    assert threads - 0.2 < placement.num_cpus <= threads and placement.num_cpus < num_cpus


@pytest.mark.parametrize(
    ("num_cpus", "packs", "slots", "threads"), [(1, 1, 4, 1), (2, 2, 4, 1), (4, 4, 8, 1), (16, 8, 16, 2)]
)
def test_a_narrow_base_on_a_cpu_gets_more_packs_rather_than_more_threads(num_cpus, packs, slots, threads):
    demand = replace(DEMAND, effective_batch=8, mean_seq_length=64.0)
    placement = only(plan(cpu_node(num_cpus=num_cpus, ram_gib=64), model=TINY, demand=demand))
    assert (placement.packs_per_device, placement.executors_per_device) == (packs, packs)
    assert (placement.slots_per_device, placement.slots_per_executor) == (slots, slots // packs)
    assert placement.num_threads == threads
    assert packs * placement.num_cpus < num_cpus
    assert packs * placement.needed_bytes <= placement.available_bytes


def test_packs_divide_the_slots_that_are_asked_for_and_need_a_base_each():
    two = cpu_node(num_cpus=2, ram_gib=32)
    assert only(plan(two, model=TINY, slots_per_device=6)).packs_per_device == 2
    assert only(plan(two, model=TINY, slots_per_device=5)).packs_per_device == 1
    capped = only(plan(two, model=TINY, max_slots=1))
    assert (capped.packs_per_device, capped.slots_per_device) == (1, 1)
    short_of_memory = only(plan(cpu_node(num_cpus=8, ram_gib=4), model=TINY))
    assert short_of_memory.packs_per_device < 4
    assert short_of_memory.packs_per_device * short_of_memory.needed_bytes <= short_of_memory.available_bytes


@pytest.mark.parametrize(
    ("mean_tokens", "num_trials", "slots", "facts"),
    [
        (40.0, None, 7, ["7 trials", "fill the device", "2240 tokens"]),
        (64.0, None, 4, ["4 trials", "fill the device", "2048 tokens"]),
        (300.0, None, MIN_PACKED_SLOTS, ["4 trials", "fill the device", "9600 tokens"]),
        (2.0, None, MAX_PACKED_SLOTS, ["16 trials", "the most that share one", "256 tokens"]),
        (40.0, 3, 3, ["3 trials", "all of the sweep's", "960 tokens"]),
        (40.0, 1, 1, ["1 trial on", "all of the sweep's", "320 tokens"]),
        (None, None, MIN_PACKED_SLOTS, ["4 trials", "fill the device", "16384 tokens"]),
    ],
)
def test_slots_are_those_that_fill_the_device(mean_tokens, num_trials, slots, facts):
    demand = replace(DEMAND, effective_batch=8, mean_seq_length=mean_tokens, num_trials=num_trials)
    result = plan(cpu_node(num_cpus=2, ram_gib=32), model=WIDE, demand=demand)
    assert only(result).slots_per_device == result.total_slots == slots
    assert all(fact in only(result).reason for fact in facts)


def test_a_gpu_takes_more_tokens_to_fill_than_a_cpu():
    demand = replace(DEMAND, effective_batch=8, mean_seq_length=200.0)
    on_cpu, on_gpu = (only(plan(item, demand=demand, model=WIDE)) for item in (cpu_node(), node("a", gpu("Tesla T4"))))
    assert (on_cpu.slots_per_device, on_gpu.slots_per_device) == (MIN_PACKED_SLOTS, 11)


def test_memory_limits_the_slots_first_and_then_the_passes():
    demand = replace(DEMAND, gradient_checkpointing=False)
    placement = only(plan(node("10.0.0.4", gpu("Tesla T4")), model=LLAMA_8B, demand=replace(demand, max_r=32)))
    assert placement.slots_per_device < MIN_PACKED_SLOTS
    assert "that memory allows" in placement.reason
    assert placement.max_tokens_per_micro_batch < 2 * DEMAND.max_seq_length
    assert placement.needed_bytes + 1.1 * placement.slot_bytes > placement.available_bytes
    smaller = only(plan(node("a", gpu("NVIDIA GeForce RTX 3090")), model=LLAMA_8B, demand=demand))
    assert smaller.slots_per_device == MIN_PACKED_SLOTS
    assert DEMAND.max_seq_length < smaller.max_tokens_per_micro_batch < SATURATION_TOKENS["cuda"]


def test_a_pass_is_never_longer_than_a_step_or_than_a_device_can_use():
    roomy = node("a", gpu("NVIDIA H200"))
    short = replace(DEMAND, max_seq_length=32, effective_batch=4)
    placement = only(plan(roomy, demand=short))
    assert placement.max_tokens_per_micro_batch == placement.slots_per_device * 4 * 32
    most = PASS_TOKENS_PER_SATURATION * SATURATION_TOKENS["cuda"]
    assert only(plan(roomy, demand=replace(DEMAND, effective_batch=256))).max_tokens_per_micro_batch == most
    longest = replace(DEMAND, max_seq_length=2 * most, effective_batch=2)
    assert only(plan(roomy, model=TINY, demand=longest)).max_tokens_per_micro_batch == 2 * most


def test_one_more_trial_costs_what_the_placement_says():
    ours = node("a", gpu("NVIDIA H200"))
    three, four = (only(plan(ours, model=QWEN_3B, slots_per_device=slots)) for slots in (3, 4))
    assert three.max_tokens_per_micro_batch < four.max_tokens_per_micro_batch  # a step of fewer trials has fewer tokens
    adapters = [item.estimate.adapter_bytes for item in (three, four)]
    assert adapters[1] - adapters[0] == adapters[0] // 3 == adapters[1] // 4
    assert three.slot_bytes == pytest.approx(1.1 * adapters[0] / 3, abs=1)
    # QLoRA's adapter on a 3B model: fp32 weight and gradient and two 8-bit moments, 10 bytes a parameter.
    assert three.slot_bytes == pytest.approx(1.1 * 10.03 * QWEN_3B.num_adapter_parameters("all-linear", 16), rel=1e-3)


def test_the_base_is_held_dequantized_where_a_third_of_the_rest_is_room_for_it():
    for name in GPUS:
        device = node("a", gpu(name))
        placement = only(plan(device, model=QWEN_HALF_B))
        dense_bytes = 2 * QWEN_HALF_B.num_linear_parameters
        assert placement.hold_dequantized == (placement.estimate.dequantized_bytes == dense_bytes)
        if placement.hold_dequantized:
            room_bytes = placement.available_bytes - placement.needed_bytes + 1.1 * 1.1 * dense_bytes
            assert 1.1 * dense_bytes <= HOLD_SHARE * room_bytes
            assert "held dequantized (0.7 GiB)" in placement.reason
        else:
            assert "dequantized in every micro-batch" in placement.reason
    assert only(plan(node("a", gpu("NVIDIA H200")), model=LLAMA_8B)).hold_dequantized
    assert not only(plan(node("a", gpu("Tesla T4")), model=LLAMA_8B)).hold_dequantized


@pytest.mark.parametrize("method", ["int8", "none"])
def test_only_four_bit_weights_are_held_dequantized(method):
    placement = only(plan(node("a", gpu("NVIDIA H200")), quantization=Quantization(method=method)))
    assert not placement.hold_dequantized
    assert "dequantized" not in placement.reason.partition("; ")[2].replace("dequantized 0.", "")


def test_trials_that_cannot_share_a_base_run_as_processes_with_the_reason():
    for placement in plan(*MIXED, demand=replace(DEMAND, single_reason=DORA)).placements:
        assert placement.engine == "single"
        assert placement.reason.startswith(f"single: {DORA}; one trial takes ")
        assert placement.max_tokens_per_micro_batch is None
        assert placement.executors_per_device == placement.slots_per_device


def test_a_forced_pack_of_trials_that_cannot_share_a_base_is_refused_with_the_reason():
    with pytest.raises(PlacementError, match=r"cluster\.packing must be auto, .*got packed: lora\.use_dora"):
        plan(*MIXED, packing="packed", demand=replace(DEMAND, single_reason=DORA))


@pytest.mark.parametrize("packing", ["single", "off"])
def test_a_pack_can_be_declined(packing):
    for placement in plan(*MIXED, packing=packing).placements:
        assert placement.engine == "single"
        assert not placement.reason.startswith("single: ")


def test_where_memory_is_too_short_for_a_pack_the_trials_are_processes_unless_a_pack_was_asked_for():
    device = gpu(LAPTOP, free_gib=1.2)
    placement = only(plan(node("pc", device)))
    assert placement.engine == "single"
    assert placement.reason.startswith("single: memory is too short")
    with pytest.raises(PlacementError, match=r"needs 1\.4 GiB .* free GPU has 1\.2 GiB"):
        plan(node("pc", device), packing="packed")


def test_slots_can_be_given_up_to_what_fits():
    t4 = node("10.0.0.4", gpu("Tesla T4"))
    placement = only(plan(t4, slots_per_device=20))
    assert placement.slots_per_device == 20
    assert "20 trials" in placement.reason and "config asks" in placement.reason
    with pytest.raises(PlacementError, match=r"at most \d+ here, got 40: 14\.4 GiB are free .* need \d+\.\d GiB\."):
        plan(t4, model=LLAMA_8B, slots_per_device=40)


def test_max_slots_takes_the_bytes_of_the_trials_that_are_not_there():
    ours = node("a", gpu("Tesla T4"))
    free, capped = only(plan(ours)), only(plan(ours, max_slots=2))
    assert (capped.slots_per_device, capped.num_gpus) == (2, 1.0)
    assert capped.estimate.adapter_bytes == free.estimate.adapter_bytes // 2
    gone_bytes = free.estimate.total_bytes - capped.estimate.total_bytes
    assert gone_bytes == pytest.approx(2 * free.slot_bytes, rel=1e-6)
    assert free.needed_bytes - capped.needed_bytes == pytest.approx(1.1 * gone_bytes, rel=1e-6)


def test_no_more_trials_run_at_once_than_the_sweep_has():
    result = plan(*MIXED, demand=replace(DEMAND, num_trials=6))
    assert sum(item.num_slots for item in result.placements) > 6
    assert result.total_slots == 6


def test_a_plan_of_packs_survives_json_and_tells_the_engine():
    result = plan(*MIXED, model=LLAMA_8B)
    assert Plan.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    header, _, *rows = result.render().splitlines()[: 2 + len(result.placements)]
    assert [row[header.index("engine") :].split()[0] for row in rows] == ["packed"] * 3


@pytest.mark.parametrize(("change", "device"), [("sdpa", "Tesla T4"), ("eager", "NVIDIA A100-SXM4-80GB")])
def test_attention_that_keeps_its_scores_shrinks_the_passes_of_long_rows(change, device):
    """Grouped keys have only the math kernel on a T4: huggingface/transformers issue 48633."""
    long = replace(DEMAND, max_seq_length=1024, gradient_checkpointing=False)
    few = replace(QWEN_HALF_B, num_kv_heads=14)
    with_scores = only(plan(node("a", gpu(device)), demand=replace(long, attn_implementation=change)))
    without = only(plan(node("a", gpu(device)), demand=long, model=few))
    assert 1024 <= with_scores.max_tokens_per_micro_batch < 0.8 * without.max_tokens_per_micro_batch
