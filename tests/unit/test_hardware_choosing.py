"""Which classes and how many GPUs are used, and where activations are recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_ray.errors import ConfigError, PlacementError
from qlora_ray.hardware.catalogue import CATALOGUE, find_class
from qlora_ray.hardware.plan import Plan, RefusedClass
from tests.unit.hardware_fixtures import DEMAND, GIB, LLAMA_8B, QWEN_3B, QWEN_HALF_B, SHAPES, cpu_node, node, plan

AUTO = replace(DEMAND, gradient_checkpointing="auto")


def rig(*names: str):
    """One node with these GPUs."""
    return node("rig", *(find_class(name).to_device(index=index) for index, name in enumerate(names)))


POOL = rig("T4", "A100-40", "GTX1650", "A100-40", "RTX3090")


def used(result: Plan) -> list[tuple[str, int]]:
    return [(item.device_name.removeprefix("NVIDIA "), item.num_devices) for item in result.placements]


def test_only_the_classes_that_the_config_names_are_used_and_the_others_are_noted():
    result = plan(POOL, gpu_classes=["A100", "T4"])
    assert used(result) == [("A100-SXM4-40GB", 2), ("Tesla T4", 1)]
    assert "NVIDIA GeForce RTX 3090: not one of cluster.gpu_classes" in result.notes


def test_classes_that_are_not_there_are_an_error_that_names_those_that_are():
    with pytest.raises(PlacementError, match=r"one of H100 must be there, got T4, A100-SXM4-40GB, GTX 1650, RTX 3090"):
        plan(POOL, gpu_classes=["H100"])


def test_the_largest_gpus_are_used_first_unless_others_are_preferred():
    assert used(plan(POOL, max_gpus=3)) == [("A100-SXM4-40GB", 2), ("GeForce RTX 3090", 1)]
    capped = plan(POOL, max_gpus=2, prefer_gpu_classes=["T4"])
    assert used(capped) == [("Tesla T4", 1), ("A100-SXM4-40GB", 1)]
    assert [item.is_preferred for item in capped.placements] == [True, False]
    assert capped.total_slots == sum(item.num_slots for item in capped.placements)
    (words,) = [note for note in capped.notes if "max_gpus" in note]
    assert words == "cluster.max_gpus: 2 of 5 GPUs are used; left out: rig:3, rig:4, rig:2"
    assert used(plan(POOL, max_gpus=9)) == used(plan(POOL))


def test_activations_are_recomputed_only_on_the_classes_that_need_it():
    result = plan(rig("A100-80", "T4"), model=LLAMA_8B, demand=replace(AUTO, max_seq_length=1024))
    a100, t4 = result.placements
    assert (a100.gradient_checkpointing, t4.gradient_checkpointing) == (False, True)
    assert "without which one trial would not fit" in t4.reason
    assert (a100.workload.gradient_checkpointing, t4.workload.gradient_checkpointing) == (False, True)


@pytest.mark.parametrize("insisted", [True, False])
def test_what_the_config_insists_on_is_obeyed_everywhere(insisted):
    result = plan(rig("A100-80", "T4"), demand=replace(DEMAND, gradient_checkpointing=insisted))
    assert {item.gradient_checkpointing for item in result.placements} == {insisted}


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("gpu", CATALOGUE, ids=lambda gpu: gpu.name)
def test_auto_never_places_less_than_either_choice(gpu, model):
    def count(choice) -> int:
        try:
            result = plan(rig(gpu.name), model=SHAPES[model], demand=replace(DEMAND, gradient_checkpointing=choice))
        except PlacementError:
            return 0
        return min(4, result.total_slots)

    assert count("auto") >= max(count(True), count(False))


def test_a_class_without_room_says_what_would_fit_and_each_remedy_does():
    long = replace(DEMAND, gradient_checkpointing=False, max_seq_length=2048, max_r=64)
    result = plan(rig("A100-80", "GTX1650"), model=QWEN_HALF_B, demand=long)
    (refused,) = result.refused
    assert refused.verdict == "several GPUs" and refused.device_name.endswith("GTX 1650")
    assert refused.needed_bytes > refused.available_bytes
    settings = dict(remedy.split(" (")[0].split(": ") for remedy in refused.remedies)
    changes = {
        "training.gradient_checkpointing": ("gradient_checkpointing", "auto"),
        "data.max_length": ("max_seq_length", int(settings.get("data.max_length", 0))),
        "lora.r": ("max_r", int(settings.get("lora.r", 0))),
    }
    assert settings
    for setting in settings:
        name, value = changes[setting]
        assert not plan(rig("GTX1650"), model=QWEN_HALF_B, demand=replace(long, **{name: value})).refused
    assert result.skipped == (refused.describe(),)
    assert RefusedClass.from_dict(refused.to_dict()) == refused


def test_a_remedy_is_not_larger_than_it_need_be():
    long = replace(DEMAND, gradient_checkpointing=True, max_seq_length=8192, attn_implementation="eager")
    result = plan(rig("A100-80", "T4"), model=QWEN_HALF_B, demand=long)
    (refused,) = result.refused
    (remedy,) = [text for text in refused.remedies if text.startswith("data.max_length")]
    length = int(remedy.split(" ")[1])
    with pytest.raises(PlacementError):
        plan(rig("T4"), model=QWEN_HALF_B, demand=replace(long, max_seq_length=2 * length))


def test_where_no_change_is_enough_a_smaller_base_is_named():
    with pytest.raises(PlacementError, match=r"Choose a smaller base\. 3 such GPUs would hold it together\."):
        plan(rig("GTX1650"), model=LLAMA_8B)


def test_several_changes_are_named_together_where_none_is_enough_alone():
    large = replace(DEMAND, gradient_checkpointing=False, max_seq_length=4096, max_r=256, optim="adamw_torch")
    with pytest.raises(PlacementError, match=r"auto and training\.optim: paged_adamw_8bit and data\.max_length"):
        plan(rig("GTX1650"), model=QWEN_3B, demand=large)


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("checkpointing", [True, False, "auto"])
@pytest.mark.parametrize("packing", ["auto", "packed", "single"])
def test_more_memory_never_gives_fewer_slots_and_shares_stay_within_the_device(model, checkpointing, packing):
    fewest = 0
    t4 = find_class("T4").to_device()
    for free_gib in (0.5, 1, 2, 3, 4, 6, 8, 11, 14, 20, 30, 45, 80, 140):
        device = replace(t4, total_memory_bytes=int(free_gib * GIB * 1.02), free_memory_bytes=int(free_gib * GIB))
        demand = replace(DEMAND, gradient_checkpointing=checkpointing)
        try:
            (item,) = plan(node("a", device), model=SHAPES[model], demand=demand, packing=packing).placements
        except PlacementError:
            assert fewest == 0
            continue
        assert item.slots_per_device >= fewest
        fewest = item.slots_per_device
        assert item.num_gpus * item.executors_per_device <= 1
        assert item.needed_bytes * item.executors_per_device <= item.available_bytes <= device.free_memory_bytes


def test_classes_that_are_asked_for_where_there_is_no_gpu_are_an_error_and_no_plan_for_cpus():
    with pytest.raises(PlacementError, match=r"cluster\.gpu_classes: one of T4 must be there, got no GPU\."):
        plan(cpu_node(num_cpus=2), gpu_classes=["T4"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefer_gpu_classes": ["H100", "T4"]}, "cluster.prefer_gpu_classes: there is no H100"),
        ({"simulated_limits_gib": {"T4": 3}}, "cluster.simulated_limits_gib: without effect, since cluster.simulate"),
        ({"simulate": True}, "cluster.simulate: without effect, since no node without a GPU claims a class"),
    ],
)
def test_what_the_config_wishes_in_vain_is_noted(settings, words):
    (note,) = [note for note in plan(POOL, **settings).notes if note.startswith("cluster.")]
    assert note.startswith(words)


def test_a_limit_for_a_class_that_nothing_can_be_simulated_as_is_refused():
    with pytest.raises(ConfigError, match=r"^cluster\.simulated_limits_gib: must be one of .* got 'T5'"):
        plan(POOL, simulate=True, simulated_limits_gib={"T5": 3})
