"""What a search tries first: the recommended setting as near as a space has it, and rates beside it."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.config import load_config
from qlora_ray.config.schema import SweepConfig
from qlora_ray.hardware import ModelShape
from qlora_ray.preflight.checks import add_recommended_points
from qlora_ray.search.first_points import find_first_points
from qlora_ray.search.parsing import load_space
from qlora_ray.search.recommended import Settings, recommend
from qlora_ray.search.space import SearchSpace, apply_values

WANTED = Settings(r=64, alpha_ratio=0.5, lora_dropout=0.1, learning_rate=3e-4, effective_batch=16)
# Llama 3.1 8B, as its config.json has it.
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
RATES = {"training.learning_rate": {"low": 1e-6, "high": 1.0, "log": True}}


ALPHA = "lora.lora_alpha=32"


def load(space: dict[str, Any], *overrides: str) -> tuple[SearchSpace, SweepConfig]:
    config = load_config(None, overrides=overrides)
    config = config.model_copy(update={"search": config.search.model_copy(update={"space": space})})
    return load_space(config), config


def first_points(space: dict[str, Any], *overrides: str, settings: Settings = WANTED) -> tuple[dict[str, Any], ...]:
    loaded, config = load(space, *overrides)
    points = find_first_points(loaded, config, settings)
    for point in points:
        assert all(known.has(point[known.path]) for known in loaded.parameters)
        apply_values(config, point)
    return points


@pytest.mark.parametrize(
    ("low", "high", "tried"),
    [
        (1e-6, 1.0, [3e-4, 9e-4, 1e-4]),
        # An end of the range is tried in the place of what lies beyond it, unless it is tried already.
        (1e-6, 5e-4, [3e-4, 5e-4, 1e-4]),
        (2.9e-4, 4e-4, [3e-4]),
        (1e-3, 1e-2, [1e-3]),
    ],
)
def test_the_recommended_rate_comes_first_then_three_times_it_and_a_third(
    low: float, high: float, tried: list[float]
) -> None:
    points = first_points({"training.learning_rate": {"low": low, "high": high, "log": True}})
    assert [point["training.learning_rate"] for point in points] == pytest.approx(tried)


@pytest.mark.parametrize(
    ("path", "words", "nearest"),
    [
        ("lora.r", {"choices": [4, 8, 32]}, 32),
        # 64 is three times 24 and a third of 160: by ratio 160 is nearer, by difference 24.
        ("lora.r", {"choices": [24, 160]}, 160),
        ("lora.r", {"low": 4, "high": 50, "step": 4}, 48),
        ("lora.lora_dropout", {"choices": [0.0, 0.05]}, 0.05),
        ("lora.target_modules", {"choices": ["attention-qv", "attention"]}, "attention"),
        ("lora.target_modules", {"choices": [["q_proj"], ["v_proj"]]}, ["q_proj"]),
        # What nobody recommends keeps the config's value where the space has it.
        ("training.weight_decay", {"low": 0.0, "high": 0.2}, 0.02),
        ("training.lr_scheduler_type", {"choices": ["linear", "cosine"]}, "cosine"),
        ("training.lr_scheduler_type", {"choices": ["linear", "constant"]}, "linear"),
        ("lora.use_dora", {"choices": [True, False]}, False),
        # A config of 8 rows at once.
        ("training.gradient_accumulation_steps", {"choices": [1, 2, 4]}, 2),
        ("training.per_device_train_batch_size", {"choices": [2, 4, 32]}, 4),
    ],
)
def test_each_parameter_takes_its_value_nearest_to_the_recommended_one(
    path: str, words: dict[str, Any], nearest: Any
) -> None:
    settings = [
        "training.weight_decay=0.02",
        "training.lr_scheduler_type=cosine",
        "training.per_device_train_batch_size=8",
        "training.gradient_accumulation_steps=4",
    ]
    (point,) = first_points({path: words}, *settings)
    assert point == {path: nearest} and type(point[path]) is type(nearest)


@pytest.mark.parametrize(
    ("space", "overrides", "first"),
    [
        # alpha 32 at r 16, as the rates were measured.
        ({}, ["lora.r=16"], 3e-4),
        # Twice r, where the config leaves alpha open: 128 at r 64, four times the update.
        ({"lora.r": {"choices": [8, 16, 64]}}, [], 3e-4 / 4),
        ({}, ["lora.r=16", "lora.lora_alpha=8"], 3e-4 * 4),
        # alpha / sqrt(r): 32 / 4 is four times 32 / 16.
        ({}, ["lora.r=16", "lora.lora_alpha=32", "lora.use_rslora=true"], 3e-4 / 4),
        ({"lora.use_rslora": {"choices": [True]}}, ["lora.r=16", "lora.lora_alpha=32"], 3e-4 / 4),
    ],
)
def test_where_alpha_is_not_searched_the_rate_makes_updates_as_large_as_recommended(
    space: dict[str, Any], overrides: list[str], first: float
) -> None:
    (point, *_) = first_points({**space, **RATES}, *overrides)
    assert point["training.learning_rate"] == pytest.approx(first)


def test_numbers_that_are_written_as_text_are_numbers() -> None:
    space = {
        "lora.r": {"choices": ["8", "64"]},
        "lora.alpha_ratio": {"choices": ["0.5", "4"]},
        "training.learning_rate": {"choices": ["2e-4", "1e-3"]},
        "training.per_device_train_batch_size": {"choices": ["4"]},
        "training.gradient_accumulation_steps": {"choices": [1, 4, 16]},
    }
    points = [tuple(point.values()) for point in first_points(space)]
    assert points == [("64", "0.5", "2e-4", "4", 4), ("64", "0.5", "1e-3", "4", 4)]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [4, 16, 64])
def test_updates_are_scaled_as_in_the_sweeps_behind_the_rate_whatever_rank_the_space_has(
    rank: int, rslora: bool
) -> None:
    ratios = [32 / rank if not rslora else 32 / rank**1.5]
    _, config = load(RATES, f"lora.use_rslora={rslora}".lower())
    (point, *_) = first_points(
        {"lora.r": {"choices": [rank]}, "lora.alpha_ratio": {"choices": [0.001, *ratios, 100.0]}, **RATES},
        f"lora.use_rslora={rslora}".lower(),
    )
    lora = apply_values(config, point).lora
    # PEFT's scaling: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.
    scaling = lora.resolved_alpha / (lora.r**0.5 if rslora else lora.r)
    assert scaling == pytest.approx(32 / rank)


def test_few_steps_take_one_and_a_half_times_the_rate() -> None:
    # "LoRA Without Regret": 15 times full fine-tuning's rate in short runs, 10 times it otherwise.
    known = {"num_parameters": 8 * 10**9, "hidden_size": 4096}
    rates = [recommend(**known, num_steps=steps).settings.learning_rate for steps in (10, 99, 100, 5000)]
    assert rates == pytest.approx([4.5e-4, 4.5e-4, 3e-4, 3e-4])
    assert recommend(**known).settings.learning_rate == 3e-4


class TestInASweepsSpace:
    """Beside the user's own points, by the steps that a trial has."""

    def points(self, num_rows: int, *overrides: str, own: list[dict[str, float]] | None = None) -> list[float]:
        space, config = load(RATES | ({"points_to_evaluate": own} if own else {}), *overrides)
        shape = ModelShape.from_hf_config(LLAMA_8B)
        added = add_recommended_points(space, config, shape, num_train_rows=num_rows)
        return [point["training.learning_rate"] for point in added.first_points]

    def test_the_steps_of_the_recommended_trial_decide_on_its_rate(self) -> None:
        settings = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=4"]
        one_epoch = [*settings, "training.num_train_epochs=1"]
        assert self.points(16 * 100, *one_epoch)[0] == pytest.approx(3e-4)
        assert self.points(16 * 50, *one_epoch)[0] == pytest.approx(4.5e-4)
        assert self.points(16 * 50, *settings, "training.num_train_epochs=2")[0] == pytest.approx(3e-4)

    def test_the_users_own_points_come_before_it_and_none_twice(self) -> None:
        own = [{"training.learning_rate": 1e-5}, {"training.learning_rate": 3e-4}]
        assert self.points(10**4, own=own) == pytest.approx([1e-5, 3e-4, 9e-4, 1e-4])

    def test_it_can_be_left_out_and_a_grid_has_no_place_for_it(self) -> None:
        assert self.points(10**4, "search.recommended_first=false") == []
        grid = {"training.learning_rate": {"choices": [1e-4, 3e-4]}}
        space, config = load(grid, "search.sampler=grid", "search.num_trials=2")
        added = add_recommended_points(space, config, ModelShape.from_hf_config(LLAMA_8B), num_train_rows=1000)
        assert added == space
