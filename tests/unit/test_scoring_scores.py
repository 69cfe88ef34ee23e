from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Evaluate
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import ModelError
from qlora_ray.scoring import ExactMatch, Metric, SqlExecution, SqlValid
from qlora_ray.scoring.generation import Answers, generate_answers
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.model_scoring import score_model
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from tests.unit.evaluation_fixtures import make_database, make_llama, make_split, make_tokenizer, with_columns

SPLIT = make_split([(4, 6), (9, 3), (2, 2), (7, 0)])


class AnswerLength:
    """A metric of a user's own: nothing but the protocol."""

    name = "answer_length"
    higher_is_better = False

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(len(prediction)) for prediction in predictions]


def score(*, metrics: Sequence[Metric] = (), split: TokenizedSplit = SPLIT, **evaluate: Any) -> Scores:
    return score_model(
        make_llama(),
        make_tokenizer(),
        split,
        metrics=metrics,
        evaluate=Evaluate(**{"max_new_tokens": 8, "batch_size": 2, **evaluate}),
        precision="fp32",
        loss_batch_size=2,
    )


def answer(prompts: list[list[int]], *, max_new_tokens: int = 8) -> Answers:
    return generate_answers(
        make_llama(), make_tokenizer(), prompts, max_new_tokens=max_new_tokens, batch_size=2, precision="fp32"
    )


def test_scores_hold_the_loss_of_all_rows_and_the_answers_of_the_first() -> None:
    scores = score(metrics=[AnswerLength(), ExactMatch()], max_rows=3)
    loss = evaluate_loss(make_llama(), SPLIT, batch_size=2, pad_token_id=0, precision="fp32")
    assert (scores.loss, scores.num_tokens, scores.num_rows) == (loss.loss, 11, 3)
    answers = answer(SPLIT.prompt_ids[:3])
    texts = answers.texts
    assert scores.answers == [
        ScoredAnswer(row, text, "SELECT 1", finish)
        for row, (text, finish) in enumerate(zip(texts, answers.finishes, strict=True))
    ]
    assert scores.row_metrics["answer_length"] == [len(text) for text in texts]
    assert scores.metrics["answer_length"] == pytest.approx(sum(len(text) for text in texts) / 3)
    assert scores.metrics["exact_match"] == 0.0


def test_all_rows_are_answered_when_max_rows_is_null(tmp_path: Path) -> None:
    sql = SqlExecution(make_database(tmp_path / "shop.sqlite"))
    scores = score(metrics=[sql, ExactMatch(), SqlValid(sql)], max_rows=None)
    assert scores.metrics == {"sql_execution": 0.0, "exact_match": 0.0, "sql_valid": 0.0}
    assert [len(rows) for rows in scores.row_metrics.values()] == [4, 4, 4]


def test_scores_become_json_that_any_reader_reads() -> None:
    scores = replace(score(metrics=[AnswerLength()], max_rows=2), loss=math.nan)
    read = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert read["loss"] is None
    assert read["num_answers"] == 2
    expected = scores.answers[1]
    assert read["answers"][1] == {
        "row": 1,
        "answer": expected.answer,
        "reference": "SELECT 1",
        "finish": expected.finish,
    }
    assert read["row_metrics"]["answer_length"] == scores.row_metrics["answer_length"]


def test_without_metrics_nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_ray.scoring.model_scoring.generate_answers_of", lambda *_, **__: 1 / 0)
    scores = score()
    assert (scores.answers, scores.metrics, scores.max_new_tokens) == ([], {}, None)
    assert math.isfinite(scores.loss)


def test_a_tokenizer_without_pad_and_end_token_is_an_error() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="must have a pad or an end token"):
        score_model(
            make_llama(), tokenizer, SPLIT, metrics=[], evaluate=Evaluate(), precision="fp32", loss_batch_size=1
        )


@pytest.mark.parametrize(("asked", "max_new_tokens", "num_long"), [("auto", 16, 0), (8, 8, 2)])
def test_scores_hold_how_long_answers_could_be_and_how_many_were_cut(
    asked: Any, max_new_tokens: int, num_long: int
) -> None:
    # "SELECT 1" is eight tokens and an end: 11.25 of them, but never fewer than 16.
    scores = score(metrics=[ExactMatch()], max_rows=2, max_new_tokens=asked)
    expected = answer(SPLIT.prompt_ids[:2], max_new_tokens=max_new_tokens)
    assert [scored.answer for scored in scores.answers] == expected.texts
    assert (scores.max_new_tokens, scores.num_long_references) == (max_new_tokens, num_long)
    assert scores.num_cut_answers == scores.to_dict()["num_cut_answers"] == expected.num_cut_answers > 0


@pytest.mark.parametrize(("max_length", "num_short"), [(17, 0), (16, 1)])
def test_answers_that_the_length_leaves_fewer_tokens_are_counted(max_length: int, num_short: int) -> None:
    # Prompts of four and of nine tokens, and eight for the answer.
    assert score(metrics=[ExactMatch()], max_rows=2, max_length=max_length).num_short_answers == num_short


def test_answers_may_be_as_long_as_the_references_of_all_rows_ask_for() -> None:
    # A token per byte and an end: 30 of them and a quarter more is 37.5, and in eights 40.
    split = with_columns(SPLIT, references=["1", "2", "3", "4" * 29])
    scores = [
        score(metrics=[ExactMatch()], split=split, max_rows=num_rows, max_new_tokens=max_new_tokens)
        for num_rows, max_new_tokens in ((1, "auto"), (None, "auto"), (3, 8), (None, 8))
    ]
    assert [scored.max_new_tokens for scored in scores] == [40, 40, 8, 8]
    # Only references of rows that are answered count.
    assert [scored.num_long_references for scored in scores] == [0, 0, 0, 1]
