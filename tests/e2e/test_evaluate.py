"""Evaluations through the command line: a winner beside its base and a merged model, stopped and gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray import embedded
from qlora_ray.config import SweepConfig
from qlora_ray.config.schema import Evaluate, Model
from qlora_ray.data import prepare_data
from qlora_ray.evaluate import main
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.options import Options
from qlora_ray.evaluation.run.plan import make_plan
from qlora_ray.modeling.adapters import saved_adapter
from qlora_ray.modeling.loading import load_base, load_tokenizer
from qlora_ray.modeling.quantization import QuantizationSpec, specify_quantization
from qlora_ray.runs import read_json
from qlora_ray.scoring import resolve_metrics
from qlora_ray.scoring.model_scoring import score_model
from qlora_ray.scoring.verdict import CHOSEN_ON_THEM
from tests.e2e.sweeps import read_until
from tests.e2e.untrained_sweep import FAST, NUM_ROWS, sweep

__all__ = ["sweep"]


@pytest.fixture(scope="module")
def finished(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The winner beside its base and the unchanged base as `merged`, zero- and 3-shot, and a prompt file."""
    to = tmp_path_factory.mktemp("finished") / "to"
    options = ["--shots", "0,3", "--prompts", "qualitative", "--merged", str(embedded.base_path()), "--to", str(to)]
    assert main([str(sweep), *FAST, *options]) == 0
    return to


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def read_tree(folder: Path) -> dict[str, str]:
    """Every file of an evaluation but its page of plots, whose ids are random."""
    names = [path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".jsonl", ".md")]
    return {str(path.relative_to(folder)): path.read_text() for path in names}


def test_the_numbers_are_those_of_plain_peft(sweep: Path, finished: Path) -> None:
    config = SweepConfig.model_validate(read_json(sweep / "manifest.json")["config"])
    config.evaluate = Evaluate(max_new_tokens=40, batch_size=4, max_rows=NUM_ROWS)
    data = prepare_data(config.data, tokenizer=load_tokenizer(config.model), data_seed=7)
    assert data.test is not None
    rows = data.test.first(NUM_ROWS)
    spec = specify_quantization(config.model.quantization, compute_dtype="fp32")
    base = load_base(config.model, quantization=spec, device="cpu")
    metrics, _ = resolve_metrics(config.evaluate, trains_on_embedded=True, has_references=True)
    with saved_adapter(base, sweep / "best" / "adapter") as model:
        expected = score_model(
            model, base.tokenizer, rows, metrics=metrics, evaluate=config.evaluate, precision="fp32", loss_batch_size=8
        )
    scores = {(one["model"], one["prompts"]): one for one in read_json(finished / "evaluation.json")["scores"]}
    found = scores["adapter", "0-shot"]
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(expected.loss), rel=1e-4)
    assert (found["num_tokens"], found["num_rows"]) == (expected.num_tokens, NUM_ROWS)
    assert found["metrics"] == expected.metrics
    answers = read_rows(finished, "adapter/0-shot.jsonl")
    assert [row["answer"] for row in answers] == [one.answer for one in expected.answers]


def test_its_files_are_all_listed_with_what_they_are(finished: Path) -> None:
    files = {file["path"]: file for file in read_json(finished / "artifacts.json")["files"]}
    made = {path.relative_to(finished).as_posix(): path for path in finished.rglob("*") if path.is_file()}
    assert set(files) == set(made) - {".lock", "artifacts.json"}
    assert {"answers.html", "lengths.png", "refusals.png", "stats.json", "merged/qualitative.jsonl"} <= set(files)
    assert all(file["what"] and file["bytes"] == made[path].stat().st_size for path, file in files.items())


def test_every_model_answers_every_set_on_the_same_rows(finished: Path) -> None:
    evaluation = read_json(finished / "evaluation.json")
    assert evaluation["target"]["trial"] == "0000"
    assert evaluation["rows"] | {"fingerprint": ""} == {
        "split": "test",
        "reason": "test: rows that no trial was chosen by",
        "num_rows": NUM_ROWS,
        "fingerprint": "",
    }
    assert list(evaluation["models"]) == ["base", "adapter", "merged"]
    # 40 tokens are fewer than the longest queries have.
    references = [row["reference"] for row in read_rows(finished, "base/0-shot.jsonl")]
    encoded = load_tokenizer(Model())(references, add_special_tokens=False)["input_ids"]
    num_long = sum(len(ids) + 1 > 40 for ids in encoded)
    assert evaluation["notes"] == [
        f"{prompts}: {num_long} of {NUM_ROWS} references are longer than evaluate.max_new_tokens (40): such answers "
        "are cut. Raise it."
        for prompts in ("0-shot", "3-shot")
        if num_long
    ]
    for prompts in ("0-shot", "3-shot", "qualitative"):
        rows = [read_rows(finished, f"{model}/{prompts}.jsonl") for model in ("base", "adapter", "merged")]
        assert len({tuple((row["row"], row["id"], row["prompt"]) for row in one) for one in rows}) == 1
    assert {row["finish"] for row in read_rows(finished, "base/qualitative.jsonl")} <= {"stop", "length"}
    pairs = [(one["prompts"], one["base_model"], one["tuned_model"]) for one in evaluation["comparisons"]]
    assert list(dict.fromkeys(pairs)) == [
        (prompts, *pair)
        for prompts in ("0-shot", "3-shot")
        for pair in (("base", "adapter"), ("base", "merged"), ("adapter", "merged"))
    ]
    assert "0-shot" in (finished / "evaluation.md").read_text()
    assert evaluation["exports"]["prompt_sets"].keys() == {"0-shot", "3-shot", "qualitative"}


def test_examples_come_from_train(finished: Path) -> None:
    train = {row["question"] for row in read_rows(embedded.train_path().parent, "train.jsonl")}
    for row in read_rows(finished, "base/3-shot.jsonl"):
        questions = [part.split("<|end|>")[0] for part in row["prompt"].split("<|user|>")[1:]]
        assert len(questions) == 4
        assert set(questions[:3]) <= train and questions[3] not in train


def test_run_again_loads_no_model_and_gives_the_same_files(
    sweep: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = read_tree(finished)
    monkeypatch.setattr("qlora_ray.evaluation.run.models.open_models", lambda *_: 1 / 0)
    options = [
        "--shots",
        "0,3",
        "--prompts",
        "qualitative",
        "--merged",
        str(embedded.base_path()),
        "--to",
        str(finished),
    ]
    assert main([str(sweep), *FAST, *options]) == 0
    assert read_tree(finished) == before
    out = capfd.readouterr().out
    assert "base -> adapter, 0-shot: " in out and "\x1b" not in out and str(finished) in out


def test_a_killed_evaluation_goes_on_to_the_same_results(sweep: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole" / "to", tmp_path / "parts" / "to"
    command = [str(sweep), *FAST, "--models", "base", "--to"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qlora_ray.evaluate", *command, str(parts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        read_until(process, f"base  0-shot  4 of {NUM_ROWS} answered")
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert not (parts / "evaluation.json").exists()
    assert len(read_rows(parts, "base/0-shot.losses.jsonl")) == NUM_ROWS
    assert len(read_rows(parts, "base/0-shot.jsonl")) >= 4
    assert main([*command, str(parts)]) == 0
    assert main([*command, str(whole)]) == 0
    assert read_tree(parts) == read_tree(whole)


def test_no_improvement_is_exit_code_1_where_one_is_required(
    sweep: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep), *FAST, "--shots", "0,3", "--to", str(finished), "--require-improvement"]) == 1
    comparisons = read_json(finished / "evaluation.json")["comparisons"]
    losses = [one["verdict"] for one in comparisons if (one["prompts"], one["measure"]) == ("0-shot", "loss")]
    assert losses == ["worse"]
    assert main(["embedded", "--require-improvement"]) == 2
    assert "--require-improvement: needs the base and an adapter or merged model" in capfd.readouterr().err


def test_an_improvement_is_exit_code_0(tmp_path: Path) -> None:
    # A base that noise has made worse, and the embedded one as the merged model.
    noisy = load_base(Model(), quantization=QuantizationSpec("none", 32, "torch", None, False, "fp32"), device="cpu")
    torch.manual_seed(3)
    for parameter in noisy.model.parameters():
        parameter.data += 0.5 * parameter.data.std() * torch.randn_like(parameter)
    noisy.model.save_pretrained(tmp_path / "noisy")
    noisy.tokenizer.save_pretrained(tmp_path / "noisy")
    options = ["--merged", str(embedded.base_path()), "--set", "evaluate.metrics=[]", "--require-improvement"]
    assert main([str(tmp_path / "noisy"), *FAST, *options]) == 0
    [one] = read_json(tmp_path / "noisy-evaluation" / "evaluation.json")["comparisons"]
    assert (one["measure"], one["verdict"], one["tuned_model"]) == ("loss", "better", "merged")
    # Nothing was to be answered.
    assert not list((tmp_path / "noisy-evaluation").glob("*/0-shot.jsonl"))


def test_a_metric_of_ones_own_is_scored_and_compared(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Length:\n    name = 'length'\n    higher_is_better = False\n"
        "    def score(self, predictions, references):\n        return [float(len(one)) for one in predictions]\n"
    )
    options = ["--metric", f"{tmp_path / 'mine.py'}:Length", "--models", "base", "--to", str(tmp_path / "to")]
    assert main([str(sweep), *FAST, *options]) == 0
    answers = read_rows(tmp_path / "to", "base/0-shot.jsonl")
    mean = sum(len(row["answer"]) for row in answers) / NUM_ROWS
    assert read_json(tmp_path / "to" / "evaluation.json")["scores"][0]["metrics"]["length"] == pytest.approx(mean)


def test_a_changed_setting_and_a_changed_base_are_refused(
    sweep: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = read_tree(finished)
    assert main([str(sweep), *FAST, "--set", "evaluate.max_new_tokens=8", "--to", str(finished)]) == 2
    assert "evaluate.max_new_tokens must stay what the rows there were made with (40), got 8" in capfd.readouterr().err
    assert main(["embedded", *FAST, "--to", str(finished)]) == 2
    assert "belongs to another evaluation" in capfd.readouterr().err
    other = tmp_path / "base"
    other.mkdir()
    for source in embedded.base_path().iterdir():
        (other / source.name).write_bytes(source.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text().replace("1e-05", "1e-06"))
    assert main([str(sweep), *FAST, "--set", f"model.name={other}", "--to", str(tmp_path / "to")]) == 2
    assert "must be used on the base it was trained on" in capfd.readouterr().err
    assert not (tmp_path / "to").exists()
    assert read_tree(finished) == before


def test_fresh_begins_again_with_other_settings(sweep: Path, finished: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    shutil.copytree(finished, to)
    (to / "notes.txt").write_text("mine")
    options = ["--models", "base", "--set", "evaluate.max_new_tokens=8", "--fresh", "--to", str(to)]
    assert main([str(sweep), "--rows", "4", *options]) == 0
    assert len(read_rows(to, "base/0-shot.jsonl")) == 4
    assert not (to / "adapter").exists()
    assert (to / "notes.txt").read_text() == "mine"


def test_a_prompt_file_is_not_scored_by_the_database_of_the_rows(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Say yes.", "reference": "Yes, gladly."}\n')
    options = ["--prompts", str(tmp_path / "mine.jsonl"), "--models", "base", "--to", str(tmp_path / "to")]
    database = ["--config", str(tmp_path / "mine.yaml")]
    (tmp_path / "mine.yaml").write_text(f"evaluate: {{database: {embedded.database_path()}}}\n")
    assert main([str(sweep), *FAST, *options, *database]) == 0
    scores = {one["prompts"]: one["metrics"] for one in read_json(tmp_path / "to" / "evaluation.json")["scores"]}
    assert next(iter(scores["0-shot"])) == "sql_execution" and list(scores["mine"]) == ["exact_match"]


def test_code_that_came_with_a_target_does_not_run(
    sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, bundle, ran = tmp_path / "base", tmp_path / "bundle", tmp_path / "ran"
    shutil.copytree(embedded.base_path(), base)
    (base / "conf.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = read_json(base / "config.json") | {"model_type": "theirs", "auto_map": {"AutoConfig": "conf.Theirs"}}
    (base / "config.json").write_text(json.dumps(config))
    shutil.copytree(sweep / "best" / "adapter", bundle / "adapter")
    (bundle / "sweep.yaml").write_text(json.dumps({"model": {"name": str(base), "trust_remote_code": True}}))
    command = [str(bundle), "--rows", "2", "--to", str(tmp_path / "to")]
    assert main(command) == 2
    assert "allow it with --set model.trust_remote_code=true" in capfd.readouterr().err
    assert not ran.exists()
    # The code is reached where the user says so.
    assert main([*command, "--set", "model.trust_remote_code=true"]) == 2
    assert ran.exists()


def test_a_bundle_on_validation_rows_says_that_it_was_chosen_on_them(sweep: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(sweep / "best", bundle)
    config = read_json(sweep / "manifest.json")["config"]
    data = {key: config["data"][key] for key in ("max_length", "row_choice")}
    (bundle / "sweep.yaml").write_text(json.dumps({"data": data}))
    fingerprint = read_json(sweep / "manifest.json")["data"]["fingerprint"]
    for written, is_said in ((fingerprint, True), ("another", False)):
        record = read_json(sweep / "best" / "record.json") | {"dataset": {"fingerprint": written}}
        (bundle / "record.json").write_text(json.dumps(record))
        plan = make_plan(Options(str(bundle), split="validation", num_rows=2))
        assert (CHOSEN_ON_THEM in plan.notes) == is_said


def test_an_evaluation_that_ran_meanwhile_is_not_mixed_with(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [str(sweep), "--models", "base", "--rows", "2", "--to", str(tmp_path / "to"), "--set"]
    check = AnswerLog.check

    def check_and_run_another(answer_log: AnswerLog) -> None:
        check(answer_log)
        monkeypatch.setattr(AnswerLog, "check", check)
        assert main([*command, "evaluate.max_new_tokens=8"]) == 0

    monkeypatch.setattr(AnswerLog, "check", check_and_run_another)
    assert main([*command, "evaluate.max_new_tokens=4"]) == 2
    assert "evaluate.max_new_tokens must stay what the rows there were made with (8), got 4" in capfd.readouterr().err
    assert {row["num_tokens"] <= 4 for row in read_rows(tmp_path / "to", "base/0-shot.jsonl")} == {False}


def test_a_full_device_is_one_message_that_can_be_followed(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    command = [str(sweep), "--models", "base", "--rows", "2", "--to", str(tmp_path / "to")]
    with monkeypatch.context() as patched:
        patched.setattr("qlora_ray.evaluation.run.prompts.answer_in_batches", fill)
        assert main([*command, "--set", "evaluate.max_new_tokens=16"]) == 2
    advice = "Free the device and run it again: it goes on; or lower evaluate.max_new_tokens with --fresh."
    assert advice in capfd.readouterr().err
    assert main([*command, "--set", "evaluate.max_new_tokens=8", "--fresh"]) == 0


def test_a_merged_model_that_does_not_fit_leaves_the_other_results(
    finished: Path, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fill(_load_plan: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    to = tmp_path / "to"
    shutil.copytree(finished, to)
    command = [str(sweep), *FAST, "--shots", "0,3", "--prompts", "qualitative", "--to", str(to)]
    command += ["--merged", str(embedded.base_path())]
    assert main(command) == 0
    whole, files = read_json(to / "evaluation.json"), read_tree(to)
    shutil.rmtree(to / "merged")
    with monkeypatch.context() as patched:
        patched.setattr("qlora_ray.evaluation.models.loading._open_merged", fill)
        assert main(command) == 2
    captured = capfd.readouterr()
    assert "got no room for merged (loading: CUDA out of memory. Tried to allocate 2 GiB)" in captured.err
    assert "it goes on; or leave merged out with --models base,adapter." in captured.err
    assert "Traceback" not in captured.err and "base -> adapter, 0-shot: " in captured.out
    partial = read_json(to / "evaluation.json")
    assert list(partial["models"]) == ["base", "adapter"]
    assert partial["verdict"] == whole["verdict"]
    assert partial["comparisons"] == [one for one in whole["comparisons"] if one["tuned_model"] == "adapter"]
    assert any(note.startswith("merged (loading: CUDA") for note in partial["notes"])
    assert (to / "answers.html").exists()
    assert main(command) == 0
    assert read_tree(to) == files


def test_the_first_prompts_of_a_file_are_answered_and_the_others_later(sweep: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    options = ["--split", "none", "--models", "base", "--prompts", "red_team", "--set", "evaluate.max_new_tokens=4"]
    command = [str(sweep), *options, "--to", str(to)]
    assert main([*command, "--max-prompts", "2"]) == 0
    first = read_rows(to, "base/red_team.jsonl")
    assert [row["row"] for row in first] == [0, 1]
    assert read_json(to / "evaluation.json")["settings"]["prompts"]["red_team"]["num_answered"] == 2
    assert main(command) == 0
    every = read_rows(to, "base/red_team.jsonl")
    assert every[:2] == first and len(every) == 8
    assert main([*command, "--max-prompts", "2"]) == 2


def test_a_metric_without_references_compares_answers_to_prompts(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Length:\n    name, higher_is_better, needs_references = 'length', False, False\n"
        "    def score(self, predictions, references):\n        return [float(len(one)) for one in predictions]\n"
    )
    options = ["--split", "none", "--prompts", "red_team", "--max-prompts", "2", "--to", str(tmp_path / "to")]
    options += ["--metric", f"{tmp_path / 'mine.py'}:Length", "--set", "evaluate.max_new_tokens=4"]
    assert main([str(sweep), *options]) == 0
    [one] = read_json(tmp_path / "to" / "evaluation.json")["comparisons"]
    lengths = {
        name: sum(len(row["answer"]) for row in read_rows(tmp_path / "to", f"{name}/red_team.jsonl")) / 2
        for name in ("base", "adapter")
    }
    assert (one["measure"], one["num_rows"]) == ("length", 2)
    assert (one["base"], one["tuned"]) == (lengths["base"], lengths["adapter"])


def test_rows_that_are_not_the_sweeps_are_said(sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--models", "base", "--set", "data.system_prompt=Be brief.", "--set", "evaluate.metrics=[]"]
    assert main([str(sweep), "--rows", "2", *options, "--to", str(tmp_path / "to")]) == 0
    assert "test is not what the sweep had" in capfd.readouterr().out


def test_a_model_that_answered_before_and_is_not_asked_for_now_is_named(
    finished: Path, sweep: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    shutil.copytree(finished, to)
    assert main([str(sweep), *FAST, "--shots", "0,3", "--models", "adapter", "--to", str(to)]) == 0
    notes = read_json(to / "evaluation.json")["notes"]
    assert [note.split(" answered")[0] for note in notes if "left out" in note] == ["base", "merged"]
    assert "note   base answered here before and is left out" in capfd.readouterr().out
