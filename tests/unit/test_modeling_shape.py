"""A base's sizes counted from its skeleton, against config.json's tables and against the parameters themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.hardware import ModelShape, Workload, estimate_memory
from qlora_ray.modeling.loading import read_shape
from qlora_ray.modeling.shape import count_shape
from qlora_ray.modeling.targets import build_skeleton
from tests.unit.model_fixtures import CONFIGS, build_model

# Llama 3.1 8B's own config.json.
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8}
KNOWN = [name for name in CONFIGS if name != "opt"]  # the tables have no OPT
PRESETS = ("attention-qv", "attention", "all-linear")


def shapes_of(model):
    """(by the tables, by the skeleton)"""
    assumed = ModelShape.from_hf_config(model.config.to_dict())
    return assumed, count_shape(model, assumed)


@pytest.mark.parametrize("architecture", KNOWN)
def test_skeleton_and_tables_count_the_same_linears_and_embeddings(architecture):
    model = build_model(architecture)
    assumed, counted = shapes_of(model)
    assert counted is not assumed
    assert sorted(counted.linears.values()) == sorted(assumed.linears.values())
    modules = [name for name, _ in model.named_modules()]
    for name in assumed.linears:
        assert sum(module.endswith(f".{name}") for module in modules) == 2, name  # one in each layer
    for count in ("num_linear_parameters", "num_mlp_tensors", "num_embedding_parameters"):
        assert getattr(counted, count) == getattr(assumed, count)
    for preset in PRESETS:
        assert counted.num_adapter_parameters(preset, 4) == assumed.num_adapter_parameters(preset, 4)


@pytest.mark.parametrize("architecture", KNOWN)
def test_the_skeleton_counts_every_parameter_and_the_tables_nearly_all(architecture):
    model = build_model(architecture)
    assumed, counted = shapes_of(model)
    assert counted.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    # The tables leave out biases and norms of single heads.
    assert assumed.num_parameters == pytest.approx(counted.num_parameters, rel=0.05)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi3"])  # no biases, no norms of single heads
def test_skeleton_and_tables_are_the_same_estimate(architecture):
    assumed, counted = shapes_of(build_model(architecture))
    assert counted == replace(assumed, linears=counted.linears, presets=counted.presets)
    for engine in ("packed", "single"):
        workload = Workload(engine=engine, loss="labels" if engine == "packed" else "tiled")
        assert estimate_memory(counted, workload) == estimate_memory(assumed, workload)


def test_a_published_size_is_counted_without_weights():
    settings = AutoConfig.for_model(
        "llama", **LLAMA_8B, num_attention_heads=32, vocab_size=128256, tie_word_embeddings=False
    )
    with torch.device("meta"):
        assumed, counted = shapes_of(AutoModelForCausalLM.from_config(settings))
    assert counted.num_parameters == assumed.num_parameters == 8_030_261_248  # Llama 3.1 8B's model card: 8.03B


def test_the_embedded_base_is_the_same_by_both():
    assumed = read_shape(Model())
    counted = count_shape(build_skeleton(Model()), assumed)
    assert counted == replace(assumed, presets=counted.presets)


def test_a_type_that_no_table_knows_has_its_own_linears_and_presets():
    model = build_model("opt")
    config = {**model.config.to_dict(), "intermediate_size": 128}
    counted = count_shape(model, ModelShape.from_hf_config(config))
    assert not counted.layout_assumed
    assert counted.num_mlp_tensors == 2  # fc1's result and the activation's
    assert sorted(counted.linears) == ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"]
    assert sorted(counted.target_linears("attention")) == ["k_proj", "out_proj", "q_proj", "v_proj"]
    assert counted.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("place", "sizes"), [("model.layers.1.mlp", (64, 256)), ("", (8, 8))], ids=["layers differ", "outside of layers"]
)
def test_linears_that_no_layer_repeats_leave_the_shape_as_it_was_assumed(place, sizes):
    model = build_model("llama")
    model.get_submodule(place).up_proj = torch.nn.Linear(*sizes, bias=False, device="meta")
    assumed, counted = shapes_of(model)
    assert counted is assumed


def test_a_preset_that_the_base_has_no_modules_for_is_an_error_where_it_is_used():
    model = build_model("llama")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.first, attention.second = attention.q_proj, attention.v_proj
        del attention.q_proj, attention.v_proj
    _, counted = shapes_of(model)
    with pytest.raises(ModelError, match=r"lora\.target_modules must be attention, all-linear or a list"):
        counted.target_linears("attention-qv")
