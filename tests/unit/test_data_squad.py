"""Rows of SQuAD and OpenMathInstruct as the hub has them, and answers that are right in several ways."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from qlora_ray.config.schema import Data, Evaluate, SweepConfig
from qlora_ray.data import PreparedData, prepare_data
from qlora_ray.errors import DataError
from qlora_ray.scoring.early_end import make_early_end
from qlora_ray.scoring.metrics.choice import resolve_data_metrics
from qlora_ray.scoring.metrics.metric import measure
from qlora_ray.scoring.metrics.text import ExactMatch, NormalizedMatch, TokenF1
from tests.unit.data_tokenizer import build_byte_level

CONTEXT = "Warsaw is the capital of Poland. It stands on the Vistula River."


def squad_row(answers: object, *, question: str = "Where does Warsaw stand?") -> dict[str, object]:
    return {"id": "5733", "title": "Warsaw", "context": CONTEXT, "question": question, "answers": answers}


def prepare(tmp_path: Path, *rows: dict[str, object], template: str = "auto") -> PreparedData:
    path = tmp_path / "train.jsonl"
    held_out = squad_row({"text": ["Poland"], "answer_start": [25]}, question="Capital of what?")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    validation = tmp_path / "validation.jsonl"
    validation.write_text(json.dumps(held_out) + "\n")
    data = Data(train=str(path), validation=str(validation), template=template)
    return prepare_data(data, tokenizer=build_byte_level(), data_seed=7, cache_dir=tmp_path / "cache")


TEXTS = ["the Vistula River", "Vistula River", "the Vistula River"]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": TEXTS, "answer_start": [46, 50, 46]},
        TEXTS,
        [{"text": text, "answer_start": 0} for text in TEXTS],  # as in the original files
    ],
)
def test_the_first_answer_is_trained_and_the_others_are_as_right(answers: object, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, squad_row(answers))
    assert prepared.report.format == "squad"
    for train in (prepared.train, prepared.train.take([0]), prepared.train.first(1)):
        assert list(train.references) == ["the Vistula River"]
        assert train.alternatives[0] == ("Vistula River",)
    again = prepare(tmp_path, squad_row(answers))
    assert again.report.from_cache and again.train.alternatives[0] == ("Vistula River",)
    assert prepared.validation.alternatives[0] == ()


def test_their_metrics_are_those_of_squad(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, squad_row(TEXTS))
    metrics, _ = resolve_data_metrics(SweepConfig(), prepared)
    assert [metric.name for metric in metrics] == ["token_f1", "normalized_match"]
    named, _ = resolve_data_metrics(SweepConfig(evaluate=Evaluate(metrics=["exact_match"])), prepared)
    assert [metric.name for metric in named] == ["exact_match"]


def test_the_context_is_the_input_of_the_instruction_template(tmp_path: Path) -> None:
    train = prepare(tmp_path, squad_row(TEXTS), template="instruction").train
    text = build_byte_level().decode(train.prompt_ids[0])
    assert text == f"### Instruction:\nWhere does Warsaw stand?\n\n### Input:\n{CONTEXT}\n\n### Response:\n"


def test_a_question_without_an_answer_is_trained_to_say_so_and_counted(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, squad_row({"text": [], "answer_start": []}))
    assert list(prepared.train.references) == ["unanswerable"]
    assert any("1 row without an answer" in warning for warning in prepared.report.warnings)


@pytest.mark.parametrize("answers", [None, 7, {"start": [1]}, [["nested"]], {"text": [3]}])
def test_answers_of_another_form_are_a_bad_row(answers: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: 'answers' must hold"):
        prepare(tmp_path, squad_row(answers))


def test_openmaths_rows_are_read_as_they_are_and_scored_by_their_boxes(tmp_path: Path) -> None:
    train, validation = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    for path, number in ((train, 3), (validation, 5)):
        row = {
            "problem": f"Factor x^2 + {number}x.",
            "generated_solution": f"Both terms have x: \\boxed{{x(x+{number})}}.",
            "expected_answer": f"x(x+{number})",
            "problem_source": "augmented_math",
        }
        path.write_text(json.dumps(row) + "\n")
    data = Data(train=str(train), validation=str(validation))
    prepared = prepare_data(data, tokenizer=build_byte_level(), data_seed=7, cache_dir=tmp_path / "cache")
    assert list(prepared.validation.references) == ["Both terms have x: \\boxed{x(x+5)}."]
    metrics, _ = resolve_data_metrics(SweepConfig(), prepared)
    assert [metric.name for metric in metrics] == ["boxed_match"]


PREDICTIONS = ["Vistula", "in Poland", "a river, the Vistula River!", ""]
TRUTHS = [("the Vistula River", "Vistula River"), ("Poland",), ("Vistula River", "a river"), ("x", "", "the")]


@pytest.mark.parametrize("metric", [TokenF1(), NormalizedMatch(), ExactMatch()], ids=lambda metric: metric.name)
def test_a_rows_score_is_its_best_over_all_answers_as_in_the_script_of_squad(metric) -> None:  # type: ignore[no-untyped-def]
    # metric_max_over_ground_truths of evaluate-v1.1.py.
    expected = [
        max(metric.score([prediction], [truth])[0] for truth in truths)
        for prediction, truths in zip(PREDICTIONS, TRUTHS, strict=True)
    ]
    found = measure(metric, PREDICTIONS, [truths[0] for truths in TRUTHS], [truths[1:] for truths in TRUTHS])
    assert found.row_scores == pytest.approx(expected)
    assert found.value == pytest.approx(sum(expected) / len(expected))


def test_f1_of_two_references_by_hand() -> None:
    # "vistula" against "vistula river": precision 1, recall 1/2.
    found = measure(TokenF1(), ["Vistula"], ["the Vistula River in Poland"], [["the Vistula River"]])
    assert found.row_scores == [pytest.approx(2 / 3)]


class Distance:
    """A metric of which less is better, and some rows have none."""

    name, higher_is_better = "distance", False

    def score(self, predictions: list[str], references: list[str]) -> list[float]:
        return [abs(float(a) - float(b)) if b else math.nan for a, b in zip(predictions, references, strict=True)]


def test_where_less_is_better_the_least_counts_and_an_answer_that_cannot_be_scored_does_not() -> None:
    found = measure(Distance(), ["5", "5", "5"], ["9", "", "6"], [["7", "1"], ["8"], []])
    assert found.row_scores == [2, 3, 1]


def test_an_answer_is_settled_only_where_it_is_for_all_right_answers() -> None:
    tokenizer = build_byte_level()
    tokens = tokenizer("Vistula River it is, I think", add_special_tokens=False)["input_ids"]
    ends = [
        make_early_end([ExactMatch()], ["the Vistula"], alternatives=others, tokenizer=tokenizer, is_greedy=True)
        for others in ([[]], [["Vistula River it is, I think so"]])
    ]
    found = [end.find(0, tokens, max_new_tokens=200) for end in ends if end is not None]
    assert found == [("settled", len(tokens)), None]
