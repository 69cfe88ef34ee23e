"""Harness results kept beside the answers, and compared in pairs; no harness is needed for that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.evaluation.lm_eval.results import MetricResult, TaskResult
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.lm_eval_stage import is_finished, read_harness, run_harness

EIGHT_ROWS = TaskRequest(["sums"], limit=8, batch_size=2)


def make_result(scores: list[float], *, num_fewshot: int = 0) -> TaskResult:
    value = sum(scores) / len(scores)
    rows = {"acc": {str(row): score for row, score in enumerate(scores)}}
    metrics = {"acc": MetricResult(value, 0.1, True)}
    return TaskResult(metrics, len(scores), num_fewshot=num_fewshot, version="1", chat_template=False, rows=rows)


def load(name: Any) -> LoadedModel:
    """A model that the harness knows by its name."""
    return LoadedModel(name, name, None, "fp32", "")  # type: ignore[arg-type]


class Harness:
    """Stands for the harness: gives each model its results, and notes who was run on how many rows."""

    def __init__(self) -> None:
        self.results = {"base": {"sums": make_result([1.0])}}
        self.calls: list[tuple[str, int | None]] = []

    def run(self, model: str, *_: Any, request: TaskRequest, **__: Any) -> dict[str, TaskResult]:
        self.calls.append((model, request.limit))
        return self.results[model]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    """The harness, with results of a test's own."""
    played = Harness()
    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", played.run)
    return played


def test_each_model_runs_once_and_pairs_are_compared(tmp_path: Path, harness: Harness) -> None:
    harness.results = {"base": {"sums": make_result([0.0] * 8)}, "adapter": {"sums": make_result([1.0] * 8)}}
    answer_log = AnswerLog(tmp_path, {})
    for name in ("base", "adapter", "base"):
        run_harness(answer_log, load(name), EIGHT_ROWS)
    assert harness.calls == [("base", 8), ("adapter", 8)]
    found = read_harness(answer_log, ["base", "adapter"], EIGHT_ROWS)
    assert found["models"]["adapter"]["sums"]["metrics"]["acc"]["value"] == 1.0
    assert found["lines"][0] == "base  sums (0-shot)  acc 0.000" and found["notes"] == []
    last = found["lines"][-1]
    assert last.startswith("base -> adapter, sums: acc: better") and "0.000 -> 1.000" in last
    [compared] = found["comparisons"]
    assert (compared["base_model"], compared["tuned_model"], compared["verdict"]) == ("base", "adapter", "better")
    # McNemar, exact: 8 of 8 discordant pairs one way, 2 / 2^8.
    assert compared["p_value"] == pytest.approx(2 / 2**8)


def test_other_tasks_rows_or_shots_are_run_again(tmp_path: Path, harness: Harness) -> None:
    answer_log = AnswerLog(tmp_path, {})
    run_harness(answer_log, load("base"), EIGHT_ROWS)
    assert is_finished(answer_log, "base", replace(EIGHT_ROWS, batch_size=4))
    assert is_finished(answer_log, "adapter", TaskRequest([], limit=8))
    for changed in ({"limit": 9}, {"tasks": ["sums", "words"]}, {"num_fewshot": 3}, {"num_fewshot": 0}, {"seed": 3}):
        assert not is_finished(answer_log, "base", replace(EIGHT_ROWS, **changed))


def test_a_task_of_other_prompts_is_a_note_and_the_others_are_compared(tmp_path: Path, harness: Harness) -> None:
    names = ["base", "adapter", "merged"]
    for name in names:
        sums = replace(make_result([1.0, 0.0]), chat_template=name != "merged")
        harness.results[name] = {"sums": sums, "words": make_result([0.0, 1.0])}
    answer_log, request = AnswerLog(tmp_path, {}), TaskRequest(["sums", "words"])
    for name in names:
        run_harness(answer_log, load(name), request)
    found = read_harness(answer_log, names, request)
    assert [(pair["base_model"], pair["tuned_model"], pair["measure"]) for pair in found["comparisons"]] == [
        ("base", "adapter", "sums: acc"),
        ("base", "adapter", "words: acc"),
        ("base", "merged", "words: acc"),
        ("adapter", "merged", "words: acc"),
    ]
    assert [note.split(" is not compared")[0] for note in found["notes"]] == ["base -> merged", "adapter -> merged"]
    assert all("sums with one chat_template" in note for note in found["notes"])


def test_a_task_that_keeps_its_own_number_of_examples_is_named(tmp_path: Path, harness: Harness) -> None:
    harness.results["base"] = {"sums": make_result([1.0], num_fewshot=3), "chat": make_result([1.0], num_fewshot=0)}
    answer_log, request = AnswerLog(tmp_path, {}), TaskRequest(["sums", "chat"], num_fewshot=3)
    run_harness(answer_log, load("base"), request)
    found = read_harness(answer_log, ["base"], request)
    [note] = found["notes"]
    assert note.startswith("chat ran with 0 examples") and "not with 3" in note
    assert found["lines"] == ["base  sums (3-shot)  acc 1.000", "base  chat (0-shot)  acc 1.000"]
    assert found["models"]["base"]["sums"]["num_fewshot"] == 3


def test_an_edited_task_or_another_harness_is_run_again(
    tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tmp_path / "sums.yaml"
    task.write_text("task: sums\n", encoding="utf-8")
    answer_log, request = AnswerLog(tmp_path, {}), TaskRequest([str(task)], limit=8)
    run_harness(answer_log, load("base"), request)
    assert is_finished(answer_log, "base", request)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "9.9")
        assert not is_finished(answer_log, "base", request)
    task.write_text("task: sums\nmax_gen_toks: 4\n", encoding="utf-8")
    assert not is_finished(answer_log, "base", request)
