"""What a saved adapter is said to be, and whether a base is the one it was trained on."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.identity import check_base, hash_adapter, read_adapter
from qlora_ray.modeling.loading import hash_base


@pytest.fixture
def adapter(tmp_path):
    """A folder with what PEFT writes, but for the values."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"lora_A": np.ones((8, 64), dtype=np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_what_its_config_says(adapter):
    facts = read_adapter(adapter)
    assert (facts.base, facts.r) == ("org/base", 8)
    assert hash_adapter(adapter) == hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"adapter_config\.json: cannot be read"),
        ('{"peft_type": "VERA", "r": 256}', r"must describe a LoRA adapter, got peft_type 'VERA'"),
        ('{"peft_type": "LOHA", "r": 8}', r"must describe a LoRA adapter, got peft_type 'LOHA'"),
        ("[]", r"must describe a LoRA adapter, got peft_type None"),
        ('{"peft_type": "LORA"}', r"must describe a LoRA adapter"),
    ],
)
def test_a_config_that_is_no_lora_adapters_is_refused(adapter, config, message):
    (adapter / "adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        read_adapter(adapter)


def test_a_folder_without_config_or_weights_is_no_adapter(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"must have adapter_model\.safetensors, got none"):
        read_adapter(adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"must have adapter_config\.json, got none"):
        read_adapter(adapter)


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 1000])
def test_weights_that_end_too_early_are_found_before_anything_is_loaded(adapter, num_bytes):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match=rf"a whole safetensors file, got {num_bytes:,} bytes"):
        read_adapter(adapter)


def test_a_base_with_other_bytes_is_refused_and_what_cannot_be_compared_is_said(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    model = Model(name=str(base))
    expected = hash_base(model)
    assert check_base(model, expected_hash=expected, where="adapter") is None
    note = check_base(model, expected_hash="hub:org/base@main", where="adapter")
    assert note is not None and "hub:org/base@main" in note
    (base / "config.json").write_text('{"changed": 1}')
    with pytest.raises(ModelError, match=r"^adapter: must be used on the base it was"):
        check_base(model, expected_hash=expected, where="adapter")
