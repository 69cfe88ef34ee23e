"""What a resumed sweep goes on with: what may change, and what a stranger's folder may ask for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_ray.config import SweepConfig
from qlora_ray.errors import ConfigError
from qlora_ray.preflight.resuming import ResumeRequest, read_resumed
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.ownership import sign
from qlora_ray.runs.records import Manifest

SPACE: dict[str, Any] = {
    "lora.r": {"choices": [4, 8]},
    "lora.lora_dropout": {"low": 0.1, "high": 0.3, "step": 0.1},
    "training.learning_rate": {"low": 1e-4, "high": 1e-3, "log": True},
}
COMMIT = "a" * 40


def make_config(**sections: dict[str, Any]) -> dict[str, Any]:
    return SweepConfig.model_validate({"search": {"space": "gone.yaml"}, **sections}).model_dump()


def resume(manifest: Manifest, **request: Any) -> tuple[SweepConfig, Any]:
    return read_resumed(SweepPaths(Path("results/s")), manifest, ResumeRequest(**request))


def make_manifest(space: dict[str, Any] = SPACE, **sections: dict[str, Any]) -> Manifest:
    return Manifest(config=make_config(**sections), space=space)


@pytest.fixture
def write_config(tmp_path: Path):
    def write(space: dict[str, Any] = SPACE, **sections: dict[str, Any]) -> Path:
        path = tmp_path / "sweep.yaml"
        search = {**sections.pop("search", {}), "space": space}
        path.write_text(yaml.safe_dump({**sections, "search": search}))
        return path

    return write


def test_a_sweep_goes_on_as_its_manifest_says_though_its_space_file_is_gone() -> None:
    config, space = resume(make_manifest(search={"space": "gone.yaml", "num_trials": 5}))
    assert config.search.num_trials == 5
    assert space.to_dict()["lora.r"] == SPACE["lora.r"]


def test_trials_are_added_to_those_it_had_and_said_once() -> None:
    manifest = make_manifest(search={"space": "gone.yaml", "num_trials": 5})
    assert resume(manifest, num_added_trials=3)[0].search.num_trials == 8
    with pytest.raises(ConfigError, match=r"^--add-trials: .* Drop one\.$"):
        resume(manifest, num_added_trials=3, overrides=["search.num_trials=9"])
    grid = make_manifest({"lora.r": SPACE["lora.r"]}, search={"space": "x", "num_trials": 2, "sampler": "grid"})
    with pytest.raises(ConfigError, match=r"^search\.num_trials: a grid over .* has 2 points, got 3\."):
        resume(grid, num_added_trials=1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.seed=8", "  training.seed: was 7, now 8"),
        ("lora.use_dora=true", "  lora.use_dora: was False, now True"),
        ("data.validation=0.2", "  data.validation: was None, now 0.2"),
        ("search.sampler=random", "  search.sampler: was 'tpe', now 'random'"),
        ("evaluate.top_k=9", "  evaluate.top_k: was 3, now 9"),
    ],
)
def test_what_would_make_it_another_sweep_is_refused_by_key(override: str, words: str, write_config) -> None:
    with pytest.raises(ConfigError, match="a sweep goes on as it began") as caught:
        resume(make_manifest(), overrides=[override])
    assert caught.value.problems[1:] == [words]
    with pytest.raises(ConfigError, match="a sweep goes on as it began") as caught:
        resume(make_manifest(), config=write_config(), overrides=[override, "cluster.max_slots=3"])
    assert caught.value.problems[1:] == [words]


def test_length_cluster_and_places_of_files_may_change(write_config) -> None:
    manifest = make_manifest(
        data={"train": "a.jsonl", "validation": "v.jsonl"}, model={"name": "x", "revision": COMMIT}
    )
    path = write_config(
        data={"train": "/mnt/b.jsonl", "validation": "/mnt/v.jsonl"},
        model={"name": "x", "revision": "main"},
        cluster={"max_slots": 2, "address": "head:6379"},
        search={"num_trials": 30, "time_budget": "1h", "gpu_hours": 2},
        results={"dir": "elsewhere"},
    )
    config, _ = resume(manifest, config=path)
    assert (config.data.train, config.search.num_trials) == ("/mnt/b.jsonl", 30)
    # A branch in the file is the commit that it stood for.
    assert config.model.revision == COMMIT
    with pytest.raises(ConfigError, match=rf"model\.revision: was '{COMMIT}', now 'b{{40}}'"):
        resume(manifest, config=path, overrides=[f"model.revision={'b' * 40}"])


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2", "cma-es"])
@pytest.mark.parametrize(
    ("parameter", "words", "is_extension"),
    [
        ("training.learning_rate", {"low": 1e-5, "high": 1e-2, "log": True}, True),
        ("training.learning_rate", {"low": 2e-4, "high": 1e-3, "log": True}, False),
        ("training.learning_rate", {"low": 1e-4, "high": 1e-3}, False),
        ("lora.lora_dropout", {"low": 0.0, "high": 0.4, "step": 0.1}, True),
        ("lora.lora_dropout", {"low": 0.05, "high": 0.35, "step": 0.1}, False),
        ("lora.r", {"choices": [4, 8, 16]}, False),
        ("lora.r", {"low": 4, "high": 16}, False),
        ("lora.use_dora", {"choices": [True, False]}, False),
    ],
)
def test_ranges_may_become_wider_where_the_sampler_can_go_on(
    write_config, sampler: str, parameter: str, words: dict[str, Any], is_extension: bool
) -> None:
    search = {"num_trials": 4, "sampler": sampler}
    manifest = make_manifest(search={**search, "space": "gone.yaml"})
    path = write_config({**SPACE, parameter: words}, search=search)
    if is_extension and sampler != "cma-es":
        _, space = resume(manifest, config=path)
        assert space.to_dict()[parameter].items() >= words.items()
    else:
        with pytest.raises(ConfigError, match=rf"  search space {parameter}: was .*, now "):
            resume(manifest, config=path)


def test_a_grid_keeps_its_points(write_config) -> None:
    dropout = SPACE["lora.lora_dropout"]
    search = {"num_trials": 2, "sampler": "grid"}
    manifest = make_manifest({"lora.lora_dropout": dropout}, search={**search, "space": "gone.yaml"})
    with pytest.raises(ConfigError, match=r"  search space lora\.lora_dropout: was .*, now "):
        resume(manifest, config=write_config({"lora.lora_dropout": {**dropout, "high": 0.4}}, search=search))


def test_points_that_were_recommended_stay_whatever_file_a_resume_names(write_config) -> None:
    point = {"lora.r": 4}
    manifest = make_manifest({**SPACE, "recommended_points": [point]})
    for config in (write_config(), write_config({**SPACE, "points_to_evaluate": [{"lora.r": 8}]})):
        _, space = resume(manifest, config=config)
        assert space.recommended_points == (point,)
    _, space = resume(manifest)
    assert space.recommended_points == space.first_points == (point,)


def test_points_may_be_added_and_none_taken_away(write_config) -> None:
    point = {"lora.r": 4}
    manifest = make_manifest({**SPACE, "points_to_evaluate": [point]})
    _, space = resume(manifest, config=write_config({**SPACE, "points_to_evaluate": [point, {"lora.r": 8}]}))
    assert space.points_to_evaluate == (point, {"lora.r": 8})
    with pytest.raises(ConfigError, match="search space points_to_evaluate: was"):
        resume(manifest, config=write_config())


POWERS = [
    ("model.trust_remote_code", True, "runs code", False),
    ("cluster.address", "evil:6379", "joins that Ray cluster", None),
    ("results.report_to", ["wandb"], "sends its figures", []),
    ("export.push_every", "save", "uploads its adapters", "never"),
]


@pytest.mark.parametrize(("key", "value", "what", "harmless"), POWERS)
def test_a_strangers_folder_chooses_no_code_no_cluster_and_no_upload_unless_the_user_says_so(
    key: str, value: Any, what: str, harmless: Any, write_config
) -> None:
    section, name = key.split(".")
    stranger = make_manifest(**{section: {name: value}})

    def get(**request: Any) -> Any:
        return getattr(getattr(resume(stranger, **request)[0], section), name)

    with pytest.raises(ConfigError, match=rf"got {key}: {re.escape(str(value))}, which {what}.*--trust-folder"):
        get()
    assert get(is_trusted=True) == value
    assert get(overrides=[f"{key}={value}"]) == value
    assert get(overrides=[f"{key}={json.dumps(harmless)}"]) == harmless
    # The user's own file says it.
    assert get(config=write_config(**{section: {name: value}})) == value


def test_both_powers_of_a_stranger_are_named_and_the_owner_is_never_asked() -> None:
    manifest = make_manifest(model={"trust_remote_code": True}, cluster={"address": "mine:6379"})
    with pytest.raises(ConfigError) as caught:
        resume(manifest)
    assert len(caught.value.problems) == 2
    config, _ = resume(sign(manifest))
    assert config.model.trust_remote_code and config.cluster.address == "mine:6379"
    other = replace(sign(manifest), config=make_config(cluster={"address": "evil:6379"}))
    with pytest.raises(ConfigError, match="evil:6379"):
        resume(other)
