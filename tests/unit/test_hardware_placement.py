"""The planner's promises that hold for every placement, on nodes that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ray.config.schema import Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.hardware.cpu_bf16 import name_step
from qlora_ray.hardware.plan import TABLE_COLUMNS, Plan
from tests.unit.hardware_fixtures import DEMAND, LLAMA_8B, MIXED, QWEN_HALF_B, TINY, cpu_node, gpu, node, plan

T4, SMALL = node("a", gpu("Tesla T4")), node("pc", gpu("NVIDIA GeForce GTX 1650"))


def test_the_same_input_gives_the_same_plan_and_changes_nothing():
    before = [item.to_dict() for item in MIXED]
    assert plan(*MIXED) == plan(*MIXED)
    assert [item.to_dict() for item in MIXED] == before


def test_a_mixed_cluster_gets_one_placement_per_class_largest_first_and_none_on_the_head():
    result = plan(*MIXED, model=LLAMA_8B)
    assert [item.device_name for item in result.placements] == ["NVIDIA H200", "NVIDIA A100-SXM4-80GB", "Tesla T4"]
    assert [item.precision.name for item in result.placements] == ["bf16", "bf16", "fp16"]
    assert result.placements[1].devices == ("10.0.0.5:0", "10.0.0.5:1")
    assert result.total_slots == sum(item.slots_per_device * item.num_devices for item in result.placements)
    assert "head: no GPU, so no trials there" in result.notes
    assert any("compared across precisions" in note for note in result.notes)
    assert result.placement_for(gpu("Tesla T4").class_key) is result.placements[2]
    assert result.placement_for("no such class") is None


def test_one_precision_is_worth_no_note():
    assert plan(T4, node("b", gpu("Tesla V100-SXM2-16GB"))).notes == ()


def test_packing_off_with_several_slots_asked_for_is_a_contradiction():
    with pytest.raises(PlacementError, match="slots_per_device must be 1 with packing: off, got 2"):
        plan(*MIXED, packing="off", slots_per_device=2)


def test_max_slots_caps_the_whole_cluster_and_spreads_what_is_left():
    free = plan(*MIXED, model=LLAMA_8B)
    capped = plan(*MIXED, model=LLAMA_8B, max_slots=4)
    assert free.total_slots > 4
    assert capped.total_slots == 4
    assert [item.slots_per_device for item in capped.placements] == [1, 1, 1]
    assert any(f"max_slots: 4 of the {free.total_slots} trials" in note for note in capped.notes)
    assert plan(*MIXED, model=LLAMA_8B, max_slots=999).total_slots == free.total_slots
    assert plan(cpu_node(num_cpus=4, ram_gib=64), model=TINY, max_slots=1).total_slots == 1


def test_no_room_anywhere_names_the_need_the_largest_gpu_and_the_remedy():
    demand = replace(DEMAND, gradient_checkpointing=False, max_seq_length=2048)
    message = (
        r"needs \d+\.\d GiB \(activations \d+\.\d, base 5\.3, .*free GPU has 14\.4 GiB \(T4 on 10\.0\.0\.4\)"
        r"\. Use training\.gradient_checkpointing: auto \(\d\.\d GiB\), or data\.max_length: 512 "
    )
    with pytest.raises(PlacementError, match=message):
        plan(SMALL, node("10.0.0.4", gpu("Tesla T4")), model=LLAMA_8B, demand=demand)


def test_a_class_that_is_too_small_is_skipped_with_the_reason():
    result = plan(SMALL, T4, model=LLAMA_8B)
    assert [item.device_name for item in result.placements] == ["Tesla T4"]
    (words,) = result.skipped
    assert words.startswith("NVIDIA GeForce GTX 1650 on pc:0: 3.6 GiB free")


def test_a_gpu_that_is_too_full_is_left_out_of_its_class():
    result = plan(node("full", gpu("Tesla T4", free_gib=1.0)), T4, model=LLAMA_8B)
    assert result.placements[0].devices == ("a:0",)
    assert any(note.startswith("full:0: only 1.0 GiB of its 14.6 GiB") for note in result.notes)


def test_requested_bf16_skips_gpus_that_would_emulate_it():
    result = plan(*MIXED, precision="bf16")
    assert {item.precision.name for item in result.placements} == {"bf16"}
    assert any("got bf16" in words and "Tesla T4" in words for words in result.skipped)
    with pytest.raises(PlacementError, match=r"Tesla T4, got bf16: compute capability 7\.5"):
        plan(T4, precision="bf16")


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        (T4, "auto"),
        (cpu_node(num_cpus=4, ram_gib=64), "auto"),
        (node("b", gpu("NVIDIA A100-SXM4-80GB")), "fp32"),
        (node("b", replace(gpu("NVIDIA A100-SXM4-80GB"), is_simulated=True)), "auto"),
    ],
)
def test_flash_attention_is_refused_where_no_device_has_it(device, precision):
    flash = replace(DEMAND, attn_implementation="flash_attention_2")
    with pytest.raises(PlacementError, match=r"flash_attention_2 must have a GPU .* 8\.0 .* Take sdpa"):
        plan(device, demand=flash, precision=precision)


def test_flash_attention_leaves_the_devices_out_that_lack_it():
    result = plan(
        T4, node("b", gpu("NVIDIA A100-SXM4-80GB")), demand=replace(DEMAND, attn_implementation="flash_attention_2")
    )
    assert [item.device_name for item in result.placements] == ["NVIDIA A100-SXM4-80GB"]
    assert "got Tesla T4 in fp16" in result.skipped[0]


def test_a_device_that_the_libraries_cannot_use_is_skipped():
    v100 = gpu("Tesla V100-SXM2-16GB")
    result = plan(node("b", replace(v100, problem="no kernels")), T4)
    assert result.skipped == ("Tesla V100-SXM2-16GB on b:0: no kernels",)
    with pytest.raises(PlacementError, match=r"capability 7\.5 for int8, got 7\.0.*method: nf4"):
        plan(node("a", v100), quantization=Quantization(method="int8"))


def test_an_unknown_model_type_is_noted_and_no_node_is_an_error():
    assumed = replace(QWEN_HALF_B, model_type="newcomer", layout_assumed=True)
    assert any("newcomer is not known" in note for note in plan(T4, model=assumed).notes)
    with pytest.raises(PlacementError, match="must have a node, got none"):
        plan()


def test_the_table_is_aligned_narrow_plain_and_tells_every_reason():
    result = plan(*MIXED, SMALL, model=LLAMA_8B)
    text = result.render()
    lines = text.splitlines()
    assert max(map(len, lines)) <= TABLE_COLUMNS
    assert text.isascii() and "\t" not in text
    header, rule, *rows = lines[: 2 + len(result.placements)]
    assert rule.startswith("------")
    column = header.index("precision")
    for row, placement in zip(rows, result.placements, strict=True):
        assert row[column:].startswith(placement.precision.name)
        assert f"{placement.micro_batch} x {placement.gradient_accumulation_steps}" in row
    flat = " ".join(text.split())
    for words in (*result.notes, *result.skipped, *(item.reason for item in result.placements)):
        assert words in flat
    assert f"{result.total_slots} trials at once" in text


def test_a_plan_takes_bf16_on_a_processor_where_it_was_measured_with_the_placements_threads():
    free = cpu_node(num_cpus=4, ram_gib=32)
    unmeasured = plan(free).placements[0]
    assert unmeasured.precision.name == "fp32"

    def measured(threads: int, speedup: float, **device) -> Plan:
        step = name_step(QWEN_HALF_B, num_threads=threads)
        profile = replace(free.devices[0], bf16_flags=("avx512_bf16",), bf16_speedups={step: speedup}, **device)
        return plan(replace(free, devices=(profile,)))

    (chosen,) = measured(unmeasured.num_threads, 1.58).placements
    assert chosen.precision.reason == "bf16: measured 1.58x fp32 on this processor at this base's widths"
    assert chosen.precision.reason in chosen.reason
    # Memory is that of bf16: what the layers keep takes half the bytes.
    assert chosen.estimate.activations_bytes < unmeasured.estimate.activations_bytes
    for result in (measured(unmeasured.num_threads, 1.1), measured(unmeasured.num_threads + 1, 1.58)):
        assert result.placements[0].precision.name == "fp32"
    held = measured(unmeasured.num_threads, 1.58, held_precision="fp32")
    assert held.placements[0].precision.name == "fp32"


def test_a_node_held_to_fp32_is_a_class_of_its_own_and_the_mixture_is_noted():
    free = cpu_node("one", num_cpus=4, ram_gib=32)
    asked = replace(free.devices[0], bf16_flags=("avx512_bf16",), held_precision="bf16")
    held = replace(free.devices[0], bf16_flags=("avx512_bf16",), held_precision="fp32")
    result = plan(replace(free, devices=(asked,)), replace(free, hostname="two", devices=(held,)))
    assert sorted(item.precision.name for item in result.placements) == ["bf16", "fp32"]
    assert any(note.startswith("losses are compared across precisions") for note in result.notes)


@pytest.mark.parametrize(
    ("change", "cluster"),
    [
        ({"eval_batch": 10**12}, {}),
        ({"per_device_train_batch_size": 10**12, "effective_batch": 10**12}, {"packing": "single"}),
        ({}, {"cpus_per_slot": 10**12, "max_slots": 10**12}),
    ],
)
def test_numbers_without_measure_are_searched_and_not_counted_through(change, cluster):
    assert plan(T4, demand=replace(DEMAND, **change), **cluster).total_slots >= 1


@pytest.mark.parametrize("packing", ["packed", "single"])
def test_slots_without_measure_are_refused_and_not_counted_through(packing):
    with pytest.raises(PlacementError, match="slots_per_device must be at most"):
        plan(T4, slots_per_device=10**12, packing=packing)
