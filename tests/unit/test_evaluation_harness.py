"""Harness results kept beside the answers, and compared in pairs; no harness is needed for that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.evaluation.contenders import Contender
from qlora_ray.evaluation.harness import is_finished, read_harness, run_harness
from qlora_ray.evaluation.journal import Journal
from qlora_ray.evaluation.task_results import MetricResult, TaskResult


def make_result(scores: list[float]) -> TaskResult:
    value = sum(scores) / len(scores)
    rows = {"acc": {str(row): score for row, score in enumerate(scores)}}
    metrics = {"acc": MetricResult(value, 0.1, True)}
    return TaskResult(metrics, len(scores), num_fewshot=0, version="1", chat_template=False, rows=rows)


def test_each_model_runs_once_and_pairs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"base": [0.0] * 8, "adapter": [1.0] * 8}
    calls: list[tuple[str, int | None]] = []

    def run(model: str, tokenizer: Any, *, request: Any, precision: str) -> dict[str, TaskResult]:
        calls.append((model, request.limit))
        return {"sums": make_result(scores[model])}

    monkeypatch.setattr("qlora_ray.evaluation.harness.run_tasks", run)
    journal = Journal(tmp_path, {})
    for name in ("base", "adapter", "base"):
        contender = Contender(name, name, None, "fp32", "")  # type: ignore[arg-type]
        run_harness(journal, contender, ["sums"], limit=8, batch_size=2)
    assert calls == [("base", 8), ("adapter", 8)]
    found = read_harness(journal, ["base", "adapter"], ["sums"])
    assert found["models"]["adapter"]["sums"]["metrics"]["acc"]["value"] == 1.0
    [one] = found["comparisons"]
    assert (one["base_model"], one["tuned_model"], one["verdict"]) == ("base", "adapter", "better")
    # McNemar, exact: 8 of 8 discordant pairs one way, 2 / 2^8.
    assert one["p_value"] == pytest.approx(2 / 2**8)


def test_other_tasks_or_rows_are_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.harness.run_tasks", lambda *_, **__: {"sums": make_result([1.0])})
    journal = Journal(tmp_path, {})
    contender = Contender("base", None, None, "fp32", "")  # type: ignore[arg-type]
    run_harness(journal, contender, ["sums"], limit=8, batch_size=2)
    assert is_finished(journal, "base", ["sums"], limit=8) and is_finished(journal, "adapter", [], limit=8)
    assert not is_finished(journal, "base", ["sums"], limit=9)
    assert not is_finished(journal, "base", ["sums", "words"], limit=8)


def test_an_edited_task_or_another_harness_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.harness.run_tasks", lambda *_, **__: {"sums": make_result([1.0])})
    task = tmp_path / "sums.yaml"
    task.write_text("task: sums\n", encoding="utf-8")
    journal = Journal(tmp_path, {})
    contender = Contender("base", None, None, "fp32", "")  # type: ignore[arg-type]
    run_harness(journal, contender, [str(task)], limit=8, batch_size=2)
    assert is_finished(journal, "base", [str(task)], limit=8)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda _: "9.9")
        assert not is_finished(journal, "base", [str(task)], limit=8)
    task.write_text("task: sums\nmax_gen_toks: 4\n", encoding="utf-8")
    assert not is_finished(journal, "base", [str(task)], limit=8)
