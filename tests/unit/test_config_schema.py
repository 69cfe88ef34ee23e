"""The config's defaults, bounds and rules."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from qlora_ray.config.field_types import MAX_SECONDS
from qlora_ray.config.heads import Head
from qlora_ray.config.schema import Lora, SweepConfig, Training
from qlora_ray.config.section import Section


def fields_of(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Every dotted key with its default."""
    found: dict[str, object] = {}
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            found |= fields_of(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = default
    return found


def with_value(path: str, value: object) -> SweepConfig:
    """The default config with one dotted key set."""
    data: object = value
    for key in reversed(path.split(".")):
        data = {key: data}
    return SweepConfig.model_validate(data)


SEEDS = ("training.seed", "training.data_seed", "search.seed", "evaluate.shot_seed", "evaluate.sample_seed")


def test_every_seed_is_7():
    seeds = {path: value for path, value in fields_of(SweepConfig).items() if path.endswith("seed")}
    assert seeds == dict.fromkeys(SEEDS, 7)


def test_training_has_the_keys_and_the_optimizer_defaults_of_training_arguments():
    from transformers import TrainingArguments

    upstream = TrainingArguments.__dataclass_fields__
    # warmup_ratio was an argument of its own until transformers 5; warmup_steps takes a fraction since.
    own = {"max_samples", "precision", "warmup_ratio"}
    assert set(Training.model_fields) - own <= set(upstream)
    names = [name for name in Training.model_fields if "adam_" in name]
    names += ["weight_decay", "max_grad_norm", "num_train_epochs", "per_device_eval_batch_size"]
    assert len(names) == 7
    assert {name: upstream[name].default for name in names} == {name: getattr(Training(), name) for name in names}


def test_lora_keys_are_those_of_peft_but_for_the_ratio():
    from peft import LoraConfig

    assert set(Lora.model_fields) - {"alpha_ratio"} <= set(LoraConfig.__dataclass_fields__)


def test_every_section_refuses_unknown_keys():
    # A head is a section of its own, under its name.
    sections = [Head if name == "heads" else info.annotation for name, info in SweepConfig.model_fields.items()]
    assert len(sections) == 10 and all(issubclass(section, Section) for section in sections)
    for section in sections:
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            section(surprise=1)


AT_LEAST_ONE = [
    "data.max_length",
    "data.max_train_rows",
    "data.max_validation_rows",
    "data.max_test_rows",
    "lora.r",
    "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps",
    "training.logging_steps",
    "training.per_device_eval_batch_size",
    "training.max_samples",
    "search.num_trials",
    "search.num_startup_trials",
    "search.num_reports",
    "search.grace_reports",
    "cluster.slots_per_device",
    "cluster.max_slots",
    "cluster.max_gpus",
    "cluster.cpus_per_slot",
    "evaluate.top_k",
    "evaluate.max_rows",
    "evaluate.max_new_tokens",
    "evaluate.batch_size",
]
# Path, the last value that is allowed, the first that is not.
BOUNDS = [
    ("search.time_budget", 0.5, 0),
    ("search.time_budget", "1h30m", "an hour"),
    ("search.gpu_hours", 0.1, 0.0),
    *[(path, 1, 0) for path in AT_LEAST_ONE],
    *[(path, 1, 1.5) for path in AT_LEAST_ONE],
    # A prompt and its answer have a token each.
    ("evaluate.max_length", 2, 1),
    ("evaluate.max_length", 2, 2.5),
    ("data.validation", 0.999, 1.0),
    ("data.validation", 0.001, 0.0),
    ("lora.lora_alpha", 1e-9, 0.0),
    ("lora.alpha_ratio", 1e-9, 0.0),
    ("lora.lora_dropout", 0.0, -1e-9),
    ("lora.lora_dropout", 0.999, 1.0),
    ("training.learning_rate", 1e-12, 0.0),
    ("training.learning_rate", 1.0, float("inf")),
    ("training.warmup_ratio", 0.0, -0.01),
    ("training.warmup_ratio", 1.0, 1.01),
    ("training.num_train_epochs", 0.01, 0.0),
    ("training.num_train_epochs", 9.0, float("inf")),
    ("training.adam_beta1", 0.0, -0.1),
    ("training.adam_beta1", 0.999, 1.0),
    ("training.adam_beta2", 0.0, -0.1),
    ("training.adam_beta2", 0.999, 1.0),
    ("training.adam_epsilon", 1e-12, 0.0),
    ("training.weight_decay", 0.0, -0.1),
    ("training.weight_decay", 1.0, float("nan")),
    ("training.max_grad_norm", 0.0, -0.1),
    *[(path, 0, -1) for path in SEEDS],
    *[(path, 2**32 - 1, 2**32) for path in SEEDS],
    ("evaluate.temperature", 0.0, -1e-9),
    ("evaluate.temperature", 5.0, float("inf")),
    ("evaluate.top_p", 1.0, 1.01),
    ("search.reduction_factor", 1.01, 1.0),
    ("cluster.memory_safety_factor", 1.0, 0.99),
    ("cluster.memory_safety_factor", 3.0, 3.01),
    ("cluster.lease_timeout_s", 0.1, 0.0),
    ("cluster.drain_timeout_s", 0.1, 0.0),
    ("cluster.idle_timeout_s", 0.1, 0.0),
    ("cluster.heartbeat_timeout_s", 0.1, 0.0),
    ("cluster.progress_timeout_s", 0.1, 0.0),
    *[
        (f"cluster.{name}_timeout_s", MAX_SECONDS, 1e300)
        for name in ("lease", "drain", "idle", "heartbeat", "progress")
    ],
    ("data.bad_rows", "skip", "drop"),
    ("training.warmup_steps", 0, -1),
    ("cluster.max_trial_retries", 0, -1),
    ("search.final_seeds", 0, -1),
    ("search.final_seeds", 1000, 1001),
    ("model.quantization.method", "int8", "int4"),
    ("model.attn_implementation", "eager", "flex"),
    ("data.format", "alpaca", "csv"),
    ("data.template", "Q: {prompt}", "Q: {question}"),
    ("data.bad_rows", "skip", "drop"),
    ("data.row_choice", "first", "last"),
    ("data.loss", "all", "prompt"),
    ("lora.target_modules", ["q_proj"], []),
    ("lora.target_modules", "attention", "attn"),
    ("lora.bias", "none", "all"),
    ("training.lr_scheduler_type", "cosine", "exponential"),
    ("training.optim", "adamw_8bit", "sgd"),
    ("training.precision", "bf16", "fp8"),
    ("search.sampler", "gp", "bohb"),
    ("search.scheduler", "median", "pbt"),
    ("search.objectives", {"eval_loss": "min"}, {"eval_loss": "max"}),
    ("search.objectives", {"eval_loss": "min"}, {"accuracy": "max"}),
    ("search.objectives", {"eval_loss": "min"}, {}),
    ("cluster.packing", "packed", "fused"),
    ("cluster.gpu_classes", ["T4"], []),
    ("cluster.prefer_gpu_classes", ["T4"], []),
    ("cluster.gpu_classes", ["T4"], [" "]),
    ("cluster.prefer_gpu_classes", ["4090"], ["-"]),
    ("cluster.simulated_limits_gib", {"T4": 0.1}, {"": 1.0}),
    ("cluster.scale_up", {"GPU": 0.5}, {}),
    ("cluster.scale_up", {"GPU": 2, "accelerator_type:T4": 0.001}, {"": 1}),
    ("cluster.scale_up", {"GPU": 1}, {"gpu": 1}),
    ("cluster.scale_up", {"GPU": 2}, {"GPU": 1.5}),
    ("cluster.simulated_limits_gib", {"T4": 0.1}, {"T4": 0.0}),
    ("training.gradient_checkpointing", "auto", "perhaps"),
    ("evaluate.metrics", ["exact_match"], ["bleu"]),
    ("results.name", "a-1.b_c", "../a"),
    ("results.name", "a", ""),
    ("results.name", "0", ".hidden"),
    ("export.push_every", "best", "sometimes"),
    ("export.push_to", "ann", "ann/"),
    ("export.push_to", "ann/a.b-c_d", "ann/b/c"),
]


@pytest.mark.parametrize(("path", "last_good", "first_bad"), BOUNDS)
def test_a_bound_holds_on_both_of_its_sides(path, last_good, first_bad):
    with_value(path, last_good)
    with pytest.raises(ValidationError, match=path.rsplit(".", 1)[-1]):
        with_value(path, first_bad)


def test_every_bounded_field_is_in_the_table_above():
    schema = SweepConfig.model_json_schema()["$defs"]
    words = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "pattern", "const"}
    bounded = {
        f"{section.lower()}.{key}"
        for section, definition in schema.items()
        for key, rule in definition["properties"].items()
        if any(words & set(part) for part in [rule, *rule.get("anyOf", [])])
    }
    tested = {".".join(path.split(".")[-2:]) for path, *_ in BOUNDS}
    assert len(bounded) > 40
    # Of an entry of a list, which has no path (test_data_mixture.py), and of those by a name (test_config_heads.py).
    assert bounded - tested == {"weightedsource.weight", "head.weight", "head.classes", "head.pooling"}


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        (Lora(), 32.0),
        (Lora(r=8), 16.0),
        (Lora(r=8, alpha_ratio=0.5), 4.0),
        (Lora(r=3, alpha_ratio=0.5), 1.5),
        (Lora(r=8, lora_alpha=5), 5.0),
    ],
)
def test_alpha_is_as_given_or_the_ratio_times_r_or_twice_r(lora, expected):
    assert lora.resolved_alpha == expected


def test_the_effective_batch_is_rows_times_accumulation():
    assert Training(per_device_train_batch_size=4, gradient_accumulation_steps=6).effective_batch == 24


TWO = {"eval_loss": "min", "trainable_parameters": "min"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": {"lora_alpha": 16, "alpha_ratio": 1.0}}, "lora_alpha and alpha_ratio exclude each other"),
        ({"data": {"format": "columns"}}, "columns must be given when format is columns"),
        ({"data": {"format": "alpaca", "columns": {"prompt": "q", "completion": "a"}}}, "exclude each other"),
        ({"search": {"objectives": {}}}, "one metric, or two"),
        ({"search": {"objectives": TWO, "scheduler": "none", "sampler": "gp"}}, "random, grid or nsga2, got gp"),
        ({"search": {"objectives": TWO}}, "two objectives need scheduler none"),
        ({"search": {"objectives": {"trainable_parameters": "min"}}}, "first objective must be eval_loss: min"),
        ({"search": {"objectives": {"eval_loss": "max"}}}, "first objective must be eval_loss: min"),
        ({"search": {"grace_reports": 5}}, "grace_reports must be <= num_reports, got 5 > 4"),
        # Hyperband pauses trials, and goes on from their state.
        ({"search": {"scheduler": "hyperband"}, "cluster": {"keep_trial_state": False}}, "keep_trial_state: true"),
        ({"evaluate": {"metrics": ["sql_execution"]}}, "sql_execution needs database"),
        ({"evaluate": {"top_p": 0.9}}, "top_p needs a temperature above 0"),
    ],
)
def test_settings_that_contradict_each_other_fail(given, message):
    with pytest.raises(ValidationError, match=message):
        SweepConfig.model_validate(given)


@pytest.mark.parametrize(
    ("section", "given"),
    [
        ("data", {"validation": "rows.jsonl"}),
        ("evaluate", {"metrics": ["sql_execution"], "database": "embedded"}),
        ("evaluate", {"top_p": 0.9, "temperature": 0.7}),
        *[
            ("search", {"objectives": TWO, "scheduler": "none", "sampler": sampler})
            for sampler in ("nsga2", "random", "tpe", "grid")
        ],
    ],
)
def test_settings_that_belong_together_are_taken(section, given):
    assert getattr(SweepConfig.model_validate({section: given}), section).model_dump(include=set(given)) == given


def test_values_are_checked_on_assignment_too():
    config = SweepConfig()
    with pytest.raises(ValidationError, match="greater than 0"):
        config.lora.r = 0


def test_a_config_round_trips_through_its_dump():
    config = SweepConfig.model_validate(
        {
            "data": {"columns": {"prompt": "q", "completion": "a"}, "validation": 0.2},
            "lora": {"target_modules": ["q_proj", "v_proj"], "alpha_ratio": 0.5},
            "search": {"space": {"lora.r": {"choices": [4, 8]}}},
        }
    )
    assert SweepConfig.model_validate(config.model_dump()) == config
    assert SweepConfig.model_validate_json(config.model_dump_json()) == config


def test_packing_off_can_be_written_without_quotes():
    # YAML 1.1 reads a bare `off` as false.
    assert SweepConfig(cluster={"packing": False}).cluster.packing == "off"
    with pytest.raises(ValidationError, match="packing"):
        SweepConfig(cluster={"packing": True})


@pytest.mark.parametrize("value", [{}, {"GPU": 0}])
def test_a_device_that_the_autoscaler_is_asked_for_has_something(value: dict[str, float]):
    assert with_value("cluster.scale_up", {"GPU": 1}).cluster.scale_up == {"GPU": 1}
    # Trials would wait for nodes that nobody asks for.
    with pytest.raises(ValidationError):
        with_value("cluster.scale_up", value)
