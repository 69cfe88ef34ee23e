"""A search space is held against the config's own types, and every rule it breaks is named."""

from __future__ import annotations

import datetime
import math

import pytest

from qlora_ray.config.documents import read_document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space, parse_space
from qlora_ray.search.space import FIXED_PATHS


def load(space, **config):
    search = config.pop("search", {})
    return load_space(SweepConfig.model_validate({**config, "search": {**search, "space": space}}))


def refused(space, **config):
    with pytest.raises(ConfigError, match=r".") as caught:
        load(space, **config)
    return caught.value.problems


def test_a_file_is_read_with_the_lines_of_its_keys(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("# ours\nlora.r: {choices: [4, 0]}\ntraining.lerning_rate: {low: 1e-5, high: 1e-3}\n")
    assert refused(str(path)) == [
        f"{path}:2: lora.r must be > 0, got 0.",
        f"{path}:3: training.lerning_rate names no config path. Did you mean training.learning_rate?",
    ]


def test_a_missing_file_is_named(tmp_path):
    assert refused(str(tmp_path / "no.yaml")) == [f"{tmp_path}/no.yaml: no such file. Give the path of a YAML file."]


def test_exponents_are_numbers_in_a_space_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("training.learning_rate: {low: 1e-5, high: 1e-3, log: true}\n")
    (parameter,) = load(str(path)).parameters
    assert (parameter.low, parameter.high, parameter.log) == (1e-5, 1e-3, True)


def test_a_nested_section_is_told_how_paths_are_written():
    with pytest.raises(ConfigError, match=r"lora is a section; paths are written whole\. Write lora\.r: \.\.\."):
        load({"lora": {"r": {"choices": [4, 8]}}})


@pytest.mark.parametrize(
    ("path", "ending"),
    [
        ("r", "names no config path. Did you mean lora.r?"),
        ("lora", "names no config path. Did you mean lora?"),
        ("lora.r.x", "names no config path. Did you mean lora.r?"),
        ("zzz.qqq", "names no config path."),
        ("model.name", "is the same for all trials of a sweep and cannot be searched."),
        ("search.num_trials", "is the same for all trials of a sweep and cannot be searched."),
        *[(path, "is the same for all trials of a sweep and cannot be searched.") for path in FIXED_PATHS],
    ],
)
def test_a_path_that_cannot_be_searched_is_refused(path, ending):
    assert refused({path: {"choices": [1, 2]}}) == [f"search.space: {path} {ending}"]


@pytest.mark.parametrize(
    ("path", "words", "problem"),
    [
        ("lora.r", [4, 8], "must be {choices: [...]} or {low: , high: , log: }, got [4, 8]"),
        ("lora.r", None, "must be {choices: [...]} or {low: , high: , log: }, got None"),
        ("lora.r", {"values": [4]}, "takes choices, or low, high, log and step; got 'values'"),
        ("lora.r", {1: 2, "a": 3}, "takes choices, or low, high, log and step; got 1"),
        ("lora.r", {"choices": []}, "choices must be a list of at least one value and stand alone"),
        ("lora.r", {"choices": 4}, "choices must be a list of at least one value and stand alone"),
        ("lora.r", {"choices": [4], "log": True}, "choices must be a list of at least one value and stand alone"),
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
        ("lora.r", {"low": 4, "high": 8, "log": "yes"}, "log must be true or false, got 'yes'"),
        ("lora.lora_dropout", {"low": 0, "high": 0.1, "log": True}, "a log scale needs low > 0, got 0"),
        ("training.weight_decay", {"low": -1, "high": 1, "log": True}, "a log scale needs low > 0, got -1"),
        ("lora.use_dora", {"low": 0, "high": 1}, "is not a number. Give choices instead of a range"),
        ("training.optim", {"low": 0, "high": 1}, "is not a number. Give choices instead of a range"),
    ],
)
def test_words_that_break_a_rule_are_refused_with_their_values(path, words, problem):
    (found,) = refused({path: words})
    assert found.startswith(f"search.space: {path}") and problem in found


def test_all_problems_of_a_space_are_named_at_once():
    assert len(refused({"lora.r": {"choices": [0]}, "zzz": {}, "training.optim": {"low": 0, "high": 1}})) == 3


@pytest.mark.parametrize("space", [{}, {"points_to_evaluate": []}])
def test_a_space_must_search_something(space):
    assert refused(space) == ["search.space: must name at least one parameter, e.g. lora.r: {choices: [8, 16]}."]


@pytest.mark.parametrize(("searched", "set_in_config"), [("alpha_ratio", "lora_alpha"), ("lora_alpha", "alpha_ratio")])
def test_alpha_cannot_be_searched_while_its_other_form_is_set(searched, set_in_config):
    (problem,) = refused({f"lora.{searched}": {"choices": [1.0, 2.0]}}, lora={set_in_config: 4.0})
    assert problem.endswith(f"is searched while the config sets lora.{set_in_config}. Drop one of them.")


def test_alpha_cannot_be_searched_in_both_of_its_forms():
    space = {"lora.alpha_ratio": {"choices": [1.0]}, "lora.lora_alpha": {"choices": [4.0]}}
    assert refused(space) == ["search.space: lora.lora_alpha and lora.alpha_ratio are both searched. Drop one of them."]


RANGES = {
    "lora.r": {"low": 4, "high": 16, "step": 4},
    "lora.target_modules": {"choices": ["attention", ["q_proj"]]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "lora.use_rslora": {"choices": [False, True]},
}


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
        ({"lora.use_dora": True}, "lora.use_dora is not searched here. Add it above, or drop it from the point."),
        (3, "a point must be a mapping of searched paths to values, got 3."),
    ],
)
def test_a_point_outside_the_space_is_refused(point, problem):
    (found,) = refused({**RANGES, "points_to_evaluate": [point]})
    assert problem in found


def test_points_must_be_a_list():
    assert refused({**RANGES, "points_to_evaluate": {"lora.r": 8}}) == [
        "search.space: points_to_evaluate must be a list of settings, got {'lora.r': 8}."
    ]


def test_a_bad_point_of_a_file_is_named_by_its_own_line(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("lora.r: {choices: [4, 8]}\npoints_to_evaluate:\n  - {lora.r: 4}\n  - {lora.r: 16}\n")
    with pytest.raises(ConfigError, match=r"space\.yaml:4: lora\.r must be in \[4, 8\], got 16"):
        parse_space(read_document(path), SweepConfig())


GRID = {"lora.r": {"choices": [4, 8]}, "lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1}}


def test_a_grid_may_have_as_many_trials_as_points():
    assert load(GRID, search={"sampler": "grid", "num_trials": 6}).grid_size() == 6


def test_a_grid_with_more_trials_than_points_is_refused():
    (problem,) = refused(GRID, search={"sampler": "grid", "num_trials": 7})
    assert problem.startswith("search.num_trials: a grid over search.space has 6 points, got 7. Set search.num_trials")


def test_a_grid_needs_steps():
    (problem,) = refused(RANGES, search={"sampler": "grid", "num_trials": 2})
    assert "training.learning_rate is a range without a step, which a grid cannot visit" in problem
