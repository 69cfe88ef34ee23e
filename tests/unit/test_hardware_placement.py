"""The planner's promises, on nodes that are written down here: no GPU and no cluster is needed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qlora_ray.config.schema import Cluster, Quantization
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import (
    DeviceProfile,
    ModelShape,
    NodeProfile,
    Plan,
    TrialDemand,
    plan_placements,
)
from qlora_ray.hardware.plan import TABLE_COLUMNS, largest_divisor

GIB = 1024**3
# name -> (total GiB as torch reports it, compute capability), smallest first.
GPUS = {
    "NVIDIA GeForce GTX 1650": (3.8, (7, 5)),
    "Tesla T4": (14.6, (7, 5)),
    "Tesla V100-SXM2-16GB": (15.8, (7, 0)),
    "NVIDIA A10G": (22.1, (8, 6)),
    "NVIDIA A100-SXM4-80GB": (79.3, (8, 0)),
    "NVIDIA H200": (139.8, (9, 0)),
}
EXPECTED_PRECISION = {
    "NVIDIA GeForce GTX 1650": "fp16",
    "Tesla T4": "fp16",
    "Tesla V100-SXM2-16GB": "fp16",
    "NVIDIA A10G": "bf16",
    "NVIDIA A100-SXM4-80GB": "bf16",
    "NVIDIA H200": "bf16",
}


def shape(hidden, intermediate, layers, heads, kv_heads, vocabulary, *, tied, model_type="qwen2"):
    return ModelShape.from_hf_config(
        {
            "model_type": model_type,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "tie_word_embeddings": tied,
        }
    )


TINY = shape(192, 512, 4, 6, 6, 1024, tied=True, model_type="llama")
QWEN_HALF_B = shape(896, 4864, 24, 14, 2, 151936, tied=True)
QWEN_3B = shape(2048, 11008, 36, 16, 2, 151936, tied=True)
LLAMA_8B = shape(4096, 14336, 32, 32, 8, 128256, tied=False, model_type="llama")
SHAPES = {"tiny": TINY, "0.5b": QWEN_HALF_B, "3b": QWEN_3B, "8b": LLAMA_8B}
DEMAND = TrialDemand(
    effective_batch=16, per_device_train_batch_size=4, max_seq_length=512, gradient_checkpointing=True, eval_batch=8
)


def gpu(name: str, *, index: int = 0, free_gib: float | None = None) -> DeviceProfile:
    total_gib, capability = GPUS[name]
    free_bytes = int((total_gib - 0.2 if free_gib is None else free_gib) * GIB)
    return DeviceProfile(index, "cuda", name, capability, int(total_gib * GIB), free_bytes)


def cpu(*, num_cpus: int, ram_gib: float) -> DeviceProfile:
    return DeviceProfile(0, "cpu", f"AMD EPYC, {num_cpus} CPUs", None, int(ram_gib * GIB), int(ram_gib * GIB))


def node(hostname: str, *devices: DeviceProfile, num_cpus: int = 16, ram_gib: float = 128) -> NodeProfile:
    return NodeProfile(
        hostname=hostname,
        devices=devices,
        cpu_name="AMD EPYC",
        num_cpus=num_cpus,
        ram_bytes=int(ram_gib * GIB),
        available_ram_bytes=int(ram_gib * GIB),
        packages={"trl": "1.16.0"},
    )


def cpu_node(hostname: str = "head", *, num_cpus: int = 2, ram_gib: float = 16) -> NodeProfile:
    return node(hostname, cpu(num_cpus=num_cpus, ram_gib=ram_gib), num_cpus=num_cpus, ram_gib=ram_gib)


def plan(*nodes: NodeProfile, model=QWEN_HALF_B, demand=DEMAND, quantization=None, precision="auto", **cluster) -> Plan:
    return plan_placements(
        nodes,
        shape=model,
        demand=demand,
        cluster=Cluster(**cluster),
        quantization=quantization or Quantization(),
        precision_requested=precision,
    )


MIXED = (
    node("10.0.0.4", gpu("Tesla T4")),
    node("10.0.0.5", gpu("NVIDIA A100-SXM4-80GB"), gpu("NVIDIA A100-SXM4-80GB", index=1)),
    node("10.0.0.6", gpu("NVIDIA H200")),
    cpu_node(),
)


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
    assert plan(node("a", gpu("Tesla T4")), node("b", gpu("Tesla V100-SXM2-16GB"))).notes == ()


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
    assert f"{placement.max_micro_batch} of per_device_train_batch_size 12 rows fit" in placement.reason
    for effective_batch in range(1, 40):
        micro_batch = placement.micro_batch_for(effective_batch)
        assert effective_batch % micro_batch == 0
        assert micro_batch <= placement.max_micro_batch
    assert placement.micro_batch_for(7) in (1, 7)


def test_largest_divisor_is_what_it_says():
    assert [largest_divisor(12, at_most=limit) for limit in (1, 4, 5, 11, 12, 99)] == [1, 4, 4, 6, 12, 12]


def test_a_cpu_node_is_shared_by_cpus_without_gpus_in_fp32():
    result = plan(cpu_node(num_cpus=4, ram_gib=64), model=TINY)
    (placement,) = result.placements
    assert (placement.slots_per_device, placement.num_gpus, placement.memory_cap_fraction) == (4, 0.0, None)
    assert placement.precision.name == "fp32"
    assert placement.num_threads == 1
    assert 0.9 < placement.num_cpus < 1
    assert result.total_slots == 4


def test_a_cpu_node_is_shared_by_memory_where_that_is_less_and_threads_make_up_for_it():
    (placement,) = plan(cpu_node(num_cpus=8, ram_gib=4), model=TINY).placements
    assert placement.slots_per_device == 2
    assert placement.num_threads == 4
    assert "memory is the limit" in placement.reason


def test_threads_can_be_given_and_take_slots():
    (placement,) = plan(cpu_node(num_cpus=8, ram_gib=64), model=TINY, cpus_per_slot=4).placements
    assert (placement.slots_per_device, placement.num_threads) == (2, 4)
    assert 3.9 < placement.num_cpus < 4


def test_little_host_ram_limits_the_processes_on_a_gpu():
    (placement,) = plan(node("a", gpu("NVIDIA H200"), ram_gib=4), model=TINY).placements
    assert placement.slots_per_device == 3
    assert "RAM is the limit" in placement.reason


def test_packing_off_gives_one_slot():
    for placement in plan(*MIXED, packing="off").placements:
        assert (placement.slots_per_device, placement.num_gpus) == (1, 1.0)


def test_packing_off_with_several_slots_asked_for_is_a_contradiction():
    with pytest.raises(PlacementError, match="slots_per_device must be 1 with packing: off, got 2"):
        plan(*MIXED, packing="off", slots_per_device=2)


def test_slots_can_be_given_and_shrink_the_micro_batch_to_fit():
    wide = replace(DEMAND, per_device_train_batch_size=16, max_seq_length=2048)
    (alone,) = plan(node("a", gpu("NVIDIA A100-SXM4-80GB")), model=LLAMA_8B, demand=wide, slots_per_device=1).placements
    (packed,) = plan(
        node("a", gpu("NVIDIA A100-SXM4-80GB")), model=LLAMA_8B, demand=wide, slots_per_device=6
    ).placements
    assert (alone.slots_per_device, packed.slots_per_device) == (1, 6)
    assert packed.max_micro_batch < alone.max_micro_batch
    assert 6 * packed.needed_bytes <= packed.available_bytes
    assert "6 slots, as the config asks" in packed.reason


def test_more_slots_than_fit_are_refused_with_the_number_that_does():
    with pytest.raises(PlacementError, match=r"slots_per_device must be at most 1 here, got 4: 14\.4 GiB are free"):
        plan(node("10.0.0.4", gpu("Tesla T4")), model=LLAMA_8B, slots_per_device=4)


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
        r"placement: one trial needs \d+\.\d GiB \(activations \d+\.\d, base 5\.3, .*\); the largest free GPU has "
        r"14\.4 GiB \(T4 on 10\.0\.0\.4\)\. Lower data\.max_length or lora\.r, use "
        r"training\.gradient_checkpointing: true, or choose a smaller base\."
    )
    with pytest.raises(PlacementError, match=message):
        plan(
            node("pc", gpu("NVIDIA GeForce GTX 1650")), node("10.0.0.4", gpu("Tesla T4")), model=LLAMA_8B, demand=demand
        )


def test_the_remedy_names_only_what_is_not_done_yet():
    with pytest.raises(PlacementError, match=r"Lower data\.max_length or lora\.r, or choose a smaller base\."):
        plan(node("pc", gpu("NVIDIA GeForce GTX 1650")), model=LLAMA_8B)
    with pytest.raises(PlacementError, match=r"use model\.quantization\.method: nf4"):
        plan(node("a", gpu("Tesla T4")), model=LLAMA_8B, quantization=Quantization(method="none"))


def test_a_class_that_is_too_small_is_skipped_with_the_reason():
    result = plan(node("pc", gpu("NVIDIA GeForce GTX 1650")), node("a", gpu("Tesla T4")), model=LLAMA_8B)
    assert [item.device_name for item in result.placements] == ["Tesla T4"]
    (words,) = result.skipped
    assert words.startswith("NVIDIA GeForce GTX 1650 on pc:0: 3.6 GiB free, and one trial needs ")


def test_a_gpu_that_is_too_full_is_left_out_of_its_class():
    full, empty = node("full", gpu("Tesla T4", free_gib=1.0)), node("empty", gpu("Tesla T4"))
    result = plan(full, empty, model=LLAMA_8B)
    assert result.placements[0].devices == ("empty:0",)
    assert any(note.startswith("full:0: only 1.0 GiB of its 14.6 GiB are free") for note in result.notes)


def test_requested_bf16_skips_gpus_that_would_emulate_it():
    result = plan(*MIXED, precision="bf16")
    assert {item.precision.name for item in result.placements} == {"bf16"}
    assert any("got bf16" in words and "Tesla T4" in words for words in result.skipped)
    with pytest.raises(PlacementError, match=r"on Tesla T4, got bf16: compute capability 7\.5 only emulates it"):
        plan(node("a", gpu("Tesla T4")), precision="bf16")


def test_a_device_that_the_libraries_cannot_use_is_skipped():
    broken = replace(gpu("Tesla V100-SXM2-16GB"), problem="this torch has no kernels for compute capability 7.0")
    result = plan(node("a", broken), node("b", gpu("Tesla T4")))
    assert result.skipped == ("Tesla V100-SXM2-16GB on a:0: this torch has no kernels for compute capability 7.0",)
    with pytest.raises(PlacementError, match=r"needs compute capability 7\.5 for int8, got 7\.0.*method: nf4"):
        plan(node("a", gpu("Tesla V100-SXM2-16GB")), quantization=Quantization(method="int8"))


def test_a_cluster_without_nodes_is_an_error():
    with pytest.raises(PlacementError, match="must have a node, got none"):
        plan()


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


def test_an_unknown_model_type_is_noted():
    assumed = replace(QWEN_HALF_B, model_type="newcomer", layout_assumed=True)
    assert any("newcomer is not known" in note for note in plan(node("a", gpu("Tesla T4")), model=assumed).notes)


def test_a_plan_survives_json():
    result = plan(*MIXED, model=LLAMA_8B)
    assert Plan.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_table_is_aligned_narrow_plain_and_tells_every_reason():
    result = plan(*MIXED, node("pc", gpu("NVIDIA GeForce GTX 1650")), model=LLAMA_8B)
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
