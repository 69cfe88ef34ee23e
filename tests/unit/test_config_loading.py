"""A config is read, overridden and validated, and all that is wrong with it is said at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_ray.config.aliases import ALIASES
from qlora_ray.config.key_paths import known_paths
from qlora_ray.config.loading import closest_path, load_config, parse_override
from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.search.parsing import load_space

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.y*ml"))
SPACES = sorted((ROOT / "search_spaces").rglob("*.y*ml"))


def load_text(tmp_path, text, overrides=()):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return load_config(path, overrides=list(overrides))


def problems_of(tmp_path, text, overrides=()):
    with pytest.raises(ConfigError, match=r".") as caught:
        load_text(tmp_path, text, overrides)
    return [problem.replace(str(tmp_path) + "/", "") for problem in caught.value.problems]


def test_there_are_configs_and_spaces_to_load():
    assert CONFIGS and SPACES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_with_its_space(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    assert load_space(config).parameters


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.name)
def test_every_shipped_space_loads(path):
    space = load_space(load_config(None, overrides=[f"search.space={path}"]))
    assert space.parameters


def test_without_a_file_the_defaults_are_loaded():
    assert load_config(None) == SweepConfig()


def test_shipped_files_are_found_from_any_folder_after_one_of_their_name_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("configs/quickstart.yaml"))
    assert config == load_config(ROOT / "configs/quickstart.yaml")
    assert load_space(config).parameters
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("lora: {r: 3}")
    assert load_config(Path("configs/quickstart.yaml")).lora.r == 3


def test_all_problems_are_named_at_once_with_file_line_and_key(tmp_path):
    text = "training:\n  learning_rate: -0.0002\n  optim: sgd\nlora:\n  r: 0\n  lora_drop: 0.1\nmodel: nf4\n"
    keys = ["7: model", "5: lora.r", "6: lora.lora_drop", "2: training.learning_rate", "3: training.optim"]
    for found, key in zip(problems_of(tmp_path, text), keys, strict=True):
        assert found.startswith(f"a.yaml:{key} ")


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ("lora: {lora_dropout: 1.0}", "lora.lora_dropout", "must be < 1, got 1.0"),
        ("training: {warmup_ratio: 2}", "training.warmup_ratio", "must be <= 1, got 2"),
        ("training: {weight_decay: -1}", "training.weight_decay", "must be >= 0, got -1"),
        ("training: {learning_rate: .inf}", "training.learning_rate", "must be a finite number, got inf"),
        ("training: {learning_rate: fast}", "training.learning_rate", "must be a valid number"),
        ("results: {name: ../x}", "results.name", "must match pattern"),
        ("training: {optim: sgd}", "training.optim", "must be 'adamw_torch', 'adamw_8bit' or "),
        ("evaluate: {metrics: bleu}", "evaluate.metrics", "must be 'auto', got 'bleu', or must be a valid list"),
        ("lora: {lora_alpha: 1, alpha_ratio: 1}", "lora:", "lora_alpha and alpha_ratio exclude"),
        ("evaluate: {metrics: [sql_execution]}", "evaluate:", "sql_execution needs database"),
        ("lora: {target_modules: attn}", "lora.target_modules", "must be one of attention-qv, attention, all-"),
        ("lora:\n", "lora", "must be a section with keys of its own, got None"),
        ("model: nf4", "model", "must be a section with keys of its own, got 'nf4'"),
        ("data: {columns: {prompt: q}}", "data.columns.completion", "is required"),
        ("training: {seed: true}", "training.seed", "must be a number, and no true or false, got True"),
        ("evaluate: {shots: [0, yes]}", "evaluate.shots", "must be a number, and no true or false, got [0, True]"),
        (
            "training: {lr_scheduler_kwargs: {power: true}}",
            "training.lr_scheduler_kwargs:",
            "must be a number, and no true",
        ),
        ('model: {name: "a\\nb"}', "model.name", "must be a name without control characters such as line ends"),
        (f"data: {{train: {'a' * 256}}}", "data.train", "must be a name of at most 255 bytes, got 256"),
        ("data: {test: " + "\u00e9" * 128 + "}", "data.test", "must be a name of at most 255 bytes, got 256"),
        (f"results: {{dir: {'a/' * 3001}}}", "results.dir", "must be a path of at most 3,000 bytes, got 3,001"),
        ("model: {name: ~nobody_here/x}", "model.name", "must begin with ~, or ~ and the name of a user of this"),
        (f"results: {{name: {'a' * 201}}}", "results.name", "must have at most 200 characters, got 'aaa"),
        ("training: {max_samples: 10000000000000}", "training.max_samples", "must be <= 1000000000000, got 1000"),
        ("lora: {modules_to_save: ['(a+)+b.lm_head']}", "lora.modules_to_save.0", "must match pattern"),
        ("search: {gpu_hours: 1e308}", "search.gpu_hours", "must be <= 876000000, got 1e+308"),
        ("search: {num_reports: 100001}", "search.num_reports", "must be <= 100000, got 100001"),
        ("search: {reduction_factor: 1.0001}", "search.reduction_factor", "must be >= 1.01, got 1.0001"),
        ("lora: {r: 65537}", "lora.r", "must be <= 65536, got 65537"),
        ("data: {system_prompt: {a: 1}}", "data.system_prompt", "must be a valid string, got {'a': 1}"),
    ],
)
def test_a_problem_says_the_rule_and_the_value(tmp_path, text, key, rule):
    (found,) = problems_of(tmp_path, text)
    assert found.startswith(f"a.yaml:1: {key} {rule}")


@pytest.mark.parametrize(
    ("weight", "rule"), [("1001", "<= 1000, got 1001"), ("true", "a number, and no true or false")]
)
def test_a_weight_of_a_source_has_a_measure(tmp_path, weight, rule):
    found = problems_of(tmp_path, f"data: {{train: [{{source: a, weight: {weight}}}]}}")
    assert any(f"data.train.0.weight must be {rule}" in problem for problem in found)


def test_of_thousands_of_problems_the_first_are_named_and_the_others_counted(tmp_path):
    text = "training:\n" + "".join(f"  key{at}: 1\n" for at in range(3000))
    found = problems_of(tmp_path, text)
    assert found[10].startswith("a.yaml:12: training.key10 is not a known key") and found[11:] == ["... and 2,989 more"]


def test_a_long_value_is_shortened(tmp_path):
    (problem,) = problems_of(tmp_path, f"lora: {{r: {'x' * 500}}}")
    assert problem.endswith("x...") and len(problem) < 200


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("seach: {num_trials: 3}", "search"),
        ("training: {lerning_rate: 1}", "training.learning_rate"),
        ("learning_rate: 1", "training.learning_rate"),
        ("lora: {learning_rate: 1}", "training.learning_rate"),
        ("model: {quantisation: nf4}", "model.quantization"),
        ("search: {trials: 3}", "search.num_trials"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_name(tmp_path, written, meant):
    (problem,) = problems_of(tmp_path, written)
    assert problem.endswith(f"Did you mean {meant}?")


def test_an_unknown_key_with_no_name_near_points_to_the_list(tmp_path):
    (problem,) = problems_of(tmp_path, "zzz: 1")
    assert problem.startswith("a.yaml:1: zzz is not a known key.") and "`--print-config`" in problem


@pytest.mark.parametrize("written", ["lr: 2e-5", "training: {lr: 2e-5}", "model: {lr: 2e-5}"])
def test_a_key_of_another_tool_is_answered_by_the_one_that_does_it_here(tmp_path, written):
    (problem,) = problems_of(tmp_path, written)
    assert problem.endswith("Here it is training.learning_rate.")


def test_several_keys_of_another_tool_are_each_answered_by_one_of_their_own_section(tmp_path):
    problems = problems_of(tmp_path, "training: {lr: 2e-5, batch_size: 4, epochs: 3}\noptimizer: adamw_torch\n")
    keys = ["learning_rate", "per_device_train_batch_size", "num_train_epochs", "optim"]
    assert [problem.rpartition(" ")[2] for problem in problems] == [f"training.{key}." for key in keys]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("load_in_8bit: true", "model.quantization.method: int8"),
        ("training: {num_warmup_steps: 10}", "training.warmup_steps: or training.warmup_ratio"),
        ("training: {max_steps: 10}", "training.max_samples: steps x effective batch"),
        ("training: {max_train_steps: 10}", "training.max_samples: steps x effective batch"),
        ("data: {val_set_size: 0.1}", "data.validation: a file, a split or a fraction"),
        ("data: {train_on_inputs: true}", "Here it is data.loss: all for whole rows"),
        ("training: {gradient_accumulation: 4}", "training.gradient_accumulation_steps"),
        ("data: {sequence-len: 4}", "data.max_length"),
    ],
)
def test_what_differs_from_another_tools_key_is_said(tmp_path, written, words):
    (problem,) = problems_of(tmp_path, written)
    assert words in problem


def test_a_config_in_json_is_read_as_it_stands(tmp_path):
    written = {"model": {"name": "embedded", "revision": None}, "training": {"seed": 9, "learning_rate": 1e-05}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(written, indent=2))
    config = load_config(path)
    assert (config.training.seed, config.training.learning_rate, config.model.revision) == (9, 1e-5, None)


def test_what_other_tools_keys_are_answered_with_exists_and_is_no_section():
    paths = known_paths(SweepConfig)
    assert set(ALIASES) - set(paths) == set(ALIASES)
    for name, alias in ALIASES.items():
        if alias.key is not None:
            assert alias.key in paths, name
            assert not any(path.startswith(f"{alias.key}.") for path in paths) or alias.key == "data.columns", name


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("training.learning_rate = 1E-4", "training", "learning_rate", 1e-4),
        ("lora.r=8", "lora", "r", 8),
        ("lora.target_modules=[q_proj, v_proj]", "lora", "target_modules", ["q_proj", "v_proj"]),
        ("data.train=a=b.jsonl", "data", "train", "a=b.jsonl"),
        ("data.test=null", "data", "test", None),
        ("data.test=", "data", "test", None),
        ("data.template='Q: {prompt}'", "data", "template", "Q: {prompt}"),
        ("lora.use_dora=true", "lora", "use_dora", True),
        ("search.objectives={eval_loss: min}", "search", "objectives", {"eval_loss": "min"}),
    ],
)
def test_an_override_takes_a_yaml_value(tmp_path, override, section, key, value):
    config = load_text(tmp_path, "lora: {r: 4}\ndata: {test: test.jsonl}\n", [override])
    assert getattr(getattr(config, section), key) == value


def test_an_override_may_replace_a_whole_section_and_the_last_one_of_a_key_wins(tmp_path):
    overrides = ["lora={r: 8}", "data.columns={prompt: q, completion: a}", "search.seed=2", "search.seed=3"]
    config = load_text(tmp_path, "lora: {r: 4, use_dora: true}", overrides)
    assert (config.lora.r, config.lora.use_dora, config.data.columns.prompt) == (8, False, "q")
    assert config.search.seed == 3


@pytest.mark.parametrize(
    ("override", "place", "rule"),
    [
        ("lora.r=0", "lora.r", "lora.r must be > 0, got 0"),
        ("lora={r: 0}", "lora", "lora.r must be > 0, got 0"),
        ("lora.r=null", "lora.r", "lora.r must be a valid integer, got None"),
        ("seach.num_trials=3", "seach.num_trials", "seach is not a known key"),
        ("data.columns.prompt=q", "data.columns.prompt", "data.columns.completion is required"),
        ("lora.r.x=3", "lora.r.x", "lora.r is not a section, it is 4."),
        ("lora.r={", "lora.r", "not valid YAML: "),
        ("lora.r=2024-13-45", "lora.r", "lora.r must be a valid integer, unable to parse"),
        ("lora.r={a: 1, a: 2}", "lora.r", "a is written twice. Keep one."),
        ("lora.r=!!python/name:os.system", "lora.r", "a value must be a text, "),
    ],
)
def test_an_override_that_breaks_a_rule_is_the_place_of_the_problem(tmp_path, override, place, rule):
    (found,) = problems_of(tmp_path, "lora:\n  r: 4\n", [override])
    assert found.startswith(f"--set {place}: {rule}")


@pytest.mark.parametrize("text", ["", "lora.r", "=3", "lora..r=3", ".r=3", "r.=3"])
def test_an_override_must_name_a_key_and_a_value(text):
    with pytest.raises(ConfigError, match=r"must be section\.key=value"):
        parse_override(text)


def test_all_broken_overrides_are_named(tmp_path):
    assert len(problems_of(tmp_path, "", ["a", "lora.r={", "lora.r=2", "lora.r.x=3"])) == 3


def test_the_closest_path_may_be_held_to_some_sections():
    assert closest_path("seed", prefixes=("search",)) == "search.seed"
    assert closest_path("lora.r") == "lora.r"
    assert closest_path("qqqq") is None


def test_reading_a_config_and_its_space_imports_no_heavy_library():
    code = (
        "import sys; from qlora_ray.config import load_config; from qlora_ray.search.parsing import load_space;"
        "load_space(load_config(None));"
        "print(sorted({'torch', 'ray', 'transformers', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
