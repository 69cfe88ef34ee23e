from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_fixtures import make_database

from qlora_ray import embedded
from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import ConfigError
from qlora_ray.evaluation import ExactMatch, Metric, SqlExecution, SqlValid, resolve_metrics
from qlora_ray.evaluation import metrics as metrics_module


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return make_database(tmp_path / "shop.sqlite")


def resolve(
    evaluate: Evaluate, *, embedded: bool = False, references: bool = True, database: Path | None = None
) -> tuple[list[Metric], str]:
    return resolve_metrics(evaluate, trains_on_embedded=embedded, has_references=references, database=database)


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
    for metric in (ExactMatch(), SqlExecution(database)):
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
    execution_match = metrics_module.execution_match

    def counting(path: Path, predicted: str, reference: str, *, timeout_s: float) -> object:
        calls.append(predicted)
        return execution_match(path, predicted, reference, timeout_s=timeout_s)

    monkeypatch.setattr(metrics_module, "execution_match", counting)
    execution = SqlExecution(database)
    for metric in (execution, SqlValid(execution), execution):
        metric.score(["SELECT 1", "SELECT 2", "SELECT 1"], ["SELECT 1"] * 3)
    assert calls == ["SELECT 1", "SELECT 2"]


def test_auto_runs_sql_where_a_database_is_known(database: Path) -> None:
    for metrics, reason in (
        resolve(Evaluate(database=str(database))),
        resolve(Evaluate(), database=database),
    ):
        assert names(metrics) == ["sql_execution", "exact_match", "sql_valid"]
        assert reason.startswith("sql_execution and exact_match: SQL runs on ")
        assert reason.endswith("shop.sqlite")


def test_auto_knows_the_database_of_the_embedded_task(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "database_path", lambda: database)
    for metrics, reason in (resolve(Evaluate(), embedded=True), resolve(Evaluate(database="embedded"))):
        assert isinstance(metrics[0], SqlExecution)
        assert metrics[0].database == database
        assert reason == "sql_execution and exact_match: SQL runs on the embedded database"


def test_auto_without_a_database_is_exact_match_and_says_why() -> None:
    metrics, reason = resolve(Evaluate())
    assert names(metrics) == ["exact_match"]
    assert reason == "exact_match: evaluate.database names no database to run SQL on"


def test_text_without_answers_has_no_metrics_and_named_ones_are_an_error(database: Path) -> None:
    metrics, reason = resolve(Evaluate(), references=False, embedded=True, database=database)
    assert metrics == []
    assert "only its loss is measured" in reason
    with pytest.raises(ConfigError, match=r"evaluate\.metrics must be auto for data without answers"):
        resolve(Evaluate(metrics=["exact_match"]), references=False)


def test_named_metrics_are_taken_as_named(database: Path) -> None:
    metrics, reason = resolve(Evaluate(metrics=["exact_match", "sql_execution"], database=str(database)))
    assert names(metrics) == ["exact_match", "sql_execution", "sql_valid"]
    assert reason == "exact_match and sql_execution: as evaluate.metrics says"
    assert names(resolve(Evaluate(metrics=["exact_match"]), embedded=True)[0]) == ["exact_match"]
    assert resolve(Evaluate(metrics=[])) == ([], "no metrics: as evaluate.metrics says")


def test_a_missing_or_foreign_database_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, text = tmp_path / "missing.sqlite", tmp_path / "shop.csv"
    text.write_text("name,price\n")
    rule = r"evaluate\.database must be an SQLite file, got "
    with pytest.raises(ConfigError, match=rule + r".*missing\.sqlite \(no such file\)"):
        resolve(Evaluate(database=str(missing)))
    with pytest.raises(ConfigError, match=rule + r".*shop\.csv \(not one\)"):
        resolve(Evaluate(metrics=["sql_execution"], database=str(text)))
    monkeypatch.setattr(embedded, "database_path", lambda: missing)
    with pytest.raises(ConfigError, match=rule):
        resolve(Evaluate(), embedded=True)


def test_importing_the_room_loads_neither_torch_nor_transformers_nor_ray() -> None:
    code = "import sys, qlora_ray.evaluation; print({'torch', 'transformers', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
