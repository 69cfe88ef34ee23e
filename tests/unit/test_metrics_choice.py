from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray import embedded
from qlora_ray.config.schema import Evaluate, SweepConfig
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.scoring import ExactMatch, Metric, SqlExecution, SqlValid, resolve_metrics
from qlora_ray.scoring.metrics.choice import check_references, resolve_data_metrics
from qlora_ray.scoring.metrics.sql import ExecutionOutcome, SqlProcess
from qlora_ray.scoring.metrics.text import NormalizedMatch, TokenF1
from tests.unit.evaluation_fixtures import make_database


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "shop.sqlite")


class Own:
    """A user's metric."""

    higher_is_better = True

    def __init__(self, name: str = "own") -> None:
        self.name = name

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [1.0] * len(predictions)


def resolve(
    evaluate: Evaluate,
    *,
    embedded: bool = False,
    references: bool = True,
    database: Path | None = None,
    texts: Sequence[str] = (),
    custom: Sequence[Metric] = (),
) -> tuple[list[Metric], str]:
    return resolve_metrics(
        evaluate,
        trains_on_embedded=embedded,
        has_references=references,
        database=database,
        references=texts,
        custom=custom,
    )


def names(metrics: list[Metric]) -> list[str]:
    return [metric.name for metric in metrics]


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("SELECT a FROM t", 1.0),
        ("  SELECT  a\n\tFROM t ;; ", 1.0),
        ("select a from t", 0.0),
        ("SELECT a FROM t; SELECT b", 0.0),
        ("", 0.0),
    ],
)
def test_exact_match_forgives_white_space_and_final_semicolons_only(prediction: str, score: float) -> None:
    assert ExactMatch().score([prediction], ["SELECT a FROM t;"]) == [score]


def test_predictions_and_references_must_pair_up(database: Path) -> None:
    for metric in (ExactMatch(), SqlExecution(database), TokenF1(), NormalizedMatch()):
        with pytest.raises(ValueError, match="zip"):
            metric.score(["SELECT 1"], [])


def test_sql_metrics_score_each_row_and_tell_wrong_from_invalid(database: Path) -> None:
    predictions = ["SELECT count(*) FROM products", "SELECT 5", "SELECT four", ""]
    references = ["SELECT 4"] * 4
    execution = SqlExecution(database)
    assert execution.score(predictions, references) == [1.0, 0.0, 0.0, 0.0]
    assert SqlValid(execution).score(predictions, references) == [1.0, 1.0, 0.0, 0.0]
    errors = [outcome.error for outcome in execution.outcomes(predictions, references)]
    assert errors[:2] == [None, None]
    assert "no such column" in str(errors[2])


def test_a_pair_runs_once_for_both_sql_metrics(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    match = SqlProcess.match

    def counting(process: SqlProcess, predicted: str, reference: str) -> ExecutionOutcome:
        calls.append(predicted)
        return match(process, predicted, reference)

    monkeypatch.setattr(SqlProcess, "match", counting)
    execution = SqlExecution(database)
    for metric in (execution, SqlValid(execution), execution):
        metric.score(["SELECT 1", "SELECT 2", "SELECT 1"], ["SELECT 1"] * 3)
    assert calls == ["SELECT 1", "SELECT 2"]


def test_auto_runs_sql_where_a_database_is_known(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "database_path", lambda: database)
    for found, where in (
        (resolve(Evaluate(database=str(database))), "shop.sqlite"),
        (resolve(Evaluate(), database=database), "shop.sqlite"),
        (resolve(Evaluate(), embedded=True), "the embedded database"),
        (resolve(Evaluate(database="embedded")), "the embedded database"),
    ):
        metrics, reason = found
        assert names(metrics) == ["sql_execution", "exact_match", "sql_valid"]
        assert isinstance(metrics[0], SqlExecution) and metrics[0].database == database
        assert reason.startswith("sql_execution and exact_match: ") and reason.endswith(where)


@pytest.mark.parametrize("text", ["48 + 24 = 72\n#### 72", "Price is $89.99"])
def test_auto_is_numeric_where_most_answers_mark_a_number(text: str, database: Path) -> None:
    metrics, reason = resolve(Evaluate(), database=database, texts=[text, text, "42"])
    assert names(metrics) == ["numeric_match", "absolute_error", "relative_error"]
    assert reason.startswith("numeric: 2 of 3 answers")


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["#### 72", "42"],
        # It would fail at the row without a number.
        ["#### 72", "#### 5", "no number"],
        ["SELECT 4 AS price"] * 3,
    ],
)
def test_auto_is_not_numeric_where_half_do_or_some_have_no_number(texts: list[str]) -> None:
    assert names(resolve(Evaluate(), texts=texts)[0]) == ["exact_match"]


def test_auto_without_a_database_is_exact_match_and_says_why() -> None:
    metrics, reason = resolve(Evaluate())
    assert names(metrics) == ["exact_match"]
    assert "evaluate.database names no database" in reason


def test_text_without_answers_has_no_metrics_and_named_ones_are_an_error(database: Path) -> None:
    metrics, reason = resolve(Evaluate(), references=False, embedded=True, database=database)
    assert metrics == []
    assert "only its loss is measured" in reason
    with pytest.raises(ConfigError, match=r"evaluate\.metrics must be auto for data without answers"):
        resolve(Evaluate(metrics=["exact_match"]), references=False)


def test_named_metrics_are_taken_as_named_and_what_they_bring_along_stands_last(database: Path) -> None:
    evaluate = Evaluate(metrics=["token_f1", "sql_execution", "numeric", "exact_match"], database=str(database))
    metrics, reason = resolve(evaluate)
    named = ["token_f1", "sql_execution", "numeric_match", "exact_match"]
    assert names(metrics) == [*named, "normalized_match", "sql_valid", "absolute_error", "relative_error"]
    assert "evaluate.metrics" in reason
    assert names(resolve(Evaluate(metrics=["exact_match"]), embedded=True)[0]) == ["exact_match"]
    metrics, reason = resolve(Evaluate(metrics=[]))
    assert metrics == [] and "no metrics" in reason


def test_your_own_metrics_stand_after_the_others_and_decide_only_alone() -> None:
    metrics, reason = resolve(Evaluate(), custom=[Own()])
    assert names(metrics) == ["exact_match", "own"]
    assert reason.endswith("no database to run SQL on; own: your own")
    assert names(resolve(Evaluate(metrics=[]), custom=[Own("a"), Own("b")])[0]) == ["a", "b"]
    with pytest.raises(ConfigError, match=r"must be auto for data without answers, got \['own'\]"):
        resolve(Evaluate(), references=False, custom=[Own()])


@pytest.mark.parametrize("taken", ["exact_match", "loss", "perplexity"])
def test_a_metric_of_a_taken_name_is_a_config_error(taken: str) -> None:
    with pytest.raises(ConfigError, match=rf"a name of its own, got {taken}, which is taken"):
        resolve(Evaluate(), custom=[Own(taken)])


def test_a_missing_or_foreign_database_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, text = tmp_path / "missing.sqlite", tmp_path / "shop.csv"
    text.write_text("name,price\n")
    rule = r"evaluate\.database must be an SQLite file, got .*"
    with pytest.raises(ConfigError, match=rule + r"missing\.sqlite \(no such file\)"):
        resolve(Evaluate(database=str(missing)))
    with pytest.raises(ConfigError, match=rule + r"shop\.csv \(not one\)"):
        resolve(Evaluate(metrics=["sql_execution"], database=str(text)))
    monkeypatch.setattr(embedded, "database_path", lambda: missing)
    with pytest.raises(ConfigError, match=rule):
        resolve(Evaluate(), embedded=True)


def test_importing_metrics_and_comparison_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "ray", "scipy"}
    code = f"import sys, qlora_ray.scoring.comparison; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def make_split(name: str, references: Sequence[str]) -> TokenizedSplit:
    ids = [[1]] * len(references)
    return TokenizedSplit.of(name, ids, ids, ids, [*references])


def test_auto_looks_at_validation_and_test_rows_together() -> None:
    config = SweepConfig.model_validate({"data": {"train": "rows.jsonl"}})
    numbers = make_split("validation", ["#### 1", "#### 2"])
    words = make_split("test", ["no number", "none either", "nor here"])
    for test, expected in ((numbers, "numeric_match"), (None, "numeric_match"), (words, "exact_match")):
        data: Any = SimpleNamespace(validation=numbers, test=test, report=SimpleNamespace(format="columns"))
        assert resolve_data_metrics(config, data)[0][0].name == expected


def test_a_reference_that_cannot_be_scored_is_named_with_its_split_and_only_answered_rows_count() -> None:
    metrics, _ = resolve(Evaluate(metrics=["numeric"]))
    rows = make_split("test", ["#### 1", "there is no way to tell"])
    check_references(rows, metrics, num_rows=1)
    with pytest.raises(DataError, match=r"^test: numeric: the reference of row 1 must hold a number"):
        check_references(rows, metrics, num_rows=None)
