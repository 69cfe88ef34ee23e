"""Files of other tools are named for what they are, and what is printed in their place is read by our own loaders."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qlora_ray.config.documents import Document, read_document
from qlora_ray.config.foreign import refuse_foreign
from qlora_ray.config.loading import load_config
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space, parse_space

# W&B's documentation, "Define a sweep configuration", with the parameters of a fine-tuning and one of each kind.
WANDB = """
program: train.py
method: bayes
metric: {name: eval/loss, goal: minimize}
early_terminate: {type: hyperband, min_iter: 3, eta: 2}
run_cap: 30
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-5, max: 1e-3}
  lora_r: {values: [8, 16, 32]}
  lora_dropout: {min: 0.0, max: 0.2}
  weight_decay: {distribution: normal, mu: 0, sigma: 1}
  max_grad_norm: {distribution: log_uniform, min: 0, max: 2}
  optimizer: {values: [adamw_torch, adamw_bnb_8bit, sgd]}
  epochs: {value: 2}
  nested: {parameters: {warmup_steps: {distribution: q_uniform, min: 0, max: 100, q: 10}}}
  foo: {values: [1]}
"""
# axolotl's examples/llama-3/qlora.yml, shortened.
AXOLOTL = """
base_model: NousResearch/Meta-Llama-3-8B
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: aaditya/alpaca_subset_1
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/out
adapter: qlora
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
"""
# axolotl's documentation of `--sweep`.
AXOLOTL_SWEEP = """
_:
  - {load_in_8bit: true, adapter: lora}
  - {load_in_4bit: true, adapter: qlora}
learning_rate: [0.0003, 0.0006]
weight_decay: [0.1, 0.0]
"""


def answer_to(text: str, folder: Path, *, is_space: bool) -> tuple[str, str]:
    """The first line that a file is answered with, and what stands below it."""
    path = folder / "theirs.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{path}: must be .*, got ") as caught:
        if is_space:
            load_space(load_config(None, overrides=[f"search.space={path}"]))
        else:
            load_config(path)
    first, *rest = str(caught.value).splitlines()
    return first, "\n".join(rest)


def test_a_wandb_sweep_becomes_a_space_that_can_be_searched(tmp_path: Path) -> None:
    first, text = answer_to(WANDB, tmp_path, is_space=True)
    assert "must be a search space, got a W&B sweep." in first
    space = parse_space(Document("pasted", yaml.safe_load(text)), SweepConfig())
    found = {parameter.path: parameter for parameter in space.parameters}
    rate, steps, norm = (found[f"training.{key}"] for key in ("learning_rate", "warmup_steps", "max_grad_norm"))
    assert (rate.low, rate.high, rate.log) == (1e-5, 1e-3, True)
    assert (steps.low, steps.high, steps.step) == (0, 100, 10)
    # Its ends are exponents of e.
    assert (norm.low, norm.high, norm.log) == (1.0, pytest.approx(2.718281828**2, rel=1e-5), True)
    assert found["lora.r"].choices == (8, 16, 32)
    assert (found["lora.lora_dropout"].low, found["lora.lora_dropout"].high) == (0.0, 0.2)
    assert found["training.optim"].choices == ("adamw_torch", "adamw_8bit")
    assert len(found) == 6
    # What is no parameter, or has no counterpart, is said.
    comments = [line for line in text.splitlines() if line.startswith("#")]
    for words in ("sampler: tpe", "num_train_epochs: 2", "weight_decay", "sgd", "foo: ", "metric: "):
        assert any(words in line for line in comments), words


def test_a_wandb_sweep_given_as_config_becomes_one(tmp_path: Path) -> None:
    first, text = answer_to(WANDB, tmp_path, is_space=False)
    assert "must be a config of sections, got a W&B sweep." in first
    (tmp_path / "ours.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "ours.yaml")
    search = config.search
    assert (search.sampler, search.scheduler, search.reduction_factor, search.num_trials) == ("tpe", "hyperband", 2, 30)
    assert config.training.num_train_epochs == 2 and len(load_space(config).parameters) == 6


@pytest.mark.parametrize("is_space", [False, True])
def test_an_axolotl_config_becomes_ours(tmp_path: Path, is_space: bool) -> None:
    first, text = answer_to(AXOLOTL, tmp_path, is_space=is_space)
    assert "got an axolotl config." in first
    (tmp_path / "ours.yaml").write_text(text, encoding="utf-8")
    config = load_config(tmp_path / "ours.yaml")
    assert (config.model.name, config.model.quantization.method) == ("NousResearch/Meta-Llama-3-8B", "nf4")
    assert (config.data.train, config.data.validation, config.data.max_length) == (
        "aaditya/alpaca_subset_1",
        0.05,
        4096,
    )
    assert (config.lora.r, config.lora.lora_alpha, config.lora.target_modules) == (32, 16, "all-linear")
    training = config.training
    assert (training.effective_batch, training.num_train_epochs, training.optim) == (8, 4, "paged_adamw_8bit")
    assert (training.lr_scheduler_type, training.learning_rate) == ("cosine", 2e-4)
    assert "# not taken over: sample_packing" in text and "wandb_project" not in text


def test_an_axolotl_sweep_becomes_choices(tmp_path: Path) -> None:
    first, text = answer_to(AXOLOTL_SWEEP, tmp_path, is_space=True)
    assert "got an axolotl sweep." in first
    assert yaml.safe_load(text) == {
        "training.learning_rate": {"choices": [0.0003, 0.0006]},
        "training.weight_decay": {"choices": [0.1, 0.0]},
    }


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"model_name_or_path": "a/b", "finetuning_type": "lora", "cutoff_len": 512}, "a LLaMA-Factory config"),
        (
            {"model_name_or_path": "a/b", "max_length": 9, "lr_scheduler_type": "cosine"},
            "a flat config of another trainer",
        ),
    ],
)
def test_flat_configs_of_other_trainers_are_named(keys: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=f"got {name}") as caught:
        refuse_foreign(Document("a.yaml", keys), is_space=False)
    assert "model:\n  name: a/b" in str(caught.value)


def test_what_llama_factory_calls_max_samples_are_rows_and_its_lists_are_texts(tmp_path: Path) -> None:
    theirs = (
        "model_name_or_path: a/b\nfinetuning_type: lora\nmax_samples: 1000\nnum_train_epochs: 3.0\n"
        "lora_target: all\nadditional_target: embed_tokens,lm_head\n"
    )
    _, text = answer_to(theirs, tmp_path, is_space=False)
    (tmp_path / "ours.yaml").write_text(text)
    config = load_config(tmp_path / "ours.yaml")
    assert (config.data.max_train_rows, config.training.num_train_epochs) == (1000, 3)
    assert config.lora.target_modules == "all-linear"
    assert config.lora.modules_to_save == ["embed_tokens", "lm_head"]


def test_when_a_wandb_sweep_may_stop_a_trial_is_not_lost_without_a_word() -> None:
    theirs = {"parameters": {"lr": {"values": [1e-4]}}, "early_terminate": {"type": "hyperband", "min_iter": 3}}
    with pytest.raises(ConfigError, match=r"early_terminate.min_iter: 3: here search.grace_reports"):
        refuse_foreign(Document("a.yaml", theirs), is_space=False)


@pytest.mark.parametrize(
    "data", [{}, {"lr": 1}, {"lora": {"r": 8}, "lr": 1, "epochs": 2, "wd": 0}, {"lora.r": [1]}, {"zzz": []}]
)
def test_what_is_no_file_of_another_tool_goes_on_to_its_own_messages(data: dict[str, object]) -> None:
    refuse_foreign(Document("a.yaml", data), is_space=False)


def test_every_yaml_of_ours_is_ours() -> None:
    root = Path(__file__).parents[2]
    files = [*(root / "configs").rglob("*.yaml"), *(root / "search_spaces").rglob("*.yaml")]
    assert len(files) > 5
    for path in files:
        refuse_foreign(read_document(path), is_space="search_spaces" in path.parts)
