"""What an evaluation decides before a model is loaded: files cut short, tasks, metrics, notes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Lora, Model, Quantization
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.options import Options
from qlora_ray.evaluation.run.plan import describe_settings, make_plan
from qlora_ray.evaluation.target.target import Request
from qlora_ray.modeling.adapters import attach_adapter, save_adapter
from qlora_ray.modeling.loading import hash_base, load_base
from qlora_ray.modeling.quantization import specify_quantization

METRICS = """
class Brevity:
    name = "brevity"
    higher_is_better = True
    needs_references = False
    def score(self, predictions, references):
        return [1.0 / (1 + len(answer.split())) for answer in predictions]

class Same:
    name = "same"
    higher_is_better = True
    def score(self, predictions, references):
        return [float(answer == right) for answer, right in zip(predictions, references)]
"""


def write_prompts(folder: Path, **columns: Any) -> str:
    rows = [{"id": row, "prompt": f"Count to {row}.", **columns} for row in range(5)]
    (folder / "counts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / "counts.jsonl")


def write_settings(to: Path, settings: dict[str, Any]) -> None:
    answer_log = AnswerLog(to, settings)
    with answer_log.hold():
        answer_log.write_settings()


@pytest.mark.parametrize("columns", [{}, {"reference": "one two"}])
def test_the_first_prompts_of_a_file_are_a_beginning_of_all(tmp_path: Path, columns: dict[str, Any]) -> None:
    options = Options("embedded", split="none", prompt_files=[write_prompts(tmp_path, **columns)])
    some, every = make_plan(replace(options, max_prompts=2)), make_plan(options)
    [first], [whole] = some.sets, every.sets
    assert (first.ids, first.num_answered, len(first.rows)) == (["0", "1"], 2, 2)
    assert first.rows.prompt_ids == whole.rows.prompt_ids[:2]
    assert some.metrics["counts"] == [] or columns
    assert any("the first 2 of 5 prompts" in note for note in some.notes)
    assert not any("--max-prompts" in note for note in every.notes)

    settings = [describe_settings(plan) for plan in (some, every)]
    assert settings[0]["prompts"]["counts"] == {**settings[1]["prompts"]["counts"], "num_answered": 2}
    write_settings(tmp_path / "to", settings[0])
    AnswerLog(tmp_path / "to", settings[1]).check()
    # More than there are is all of them.
    assert describe_settings(make_plan(replace(options, max_prompts=9))) == settings[1]


def test_a_metric_that_needs_no_reference_scores_prompts_without(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METRICS, encoding="utf-8")
    brevity, same = (f"{tmp_path / 'mine.py'}:{name}" for name in ("Brevity", "Same"))
    prompts = [write_prompts(tmp_path)]
    plan = make_plan(Options("embedded", num_rows=2, prompt_files=prompts, metrics=[brevity, same]))
    assert [metric.name for metric in plan.metrics["counts"]] == ["brevity"]
    assert [metric.name for metric in plan.metrics["0-shot"]][-2:] == ["brevity", "same"]
    assert any(note.startswith("counts: not scored by same") for note in plan.notes)
    named = Request(overrides=["evaluate.metrics=[exact_match]"])
    with pytest.raises(ConfigError, match="metrics need a reference in every row"):
        make_plan(Options("embedded", named, prompt_files=prompts, metrics=[brevity]))
    alone = Request(overrides=["evaluate.metrics=[]"])
    plan = make_plan(Options("embedded", alone, num_rows=2, prompt_files=prompts, metrics=[brevity]))
    assert [metric.name for metric in plan.metrics["counts"]] == ["brevity"]


def test_prompts_whose_references_are_ratings_are_scored_as_such_unless_the_command_line_names_metrics(
    tmp_path: Path,
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text("evaluate: {metrics: [sql_execution], database: embedded}", encoding="utf-8")
    plan = make_plan(Options("embedded", Request(config=config), split="none", prompt_files=["eqbench", "redteam"]))
    assert {name: [metric.name for metric in metrics] for name, metrics in plan.metrics.items()} == {
        "eqbench": ["eq_bench"],
        "red_team": [],
    }
    assert all(prompts.num_answered == len(prompts.rows) for prompts in plan.sets)
    named = Request(config=config, overrides=["evaluate.metrics=[sql_execution]"])
    with pytest.raises(DataError, match="eqbench: "):
        make_plan(Options("embedded", named, split="none", prompt_files=["eqbench"]))


def test_tasks_are_looked_up_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TaskRequest] = []

    def find(request: TaskRequest) -> None:
        asked.append(request)
        raise ConfigError("lm-eval: no such task")

    monkeypatch.setattr("qlora_ray.evaluation.run.options.check_installed", lambda: None)
    monkeypatch.setattr("qlora_ray.evaluation.run.plan.find_tasks", find)
    overrides = ["evaluate.batch_size=4", "evaluate.shot_seed=3"]
    options = Options("embedded", Request(overrides=overrides), num_rows=5, tasks=["sums"], task_shots=0)
    with pytest.raises(ConfigError, match="no such task"):
        make_plan(options)
    assert asked == [TaskRequest(["sums"], num_fewshot=0, limit=5, batch_size=4, seed=3)]


@pytest.mark.parametrize(("task_shots", "is_said"), [(None, True), (2, False)])
def test_shots_that_tasks_do_not_take_are_said(
    monkeypatch: pytest.MonkeyPatch, task_shots: int | None, is_said: bool
) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.run.options.check_installed", lambda: None)
    monkeypatch.setattr("qlora_ray.evaluation.run.plan.find_tasks", lambda _: None)
    shots = Request(overrides=["evaluate.shots=[3]"])
    plan = make_plan(Options("embedded", shots, split="none", tasks=["sums"], task_shots=task_shots))
    assert any("which --lm-eval-shots sets" in note for note in plan.notes) == is_said


def test_a_base_that_cannot_be_verified_is_said(tmp_path: Path) -> None:
    nf4 = specify_quantization(Quantization(), compute_dtype="fp32")
    base = load_base(Model(name="embedded"), quantization=nf4, device="cpu")
    adapter = tmp_path / "adapter"
    save_adapter(attach_adapter(base, Lora(r=2), seed=0), adapter)
    written = {"name": "embedded", "revision": None, "hash": "hub:someone/base@main"}
    record = {"trial": "0000", "base": written, "ran": {"quantization": nf4.to_dict()}}
    (adapter / "record.json").write_text(json.dumps(record), encoding="utf-8")
    notes = make_plan(Options(str(adapter), num_rows=2)).notes
    [note] = [note for note in notes if "could not be verified" in note]
    assert "hub:someone/base@main" in note
    written["hash"] = hash_base(Model(name="embedded"))
    (adapter / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert not any("verified" in note for note in make_plan(Options(str(adapter), num_rows=2)).notes)


def test_more_rows_may_be_answered_later_beside_a_prompt_file(tmp_path: Path) -> None:
    files = [write_prompts(tmp_path, reference="one two")]
    requests = [Request(overrides=[f"evaluate.max_rows={num_rows}"]) for num_rows in (3, 100)]
    few, more = (describe_settings(make_plan(Options("embedded", asked, prompt_files=files))) for asked in requests)
    assert [settings["prompts"]["0-shot"]["num_answered"] for settings in (few, more)] == [3, 100]
    write_settings(tmp_path / "to", few)
    AnswerLog(tmp_path / "to", more).check()


def test_an_evaluation_goes_on_only_with_the_same_draws() -> None:
    # What settings.json has, an interrupted evaluation must be asked for again.
    settings = [
        describe_settings(make_plan(Options("embedded", Request(overrides=overrides), num_rows=1)))
        for overrides in ([], ["evaluate.temperature=0.8"])
    ]
    drawn = {"temperature": 0.8, "top_p": 1.0, "seed": 7}
    assert [asked["evaluate"]["sampling"] for asked in settings] == [None, drawn]
