"""Recommended settings: values as their sources have them, sizes at the borders of classes, lines to be pasted."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from qlora_ray.config import load_config
from qlora_ray.errors import ConfigError
from qlora_ray.plan import main
from qlora_ray.search.parsing import load_space
from qlora_ray.search.recommended import PUBLISHED, SIZE_CLASSES, Recommendation, SizeClass, recommend, rule_rate
from qlora_ray.search.space import apply_values

B = 10**9
# thinking-machines-lab/tinker-cookbook, sft_sweep.md at 9dfcc3a2: parameters of dense bases, and the rates whose test
# losses are within 0.004 nats of the best; for Llama 3.2 3B the best two.
BEST_RATES = {
    "meta-llama/Llama-3.2-3B": (3.2 * B, (3e-4, 1e-3)),
    "Qwen/Qwen3.5-4B": (4 * B, (3e-4, 1e-3)),
    "meta-llama/Llama-3.1-8B": (8 * B, (3e-4, 1e-3)),
    "Qwen/Qwen3.5-9B": (9 * B, (3e-4, 3e-4)),
    "Qwen/Qwen3.6-27B": (27 * B, (3e-4, 3e-4)),
}


def recommend_for(num_parameters: float, hidden_size: int = 4096) -> Recommendation:
    return recommend(num_parameters=int(num_parameters), hidden_size=hidden_size)


@pytest.mark.parametrize("preset", ["classicmodels", "qwen2.5-instruct", "qwen3"])
def test_the_table_has_what_the_presets_of_the_texts_train_first(preset: str) -> None:
    config = load_config(None, preset=preset)
    first = apply_values(config, load_space(config).points_to_evaluate[0])
    row = PUBLISHED[preset]
    assert (row.r, row.lora_alpha, row.lora_dropout) == (first.lora.r, first.lora.resolved_alpha, 0.05)
    if row.learning_rate is not None:
        assert row.learning_rate == first.training.learning_rate
        assert row.effective_batch == first.training.effective_batch


@pytest.mark.parametrize(("name", "dropout", "rate"), [("qlora-7b", 0.1, 2e-4), ("qlora-33b", 0.05, 1e-4)])
def test_qlora_is_as_the_scripts_of_its_authors_have_it(name: str, dropout: float, rate: float) -> None:
    # artidoro/qlora, scripts/finetune_guanaco_7b.sh and _65b.sh: --lora_r 64 --lora_alpha 16, 4 rows x 4.
    row = PUBLISHED[name]
    assert (row.r, row.lora_alpha, row.effective_batch) == (64, 16, 4 * 4)
    assert (row.lora_dropout, row.learning_rate) == (dropout, rate)


@pytest.mark.parametrize("base", sorted(BEST_RATES))
def test_a_rate_lies_among_the_best_that_were_measured_for_its_size(base: str) -> None:
    num_parameters, (low, high) = BEST_RATES[base]
    assert low <= recommend_for(num_parameters).settings.learning_rate <= high


def test_large_bases_get_a_rate_between_qloras_and_the_best_of_the_sweeps() -> None:
    assert PUBLISHED["qlora-33b"].learning_rate == 1e-4
    assert 1e-4 < recommend_for(70 * B, 8192).settings.learning_rate < 3e-4


def test_the_rule_is_tinker_cookbooks() -> None:
    # Its get_lr for Llama: 5e-5 x 10 x (2000 / hidden_size) ** 0.781.
    assert [rule_rate(width) for width in (2000, 2048, 4096, 8192)] == [5e-4, 4.9e-4, 2.9e-4, 1.7e-4]
    assert recommend_for(0.6 * B, 1024).settings.learning_rate == pytest.approx(5e-4 * (2000 / 1024) ** 0.781, rel=0.02)


def test_a_size_at_a_border_belongs_to_the_smaller_class() -> None:
    borders = [known.most_parameters for known in SIZE_CLASSES]
    assert borders == sorted(borders) and borders[-1] == float("inf")
    for known, larger in pairwise(SIZE_CLASSES):
        assert recommend_for(known.most_parameters).size_class == known
        assert recommend_for(known.most_parameters + 1).size_class == larger


@pytest.mark.parametrize("size_class", SIZE_CLASSES, ids=lambda known: known.name)
def test_each_value_has_a_reason_and_is_taken_by_a_config(size_class: SizeClass) -> None:
    found = recommend_for(min(size_class.most_parameters, 65 * B))
    assert found.reasons.keys() == found.settings.values().keys()
    config = load_config(None, overrides=found.overrides())
    assert config.training.effective_batch == 16
    assert (config.lora.r, config.lora.resolved_alpha, config.lora.target_modules) == (64, 32, "all-linear")


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"above 0, got 0 and 64"):
        recommend(num_parameters=0, hidden_size=64)


def test_the_command_prints_what_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    space = "search.space={lora.r: {choices: [16, 64]}, training.learning_rate: {low: 1e-5, high: 1e-2, log: true}}"
    assert main(["--recommend", "--set", space, "--set", "lora.lora_alpha=32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    pasted = next(line for line in lines if line.startswith("--set "))
    config = load_config(None, overrides=pasted.removeprefix("--set ").split(" --set "))
    assert config.lora.r == 64
    # The rule's rate, three times it, and the end of the range in the place of a third.
    (start,) = (index for index, line in enumerate(lines) if line.startswith("With search.recommended_first"))
    tried = lines[start + 1 :]
    rates = (0.0031, 0.0093, 0.00103)
    assert tried == [f"  lora.r: 64, training.learning_rate: {rate}" for rate in rates]


def test_gpus_are_refused_where_only_the_base_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recommend", "--gpus", "T4:2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("--gpus: ")


def test_the_command_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recommend", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]["recommended"]
    # The embedded base is 192 wide.
    assert found["values"]["training.learning_rate"] == pytest.approx(5e-4 * (2000 / 192) ** 0.781, rel=0.02)
    assert found["size_class"] == "up to 1 B"
