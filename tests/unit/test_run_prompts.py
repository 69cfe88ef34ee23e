"""One model on one prompt set: the numbers of `score_model`, row by row on disk, and the same after an interruption."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.config.schema import Evaluate
from qlora_ray.console import Console
from qlora_ray.data import TokenizedSplit
from qlora_ray.data.tokenized import COLUMNS
from qlora_ray.evaluation.models.loading import LoadedModel
from qlora_ray.evaluation.prompt_sets.sets import PromptSet
from qlora_ray.evaluation.run.answer_log import AnswerLog
from qlora_ray.evaluation.run.prompts import PromptRun
from qlora_ray.evaluation.run.results import Findings, collect_findings, format_pairs, format_scores, render_markdown
from qlora_ray.modeling.auxiliary_heads import HeadSpec, TrainedHead
from qlora_ray.scoring import ExactMatch, Metric
from qlora_ray.scoring.model_scoring import score_model
from qlora_ray.scoring.sampling import choose_sampling
from qlora_ray.scoring.token_budget import TokenBudget
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer

EVALUATE = Evaluate(max_new_tokens=8, batch_size=2, max_rows=None)
LENGTHS = [(4, 6), (9, 3), (2, 2), (7, 0), (12, 4), (3, 9), (5, 5)]


def make_prompts(name: str = "0-shot", **changes: Any) -> PromptSet:
    rows = make_split(LENGTHS)
    ids = [str(row) for row in range(len(rows))]
    return replace(PromptSet(name, rows, ids, len(rows), max_new_tokens=8), **changes)


def make_prompt_run(folder: Path, text: io.StringIO | None = None) -> PromptRun:
    answer_log = AnswerLog(folder, {"target": {}, "models": {}, "prompts": {}})
    with answer_log.hold():
        answer_log.write_settings()
    return PromptRun(answer_log, Console(text or io.StringIO()), EVALUATE, loss_batch_size=2, is_live=False)


def make_loaded_model(name: Any = "base", *, seed_shift: float = 0.0) -> LoadedModel:
    model = make_llama()
    model.lm_head.weight.data += seed_shift
    return LoadedModel(name, model, make_tokenizer(), "fp32", "by hand")


class Stopped(Exception):
    """Stands for a kill."""


def read_all(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.jsonl"))}


def finish(prompt_run: PromptRun, prompts: PromptSet) -> Findings:
    prompt_run.run(make_loaded_model(), prompts)
    prompt_run.answer_log.tidy("base", prompts.name)
    return collect(prompt_run, ["base"], prompts)


def collect(
    prompt_run: PromptRun, models: list[Any], *sets: PromptSet, metrics: Sequence[Metric] = (ExactMatch(),), **more: Any
) -> Findings:
    scored_by = {prompts.name: list(metrics) for prompts in sets}
    limited = {prompts.name: TokenBudget(8, num_short_answers=1) for prompts in sets}
    return collect_findings(prompt_run.answer_log, models, sets, metrics=scored_by, limited=limited, **more)


def test_scores_from_the_answer_log_are_those_of_score_model(tmp_path: Path) -> None:
    prompts = make_prompts()
    found = finish(make_prompt_run(tmp_path), prompts).scores[0].scores
    expected = score_model(
        make_llama(),
        make_tokenizer(),
        prompts.rows,
        metrics=[ExactMatch()],
        evaluate=EVALUATE,
        precision="fp32",
        loss_batch_size=2,
    )
    assert found.answers == expected.answers
    assert (found.num_tokens, found.num_rows) == (expected.num_tokens, expected.num_rows) == (29, 6)
    assert found.row_tokens == expected.row_tokens
    assert found.row_nll == pytest.approx(expected.row_nll, rel=1e-5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (found.metrics, found.row_metrics) == (expected.metrics, expected.row_metrics)


def test_heads_from_the_answer_log_are_worth_what_score_model_finds_and_the_base_has_none(tmp_path: Path) -> None:
    rows = make_split(LENGTHS)
    columns = {name: getattr(rows, name) for name in COLUMNS}
    labels = [2, 0, -1, 1, 1, 0, -1]
    prompts = make_prompts(rows=TokenizedSplit.of(rows.name, **columns, labels={"mood": labels}))
    torch.manual_seed(0)
    heads = [TrainedHead(HeadSpec("mood", "mood", ("a", "b", "c"), "last"), torch.randn(3, 64))]
    prompt_run = replace(make_prompt_run(tmp_path), heads=heads)
    for name in ("base", "adapter"):
        prompt_run.run(make_loaded_model(name), prompts)
    found = collect(prompt_run, ["base", "adapter"], prompts, heads=heads)
    expected = score_model(
        make_llama(),
        make_tokenizer(),
        prompts.rows,
        metrics=[],
        evaluate=EVALUATE,
        precision="fp32",
        loss_batch_size=2,
        heads=heads,
    ).heads["mood"]
    base, adapter = (score.scores.heads for score in found.scores)
    assert base == {}
    # A row without an answer to train has no loss, and no head is asked about it.
    assert adapter["mood"].num_rows == expected.num_rows == 4
    assert (adapter["mood"].accuracy, adapter["mood"].class_f1) == (expected.accuracy, expected.class_f1)
    assert adapter["mood"].loss == pytest.approx(expected.loss, rel=1e-5)
    assert "macro F1" in format_scores(found)


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_batches: int
) -> None:
    whole = finish(make_prompt_run(tmp_path / "whole"), make_prompts())
    prompt_run = make_prompt_run(tmp_path / "parts")
    loaded = make_loaded_model()
    written: list[int] = []
    add = AnswerLog.add_answers

    def add_until_killed(answer_log: AnswerLog, model: str, prompts: str, lines: Sequence[dict[str, Any]]) -> None:
        if len(written) == num_batches:
            raise Stopped
        add(answer_log, model, prompts, lines)
        written.append(len(lines))

    monkeypatch.setattr(AnswerLog, "add_answers", add_until_killed)
    with pytest.raises(Stopped):
        prompt_run.run(loaded, make_prompts())
    monkeypatch.undo()
    assert len(prompt_run.answer_log.read_answers("base", "0-shot")) == sum(written)
    assert not prompt_run.is_done("base", make_prompts())
    again = finish(prompt_run, make_prompts())
    assert read_all(tmp_path / "parts") == read_all(tmp_path / "whole")
    assert again.to_dict() == whole.to_dict()


def test_what_is_done_runs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt_run = make_prompt_run(tmp_path)
    first = finish(prompt_run, make_prompts())
    assert prompt_run.is_done("base", make_prompts())
    for name in ("evaluate_loss", "answer_in_batches"):
        monkeypatch.setattr(f"qlora_ray.evaluation.run.prompts.{name}", lambda *_, **__: 1 / 0)
    assert finish(prompt_run, make_prompts()) == first


def test_a_batch_that_was_halved_for_lack_of_memory_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_ray.evaluation.run.prompts.LOSS_BATCHES_PER_WRITE", 1)
    loaded, sizes = make_loaded_model(), []
    forward = loaded.model.model.forward

    def forward_with_room_for_one(input_ids: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **rest)

    monkeypatch.setattr(loaded.model.model, "forward", forward_with_room_for_one)
    # Chunks of two rows, of which one has nothing to predict.
    make_prompt_run(tmp_path).run(loaded, make_prompts(num_answered=0))
    assert sizes == [2, 1, 1, 1, 1, 1, 1]


def test_prompts_without_references_are_answered_and_have_no_loss(tmp_path: Path) -> None:
    prompt_run = make_prompt_run(tmp_path)
    prompts = make_prompts("red_team", has_references=False, max_new_tokens=1)
    for name in ("base", "adapter"):
        prompt_run.run(make_loaded_model(name), prompts)
    assert prompt_run.answer_log.read_losses("base", "red_team") == {}
    answers = prompt_run.answer_log.read_answers("base", "red_team")
    assert [answers[row]["reference"] for row in sorted(answers)] == [None] * len(LENGTHS)
    assert answers[0]["prompt"] == make_tokenizer().decode(prompts.rows.prompt_ids[0])
    found = collect(prompt_run, ["base"], prompts, metrics=[])
    assert found.to_dict()["scores"][0]["loss"] is None
    assert (found.pairs, found.deciding()) == ([], None)
    # Unless a metric scores answers without references; then that alone is compared.
    [pair] = collect(prompt_run, ["base", "adapter"], prompts).pairs
    assert [compared.measure for compared in pair.comparisons] == ["exact_match"]
    assert pair.note is not None and "raise evaluate.max_new_tokens" in pair.note and "reference" not in pair.note


def test_progress_is_a_few_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    prompt_run = make_prompt_run(tmp_path, text)
    prompt_run.run(make_loaded_model(), make_prompts())
    lines = [line.split("0-shot")[1].split(",")[0].strip() for line in text.getvalue().splitlines()]
    assert lines == ["loss of 7 of 7 rows", "2 of 7 answered", "4 of 7 answered", "6 of 7 answered"]


def test_models_are_compared_in_pairs_and_the_first_set_decides(tmp_path: Path) -> None:
    prompt_run = make_prompt_run(tmp_path)
    sets = [make_prompts("0-shot"), make_prompts("3-shot", num_answered=3)]
    for prompts in sets:
        prompt_run.run(make_loaded_model("base"), prompts)
        prompt_run.run(make_loaded_model("adapter", seed_shift=0.05), prompts)
    found = collect(prompt_run, ["base", "adapter"], *sets)
    assert [(pair.prompts, pair.base, pair.tuned) for pair in found.pairs] == [
        ("0-shot", "base", "adapter"),
        ("3-shot", "base", "adapter"),
    ]
    deciding = found.deciding()
    # Models of random weights answer nothing right, and exact_match cannot tell them apart. One row has no loss.
    assert deciding is not None and (deciding.measure, deciding.num_rows) == ("loss", 6)
    assert "exact_match cannot tell: 0 of 7 for both" in (found.pairs[0].note or "")
    values = found.to_dict()
    assert values["verdict"] == deciding.verdict
    assert (values["comparisons"][0]["base_model"], values["comparisons"][0]["tuned_model"]) == ("base", "adapter")
    for score in values["scores"]:
        assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))
        assert score["num_short_answers"] == 1
    rows = {"split": "test", "num_rows": 7, "reason": "test: because"}
    evaluation = {"target": {"name": "x"}, "rows": rows, "models": {"base": "by hand"}, "notes": ["mind this"]}
    page = render_markdown(evaluation, found)
    assert "| base | 0-shot |" in page and "base -> adapter, 3-shot" in page and "- mind this" in page
    assert len(format_scores(found).splitlines()) == 5
    lines = format_pairs(found)
    assert len(lines) == 8
    # Random models stop by chance alone, and every reference has eight tokens and an end.
    note = next(line for line in lines if line.startswith("  note: "))
    assert "exact_match cannot tell: 0 of 7 for both" in note
    assert re.search(r"\d of 7 answers of adapter were cut at 8 tokens or fewer", note)
    assert note.strip() in page


def test_sampled_answers_are_recorded_as_such(tmp_path: Path) -> None:
    prompt_run, prompts = make_prompt_run(tmp_path), make_prompts()
    sampled = replace(prompt_run, evaluate=EVALUATE.model_copy(update={"temperature": 0.7}))
    sampled.run(make_loaded_model(), prompts)
    found = collect(prompt_run, ["base"], prompts, sampling=choose_sampling(sampled.evaluate))
    assert found.to_dict()["scores"][0]["sampling"] == {"temperature": 0.7, "top_p": 1.0, "seed": 7}
