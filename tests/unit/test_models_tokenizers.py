"""Adapters from elsewhere: with a tokenizer, a template or a vocabulary of their own, and keys of another PEFT."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from qlora_ray import embedded
from qlora_ray.errors import ModelError
from qlora_ray.evaluation.models.load_plan import make_load_plan
from qlora_ray.evaluation.models.loading import open_models
from qlora_ray.evaluation.models.tokenizers import choose_tokenizer
from qlora_ray.evaluation.run.options import Options
from qlora_ray.evaluation.run.plan import make_plan
from qlora_ray.evaluation.target.finding import find_target
from qlora_ray.evaluation.target.target import Request, Target
from qlora_ray.hardware import DeviceProfile

CPU = DeviceProfile(0, "cpu", "a CPU", None, 8 * 2**30, 8 * 2**30)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
IDS = torch.arange(6, 26)[None]
OVERRIDES = ["model.name=embedded", "model.quantization.method=none"]


def make_adapter(folder: Path, *, new_tokens: int = 0, targets: Any = ("q_proj", "v_proj")) -> Path:
    """An adapter as PEFT saves it, on the embedded base, with so many embeddings more."""
    model = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32)
    if new_tokens:
        model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + new_tokens, mean_resizing=False)
    targets = targets if isinstance(targets, str) else list(targets)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        if new_tokens:
            model.get_input_embeddings().weight[-new_tokens:].normal_(std=0.1)
    wrapped.save_pretrained(str(folder))
    change_config(folder, base_model_name_or_path=str(embedded.base_path()))
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def base_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded.base_path())


def find(folder: Path) -> Target:
    return find_target(str(folder), Request(overrides=OVERRIDES))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "plain")


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(str(folder))


def test_a_template_that_was_saved_beside_an_adapter_renders_its_prompts_and_that_is_said(adapter: Path) -> None:
    tokenizer = base_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_tokenizer(adapter, tokenizer)
    plan = make_plan(Options(str(adapter), Request(overrides=OVERRIDES), num_rows=2))
    prompt = plan.load_plan.tokenizer.decode(plan.sets[0].rows.prompt_ids[0])
    assert prompt.startswith("user: ") and prompt.endswith("\nassistant: ")
    assert [note for note in plan.notes if "another chat template" in note]


@pytest.mark.parametrize("is_saved", [True, False])
def test_the_bases_own_tokenizer_beside_an_adapter_or_none_is_worth_no_word(is_saved: bool, adapter: Path) -> None:
    if is_saved:
        save_tokenizer(adapter, base_tokenizer())
    base = base_tokenizer()
    assert choose_tokenizer(find(adapter), base) == (base, [])


def test_another_end_token_and_new_tokens_are_named(adapter: Path) -> None:
    base, own = base_tokenizer(), base_tokenizer()
    own.add_tokens(["<|call|>", "<|done|>"], special_tokens=True)
    own.eos_token = "<|done|>"
    save_tokenizer(adapter, own)
    found, notes = choose_tokenizer(find(adapter), base)
    assert found.eos_token == "<|done|>" and len(found) == len(base) + 2
    assert len(notes) == 1 and f"<|done|> for {base.eos_token}" in notes[0] and "2 tokens more" in notes[0]


def test_a_tokenizer_of_another_base_is_refused(adapter: Path) -> None:
    save_tokenizer(adapter, base_tokenizer())
    path = adapter / "tokenizer.json"
    written = json.loads(path.read_text())
    vocabulary = written["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(written))
    with pytest.raises(ModelError, match=r"must give the base's tokens their ids, .*2 tokens in all"):
        choose_tokenizer(find(adapter), base_tokenizer())


def test_a_tokenizer_that_cannot_be_loaded_gives_way_to_the_bases_and_that_is_said(adapter: Path) -> None:
    (adapter / "tokenizer_config.json").write_text("{")
    base = base_tokenizer()
    found, notes = choose_tokenizer(find(adapter), base)
    assert found is base and "the base's tokenizer is used" in notes[0]


def test_keys_of_another_peft_that_ask_for_something_are_named(adapter: Path) -> None:
    change_config(adapter, lora_magic=True, future_thing={"a": 1}, merge_weights=False, enable_lora=None)
    notes = [note for note in find(adapter).notes if "does not know" in note]
    assert len(notes) == 1 and "future_thing" in notes[0] and "lora_magic" in notes[0]
    assert "merge_weights" not in notes[0] and "enable_lora" not in notes[0]


@pytest.mark.parametrize(
    "base", ["unsloth/Qwen2.5-0.5B", "C:\\models\\x", "/data/gone", "./gone", "models/gone", "gone", "my models/x"]
)
def test_a_base_that_is_not_here_is_named_with_its_adapter_and_what_to_set(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change_config(adapter, base_model_name_or_path=base)
    words = rf"^{re.escape(f'{adapter}: its base must be there, got {base}')}.*--set model\.name=FOLDER"
    with pytest.raises(ModelError, match=words):
        find_target(str(adapter), Request())


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "cannot be read: it is nested too deeply"),
        (
            '{"peft_type": "LORA", "r": 4, "base_model_name_or_path": 5}',
            "base_model_name_or_path must be a text, got 5",
        ),
    ],
    ids=["deep", "base"],
)
def test_an_adapters_config_of_another_shape_is_refused(adapter: Path, written: str, words: str) -> None:
    (adapter / "adapter_config.json").write_text(written)
    with pytest.raises(ModelError, match=words):
        find(adapter)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.slow
def test_an_adapter_that_was_saved_with_more_embeddings_has_pefts_numbers(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", new_tokens=8)
    target = find(adapter)
    found = {
        loaded.name: (logits_of(loaded.model), loaded.how)
        for loaded in open_models(make_load_plan(target, target.available, device=CPU), target.available)
    }
    base = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32).eval()
    num_own = base.get_input_embeddings().weight.shape[0]
    base.resize_token_embeddings(num_own + 8, mean_resizing=False)
    tuned = logits_of(PeftModel.from_pretrained(base, str(adapter)).eval())
    logits, how = found["adapter"]
    assert logits.shape[-1] == num_own + 8 and f"{num_own + 8} embeddings for the base's {num_own}" in how
    torch.testing.assert_close(logits, tuned, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_targets_by_a_pattern_have_pefts_numbers(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", targets=r".*self_attn\.(q_proj|v_proj)")
    target = find(adapter)
    found = {
        loaded.name: logits_of(loaded.model)
        for loaded in open_models(make_load_plan(target, target.available, device=CPU), target.available)
    }
    base = AutoModelForCausalLM.from_pretrained(embedded.base_path(), dtype=torch.float32).eval()
    tuned = logits_of(PeftModel.from_pretrained(base, str(adapter)).eval())
    torch.testing.assert_close(found["adapter"], tuned, atol=1e-5, rtol=1e-5)
