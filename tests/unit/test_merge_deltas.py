"""An adapter's changes are PEFT's, by the names that the base's checkpoint has."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge.deltas import BaseNames
from tests.unit.evaluation_fixtures import tiny_sizes
from tests.unit.merge_fixtures import loaded, save_adapter, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("llama") / "base", "llama")


def test_a_change_is_b_times_a_times_alpha_over_r(base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", base, r=4, lora_alpha=8, target_modules=["q_proj"])
    saved = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    delta = saved[f"{prefix}.lora_B.weight"] @ saved[f"{prefix}.lora_A.weight"] * 8 / 4

    with loaded(base, adapter) as one:
        weight = torch.ones(64, 64)
        changed = one.changes.apply("model.layers.1.self_attn.q_proj.weight", weight)

        assert set(one.changes.lora) == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
        assert one.changes.kind == "LoRA"
    torch.testing.assert_close(changed, weight + delta)


def test_doras_change_has_rows_of_the_trained_magnitudes(base, tmp_path):
    """DoRA, arXiv 2402.09353, equation 5: W' = m (W + BA) / ||W + BA||, so that a row's norm is its m."""
    adapter = save_adapter(tmp_path / "adapter", base, use_dora=True, target_modules=["q_proj"])
    saved = load_file(adapter / "adapter_model.safetensors")
    magnitude = saved["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"]

    with loaded(base, adapter) as one:
        changed = one.changes.apply("model.layers.0.self_attn.q_proj.weight", torch.randn(64, 64))
        assert one.changes.kind == "DoRA"
    torch.testing.assert_close(changed.norm(dim=1), magnitude.abs())


def test_every_linear_layer_of_a_quantized_base_is_known_changed_or_not(base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    with loaded(base, adapter, "nf4") as one:
        # Two layers of q, k, v, o, gate, up, down.
        assert len(one.changes.quantized) == 14
        assert len(one.changes.changed) == 2
        stored = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        distance = (one.changes.dequantized("model.layers.0.mlp.up_proj.weight") - stored).abs()
    # NF4's widest gap is 0.3 of a block's largest value (QLoRA, arXiv 2305.14314, appendix E); half of it is the most
    # that rounding can be off. Double quantization moves the largest value itself a little.
    assert 0 < distance.max() < 0.16 * stored.abs().max()


def test_a_change_of_another_shape_is_refused(base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", base)
    with loaded(base, adapter) as one, pytest.raises(ModelError, match=r"must have the checkpoint's shape \[8, 8\]"):
        one.changes.apply("model.layers.0.self_attn.q_proj.weight", torch.zeros(8, 8))


@pytest.mark.parametrize(("option", "value"), [("bias", "all"), ("use_bdlora", {"x": 1}), ("lora_bias", True)])
def test_what_a_merged_weight_cannot_hold_is_refused(option, value, base, tmp_path):
    adapter = save_adapter(tmp_path / "adapter", base)
    with loaded(base, adapter) as one:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
        with pytest.raises(ModelError, match=f"{option} must be unset to merge, got .*Export without merging"):
            type(one.changes)(one.tuned, folder=adapter)


def test_tied_names_are_one_tensor_and_the_head_is_known(tmp_path):
    base = save_base(tmp_path / "base", "llama-tied")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    names = BaseNames(model)

    assert names.head == "lm_head.weight"
    assert names.tied == [frozenset({"lm_head.weight", "model.embed_tokens.weight"})]
    assert names.same_tensor("model.norm.weight") == {"model.norm.weight"}


def test_names_of_a_bare_body_and_of_gemma_3s_checkpoints_are_found():
    sizes = tiny_sizes(head_dim=16, num_hidden_layers=1)
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    gemma = transformers.Gemma3Config(text_config=sizes, vision_config=vision)
    gpt2 = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=96)
    with torch.device("meta"):
        of_gemma = BaseNames(transformers.AutoModelForCausalLM.from_config(gemma))
        of_gpt2 = BaseNames(transformers.AutoModelForCausalLM.from_config(gpt2))

    # As google/gemma-3-4b-it and openai-community/gpt2 spell them on the hub.
    assert (
        of_gemma.find_parameter("language_model.model.layers.0.self_attn.q_proj.weight")
        == "model.language_model.layers.0.self_attn.q_proj.weight"
    )
    assert of_gpt2.find_parameter("h.0.attn.c_attn.weight") == "transformer.h.0.attn.c_attn.weight"
    assert of_gpt2.find_parameter("transformer.h.0.attn.c_attn.weight") == "transformer.h.0.attn.c_attn.weight"
    assert of_gpt2.find_parameter("h.0.attn.bias") is None


def test_weights_that_transformers_joins_while_loading_have_no_parameter_of_their_own():
    sizes = tiny_sizes(num_local_experts=2, num_experts_per_tok=1, num_hidden_layers=1)
    with torch.device("meta"):
        names = BaseNames(transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**sizes)))

    assert names.find_parameter("model.layers.0.block_sparse_moe.experts.1.w1.weight") is None
    attention = "model.layers.0.self_attn.q_proj.weight"
    assert names.find_parameter(attention) == attention
