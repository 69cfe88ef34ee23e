"""Presets: each value as the text says it that the preset comes from, and how a file and `--set` stand over one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config import SweepConfig, load_config
from qlora_ray.config.presets import list_presets
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space
from qlora_ray.search.space import apply_values

# What the five texts name: the study's run log, the training report of Qwen2.5, the README of the 4 GB pipeline, the
# workflow of the price model, and the summary of the Qwen3 pipeline. What they leave open is not held.
NAMED: dict[str, dict[str, Any]] = {
    "classicmodels": {
        "model.name": "meta-llama/Meta-Llama-3-8B-Instruct",
        "data.train": "data/train/classicmodels_train_200.jsonl",
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 8,
        "training.learning_rate": 1e-4,
        "training.num_train_epochs": 3,
        "training.warmup_ratio": 0.05,
        "training.logging_steps": 10,
        "training.precision": "auto",
        "training.optim": "paged_adamw_8bit",
        "training.seed": 7,
        "training.data_seed": 7,
        "results.report_to": [],
        "lora.r": 32,
        "lora.resolved_alpha": 64,
        "lora.lora_dropout": 0.05,
        "lora.bias": "none",
        "lora.target_modules": ["q_proj", "v_proj"],
        "evaluate.shots": [0, 3],
        "evaluate.max_rows": 200,
    },
    "qwen2.5-instruct": {
        "model.name": "Qwen/Qwen2.5-1.5B-Instruct",
        "model.quantization.method": "nf4",
        "data.format": "alpaca",
        "data.template": "instruction",
        "data.max_length": 512,
        "data.loss": "all",
        "training.precision": "fp16",
        "training.num_train_epochs": 3,
        "training.per_device_train_batch_size": 2,
        "training.per_device_eval_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.effective_batch": 4,
        "training.learning_rate": 2e-4,
        "training.optim": "adamw_torch",
        "training.logging_steps": 10,
        "lora.r": 16,
        "lora.resolved_alpha": 32,
        "lora.lora_dropout": 0.05,
        "lora.bias": "none",
        "lora.target_modules": ["q_proj", "v_proj"],
    },
    "low-vram": {
        "model.quantization.method": "nf4",
        "training.precision": "fp16",
        "training.per_device_train_batch_size": 1,
        "training.per_device_eval_batch_size": 1,
        "evaluate.batch_size": 1,
    },
    "price": {
        "model.name": "meta-llama/Llama-3.2-3B",
        "model.quantization.method": "nf4",
        "data.train": "ed-donner/items_prompts_lite",
        "data.row_choice": "first",
        "training.precision": "auto",
        "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "export.push_every": "save",
        "export.push_to": None,
    },
    "qwen3": {
        "model.name": "Qwen/Qwen3-0.6B",
        "model.quantization.method": "nf4",
        "model.quantization.double_quantization": True,
        "training.precision": "bf16",
        "lora.r": 64,
        "lora.resolved_alpha": 16,
        "lora.lora_dropout": 0.05,
    },
}


def first_setting(config: SweepConfig) -> SweepConfig:
    """The config of the first trial."""
    return apply_values(config, load_space(config).points_to_evaluate[0])


def value_of(config: SweepConfig, dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = getattr(value, key)
    return value


def test_each_text_has_its_preset() -> None:
    assert list_presets() == sorted(NAMED)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_first_trial_of_a_preset_is_the_setting_of_its_text(name: str) -> None:
    config = first_setting(load_config(None, preset=name))
    assert {dotted: value_of(config, dotted) for dotted in NAMED[name]} == NAMED[name]


def test_validation_rows_of_the_price_model_are_the_first_ones_of_its_own_split_and_capped() -> None:
    data = load_config(None, preset="price").data
    assert data.validation is None and data.max_validation_rows is not None


def test_the_low_vram_preset_recomputes_activations_and_caps_what_is_evaluated() -> None:
    config = load_config(None, preset="low-vram")
    assert config.training.gradient_checkpointing is True
    assert config.evaluate.max_length is not None and config.evaluate.max_length <= 512


def test_a_file_stands_over_a_preset_and_set_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora: {r: 4}\ntraining: {learning_rate: 3e-4}\nsearch: {space: {lora.r: {choices: [4, 8]}}}\n")
    config = load_config(path, preset="classicmodels", overrides=["training.learning_rate=5e-4"])
    assert (config.lora.r, config.training.learning_rate) == (4, 5e-4)
    assert (config.lora.target_modules, config.training.optim) == (["q_proj", "v_proj"], "paged_adamw_8bit")
    # A space is one value: the preset's own parameters and points are not joined with the file's.
    assert config.search.space == {"lora.r": {"choices": [4, 8]}}


def test_a_problem_is_named_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora:\n  r: 0\n")
    with pytest.raises(ConfigError) as raised:
        load_config(path, preset="classicmodels", overrides=["training.optim=sgd"])
    problems = "\n".join(raised.value.problems)
    assert f"{path}:2: lora.r" in problems and "--set training.optim" in problems


def test_a_preset_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"classicmodels, .* got 'lowvram'\. Did you mean low-vram\?"):
        load_config(None, preset="lowvram")
