"""A space in Optuna's words and in the config's: distributions, grids, corners, and the way back."""

from __future__ import annotations

import itertools

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.modeling.auxiliary_heads import make_specs
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.space import FIXED_PATHS, SEARCHABLE_SECTIONS, Parameter, SearchSpace, apply_values

CONFIG = SweepConfig()
RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-3}}
WRITTEN = {
    "lora.r": {"low": 4, "high": 64, "log": True},
    "lora.target_modules": {"choices": ["attention-qv", ["q_proj", "v_proj"], ["q_proj"]]},
    "lora.lora_dropout": {"low": 0.0, "high": 0.1},
    "training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "training.gradient_accumulation_steps": {"low": 2, "high": 8, "step": 2},
    "training.warmup_ratio": {"low": 0.0, "high": 0.3, "step": 0.1},
    "points_to_evaluate": [{"lora.r": 16, "lora.target_modules": ["q_proj"]}],
}


def make_space(written: dict | None = None) -> SearchSpace:
    return parse_space(Document("space.yaml", WRITTEN if written is None else written), CONFIG)


def test_a_space_becomes_the_optuna_distributions_it_names():
    assert make_space().distributions() == {
        "lora.r": IntDistribution(4, 64, log=True),
        "lora.target_modules": CategoricalDistribution(["attention-qv", '["q_proj", "v_proj"]', '["q_proj"]']),
        "lora.lora_dropout": FloatDistribution(0.0, 0.1),
        "training.learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "training.gradient_accumulation_steps": IntDistribution(2, 8, step=2),
        "training.warmup_ratio": FloatDistribution(0.0, 0.3, step=0.1),
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lora.r", IntDistribution),
        ("training.seed", IntDistribution),
        ("training.per_device_train_batch_size", IntDistribution),
        ("lora.lora_alpha", FloatDistribution),
        ("lora.alpha_ratio", FloatDistribution),
        ("training.weight_decay", FloatDistribution),
    ],
)
def test_whole_number_ends_give_ints_only_where_the_config_has_ints(path, expected):
    assert isinstance(make_space({path: {"low": 1, "high": 3}}).distributions()[path], expected)


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("lora.target_modules", ["all-linear", ["q_proj"], ["q_proj", "v_proj"]]),
        ("lora.modules_to_save", [None, ["lm_head"]]),
    ],
)
def test_choices_go_to_optuna_and_come_back_as_they_were(path, choices):
    parameter = Parameter(path, choices=tuple(choices))
    distribution = parameter.distribution()
    stored = [distribution.to_external_repr(distribution.to_internal_repr(c)) for c in distribution.choices]
    assert [parameter.decode(value) for value in stored] == choices
    space = make_space({path: {"choices": choices}})
    for value in choices:
        encoded = space.encode({path: value})
        assert not isinstance(encoded[path], list) and space.decode(encoded) == {path: value}


def test_a_space_is_written_as_it_was_read():
    assert make_space().to_dict() == WRITTEN


def test_a_grid_visits_every_choice_and_every_step():
    space = make_space(
        {
            "lora.r": {"low": 4, "high": 9, "step": 2},
            "lora.lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
            "lora.use_dora": {"choices": [True, False]},
        }
    )
    r, dropout, dora = (parameter.grid() for parameter in space.parameters)
    assert r == (4, 6, 8)
    assert dropout == pytest.approx((0.0, 0.1, 0.2, 0.3)) and max(dropout) == 0.3
    assert dora == (True, False)
    assert space.grid_size() == 3 * 4 * 2
    with pytest.raises(ConfigError, match=r"training\.learning_rate is a range without a step"):
        make_space(RATE).grid_size()


def test_the_points_of_a_grid_are_counted_and_not_made():
    steps = {"low": 0.1, "high": 0.9, "step": 1e-6}
    space = make_space(dict.fromkeys(("training.weight_decay", "training.warmup_ratio", "lora.alpha_ratio"), steps))
    assert space.grid_size() == 800_001**3


def test_a_space_with_more_corners_than_can_be_checked_is_refused():
    kwargs = {"training.lr_scheduler_kwargs": {"choices": [{"power": 1.0 + at} for at in range(700)]}}
    assert len(make_space(kwargs).schedules(CONFIG)) == 700
    several = r"lr_scheduler_kwargs, training\.lr_scheduler_type must make at most 5,000 settings .* got 8,400"
    space = make_space(
        {
            **kwargs,
            "training.lr_scheduler_type": {"choices": ["linear", "cosine", "constant"]},
            **RATE,
            "training.warmup_ratio": {"low": 0.0, "high": 0.1},
        }
    )
    with pytest.raises(ConfigError, match=several):
        space.schedules(CONFIG)


def test_schedules_are_all_corners_of_what_makes_one():
    written = {
        **RATE,
        "lora.r": {"choices": [4, 8]},
        "training.lr_scheduler_type": {"choices": ["linear", "cosine", "polynomial"]},
        "training.gradient_accumulation_steps": {"choices": [2, 8, 4]},
    }
    found = [
        (c.training.learning_rate, c.training.lr_scheduler_type, c.training.gradient_accumulation_steps)
        for c in make_space(written).schedules(CONFIG)
    ]
    assert sorted(found) == sorted(itertools.product((1e-5, 1e-3), ("linear", "cosine", "polynomial"), (2, 8)))


def test_the_extremes_are_all_corners_of_what_decides_memory_and_nothing_else():
    corners = make_space().extremes(CONFIG)
    found = {
        (c.lora.r, c.lora.lora_dropout, str(c.lora.target_modules), c.training.gradient_accumulation_steps)
        for c in corners
    }
    targets = ("attention-qv", "['q_proj', 'v_proj']", "['q_proj']")
    assert found == set(itertools.product((4, 64), (0.0, 0.1), targets, (2, 8)))
    assert len(corners) == 24
    assert {corner.training.learning_rate for corner in corners} == {CONFIG.training.learning_rate}
    assert make_space(RATE).extremes(CONFIG) == [CONFIG]


def test_values_are_applied_to_a_copy_of_the_config():
    trial = apply_values(CONFIG, {"lora.r": 4, "training.learning_rate": 1e-3})
    assert (trial.lora.r, trial.training.learning_rate) == (4, 1e-3)
    assert SweepConfig() == CONFIG
    assert apply_values(trial, {"lora.r": 16, "training.learning_rate": 2e-4}) == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora.r": 0}, r"^lora\.r must be > 0, got 0\.$"),
        ({"lora.lora_alpha": 1.0, "lora.alpha_ratio": 1.0}, "^lora: lora_alpha and alpha_ratio exclude each other"),
    ],
)
def test_values_that_break_a_rule_of_the_config_fail(values, message):
    with pytest.raises(ConfigError, match=message):
        apply_values(CONFIG, values)


def test_the_fixed_paths_are_searchable_paths_otherwise():
    for path in FIXED_PATHS:
        section, key = path.split(".")
        assert key in SEARCHABLE_SECTIONS[section].model_fields


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Parameter("lora.r", choices=(4, 8)), [4, 8.0], [True, "4", 5, None, [4]]),
        (Parameter("lora.use_dora", choices=(False, True)), [True], [1, 0, "True"]),
        (Parameter("lora.target_modules", choices=(["q", "v"], "all")), [["q", "v"], "all"], [["v", "q"], "q"]),
        (Parameter("lora.r", low=4, high=16, step=4, is_int=True), [4, 8.0, 16], [6, 20, 8.5, True, float("nan")]),
        (Parameter("training.warmup_steps", low=0, high=9, is_int=True), [3, 3.0], [3.5, float("inf"), "3"]),
        (Parameter("lora.lora_dropout", low=0.0, high=0.3, step=0.1), [0.0, 0.2, 0.3], [0.05, 0.1 + 0.2, float("nan")]),
        (Parameter("training.learning_rate", low=1e-5, high=1e-2, log=True), [1e-5, 2e-4], [0.5, float("nan"), False]),
    ],
)
def test_a_parameter_has_its_choices_or_what_is_in_its_range_and_on_its_steps(parameter, inside, outside):
    assert all(parameter.has(value) for value in inside)
    assert not any(parameter.has(value) for value in outside)


def test_the_weight_of_a_head_is_searched_like_any_other_key_and_0_leaves_the_head_out():
    config = SweepConfig.model_validate({"heads": {"emotion": {"column": "mood"}, "act": {"column": "act"}}})
    written = {"heads.emotion.weight": {"low": 0, "high": 1}, "heads.act.weight": {"choices": [0, 0.3]}}
    space = parse_space(Document("space.yaml", written), config)
    assert space.distributions()["heads.emotion.weight"] == FloatDistribution(0, 1)
    trial = apply_values(config, {"heads.emotion.weight": 0.25, "heads.act.weight": 0})
    assert {name: head.weight for name, head in trial.heads.items()} == {"emotion": 0.25, "act": 0}
    specs = make_specs(trial.heads, {"emotion": ["sad", "glad"], "act": ["ask", "tell"]})
    assert [(spec.name, spec.classes, spec.weight) for spec in specs] == [("emotion", ("sad", "glad"), 0.25)]


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("heads.mood.weight", r"heads.mood.weight must name a head of the config, which has heads.emotion.weight"),
        ("heads.emotion.pooling", "cannot be searched"),
        ("heads.emotion.wait", r"names no config path. Did you mean heads.emotion.weight\?"),
    ],
)
def test_nothing_else_of_a_head_is_searched(path, match):
    config = SweepConfig.model_validate({"heads": {"emotion": {"column": "mood"}}})
    with pytest.raises(ConfigError, match=match):
        parse_space(Document("space.yaml", {path: {"choices": [1, 2]}}), config)
