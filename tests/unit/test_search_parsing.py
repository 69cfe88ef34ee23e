"""A search space is held against the config's own types, and every rule it breaks is named."""

from __future__ import annotations

import datetime
import math

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space
from qlora_ray.search.space import FIXED_PATHS


def load(space, **config):
    search = config.pop("search", {})
    return load_space(SweepConfig.model_validate({**config, "search": {**search, "space": space}}))


def refused(space, **config):
    with pytest.raises(ConfigError, match=r".") as caught:
        load(space, **config)
    return caught.value.problems


FINE_GRID = {
    path: {"low": 0.0, "high": 1.0, "step": 1e-3} for path in ("training.weight_decay", "training.warmup_ratio")
}
RANGES = {
    "lora.r": {"low": 4, "high": 16, "step": 4},
    "lora.target_modules": {"choices": ["attention", ["q_proj"]]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "lora.use_rslora": {"choices": [False, True]},
}
GRID = {"lora.r": {"choices": [4, 8]}, "lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1}}


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "# ours\nlora.r: {choices: [4, 0]}\ntraining.lerning_rate: {low: 1e-5, high: 1e-3}\n",
            ["2: lora.r must be > 0, got 0.", "3: training.lerning_rate names no config path."],
        ),
        (
            "lora.r: {choices: [4, 8]}\npoints_to_evaluate:\n  - {lora.r: 4}\n  - {lora.r: 16}\n",
            ["4: lora.r must be in [4, 8], got 16"],
        ),
    ],
    ids=["parameters", "points"],
)
def test_all_problems_of_a_file_are_named_with_the_lines_of_their_keys(tmp_path, text, problems):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    for found, problem in zip(refused(str(path)), problems, strict=True):
        assert found.startswith(f"{path}:{problem}")


def test_exponents_are_numbers_in_a_space_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("training.learning_rate: {low: 1e-5, high: 1e-3, log: true}\n")
    (parameter,) = load(str(path)).parameters
    assert (parameter.low, parameter.high, parameter.log) == (1e-5, 1e-3, True)


@pytest.mark.parametrize(
    ("space", "config", "problem"),
    [
        ("missing.yaml", {}, "missing.yaml: no such file"),
        ({"lora": {"r": {"choices": [4, 8]}}}, {}, "lora is a section; paths are written whole. Write lora.r: ..."),
        ({}, {}, "search.space: must name at least one parameter"),
        ({"points_to_evaluate": []}, {}, "search.space: must name at least one parameter"),
        (
            {"lora.alpha_ratio": {"choices": [1.0, 2.0]}},
            {"lora": {"lora_alpha": 4.0}},
            "is searched while the config sets lora.lora_alpha.",
        ),
        (
            {"lora.lora_alpha": {"choices": [1.0, 2.0]}},
            {"lora": {"alpha_ratio": 4.0}},
            "is searched while the config sets lora.alpha_ratio.",
        ),
        (
            {"lora.alpha_ratio": {"choices": [1.0]}, "lora.lora_alpha": {"choices": [4.0]}},
            {},
            "lora.lora_alpha and lora.alpha_ratio are both searched",
        ),
        ({**RANGES, "points_to_evaluate": {"lora.r": 8}}, {}, "points_to_evaluate must be a list"),
        (GRID, {"search": {"sampler": "grid", "num_trials": 7}}, "search.num_trials: a grid over search.space has 6"),
        (
            FINE_GRID,
            {"search": {"sampler": "grid"}},
            "search.space: a grid must have at most 1,000,000 points, got 1,002,001",
        ),
        (RANGES, {"search": {"sampler": "grid", "num_trials": 2}}, "training.learning_rate is a range without a step"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, config, problem):
    (found,) = refused(space, **config)
    assert problem in found


def test_a_grid_may_have_as_many_trials_as_points():
    assert load(GRID, search={"sampler": "grid", "num_trials": 6}).grid_size() == 6


def test_all_problems_of_a_space_are_named_at_once():
    assert len(refused({"lora.r": {"choices": [0]}, "zzz": {}, "training.optim": {"low": 0, "high": 1}})) == 3


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("r", "names no config path. Did you mean lora.r?"),
        ("lora", "names no config path. Did you mean lora?"),
        ("lora.r.x", "names no config path. Did you mean lora.r?"),
        ("zzz.qqq", "names no config path."),
        *[(path, "cannot be searched.") for path in ("model.name", "search.num_trials", *FIXED_PATHS)],
    ],
)
def test_a_path_that_cannot_be_searched_is_refused(path, ending):
    (found,) = refused({path: {"choices": [1, 2]}})
    assert found.startswith(f"search.space: {path} ") and found.endswith(ending)


@pytest.mark.parametrize(
    ("path", "words", "problem"),
    [
        ("lora.r", [4, 8], "must be {choices: [...]} or {low: "),
        ("lora.r", None, "must be {choices: [...]} or {low: "),
        ("lora.r", {"values": [4]}, "takes choices, or low, high, log and step; got 'values'"),
        ("lora.r", {1: 2, "a": 3}, "must have texts as keys, got 1"),
        ("lora.r", {"choices": list(range(1, 1002))}, "choices must be at most 1,000, got 1,001. Give a range."),
        ("lora.r", {"choices": []}, "choices must be a list of at least one"),
        ("lora.r", {"choices": 4}, "choices must be a list of at least one"),
        ("lora.r", {"choices": [4], "log": True}, "choices must be a list of at least one"),
        ("lora.r", {"choices": [4, 8, 4]}, "choices must differ from each other, got [4, 8, 4]"),
        ("lora.alpha_ratio", {"choices": [1, 1.0]}, "choices must differ from each other, got [1, 1.0]"),
        ("lora.r", {"choices": [1, "1"]}, "choices must differ from each other, got [1, '1']"),
        ("lora.r", {"choices": [4.5]}, "lora.r must be a valid integer"),
        ("lora.r", {"choices": [datetime.date(2024, 1, 1)]}, "lora.r must be a valid integer"),
        ("lora.lora_dropout", {"low": 0.0, "high": 1.0}, "lora.lora_dropout must be < 1, got 1.0"),
        ("training.learning_rate", {"low": 1e-5, "high": math.inf}, "must be a finite number, got inf"),
        ("training.learning_rate", {"low": math.nan, "high": 1.0}, "low must be below high, got nan"),
        ("training.optim", {"choices": ["adamw_torch", "sgd"]}, "got 'sgd'"),
        ("lora.target_modules", {"choices": ["attn"]}, "must be one of attention-qv, attention, all-linear"),
        ("lora.r", {"low": 4}, "high must be a number, got None"),
        ("lora.r", {"high": 4}, "low must be a number, got None"),
        ("training.learning_rate", {"low": "1", "high": 2}, "low must be a number, got '1'"),
        ("lora.r", {"low": True, "high": 2}, "low must be a number, got True"),
        ("lora.r", {"low": 8, "high": 8}, "low must be below high, got 8 and 8"),
        ("lora.r", {"low": 8, "high": 4}, "low must be below high, got 8 and 4"),
        ("lora.r", {"low": 4, "high": 8.5}, "lora.r must be a valid integer"),
        ("lora.r", {"low": 4, "high": 8, "step": 0.5}, "is a whole number, so its step must be one too, got 0.5"),
        ("lora.r", {"low": 4, "high": 8, "step": 0}, "step must be a number above 0, without log, got 0"),
        ("lora.r", {"low": 4, "high": 8, "step": 2, "log": True}, "step must be a number above 0, without log, got 2"),
        ("lora.r", {"low": 4, "high": 8, "step": 5}, "step must be at most high - low, 4, got 5"),
        ("training.learning_rate", {"low": 1e-5, "high": 1e-3, "step": math.nan}, "step must be a number above 0"),
        ("training.learning_rate", {"low": 1e-5, "high": 1e-3, "step": math.inf}, "step must be at most high - low"),
        (
            "training.learning_rate",
            {"low": 1e-7, "high": 1, "step": 5e-324},
            "a range must have at most 1,000,000 steps",
        ),
        ("training.warmup_steps", {"low": 0, "high": 10**7}, "a range must have at most 1,000,000 steps"),
        ("lora.lora_alpha", {"low": 1, "high": 2**63}, "high must be a number of at most 64 bits"),
        ("lora.r", {"low": 4, "high": 8, "log": "yes"}, "log must be true or false, got 'yes'"),
        ("lora.lora_dropout", {"low": 0, "high": 0.1, "log": True}, "a log scale needs low > 0, got 0"),
        ("training.weight_decay", {"low": -1, "high": 1, "log": True}, "a log scale needs low > 0, got -1"),
        ("lora.use_dora", {"low": 0, "high": 1}, "is not a number"),
        ("training.optim", {"low": 0, "high": 1}, "is not a number"),
    ],
)
def test_words_that_break_a_rule_are_refused_with_their_values(path, words, problem):
    (found,) = refused({path: words})
    assert found.startswith(f"search.space: {path}") and problem in found


@pytest.mark.parametrize(
    "point",
    [
        {"lora.r": 8, "lora.target_modules": ["q_proj"], "training.learning_rate": 1e-5, "lora.use_rslora": True},
        {"lora.r": 16},
        {"training.learning_rate": 1e-3},
        {},
    ],
)
def test_a_point_inside_the_space_is_kept_even_when_it_leaves_something_open(point):
    assert load({**RANGES, "points_to_evaluate": [point]}).points_to_evaluate == (point,)


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        ({"lora.r": 20}, "lora.r must be in 4 to 16 in steps of 4, got 20."),
        ({"lora.r": 6}, "lora.r must be in 4 to 16 in steps of 4, got 6."),
        ({"lora.r": 4.5}, "lora.r must be in 4 to 16 in steps of 4, got 4.5."),
        ({"lora.r": True}, "lora.r must be in 4 to 16 in steps of 4, got True."),
        ({"lora.r": "8"}, "lora.r must be in 4 to 16 in steps of 4, got '8'."),
        ({"lora.target_modules": ["v_proj"]}, "must be in ['attention', ['q_proj']], got ['v_proj']."),
        ({"training.learning_rate": 1e-2}, "training.learning_rate must be in 1e-05 to 0.001, got 0.01."),
        ({"lora.use_dora": True}, "lora.use_dora is not searched here"),
        (3, "a point must be a mapping"),
    ],
)
def test_a_point_outside_the_space_is_refused(point, problem):
    (found,) = refused({**RANGES, "points_to_evaluate": [point]})
    assert problem in found
