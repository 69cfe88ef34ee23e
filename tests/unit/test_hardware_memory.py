"""The memory model against measured rows of others (tests/data/memory_rows.csv), paper figures and real modules."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray.errors import ConfigError, ModelError
from qlora_ray.hardware import MemoryEstimate, ModelShape, Workload, estimate_evaluation_bytes, estimate_memory
from qlora_ray.hardware.memory_counts import bytes_per_linear_weight
from tests.unit.hardware_fixtures import GIB, config

ALLOCATED_TOLERANCE = 0.10
RESERVED_TOLERANCE = 0.20
SAFETY_FACTOR = 1.1
MOST_UNDER_AFTER_SAFETY = 0.05


# The models' own config.json, the sizes that matter.
CONFIGS = {
    "Qwen2.5-0.5B": config(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen2.5-1.5B": config(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen2.5-7B": config(3584, 18944, 28, 28, 4, 152064, tied=False),
    "TinyLlama-1.1B": config(2048, 5632, 22, 32, 4, 32000, tied=False, model_type="llama"),
    "SmolLM2-1.7B": config(2048, 8192, 24, 32, 32, 49152, tied=True, model_type="llama"),
    "Llama-2-7B": config(4096, 11008, 32, 32, 32, 32000, tied=False, model_type="llama"),
    "Llama-3.1-8B": config(4096, 14336, 32, 32, 8, 128256, tied=False, model_type="llama"),
}
SHAPES = {name: ModelShape.from_hf_config(values) for name, values in CONFIGS.items()}
# What each source did, beyond its row. The first two call prepare_model_for_kbit_training and use no autocast; the
# first has grouped keys in fp32, for which SDPA in torch 2.6 has only the math kernel.
ASSUMPTIONS = {
    source: {"fp32_parameters": fp32_parameters, "attention": attention, "precision": precision}
    for source, fp32_parameters, attention, precision in (
        ("DaoyuanLi2816/can-i-finetune-this@053ce9e", "all", "math", "bf16"),
        ("Anassbzdd/fitcheck README", "all", "fused", "fp16"),
        ("pytorch/torchtune docs (packed data and compile)", "none", "fused", "bf16"),
    )
}
TARGETS = {"attention": "attention", "attention-qkvo": "attention"}
OPTIMIZERS = {"paged_adamw_8bit": "paged_adamw_8bit", "adamw_fp32": "adamw_torch", "adamw": "adamw_torch"}
ROWS = list(csv.DictReader((Path(__file__).parents[1] / "data" / "memory_rows.csv").open()))


def estimate_row(row: dict[str, str]) -> MemoryEstimate:
    workload = Workload(
        method="nf4",
        double_quantization=True,  # torchtune's NF4 quantizes its scales too
        targets=TARGETS[row["targets"]],
        r=int(row["r"]),
        optim=OPTIMIZERS[row["optimizer"]],
        micro_batch=int(row["batch"]),
        seq_length=int(row["seq"]),
        gradient_checkpointing=row["checkpointing"] == "on",
        loss=row["loss"],
        **ASSUMPTIONS[row["source"]],
    )
    return estimate_memory(SHAPES[row["model"]], workload)


def name_row(row: dict[str, str]) -> str:
    return f"row{row['row']}-{row['model']}-{row['seq']}"


def test_there_are_rows_to_hold_the_model_against():
    assert len(ROWS) == 10
    assert {row["source"] for row in ROWS} == set(ASSUMPTIONS)
    assert any(row["reserved_gib"] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=name_row)
def test_memory_is_what_was_measured_and_never_short_after_the_safety_factor(row):
    estimate = estimate_row(row)
    assert estimate.allocated_bytes == pytest.approx(float(row["allocated_gib"]) * GIB, rel=ALLOCATED_TOLERANCE)
    if row["reserved_gib"]:
        measured_bytes = float(row["reserved_gib"]) * GIB
        assert estimate.reserved_bytes == pytest.approx(measured_bytes, rel=RESERVED_TOLERANCE)
        assert estimate.reserved_bytes * SAFETY_FACTOR >= measured_bytes * (1 - MOST_UNDER_AFTER_SAFETY)


@pytest.mark.parametrize(
    ("model", "millions"), [("Llama-2-7B", 2.50), ("Llama-3.1-8B", 2.62), ("Qwen2.5-1.5B", 1.15), ("Qwen2.5-7B", 2.52)]
)
def test_adapter_parameters_per_rank_are_the_published_ones(model, millions):
    assert SHAPES[model].num_adapter_parameters("all-linear", 1) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("model", "billions"),
    [("Llama-2-7B", 6.738), ("Llama-3.1-8B", 8.030), ("Qwen2.5-0.5B", 0.494), ("Qwen2.5-7B", 7.616)],
)
def test_parameters_are_the_model_cards(model, billions):
    assert SHAPES[model].num_parameters / 1e9 == pytest.approx(billions, rel=2e-3)


def test_an_nf4_weight_takes_what_the_paper_says():
    assert bytes_per_linear_weight(Workload(double_quantization=False)) == 0.5625
    assert bytes_per_linear_weight(Workload(double_quantization=True)) == pytest.approx(0.5159, abs=5e-5)


def test_scales_of_smollm2_take_the_measured_96_and_24_mib():
    num_weights = SHAPES["SmolLM2-1.7B"].num_linear_parameters
    for double, mib in ((False, 96), (True, 24)):
        scales = num_weights * (bytes_per_linear_weight(Workload(double_quantization=double)) - 0.5)
        assert scales / 2**20 == pytest.approx(mib, rel=0.05)


def test_a_nested_text_config_is_read_and_defaults_are_the_types():
    text = config(2560, 10240, 34, 8, 4, 262208, tied=None, model_type="gemma3_text")
    del text["tie_word_embeddings"]
    shape = ModelShape.from_hf_config({"model_type": "gemma3", "text_config": text})
    assert (shape.linears["q_proj"], shape.num_embedding_parameters) == ((2560, 8 * 256), 262208 * 2560)
    assert not shape.layout_assumed
    assert shape.num_parameters / 1e9 == pytest.approx(3.88, rel=0.01)  # Gemma 3 4B without its vision tower


def test_an_unknown_type_with_the_usual_sizes_is_taken_for_a_llama_and_says_so():
    shape = ModelShape.from_hf_config({**CONFIGS["Llama-2-7B"], "model_type": "newcomer"})
    assert shape.layout_assumed
    assert shape.linears == SHAPES["Llama-2-7B"].linears


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_local_experts": 8, "model_type": "mixtral"}, "mixtral has experts"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, "decoder-only, got t5"),
        ({"hidden_size": None, "model_type": "odd"}, "odd must have hidden_size or n_embd"),
        ({"intermediate_size": None}, "must have intermediate_size"),
    ],
)
def test_a_layout_that_cannot_be_counted_is_an_error(change, words):
    with pytest.raises(ModelError, match=words):
        ModelShape.from_hf_config({**CONFIGS["Llama-2-7B"], **change})


def test_presets_and_lists_choose_modules_as_peft_does():
    shape = SHAPES["Qwen2.5-1.5B"]
    assert list(shape.target_linears("attention-qv")) == ["q_proj", "v_proj"]
    assert list(shape.target_linears("attention")) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert shape.target_linears("all-linear") == shape.linears
    assert list(shape.target_linears(["mlp.down_proj", "q_proj"])) == ["down_proj", "q_proj"]
    assert shape.num_adapter_parameters(["lm_head"], 8) == 8 * (1536 + 151936)


@pytest.mark.parametrize(
    ("targets", "message"), [(["q_porj"], r"'q_porj'\. Did you mean q_proj\?"), ("everything", "got 'everything'")]
)
def test_a_target_that_the_model_lacks_is_an_error_with_the_nearest_name(targets, message):
    with pytest.raises(ModelError, match=message):
        SHAPES["Qwen2.5-1.5B"].target_linears(targets)


def test_adapter_bytes_are_16_per_parameter_and_about_10_with_8_bit_moments():
    shape = SHAPES["Llama-3.1-8B"]
    num_parameters = shape.num_adapter_parameters("all-linear", 16)
    full = estimate_memory(shape, Workload(optim="adamw_torch")).adapter_bytes
    small = estimate_memory(shape, Workload(optim="adamw_8bit")).adapter_bytes
    assert full == 16 * num_parameters
    assert small / num_parameters == pytest.approx(10, rel=0.01)


def test_casting_embeddings_to_fp32_costs_an_8b_model_the_known_2_gib_more():
    shape = SHAPES["Llama-3.1-8B"]
    cast = estimate_memory(shape, Workload(fp32_parameters="all")).base_bytes
    kept = estimate_memory(shape, Workload(fp32_parameters="none")).base_bytes
    assert (cast - kept) == pytest.approx(2 * 2 * 128256 * 4096, rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch": 2},
        {"seq_length": 1024},
        {"r": 64},
        {"gradient_checkpointing": False},
        {"targets": "all-linear"},
        {"double_quantization": False},
        {"method": "none"},
        {"optim": "adamw_torch"},
        {"lora_dropout": 0.05},
        {"attention": "math"},
        {"loss": "stock"},
        {"modules_to_save": ("lm_head",)},
    ],
    ids=str,
)
def test_more_of_anything_never_takes_less_memory(change):
    shape = SHAPES["Qwen2.5-1.5B"]
    workload = Workload(targets="attention-qv", r=8, gradient_checkpointing=True, loss="tiled", lora_dropout=0.0)
    more = estimate_memory(shape, replace(workload, **change)).total_bytes
    assert more > estimate_memory(shape, workload).total_bytes


@pytest.mark.parametrize("engine", ["single", "packed"])
def test_auxiliary_heads_take_weights_gradients_and_moments_in_fp32_for_each_trial(engine):
    shape = SHAPES["Qwen2.5-1.5B"]
    without = Workload(engine=engine, num_trials=3, optim="adamw_torch")
    size = 7 * shape.hidden_size
    more = estimate_memory(shape, replace(without, num_head_parameters=size)).adapter_bytes
    assert more - estimate_memory(shape, without).adapter_bytes == 3 * size * 4 * (1 + 1 + 2)


def test_a_tiled_loss_does_not_grow_with_the_vocabulary():
    shape, workload = SHAPES["Qwen2.5-1.5B"], Workload(loss="tiled", gradient_checkpointing=False)
    wide = replace(shape, vocab_size=10 * shape.vocab_size)
    assert estimate_memory(wide, workload).logits_bytes == estimate_memory(shape, workload).logits_bytes


@pytest.mark.parametrize("loss", ["stock", "tiled"])
def test_evaluation_takes_less_than_training_on_the_same_rows(loss):
    workload = Workload(loss=loss, micro_batch=4, gradient_checkpointing=True)
    shape = SHAPES["Llama-3.1-8B"]
    assert estimate_evaluation_bytes(shape, workload) < estimate_memory(shape, workload).total_bytes


def test_what_a_layer_keeps_is_what_autograd_saves():
    """Counted with saved_tensors_hooks on a plain fp32 model without adapters: no bitsandbytes needed."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    num_tokens = 96

    def count_saved_bytes(num_layers: int) -> int:
        torch.manual_seed(0)
        llama = LlamaConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            vocab_size=64,
            attn_implementation="sdpa",
        )
        lora = LoraConfig(r=4, lora_dropout=0.05, target_modules="all-linear")
        model = get_peft_model(LlamaForCausalLM(llama), lora).train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and num_tokens in tensor.shape:
                kept[storage.data_ptr()] = storage  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long))
        return sum(storage.nbytes() for storage in kept.values())

    saved_bytes = (count_saved_bytes(4) - count_saved_bytes(2)) / 2
    shape = ModelShape.from_hf_config(config(128, 512, 2, 4, 4, 64, tied=False, model_type="llama"))
    workload = Workload(
        method="none", precision="fp32", device_kind="cpu", seq_length=num_tokens, lora_dropout=0.05, loss="tiled"
    )
    deeper = estimate_memory(replace(shape, num_layers=3), workload).activations_bytes
    layer_bytes = deeper - estimate_memory(shape, workload).activations_bytes
    assert layer_bytes == pytest.approx(saved_bytes, rel=0.10)


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(ConfigError, match=r"training\.optim must be one of .*, got 'lion'"):
        estimate_memory(SHAPES["Qwen2.5-1.5B"], Workload(optim="lion"))


def test_the_description_names_the_largest_part_first_and_adds_up():
    estimate = MemoryEstimate(16 * GIB, GIB, 4 * GIB, 0, 0, GIB // 2, GIB)
    assert estimate.total_bytes == 22.5 * GIB
    parts = re.findall(r"[a-z]+ [\d.]+", estimate.describe())
    assert parts == ["base 16.0", "activations 4.0", "adapter 1.0", "fragmentation 1.0", "context 0.5"]
    safe = estimate.describe(safety_factor=1.1)
    assert safe.startswith("24.8 GiB") and "safety 2.2" in safe
