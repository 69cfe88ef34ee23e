"""The configs in a bundle: they load anywhere, and train what was trained."""

from __future__ import annotations

import pytest

from qlora_ray.config import load_config
from qlora_ray.exporting.card.card import make_card
from qlora_ray.exporting.card.figures import CardFacts
from qlora_ray.exporting.reproduction import (
    local_paths,
    render_sweep_config,
    render_trial_config,
    sweep_command,
    trial_command,
)
from qlora_ray.exporting.run_record import render_run_record
from qlora_ray.exporting.selection import select_trial
from qlora_ray.search.parsing import load_space
from qlora_ray.search.space import apply_values
from qlora_ray.sweep import make_parser
from tests.exporting_fixtures import PARAMS, SPACE, write_sweep
from tests.sweep_folder import edited


@pytest.fixture
def selection(tmp_path):
    return select_trial(write_sweep(tmp_path / "s"))


def load(text, folder):
    path = folder / "config.yaml"
    path.write_text(text)
    return load_config(path)


def test_the_sweeps_config_holds_its_space_and_no_file_beside_it(selection, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(render_sweep_config(selection), tmp_path)
    assert load_space(config).to_dict() == SPACE
    assert config.training == selection.config.training and config.data == selection.config.data
    assert config.results.name is None and config.results.dir == "results"


def test_the_trials_config_trains_that_trial_and_no_other(tmp_path, monkeypatch):
    selection = select_trial(write_sweep(tmp_path / "s", search={"time_budget": 60.0, "gpu_hours": 1.0}))
    monkeypatch.chdir(tmp_path)
    config = load(render_trial_config(selection), tmp_path)
    space = load_space(config)
    assert config.search.num_trials == 1 and config.search.scheduler == "none"
    assert config.search.final_seeds == 0
    assert config.search.time_budget is None and config.search.gpu_hours is None
    assert [dict(point) for point in space.points_to_evaluate] == [PARAMS] and space.grid_size() == 1
    trained = apply_values(config, space.points_to_evaluate[0])
    expected = selection.trial_config
    assert trained.lora == expected.lora and trained.training == expected.training
    assert trained.model == expected.model and trained.data == expected.data
    # Reports are when Tune may stop a trial; their number is part of how it was evaluated.
    assert config.search.num_reports == expected.search.num_reports


def test_choices_that_are_lists_are_points_too(tmp_path):
    sweep = write_sweep(tmp_path / "s")
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["params"]["lora.target_modules"] = ["q_proj", "v_proj"]
    config = load(render_trial_config(select_trial(sweep)), tmp_path)
    point = load_space(config).points_to_evaluate[0]
    assert apply_values(config, point).lora.target_modules == ["q_proj", "v_proj"]


def test_the_commands_are_ones_that_sweep_takes():
    for command in (trial_command(), sweep_command()):
        program, _, arguments = command.partition("qlora_ray.sweep ")
        assert program == "python -m "
        assert make_parser().parse_args(arguments.split()).config.suffix == ".yaml"


def test_local_files_are_named_so_that_any_folder_finds_them(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "test").mkdir()
    monkeypatch.chdir(tmp_path)
    sweep = write_sweep(tmp_path / "s", data={"train": "rows.jsonl", "test": "test"})
    selection = select_trial(sweep)
    assert local_paths(selection) == [str(tmp_path / "rows.jsonl")]
    config = load(render_sweep_config(selection), tmp_path)
    assert config.data.train == str(tmp_path / "rows.jsonl")
    assert config.data.test == "test"


def test_the_files_of_a_list_of_sources_are_named_each(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    train = [{"source": "rows.jsonl[:5]", "weight": 2.0}, {"source": "owner/name", "weight": 1.0}]
    selection = select_trial(write_sweep(tmp_path / "s", data={"train": train}))
    assert local_paths(selection) == [f"{tmp_path / 'rows.jsonl'}[:5]"]


def test_shipped_and_hub_names_are_no_paths(selection):
    assert local_paths(selection) == []


def test_the_config_of_a_clone_says_that_it_is_another_training(tmp_path):
    sweep = write_sweep(tmp_path / "s")
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["cloned_from"], record["cloned_at"] = "0000", 2
    clone = select_trial(sweep)
    first = render_trial_config(clone).splitlines()[0]
    assert "clone of trial 0000 at report 2" in first and "not the one that made the adapter" in first
    assert "- Clone of trial 0000 at report 2: the values below hold from there on" in render_run_record(
        clone, name="X", evaluation_files=[]
    )
    card = str(make_card(CardFacts("X", clone, None, None)))
    assert "`trial.yaml` trains the adapter's last values from the start: it is a clone of trial 0000" in card
