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


def test_each_model_runs_once_and_pairs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"base": [0.0] * 8, "adapter": [1.0] * 8}
    calls: list[tuple[str, int | None]] = []

    def run(model: str, tokenizer: Any, *, request: Any, precision: str) -> dict[str, TaskResult]:
        calls.append((model, request.limit))
        return {"sums": make_result(scores[model])}

    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", run)
    answer_log = AnswerLog(tmp_path, {})
    for name in ("base", "adapter", "base"):
        loaded = LoadedModel(name, name, None, "fp32", "")  # type: ignore[arg-type]
        run_harness(answer_log, loaded, EIGHT_ROWS)
    assert calls == [("base", 8), ("adapter", 8)]
    found = read_harness(answer_log, ["base", "adapter"], EIGHT_ROWS)
    assert found["models"]["adapter"]["sums"]["metrics"]["acc"]["value"] == 1.0
    assert found["lines"][0] == "base  sums (0-shot)  acc 0.000" and found["notes"] == []
    [one] = found["comparisons"]
    assert (one["base_model"], one["tuned_model"], one["verdict"]) == ("base", "adapter", "better")
    # McNemar, exact: 8 of 8 discordant pairs one way, 2 / 2^8.
    assert one["p_value"] == pytest.approx(2 / 2**8)


def test_other_tasks_rows_or_shots_are_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "qlora_ray.evaluation.run.lm_eval_stage.run_tasks", lambda *_, **__: {"sums": make_result([1.0])}
    )
    answer_log = AnswerLog(tmp_path, {})
    loaded = LoadedModel("base", None, None, "fp32", "")  # type: ignore[arg-type]
    run_harness(answer_log, loaded, EIGHT_ROWS)
    assert is_finished(answer_log, "base", replace(EIGHT_ROWS, batch_size=4))
    assert is_finished(answer_log, "adapter", TaskRequest([], limit=8))
    for changed in ({"limit": 9}, {"tasks": ["sums", "words"]}, {"num_fewshot": 3}, {"num_fewshot": 0}, {"seed": 3}):
        assert not is_finished(answer_log, "base", replace(EIGHT_ROWS, **changed))


def test_a_task_of_other_prompts_is_a_note_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(model: str, *_: Any, **__: Any) -> dict[str, TaskResult]:
        sums = replace(make_result([1.0, 0.0]), chat_template=model != "merged")
        return {"sums": sums, "words": make_result([0.0, 1.0])}

    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", run)
    answer_log, request = AnswerLog(tmp_path, {}), TaskRequest(["sums", "words"])
    names = ["base", "adapter", "merged"]
    for name in names:
        run_harness(answer_log, LoadedModel(name, name, None, "fp32", ""), request)  # type: ignore[arg-type]
    found = read_harness(answer_log, names, request)
    assert [(one["base_model"], one["tuned_model"], one["measure"]) for one in found["comparisons"]] == [
        ("base", "adapter", "sums: acc"),
        ("base", "adapter", "words: acc"),
        ("base", "merged", "words: acc"),
        ("adapter", "merged", "words: acc"),
    ]
    told = "is not compared: lm-eval: both models must be scored in sums with one chat_template, got True and False."
    assert [note[: note.index(" Run")] for note in found["notes"]] == [
        f"base -> merged {told}",
        f"adapter -> merged {told}",
    ]


def test_a_task_that_keeps_its_own_number_of_examples_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"sums": make_result([1.0], num_fewshot=3), "chat": make_result([1.0], num_fewshot=0)}
    monkeypatch.setattr("qlora_ray.evaluation.run.lm_eval_stage.run_tasks", lambda *_, **__: found)
    answer_log, request = AnswerLog(tmp_path, {}), TaskRequest(["sums", "chat"], num_fewshot=3)
    run_harness(answer_log, LoadedModel("base", None, None, "fp32", ""), request)  # type: ignore[arg-type]
    told = read_harness(answer_log, ["base"], request)
    assert told["notes"] == ["chat ran with 0 examples in the prompt, as the task fixes it, and not with 3"]
    assert told["lines"] == ["base  sums (3-shot)  acc 1.000", "base  chat (0-shot)  acc 1.000"]
    assert told["models"]["base"]["sums"]["num_fewshot"] == 3


def test_an_edited_task_or_another_harness_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "qlora_ray.evaluation.run.lm_eval_stage.run_tasks", lambda *_, **__: {"sums": make_result([1.0])}
    )
    task = tmp_path / "sums.yaml"
    task.write_text("task: sums\n", encoding="utf-8")
    answer_log = AnswerLog(tmp_path, {})
    loaded = LoadedModel("base", None, None, "fp32", "")  # type: ignore[arg-type]
    request = TaskRequest([str(task)], limit=8)
    run_harness(answer_log, loaded, request)
    assert is_finished(answer_log, "base", request)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "9.9")
        assert not is_finished(answer_log, "base", request)
    task.write_text("task: sums\nmax_gen_toks: 4\n", encoding="utf-8")
    assert not is_finished(answer_log, "base", request)
