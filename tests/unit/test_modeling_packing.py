"""Trials share one base where the packed engine can give each what it would have alone; else there is a reason."""

from __future__ import annotations

import pytest

from qlora_ray.config.schema import Lora, Model
from qlora_ray.modeling.packing import find_packing_problem
from qlora_ray.modeling.targets import build_skeleton
from tests.unit.model_fixtures import CONFIGS, build_model

# Dropout of their own by default (transformers 5.23, configuration files): GPT-2 and OPT 0.1.
WITH_DROPOUT = {"gpt2": "drop (p = 0.1)", "opt": "dropout = 0.1 in config.json"}


def without_dropout(architecture):
    """A skeleton whose own dropout is off."""
    model = build_model(architecture)
    for key in ("dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(model.config, key):
            setattr(model.config, key, 0.0)
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return model


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name not in WITH_DROPOUT])
@pytest.mark.parametrize("preset", ["attention-qv", "attention", "all-linear"])
def test_presets_of_an_architecture_without_dropout_can_be_packed(architecture, preset):
    assert find_packing_problem(build_model(architecture), [Lora(target_modules=preset)]) is None


def test_the_embedded_base_can_be_packed():
    assert find_packing_problem(build_skeleton(Model()), [Lora(), Lora(r=64, target_modules="attention-qv")]) is None


@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"lora_dropout": 0.5}, {"r": 3}, {"lora_alpha": 0.1}])
def test_what_only_changes_an_adapters_numbers_can_be_packed(lora):
    assert find_packing_problem(build_model("llama"), [Lora(**lora)]) is None


@pytest.mark.parametrize(
    ("lora", "key", "fact"),
    [
        (Lora(use_dora=True), "lora.use_dora", "DoRA"),
        (Lora(modules_to_save=["lm_head"]), "lora.modules_to_save", "lm_head"),
        (Lora(target_modules=["q_proj", "lm_head"]), "lora.target_modules", "lm_head is the head"),
    ],
)
def test_an_adapter_that_shared_layers_lack_cannot_be_packed_not_even_as_one_choice_of_several(lora, key, fact):
    problem = find_packing_problem(build_model("llama"), [Lora(), lora])
    assert problem.startswith(f"{key}: ") and fact in problem


@pytest.mark.parametrize("architecture", WITH_DROPOUT)
def test_a_base_with_dropout_of_its_own_cannot_be_packed(architecture):
    assert f"{WITH_DROPOUT[architecture]} is the base's own dropout" in find_packing_problem(
        build_model(architecture), [Lora()]
    )


@pytest.mark.parametrize("key", ["attention_dropout", "hidden_dropout", "resid_pdrop"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_dropout_that_no_module_shows_is_found_in_the_config(key, is_nested):
    model = build_model("llama")
    config = type(model.config)() if is_nested else model.config
    setattr(config, key, 0.25)
    model.config.get_text_config = lambda: config
    assert find_packing_problem(model, [Lora()]).startswith(f"model.name: {key} = 0.25 in config.json is the base's")


def test_without_dropout_linear_layers_can_be_packed_and_others_not():
    assert find_packing_problem(without_dropout("opt"), [Lora()]) is None
    problem = find_packing_problem(without_dropout("gpt2"), [Lora(target_modules="attention-qv")])
    assert problem.startswith("lora.target_modules: transformer.h.0.attn.c_attn is a Conv1D")


def test_a_base_without_a_body_or_a_head_of_its_own_cannot_be_packed():
    model = build_model("llama")
    assert find_packing_problem(model.model, [Lora()]).startswith("model.name: LlamaModel has no body apart")
    model.get_output_embeddings = lambda: None
    assert find_packing_problem(model, [Lora()]).startswith("model.name: LlamaForCausalLM has no body apart")
