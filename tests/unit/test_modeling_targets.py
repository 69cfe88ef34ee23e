"""Presets and names find the right modules in every architecture, or say what there is instead."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qlora_ray.config.schema import Lora, Model
from qlora_ray.errors import ModelError
from qlora_ray.hardware import ModelShape
from qlora_ray.modeling.targets import build_skeleton, check_targets, linear_names, resolve_targets
from tests.unit.hub_fixtures import FIRST, SECOND, use_download_hub, use_modules_cache
from tests.unit.model_fixtures import CONFIGS, build_model, copy_base

GATED_MLP = ["down_proj", "gate_proj", "up_proj"]
SEPARATE = ["k_proj", "o_proj", "q_proj", "v_proj"]
# Module names as the architectures' own papers and transformers' modeling files spell them.
EXPECTED = {
    "llama": (["q_proj", "v_proj"], SEPARATE, sorted(SEPARATE + GATED_MLP)),
    "qwen2": (["q_proj", "v_proj"], SEPARATE, sorted(SEPARATE + GATED_MLP)),
    "qwen3": (["q_proj", "v_proj"], SEPARATE, sorted(SEPARATE + GATED_MLP)),
    "gemma2": (["q_proj", "v_proj"], SEPARATE, sorted(SEPARATE + GATED_MLP)),
    "starcoder2": (["q_proj", "v_proj"], SEPARATE, ["c_fc", "c_proj", *SEPARATE]),
    "phi3": (["qkv_proj"], ["o_proj", "qkv_proj"], ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]),
    "gpt_neox": (
        ["query_key_value"],
        ["dense", "query_key_value"],
        ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    ),
    # The MLP of a GPT-2 block ends in a c_proj of its own, which is no attention.
    "gpt2": (["c_attn"], ["attn.c_proj", "c_attn"], ["c_attn", "c_fc", "c_proj"]),
    "phi": (
        ["q_proj", "v_proj"],
        ["dense", "k_proj", "q_proj", "v_proj"],
        ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"],
    ),
    "opt": (
        ["q_proj", "v_proj"],
        ["k_proj", "out_proj", "q_proj", "v_proj"],
        ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
    ),
}


def test_every_built_architecture_is_expected():
    assert set(EXPECTED) == set(CONFIGS)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_presets_find_the_modules_of_an_architecture(architecture):
    model = build_model(architecture)
    found = tuple(resolve_targets(model, preset) for preset in ("attention-qv", "attention", "all-linear"))
    assert found == EXPECTED[architecture]


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name != "opt"])  # of no layout the planner knows
@pytest.mark.parametrize("preset", ["attention-qv", "attention", "all-linear"])
def test_the_adapter_is_as_large_as_the_planner_counts_it(architecture, preset):
    model = build_model(architecture)
    planned = ModelShape.from_hf_config(model.config.to_dict()).num_adapter_parameters(preset, 4)
    targets = resolve_targets(model, preset)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    assert peft.get_nb_trainable_parameters()[0] == planned


@pytest.mark.parametrize("architecture", CONFIGS)
def test_all_linear_is_what_peft_means_by_it(architecture):
    ours = set(resolve_targets(build_model(architecture), "all-linear"))
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft = get_peft_model(build_model(architecture), config)
    theirs = peft.peft_config["default"].target_modules
    assert {name.rsplit(".", 1)[-1] for name in theirs} == ours


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("preset", ["attention-qv", "attention", "all-linear"])
def test_no_preset_touches_the_head(architecture, preset):
    model = build_model(architecture)
    head = next(path for path, module in model.named_modules() if module is model.get_output_embeddings())
    assert head.rsplit(".", 1)[-1] not in resolve_targets(model, preset)
    assert head.rsplit(".", 1)[-1] not in linear_names(model)


@pytest.mark.parametrize("names", [["v_proj", "gate_proj"], ["self_attn.q_proj", "lm_head"]])
def test_names_and_paths_are_taken_as_they_are_and_sorted_and_the_head_may_be_named(names):
    assert resolve_targets(build_model("llama"), names) == sorted(names)


@pytest.mark.parametrize("name", ["c_attn", "proj", "self_attn", "embed_tokens", "norm", ""])
def test_a_name_that_is_no_linear_module_is_refused_with_those_there_are(name):
    there = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    with pytest.raises(ModelError, match=rf"no linear module '{name}'; it has {there}\."):
        resolve_targets(build_model("llama"), ["q_proj", name])


def test_a_preset_that_finds_nothing_lists_the_linear_modules():
    strange = torch.nn.Module()
    strange.Wqkv = torch.nn.Linear(4, 4)
    strange.get_output_embeddings = lambda: None
    with pytest.raises(ModelError, match=r"attention finds no attention projection .* are Wqkv\."):
        resolve_targets(strange, "attention")
    assert resolve_targets(strange, "all-linear") == ["Wqkv"]


def test_targets_are_checked_against_the_architecture_alone(tmp_path):
    folder = copy_base(tmp_path / "base", without=("model.safetensors",))
    model = build_skeleton(Model(name=str(folder)))
    presets = [Lora(target_modules=preset) for preset in ("attention-qv", "attention", "all-linear")]
    check_targets(model, [*presets, Lora(target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head", "norm"])])
    with pytest.raises(ModelError, match="no linear module 'c_attn'"):
        check_targets(model, [*presets, Lora(target_modules=["c_attn"])])
    with pytest.raises(ModelError, match=r"lora\.modules_to_save: the base has no module 'nope'"):
        check_targets(model, [Lora(modules_to_save=["nope"])])


def test_a_base_that_cannot_be_built_is_a_model_error(tmp_path):
    words = r"model\.name: .* cannot be loaded: Unrecognized model.*Give a folder that save_pretrained wrote whole"
    with pytest.raises(ModelError, match=words):
        build_skeleton(Model(name=str(tmp_path)))


def test_own_code_of_a_hub_base_is_the_pinned_commits_and_main_is_not_run(tmp_path, monkeypatch):
    def write_base(folder, origin):
        copy_base(folder)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnModel"}
        (folder / "config.json").write_text(json.dumps(config))
        code = f"import transformers\nclass OwnModel(transformers.LlamaForCausalLM):\n    origin = {origin!r}\n"
        (folder / "modeling_own.py").write_text(code)
        return folder

    modules = use_modules_cache(tmp_path / "modules", monkeypatch)
    with modules, use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("org/code", FIRST, write_base(tmp_path / "first", "reviewed"))
        hub.publish("org/code", SECOND, write_base(tmp_path / "second", "moved since"))
        pinned = Model(name="org/code", revision=FIRST, trust_remote_code=True)
        skeleton = build_skeleton(pinned)
        assert (skeleton.origin, skeleton.device.type) == ("reviewed", "meta")
        assert not any("/main/" in request for request in hub.requests)
        assert not hasattr(build_skeleton(pinned.model_copy(update={"trust_remote_code": False})), "origin")
