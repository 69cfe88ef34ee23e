"""An adapter is put on the base from its seed alone, and taken off without a trace."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_ray import embedded
from qlora_ray.config.schema import Lora, Model, Quantization
from qlora_ray.errors import ModelError
from qlora_ray.modeling import adapter_patterns
from qlora_ray.modeling.adapters import (
    attach_adapter,
    count_parameters,
    detach_adapter,
    save_adapter,
    saved_adapter,
)
from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import specify_quantization
from tests.unit.hub_fixtures import FIRST, SECOND, use_download_hub
from tests.unit.model_fixtures import assert_same_state, clone_state, copy_base

TOKENS = torch.arange(20, 60)[None]
# The embedded base: 4 layers, hidden 192 (6 heads of 32, 6 key-value heads), intermediate 512.
SHAPES = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (192, 192))
SHAPES |= {"gate_proj": (192, 512), "up_proj": (192, 512), "down_proj": (512, 192)}
ADAPTERS = [
    Lora(r=4),
    Lora(r=4, use_rslora=True, target_modules="attention"),
    Lora(r=4, use_dora=True, target_modules="attention-qv"),
    Lora(r=4, modules_to_save=["lm_head"]),
    Lora(r=4, modules_to_save=["norm"], target_modules=["q_proj"]),
]


def load(method="none", *, precision="fp32", **model):
    spec = specify_quantization(Quantization(method=method), compute_dtype=precision)
    return load_base(Model(**model), quantization=spec, device="cpu")


@pytest.fixture(scope="module")
def base():
    return load("nf4")


@pytest.fixture
def attach(base):
    """Attaches adapters one after the other; the last one is off again at the end."""
    attached = []

    def attach_one(lora, seed=7):
        if attached:
            attached.pop()
            detach_adapter(base)
        attached.append(attach_adapter(base, lora, seed=seed))
        return attached[-1]

    yield attach_one
    if attached:
        detach_adapter(base)


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_two_steps(model):
    model.train()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1.0)
    for _ in range(2):
        model(TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_fresh_adapter_changes_nothing_and_has_b_zero_and_a_in_its_bounds(base, attach):
    bare = logits(base.model)
    model = attach(Lora(r=4))
    assert torch.equal(logits(model), bare)
    for name, parameter in trainable(model).items():
        if "lora_B" in name:
            assert not parameter.any()
        else:
            # PEFT draws A as torch.nn.Linear does (Kaiming with a = sqrt 5): uniform within 1 / sqrt(in).
            bound = 1 / math.sqrt(parameter.shape[1])
            assert 0.9 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("lora", "num_heads"), [(Lora(r=4), 0), (Lora(r=4, modules_to_save=["lm_head"]), 1)])
def test_only_the_adapter_trains_and_in_fp32(precision, lora, num_heads):
    names = trainable(attach_adapter(load("nf4", precision=precision), lora, seed=7))
    assert sum("lora_" in name for name in names) == 2 * 7 * 4
    assert len(names) == 2 * 7 * 4 + num_heads
    assert {parameter.dtype for parameter in names.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("attention-qv", ["q_proj", "v_proj"]),
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("all-linear", list(SHAPES)),
        (["gate_proj"], ["gate_proj"]),
    ],
)
@pytest.mark.parametrize("r", [1, 8])
def test_the_count_is_r_times_the_sum_of_in_and_out(attach, targets, names, r):
    num_trainable, _ = count_parameters(attach(Lora(r=r, target_modules=targets)))
    assert num_trainable == 4 * sum(r * (num_in + num_out) for num_in, num_out in map(SHAPES.get, names))


def test_the_total_counts_packed_weights_one_by_one(attach):
    num_trainable, total = count_parameters(attach(Lora(r=8)))
    # Tied embeddings once, the linears, and two norms per layer and one at the end.
    linears = 4 * sum(num_in * num_out for num_in, num_out in SHAPES.values())
    assert total - num_trainable == 1024 * 192 + linears + (2 * 4 + 1) * 192


def test_the_same_seed_gives_the_same_adapter_whatever_was_drawn_before(attach):
    first = {name: parameter.clone() for name, parameter in trainable(attach(Lora(r=4), seed=7)).items()}
    torch.randn(1000)
    second = trainable(attach(Lora(r=4), seed=7))
    assert all(torch.equal(first[name], parameter) for name, parameter in second.items())
    third = trainable(attach(Lora(r=4), seed=8))
    assert not any(torch.equal(first[name], parameter) for name, parameter in third.items() if "lora_A" in name)


@pytest.mark.parametrize(
    ("lora", "scaling"),
    [
        (Lora(r=16), 32 / 16),
        (Lora(r=16, alpha_ratio=0.5), 0.5),
        (Lora(r=4, lora_alpha=10), 2.5),
        # rsLoRA divides by the root of the rank (arXiv 2312.03732).
        (Lora(r=16, lora_alpha=8, use_rslora=True), 8 / math.sqrt(16)),
    ],
)
def test_the_scaling_is_alpha_over_r(attach, lora, scaling):
    layer = attach(lora).get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == pytest.approx(scaling)


@pytest.mark.parametrize("lora", ADAPTERS, ids=lambda lora: "+".join(sorted(lora.model_fields_set)))
def test_training_and_detaching_leaves_the_base_as_it_was(base, lora):
    bare, before = logits(base.model), clone_state(base.model)
    model = attach_adapter(base, lora, seed=7)
    train_two_steps(model)
    trained = logits(model)
    assert not torch.equal(trained, bare)
    detach_adapter(base)
    assert_same_state(base.model, before)
    assert torch.equal(logits(base.model), bare)
    leftover = [name for name, _ in base.model.named_modules() if "lora" in name or "modules_to_save" in name]
    assert leftover == []
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not hasattr(base.model, "peft_config")


def test_gradients_still_reach_the_adapter_after_an_evaluation(attach):
    model = attach(Lora(r=4))
    logits(model)
    model.train()
    model(TOKENS, labels=TOKENS).loss.backward()
    gradients = [parameter.grad for name, parameter in trainable(model).items() if "lora_B" in name]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("lora", ADAPTERS, ids=lambda lora: "+".join(sorted(lora.model_fields_set)))
def test_a_saved_adapter_gives_its_logits_again(base, lora, tmp_path):
    bare = logits(base.model)
    model = attach_adapter(base, lora, seed=7)
    train_two_steps(model)
    expected = logits(model)
    save_adapter(model, tmp_path)
    detach_adapter(base)
    with saved_adapter(base, tmp_path) as loaded:
        torch.testing.assert_close(logits(loaded), expected)
        assert not trainable(loaded)
    assert torch.equal(logits(base.model), bare)


def test_plain_peft_on_a_plain_base_gives_the_same_logits(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = attach_adapter(load(), Lora(r=4), seed=7)
    train_two_steps(model)
    save_adapter(model, tmp_path)
    # Which PEFT passes over.
    write_adapter_origin(tmp_path, {"base": {"name": "embedded"}, "quantization": {"method": "none"}})
    files = sorted(path.name for path in tmp_path.iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    plain = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("lora", "written"),
    [(Lora(r=16), 32), (Lora(r=4, alpha_ratio=0.5), 2), (Lora(r=3, alpha_ratio=0.5), 1.5)],
)
def test_alpha_is_written_as_a_whole_number_where_it_is_one(attach, lora, written, tmp_path):
    save_adapter(attach(lora), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] == written and type(config["lora_alpha"]) is type(written)
    assert (config["r"], config["bias"], config["task_type"]) == (lora.r, "none", "CAUSAL_LM")
    assert sorted(config["target_modules"]) == sorted(SHAPES)


def test_a_target_that_is_missing_leaves_the_base_bare(base):
    before = clone_state(base.model)
    with pytest.raises(ModelError, match="no linear module 'c_attn'"):
        attach_adapter(base, Lora(target_modules=["c_attn"]), seed=7)
    assert_same_state(base.model, before)


@pytest.mark.parametrize("revision", [None, FIRST], ids=["main", "commit"])
def test_an_adapter_names_the_commit_of_a_base_of_the_hub(tmp_path, monkeypatch, revision):
    from peft import AutoPeftModelForCausalLM

    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("org/tiny", FIRST, copy_base(tmp_path / "first"))
        model = attach_adapter(load(name="org/tiny", revision=revision), Lora(r=4), seed=7)
        train_two_steps(model)
        save_adapter(model, tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", FIRST)
        # What main is since has other weights, and PEFT by itself does not take it.
        second = copy_base(tmp_path / "second")
        tensors = {name: tensor * 2 for name, tensor in load_file(second / "model.safetensors").items()}
        save_file(tensors, second / "model.safetensors", metadata={"format": "pt"})
        hub.publish("org/tiny", SECOND, second)
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_an_adapter_on_a_folder_names_no_commit(tmp_path):
    folder = str(copy_base(tmp_path / "base"))
    for model in ({"name": folder, "revision": "v1"}, {}):
        save_adapter(attach_adapter(load(**model), Lora(r=4), seed=7), tmp_path / "adapter")
        assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] is None


def test_a_saved_adapter_whose_pattern_takes_for_ever_is_not_given_to_peft(base, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_patterns, "LIMIT_S", 2.0)
    save_adapter(attach_adapter(base, Lora(r=4), seed=7), tmp_path)
    detach_adapter(base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_modules"] = r"(.*)*(.*)*(.*)*(.*)*(.*)*\1nope"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"must be matched .* within 2 s"), saved_adapter(base, tmp_path):
        pass
