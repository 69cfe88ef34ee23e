"""Models loaded as they were trained: the same numbers as PEFT, and refusals that name the adapter or model."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_ray import embedded
from qlora_ray.config.schema import Lora, Model, Quantization
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.models.load_plan import LoadPlan, hash_adapter, make_load_plan
from qlora_ray.evaluation.models.loading import LoadedModel, open_models
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import Request, Target
from qlora_ray.hardware import DeviceProfile
from qlora_ray.modeling.adapters import attach_adapter, save_adapter
from qlora_ray.modeling.loading import hash_base, load_base
from qlora_ray.modeling.quantization import specify_quantization
from tests.unit.model_fixtures import copy_base

pytestmark = pytest.mark.slow

CPU = DeviceProfile(0, "cpu", "a CPU", None, 8 * 2**30, 8 * 2**30)
IDS = torch.arange(6, 26)[None]
NF4 = specify_quantization(Quantization(), compute_dtype="fp32")
REFUSED = r"must be an adapter of this base .* "


def make_adapter(folder: Path, **lora: Any) -> Path:
    """An adapter on the embedded base whose update is large enough to change its answers."""
    model = attach_adapter(load_base(Model(), quantization=NF4, device="cpu"), Lora(r=4, **lora), seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "plain")


def find(target: Path | str, **request: Any) -> Target:
    return find_target(str(target), Request(**request))


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def plan(target: Target) -> LoadPlan:
    return make_load_plan(target, target.available, device=CPU)


def open_logits(target: Target) -> dict[str, tuple[torch.Tensor, str]]:
    """Of each model its logits, and how it was loaded."""
    models = open_models(plan(target), target.available)
    return {loaded.name: (logits_of(loaded.model), loaded.how) for loaded in models}


def peft_logits(adapter: Path, *, method: str = "nf4") -> tuple[torch.Tensor, torch.Tensor]:
    spec = specify_quantization(Quantization(method=method), compute_dtype="fp32")
    base = load_base(Model(), quantization=spec, device="cpu").model.eval()
    alone = logits_of(base)
    return alone, logits_of(PeftModel.from_pretrained(base, str(adapter)).eval())


def test_base_and_adapter_give_the_numbers_of_bitsandbytes_and_peft(adapter: Path) -> None:
    found = open_logits(find(adapter))
    base, tuned = peft_logits(adapter)
    assert "its 4-bit weights held dequantized" in found["base"][1]
    torch.testing.assert_close(found["base"][0], base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["adapter"][0], tuned, atol=1e-4, rtol=1e-4)
    assert (base - tuned).abs().max() > 0.1


@pytest.mark.parametrize(("lora", "method"), [({"use_dora": True}, "nf4"), ({}, "none"), ({}, "int8")])
def test_what_packed_layers_cannot_hold_is_left_to_peft(tmp_path: Path, lora: dict[str, Any], method: str) -> None:
    folder = make_adapter(tmp_path / "adapter", target_modules="attention-qv", **lora)
    found = open_logits(find(folder, overrides=[f"model.quantization.method={method}"]))
    assert "as transformers and PEFT load it" in found["adapter"][1]
    base, tuned = peft_logits(folder, method=method)
    torch.testing.assert_close(found["base"][0], base, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["adapter"][0], tuned, atol=1e-5, rtol=1e-5)


def test_a_model_folder_is_computed_in_fp32_on_a_cpu_from_the_weights_it_has() -> None:
    found = open_logits(find("embedded"))
    plain = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32).eval()
    torch.testing.assert_close(found["base"][0], logits_of(plain))
    assert found["base"][1].startswith("fp32 weights, computed in fp32")


def test_a_quantization_written_in_the_folder_applies(tmp_path: Path) -> None:
    base = load_base(Model(), quantization=NF4, device="cpu")
    for part in (base.model, base.tokenizer):
        part.save_pretrained(tmp_path / "nf4")
    found = open_logits(find(tmp_path / "nf4"))
    assert found["base"][1].startswith("nf4 with double quantization, computed in fp32, as it is stored")
    torch.testing.assert_close(found["base"][0], logits_of(base.model.eval()), atol=1e-4, rtol=1e-4)


def test_one_model_is_gone_before_the_next_is_loaded(adapter: Path) -> None:
    target = replace(find(adapter), merged=embedded.base_path())
    loaded_models = open_models(plan(target), target.available)
    first: LoadedModel | None = next(loaded_models)
    second: LoadedModel | None = next(loaded_models)
    assert first is not None and second is not None and first.model is second.model
    watched = weakref.ref(first.model)
    first = second = None
    merged = next(loaded_models)
    gc.collect()
    assert (merged.name, watched()) == ("merged", None)


def test_another_base_is_refused_by_its_hash(adapter: Path) -> None:
    target = find(adapter)
    assert plan(replace(target, base_hash=hash_base(Model()))).specs["base"].method == "nf4"
    with pytest.raises(ModelError, match=r"on the base it was trained on \(sha256:abcd\)"):
        plan(replace(target, base_hash="sha256:abcd"))


def widen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([tensor] * 2, dim=-1) if "lora_A" in name else tensor for name, tensor in tensors.items()}


def drop_last_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "layers.3." not in name}


def add_layer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = {
        name.replace("layers.3.", "layers.99."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.3.mlp.up" in name
    }
    return tensors | more


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (widen, {}, "size mismatch for .*--set model.name="),
        (drop_last_layer, {}, "missing adapter keys"),
        (add_layer, {}, r"got 2 tensors that it has no place for: .*layers\.99\."),
        # PiSSA takes a part out of weights, which 4-bit weights do not allow: PEFT raises a TypeError.
        (dict, {"init_lora_weights": "pissa"}, "PiSSA"),
    ],
)
def test_an_adapter_that_does_not_fit_its_base_is_one_line(
    adapter: Path, tmp_path: Path, change: Callable[..., Any], config: dict[str, str], words: str
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    save_file(change(load_file(copy / "adapter_model.safetensors")), copy / "adapter_model.safetensors")
    written = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(written | config))
    with pytest.raises(ModelError, match=REFUSED + words):
        open_logits(find(copy))


def test_a_merge_of_another_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    def write_report(sha256: str | None, **report: str) -> None:
        written = {"adapter": {"sha256": sha256}, **report}
        (tmp_path / "merged" / "merge_report.json").write_text(json.dumps(written))

    merged = find(adapter, merged=copy_base(tmp_path / "merged"))
    for sha256 in (None, hash_adapter(adapter)):
        write_report(sha256)
        assert plan(merged).specs["merged"].compute_dtype == "fp32"
    write_report("ab" * 32)
    with pytest.raises(ModelError, match=r"got a merge of another adapter \(abababababab\)"):
        plan(merged)
    # A copy of an older bundle has its report beside it.
    copy = find(adapter, merged=copy_base(tmp_path / "merged-nf4"))
    plan(copy)
    write_report("ab" * 32, nf4_copy="merged-nf4")
    with pytest.raises(ModelError, match=r"merged-nf4: .*got a merge of another adapter"):
        plan(copy)


@pytest.mark.parametrize(
    "lora",
    [{"init_lora_weights": "olora"}, {"init_lora_weights": "pissa"}, {"trainable_token_indices": list(range(6, 26))}],
)
def test_an_adapter_that_changes_its_base_leaves_the_bases_own_numbers(tmp_path: Path, lora: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32)
    foreign = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **lora))
    torch.manual_seed(3)
    for parameter in foreign.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    foreign.save_pretrained(str(tmp_path / "adapter"))
    target = find(tmp_path / "adapter", overrides=["model.name=embedded", "model.quantization.method=none"])
    found = open_logits(target)
    [alone] = [logits_of(loaded.model) for loaded in open_models(plan(target), ["base"])]
    _, tuned = peft_logits(tmp_path / "adapter", method="none")
    torch.testing.assert_close(found["base"][0], alone)
    torch.testing.assert_close(found["adapter"][0], tuned, atol=1e-5, rtol=1e-5)
    assert (found["base"][0] - found["adapter"][0]).abs().max() > 0.01


def test_a_device_that_cannot_hold_the_adapter_does_not_make_it_one_of_another_base(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("qlora_ray.evaluation.models.loading.saved_adapter", fill)
    with pytest.raises(MemoryError):
        open_logits(find(adapter))
