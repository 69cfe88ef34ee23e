"""Which trial is exported, and what is said of those that cannot be."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml

from qlora_ray.errors import ConfigError, ModelError, RunError
from qlora_ray.exporting.reproduction import render_sweep_config
from qlora_ray.exporting.selection import own_rights, select_trial
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.score_records import BestScores
from qlora_ray.runs.winner import find_trial
from tests.exporting_fixtures import PARAMS, write_alone, write_sweep
from tests.sweep_folder import edited
from tests.unit.hub_fixtures import FIRST, use_download_hub
from tests.unit.model_fixtures import copy_base


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "results" / "s")


def test_best_is_the_winner_with_its_tokenizer_beside_it(sweep):
    selection = select_trial(sweep)
    assert selection.trial == "0001" and selection.is_winner
    assert selection.adapter.folder == sweep / "best" / "adapter"
    assert selection.evaluation == sweep / "evaluation"


@pytest.mark.parametrize("name", ["2", "02", "0002"])
def test_a_trial_is_found_by_its_number(sweep, name):
    selection = select_trial(sweep, trial=name)
    assert selection.trial == "0002" and not selection.is_winner and selection.scores is None
    assert selection.evaluation == sweep / "trials" / "0002" / "evaluation"


def test_the_winner_asked_for_by_number_is_the_winner(sweep):
    assert select_trial(sweep, trial="1").is_winner


def test_the_trials_own_values_are_in_its_config(sweep):
    config = select_trial(sweep).trial_config
    assert config.lora.r == PARAMS["lora.r"] and config.lora.resolved_alpha == 8.0
    assert config.training.learning_rate == PARAMS["training.learning_rate"]


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"got one without manifest\.json"):
        select_trial(tmp_path)


@pytest.mark.parametrize(
    ("part", "option"),
    [("best", ""), ("best/adapter", ""), ("trials/0002", " --trial 0002"), ("trials/0002/adapter", " --trial 0002")],
)
def test_a_part_of_a_sweep_is_answered_with_the_command_that_exports_it(sweep, part, option):
    with pytest.raises(RunError, match=re.escape(f"`python -m qlora_ray.export {sweep}{option} --to DIR`")):
        select_trial(sweep / part)


def test_an_adapter_of_no_sweep_is_answered_with_what_merges_it(sweep, tmp_path):
    adapter = shutil.copytree(sweep / "best" / "adapter", tmp_path / "mine" / "adapter")
    with pytest.raises(RunError, match=r"got an adapter of no sweep.*AutoPeftModelForCausalLM.*merge_and_unload"):
        select_trial(adapter)


def test_without_a_winner_the_complete_trials_are_named_or_the_sweep_is_to_go_on(tmp_path):
    sweep = write_sweep(tmp_path / "s", winner=False)
    with pytest.raises(RunError, match=r"a sweep that has not ended\. .*--trial 0001"):
        select_trial(sweep)
    assert select_trial(sweep, trial="1").adapter.folder == sweep / "trials" / "0001" / "adapter"
    for trial in ("0001", "0002"):
        shutil.rmtree(sweep / "trials" / trial)
    with pytest.raises(RunError, match=r"a sweep that has not ended\. Run the sweep"):
        select_trial(sweep)


@pytest.mark.parametrize(
    ("trial", "got"),
    [("0", r"pruned \(stopped by asha at report 1\)"), *[(name, "no such trial") for name in ("9", "x/y", "../best")]],
)
def test_a_trial_that_is_not_complete_is_refused(sweep, trial, got):
    with pytest.raises(RunError, match=rf"--trial {trial}: .*{got}.*: 0001, 0002\."):
        select_trial(sweep, trial=trial)


def test_the_winner_is_what_its_own_folder_says(sweep):
    (sweep / "summary.json").write_text(json.dumps({"status": "complete", "winner": "0002"}))
    assert select_trial(sweep).trial == "0001" and not select_trial(sweep, trial="2").is_winner
    assert find_trial(SweepPaths(sweep), None) == ("0001", True)
    # Of a sweep of before there was one.
    (sweep / "best" / "scores.json").unlink()
    assert find_trial(SweepPaths(sweep), "best") == ("0002", True)
    selection = select_trial(sweep)
    assert selection.is_winner and selection.scores == BestScores()


def test_a_verdict_that_cannot_be_read_is_refused_by_its_file(sweep):
    with edited(sweep / "best" / "scores.json") as scores:
        scores["verdict"]["deciding"]["verdict"] = "fine"
    with pytest.raises(RunError, match=r"best/scores\.json: its verdict cannot be read"):
        select_trial(sweep)


def test_a_trial_with_an_adapter_that_did_not_end_is_not_named_as_complete(sweep):
    with edited(sweep / "trials" / "0002" / "record.json") as record:
        record |= {"state": "failed", "cause": "x"}
    with pytest.raises(RunError, match=r"failed \(x\)\. Complete: 0001\."):
        select_trial(sweep, trial="2")


def test_a_trial_of_a_simulated_device_is_refused_in_one_line(sweep):
    for path in (sweep / "trials" / "0001" / "record.json", sweep / "best" / "record.json"):
        with edited(path) as record:
            record["executor"] |= {"simulated": True, "device": "Tesla T4 (simulated)"}
    with pytest.raises(RunError, match=r"got one of Tesla T4 \(simulated\), which a CPU stood for .* real devices\.$"):
        select_trial(sweep)


def test_a_base_that_cannot_be_compared_is_said_to_be_unverified(tmp_path):
    base = copy_base(tmp_path / "base")
    sweep = write_sweep(tmp_path / "s", model={"name": str(base)})
    with edited(sweep / "trials" / "0001" / "record.json") as record:
        record["base"] = {"name": "Qwen/Qwen3-0.6B", "revision": "main", "hash": "hub:Qwen/Qwen3-0.6B@main"}
    (note,) = select_trial(sweep).notes
    assert "could not be verified" in note and "hub:Qwen/Qwen3-0.6B@main" in note
    assert note in write_alone(sweep, tmp_path / "b").notes


def test_an_adapter_that_is_not_whole_is_refused(sweep):
    (sweep / "best" / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"must have adapter_model\.safetensors, got none"):
        select_trial(sweep)


def test_a_base_that_is_gone_is_named_and_can_be_named_anew(tmp_path):
    base = copy_base(tmp_path / "base")
    sweep = write_sweep(tmp_path / "s", model={"name": str(base)})
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=rf"got no folder {base}\. .*--set model"):
        select_trial(sweep)
    assert select_trial(sweep, overrides=[f"model.name={moved}"]).config.model.name == str(moved)


def test_another_base_is_refused(tmp_path):
    base = copy_base(tmp_path / "base")
    sweep = write_sweep(tmp_path / "s", model={"name": str(base)})
    with edited(base / "config.json") as config:
        config["rms_norm_eps"] = 0.5
    with pytest.raises(ModelError, match="the base it was trained on"):
        select_trial(sweep)


def test_a_base_that_was_named_from_the_sweeps_folder_is_found_from_another(tmp_path, monkeypatch):
    copy_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    # A folder of its own is named with a dot or a slash in front; without, it may be a hub id.
    sweep = write_sweep(tmp_path / "s", model={"name": "./base"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert select_trial(sweep).config.model.name == str(tmp_path / "base")


@pytest.mark.parametrize("override", ["lora.r=8", "evaluate.max_rows=3", "model.quantization.method=int8"])
def test_an_export_cannot_change_what_was_trained(sweep, override):
    with pytest.raises(ConfigError, match=r"only model\.name, model\.revision"):
        select_trial(sweep, overrides=[override])


def test_a_sweep_cannot_let_its_models_code_run_in_an_export(tmp_path):
    sweep = write_sweep(tmp_path / "s", model={"trust_remote_code": True})
    selection = select_trial(sweep)
    assert not selection.config.model.trust_remote_code and selection.needs_code
    (note,) = selection.notes
    assert "is not followed" in note and note.endswith("--set model.trust_remote_code=true")
    trusted = select_trial(sweep, overrides=["model.trust_remote_code=true"])
    assert trusted.config.model.trust_remote_code and trusted.notes == ()
    # Of the user's own sweep, at its end.
    assert select_trial(sweep, overrides=own_rights(trusted.paths)).config.model.trust_remote_code
    assert own_rights(select_trial(write_sweep(tmp_path / "t")).paths) == ()


def test_who_exports_a_sweep_again_gets_its_rights_as_they_were(tmp_path):
    sweep = write_sweep(tmp_path / "s", model={"trust_remote_code": True})
    written = yaml.safe_load(render_sweep_config(select_trial(sweep)))
    assert written["model"]["trust_remote_code"] is True


def test_a_base_named_anew_has_no_revision_of_the_old_one(tmp_path):
    sweep = write_sweep(tmp_path / "s", model={"revision": "v1"})
    moved = copy_base(tmp_path / "moved")
    assert select_trial(sweep, overrides=[f"model.name={moved}"]).config.model.revision is None
    both = [f"model.name={moved}", "model.revision=v2"]
    assert select_trial(sweep, overrides=both).config.model.revision == "v2"


def test_a_base_on_the_hub_is_exported_at_the_commit_it_was_trained_on(tmp_path, monkeypatch):
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish("org/tiny", FIRST, copy_base(tmp_path / "first"))
        pinned = select_trial(write_sweep(tmp_path / "s", model={"name": "org/tiny", "revision": FIRST}))
        assert (pinned.config.model.revision, pinned.notes, hub.requests) == (FIRST, (), [])
        # A sweep of before commits were recorded.
        sweep = write_sweep(tmp_path / "t", model={"name": "org/tiny"})
        with edited(sweep / "trials" / "0001" / "record.json") as record:
            record["base"]["hash"] = "hub:org/tiny@main"
        older = select_trial(sweep)
        assert older.config.model.revision == FIRST
        assert "could not be verified" in older.notes[0] and "hub:org/tiny@main" in older.notes[0]
        hub.is_away = True
        hub.main.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert "could not be verified: model.name: org/tiny" in select_trial(sweep).notes[0]
