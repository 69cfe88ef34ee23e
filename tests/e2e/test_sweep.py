"""One small sweep from the command to the winner, and everything it leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from qlora_ray import embedded, report, sweep
from qlora_ray.config import load_config
from qlora_ray.data import prepare_data
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import specify_quantization
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.live import LivePhase, read_live
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.search.space import apply_values
from qlora_ray.search.study import count_finished, open_study
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from tests.e2e.sweeps import run_sweep, write_config

OPTIONS = ("--set", "results.name=small")


@dataclass
class Finished:
    """A sweep that ran once for all tests of this file."""

    folder: Path
    config: Path
    run: subprocess.CompletedProcess[str]
    paths: SweepPaths


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three trials of twelve steps on the embedded base."""
    folder = tmp_path_factory.mktemp("a sweep é")
    config = write_config(folder)
    run = run_sweep("--config", config, *OPTIONS, cwd=folder)
    return Finished(folder, config, run, SweepPaths(folder / "results" / "small"))


def test_it_ends_with_a_winner_and_exit_code_0(finished: Finished) -> None:
    assert finished.run.returncode == 0, finished.run.stdout + finished.run.stderr
    assert finished.run.stderr == ""
    summary = read_json(finished.paths.summary)
    assert summary["status"] == "complete"
    assert summary["counts"] == {"complete": 3}


def test_its_artifacts_are_all_listed_and_there_as_they_were_written(finished: Finished) -> None:
    root = finished.paths.root
    files = {file["path"]: file for file in read_json(finished.paths.artifacts)["files"]}
    assert all(file["what"] for file in files.values())
    made = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    changing = {path for path in made if path.startswith(("logs/", "live.json", ".lock", "artifacts.json"))}
    assert set(files) == made - changing and {"loss_curves.png", "report.html", "summary.json"} <= set(files)
    for path, file in files.items():
        content = (root / path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"]), path


def test_its_lines_are_few_and_carry_no_terminal_codes(finished: Finished) -> None:
    text = finished.run.stdout
    assert "\x1b" not in text and "\r" not in text
    assert text.count("complete  eval_loss") == 3
    assert "Traceback" not in text and "Warning" not in text
    # Two of them are about answers that 24 tokens cut.
    assert len([line for line in text.splitlines() if "trials ended" not in line]) < 62
    assert "test loss" in text
    assert "verdict   the winner is" in text
    assert str(Path("results") / "small" / "best" / "adapter") in text


def test_the_winners_adapter_has_the_recorded_loss_in_plain_peft(finished: Finished) -> None:
    scores = read_json(finished.paths.best / "scores.json")
    config = load_config(finished.config)
    base = load_base(
        config.model, quantization=specify_quantization(config.model.quantization, compute_dtype="fp32"), device="cpu"
    )
    adapter = finished.paths.best / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    data = prepare_data(config.data, tokenizer=tokenizer, data_seed=7)
    assert data.test is not None
    before = evaluate_loss(base.model, data.test, batch_size=4, pad_token_id=0, precision="fp32").loss
    model = PeftModel.from_pretrained(base.model, str(adapter))
    after = evaluate_loss(model, data.test, batch_size=4, pad_token_id=0, precision="fp32").loss
    chosen_by = evaluate_loss(model, data.validation, batch_size=1, pad_token_id=0, precision="fp32").loss
    assert before == pytest.approx(scores["base"]["loss"], abs=1e-4)
    assert after == pytest.approx(scores["winner"]["loss"], abs=1e-4)
    assert chosen_by == pytest.approx(scores["rescored"][scores["trial"]]["loss"], abs=1e-4)
    assert chosen_by == pytest.approx(read_json(finished.paths.best / "record.json")["metrics"]["eval_loss"], abs=1e-4)
    assert after < before


def test_the_verdict_is_on_test_rows_and_stands_in_summary_and_scores(finished: Finished) -> None:
    verdict = read_json(finished.paths.best / "scores.json")["verdict"]
    assert verdict["split"] == "test"
    scores = read_json(finished.paths.best / "scores.json")
    # After twelve steps none of the four answers may be right: then the next measure decides.
    by_name = {name: (scores["base"]["metrics"][name], value) for name, value in scores["winner"]["metrics"].items()}
    telling = [name for name in ("sql_execution", "exact_match", "sql_valid") if by_name[name] != (0, 0)]
    assert verdict["deciding"]["measure"] == [*telling, "loss"][0]
    assert verdict["word"] == read_json(finished.paths.summary)["verdict"] == verdict["deciding"]["verdict"]
    loss = next(one for one in (verdict["deciding"], *verdict["others"]) if one["measure"] == "loss")
    assert (loss["base"], loss["tuned"]) == pytest.approx((scores["base"]["loss"], scores["winner"]["loss"]))
    assert loss["interval"][0] <= loss["difference"] <= loss["interval"][1]


def test_answers_that_were_cut_are_told_before_training_and_with_the_verdict(finished: Finished) -> None:
    # The test rows' queries have up to 78 tokens, and an answer may have 24 here.
    scores = read_json(finished.paths.best / "scores.json")
    tuned, text = scores["winner"], finished.run.stdout
    assert (tuned["max_new_tokens"], tuned["num_answers"]) == (24, 4)
    assert tuned["num_long_references"] > 0 and tuned["num_cut_answers"] + scores["base"]["num_cut_answers"] > 0
    told = f"test: {tuned['num_long_references']} of 4 references are longer than evaluate.max_new_tokens (24)"
    assert told in read_json(finished.paths.manifest)["notes"][0] and f"note  {told}" in text
    assert text.index(told) < text.index("verdict   the winner is")
    cut = f"{tuned['num_cut_answers']} of 4 answers of the winner were cut at 24 tokens (base: "
    note = scores["verdict"]["note"]
    assert cut in note and note == read_json(finished.paths.summary)["verdict_note"]
    assert f"note: {note}" in text


def test_its_last_live_figures_say_that_it_ended_where_it_ran_and_what_it_took(finished: Finished) -> None:
    figures = read_live(finished.paths)
    assert figures is not None
    assert (figures.phase, figures.eta_s, figures.trials) == (LivePhase.ENDED, 0.0, {})
    assert figures.gpu_hours > 0 and figures.num_planned == 3
    for executor in figures.executors:
        assert executor.memory_bytes is not None and executor.memory_bytes > 0
        assert executor.planned_memory_bytes is not None
        assert executor.busy_share is None or 0 < executor.busy_share <= 1


def test_each_lease_of_a_slot_is_told_with_its_end(finished: Finished) -> None:
    events = read_events(finished.paths.events)
    for name in ("trial_leased", "trial_released"):
        assert sorted(event["trial"] for event in events if event["event"] == name) == ["0000", "0001", "0002"]


def test_a_trial_alone_reports_the_same_numbers_as_in_the_sweep(finished: Finished) -> None:
    torch.set_num_threads(1)
    record = read_json(finished.paths.trial("0001").record)
    config = apply_values(load_config(finished.config), record["params"])
    base = load_base(
        config.model, quantization=specify_quantization(config.model.quantization, compute_dtype="fp32"), device="cpu"
    )
    data = prepare_data(config.data, tokenizer=base.tokenizer, data_seed=7)
    engine = PackedEngine(
        base,
        TrainingData(data.train, data.validation),
        slots=1,
        max_tokens_per_micro_batch=record["ran"]["max_tokens_per_micro_batch"],
        hold_dequantized=record["ran"]["hold_dequantized"],
    )
    budget = make_budget(config.training, num_train_rows=len(data.train), num_reports=config.search.num_reports)
    engine.admit(TrialSpec("alone", config.lora, config.training, budget))
    alone = []
    for _ in range(config.search.num_reports):
        alone.extend(engine.advance())
        engine.proceed("alone")
    engine.evict("alone")
    lines = [json.loads(line) for line in finished.paths.trial("0001").metrics.read_text().splitlines()]
    for name in ("eval_loss", "train_loss", "step", "samples_seen"):
        # The contract's bound for trials of equal rank; products of other sizes may round otherwise.
        assert [report.metrics[name] for report in alone] == pytest.approx([line[name] for line in lines], rel=1e-6)


def test_each_record_holds_the_resolved_values(finished: Finished) -> None:
    for index in range(3):
        record = read_json(finished.paths.trial(f"{index:04d}").record)
        assert record["state"] == "complete"
        assert record["ran"]["training"]["learning_rate"] == record["params"]["training.learning_rate"]
        assert record["ran"]["training"]["seed"] == record["ran"]["training"]["data_seed"] == 7
        assert (record["bf16"], record["fp16"]) == (False, False)
        assert record["ran"]["quantization"]["bits"] == 4
        own = read_json(finished.paths.trial(f"{index:04d}").adapter / "qlora_ray.json")
        assert (own["trial"], own["base"]) == (record["trial"], record["base"])
        assert own["quantization"] == record["ran"]["quantization"]
        assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"]
        for package in ("transformers", "peft", "trl", "bitsandbytes", "ray", "optuna"):
            assert record["versions"][package][0].isdigit()
        assert record["base"]["hash"].startswith("sha256:")
        assert record["dataset"]["overlap_check"] == "pass"
        assert record["memory"]["peak_bytes"] > 0 and record["memory"]["estimated_bytes"] > 0
        assert record["tokens_per_s"] > 0
        assert record["ran"]["trainable_parameters"] > 0
        assert record["executor"]["device"]
        assert set(record["git"]) == {"commit", "dirty"}
        assert Path(record["adapter"]).name == "adapter"
        assert (finished.folder / record["adapter"] / "adapter_model.safetensors").exists()


def test_the_table_and_the_study_say_the_same(finished: Finished) -> None:
    with finished.paths.trials_table.open() as stream:
        rows = {row["trial"]: row for row in csv.DictReader(stream)}
    config = load_config(finished.config)
    from qlora_ray.search.parsing import load_space

    study = open_study(finished.paths.study, name="small", search=config.search, space=load_space(config))
    assert count_finished(study) == 3
    for trial in study.get_trials():
        row = rows[f"{trial.number:04d}"]
        assert float(row["eval_loss"]) == trial.value
        assert math.isclose(float(row["training.learning_rate"]), trial.params["training.learning_rate"])
    assert study.get_trials()[0].params["training.learning_rate"] == 2e-3


def test_the_manifest_says_what_was_planned_before_training(finished: Finished) -> None:
    manifest = read_json(finished.paths.manifest)
    assert manifest["config"]["training"]["max_samples"] == 48
    assert manifest["plan"]["placements"][0]["precision"]["name"] == "fp32"
    assert manifest["plan"]["placements"][0]["engine"] == "packed"
    assert manifest["data"]["num_rows"]["train"] == 64
    first_trial = next(e for e in read_events(finished.paths.events) if e["event"] == "trial_opened")
    assert finished.paths.manifest.stat().st_mtime <= first_trial["time"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--config", "small.yaml", *OPTIONS], "already used"),
        (["--resume", "results/small", "--set", "training.seed=8"], "training.seed: was 7, now 8"),
    ],
)
def test_a_finished_sweep_becomes_no_other_one(
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    before = finished.paths.summary.read_text()
    monkeypatch.chdir(finished.folder)
    # In this process: one of its own would do little but import.
    assert sweep.main(options) == 2
    out, err = capfd.readouterr()
    assert words in err and out == ""
    assert finished.paths.summary.read_text() == before


def test_files_that_were_damaged_are_made_again_byte_for_byte(
    finished: Finished, capfd: pytest.CaptureFixture[str]
) -> None:
    table, summary = finished.paths.trials_table, finished.paths.summary
    before = table.read_bytes(), summary.read_bytes()
    table.write_bytes(before[0][:100])
    summary.unlink()
    assert report.main([str(finished.paths.root), "--rebuild"]) == 0
    assert (table.read_bytes(), summary.read_bytes()) == before
    done = ["trials.csv: rebuilt, 3 trials", "summary.json: rebuilt, complete"]
    assert capfd.readouterr().out.splitlines()[:2] == done
    listed = {file["path"]: file["sha256"] for file in read_json(finished.paths.artifacts)["files"]}
    assert [listed[path.name] for path in (table, summary)] == [hashlib.sha256(each).hexdigest() for each in before]


def test_resuming_a_finished_sweep_trains_nothing_again(finished: Finished) -> None:
    adapters = {path: path.stat().st_mtime_ns for path in finished.paths.trials.glob("*/adapter/*.safetensors")}
    again = run_sweep("--resume", finished.paths.root, "--export", "winner", cwd=finished.folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in adapters} == adapters
    assert read_json(finished.paths.summary)["counts"] == {"complete": 3}
    # What is exported is that winner, merged as the export command does it.
    bundle = finished.folder / "winner"
    weights = "adapter/adapter_model.safetensors"
    assert (bundle / weights).read_bytes() == (finished.paths.best / weights).read_bytes()
    (noted,) = read_lines(finished.paths.exports)
    assert noted["to"] == str(bundle) and noted["merge"] == read_json(bundle / "merged" / "merge_report.json")
    assert f"push it:      python -m qlora_ray.export winner --push USER/{noted['name']}" in again.stdout


@pytest.mark.slow
def test_trials_that_cannot_be_packed_run_as_processes_and_the_plan_says_why(tmp_path: Path) -> None:
    config = write_config(tmp_path, lora={"use_dora": True, "target_modules": "attention-qv"})
    run = run_sweep("--config", config, *OPTIONS, "--set", "search.num_trials=2", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "single: lora.use_dora" in " ".join(run.stdout.split())
    record = read_json(SweepPaths(tmp_path / "results" / "small").trial("0001").record)
    assert (record["state"], record["ran"]["engine"], record["ran"]["lora"]["use_dora"]) == ("complete", "single", True)


def test_nothing_is_written_into_the_package(finished: Finished) -> None:
    names = {path.name for path in embedded.assets_path().rglob("*") if path.is_file()}
    assert not {name for name in names if name.startswith("adapter") or name.endswith((".lock", ".tmp"))}
