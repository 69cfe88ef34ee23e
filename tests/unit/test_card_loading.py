"""The card's own code loads base and adapter exactly as the trial held them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import transformers
from peft import PeftModel

from qlora_ray import embedded
from qlora_ray.config.schema import Quantization
from qlora_ray.exporting.card.loading import guide_loading
from qlora_ray.exporting.selection import select_trial
from qlora_ray.modeling.quantization import make_bitsandbytes_config, specify_quantization
from qlora_ray.runs.record_parts import BaseRecord, QuantizationRecord
from tests.exporting_fixtures import write_sweep

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture
def selection(tmp_path):
    return select_trial(write_sweep(tmp_path / "s"))


def on_base(selection, *, name="embedded", fingerprint="sha256:0", revision=None, spec=None, needs_code=False):
    """The same trial on another base, held in another way."""
    record, manifest = selection.record, selection.manifest
    quantization = QuantizationRecord(**spec.to_dict()) if spec else record.ran.quantization
    ran = replace(record.ran, quantization=quantization)
    base = BaseRecord(name=name, hash=fingerprint, revision=revision)
    config = {**manifest.config, "model": {**manifest.config["model"], "trust_remote_code": needs_code}}
    return replace(selection, record=replace(record, base=base, ran=ran), manifest=replace(manifest, config=config))


def codes_of(selection, *, has_merged=False):
    return re.findall(r"```python\n(.+?)\n```", guide_loading(selection, has_merged=has_merged), re.DOTALL)


@pytest.fixture
def calls(monkeypatch):
    """What the code asks transformers and PEFT for; nothing is loaded."""
    found = {}
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        loader = getattr(transformers, name)

        def record(source, _name=name, **settings):
            found[_name] = (source, settings)
            return _name

        monkeypatch.setattr(loader, "from_pretrained", record)
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *arguments: found.update(PeftModel=arguments))
    return found


@pytest.mark.parametrize("compute_dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("method", ["nf4", "fp4", "int8", "none"])
@pytest.mark.parametrize("double", [True, False])
def test_the_base_is_loaded_as_the_trial_held_it(selection, calls, method, double, compute_dtype):
    spec = specify_quantization(
        Quantization(method=method, double_quantization=double and method in ("nf4", "fp4")),
        compute_dtype=compute_dtype,
    )
    (code,) = codes_of(on_base(selection, spec=spec))
    exec(code, {})
    source, settings = calls["AutoModelForCausalLM"]
    assert source == embedded.base_path() and settings.pop("dtype") == DTYPES[compute_dtype]
    expected = make_bitsandbytes_config(spec)
    found = settings.pop("quantization_config", None)
    assert (found and found.to_dict()) == (expected and expected.to_dict()) and settings == {}
    assert calls["PeftModel"] == ("AutoModelForCausalLM", "adapter") and calls["AutoTokenizer"] == ("adapter", {})


def test_a_base_that_is_stored_quantized_is_loaded_as_its_own_config_says(selection, calls):
    spec = replace(specify_quantization(Quantization(), compute_dtype="bf16"), is_stored=True)
    (code,) = codes_of(on_base(selection, spec=spec))
    exec(code, {})
    assert calls["AutoModelForCausalLM"][1] == {"dtype": DTYPES["bf16"]}
    assert "BitsAndBytesConfig" not in code


def test_a_base_of_the_hub_is_loaded_by_its_id_and_revision(selection, calls):
    (code,) = codes_of(on_base(selection, name="Qwen/Qwen3-0.6B", fingerprint="hub:Qwen/Qwen3-0.6B@c1", revision="c1"))
    exec(code, {})
    source, settings = calls["AutoModelForCausalLM"]
    assert (source, settings["revision"]) == ("Qwen/Qwen3-0.6B", "c1")
    assert "qlora_ray" not in code and "from peft" in code


def test_a_base_in_a_folder_is_named_without_this_machines_path(selection):
    guide = guide_loading(on_base(selection, name="/data/secret/My-Base/", fingerprint="sha256:abc"), has_merged=False)
    assert '"path/to/My-Base"' in guide and "/data/secret" not in guide
    assert "`sha256:abc`" in guide


def test_the_merged_model_is_one_as_any_other(selection, calls):
    merged, _ = codes_of(selection, has_merged=True)
    exec(merged, {})
    assert calls["AutoModelForCausalLM"] == ("merged", {"dtype": "auto"})
    assert calls["AutoTokenizer"] == ("merged", {})


def test_a_base_with_code_of_its_own_is_loaded_with_it_everywhere(selection, calls):
    for code in codes_of(on_base(selection, needs_code=True), has_merged=True):
        calls.clear()
        exec(code, {})
        assert all(calls[name][1]["trust_remote_code"] is True for name in ("AutoModelForCausalLM", "AutoTokenizer"))
