"""How answers are scored: one small class per metric, each giving a score per row so that models can be paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import ConfigError
from qlora_ray.evaluation.sql import TIMEOUT_S, ExecutionOutcome, execution_match, is_database


class Metric(Protocol):
    """A score per answer. Metrics do not know where answers come from."""

    @property
    def name(self) -> str:
        """The key of its scores in records."""

    @property
    def higher_is_better(self) -> bool:
        """Which way a better model moves the mean."""

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns one score per row."""


class ExactMatch:
    """1 where the answer is the reference but for runs of white space and final semicolons, else 0.

    Case counts: it is part of literals ('USA'), and an adapter should learn the case of its data. White space inside
    literals is collapsed like any other.
    """

    name = "exact_match"
    higher_is_better = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [
            float(_normalize(prediction) == _normalize(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]


class SqlExecution:
    """1 where the answer, run as SQL, returns the rows of the reference (`sql.execution_match` says when), else 0."""

    name = "sql_execution"
    higher_is_better = True

    def __init__(self, database: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self.database = database
        self.timeout_s = timeout_s
        self._outcomes: dict[tuple[str, str], ExecutionOutcome] = {}

    def outcomes(self, predictions: Sequence[str], references: Sequence[str]) -> list[ExecutionOutcome]:
        """Returns what came of each answer, with the reason where one did not run. A pair runs only once.

        Raises:
            DataError: a reference does not run.
        """
        pairs = list(zip(predictions, references, strict=True))
        for pair in pairs:
            if pair not in self._outcomes:
                self._outcomes[pair] = execution_match(self.database, *pair, timeout_s=self.timeout_s)
        return [self._outcomes[pair] for pair in pairs]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [float(outcome.correct) for outcome in self.outcomes(predictions, references)]


class SqlValid:
    """1 where the answer runs at all, else 0: tells wrong SQL from no SQL. Shares its runs with `execution`."""

    name = "sql_valid"
    higher_is_better = True

    def __init__(self, execution: SqlExecution) -> None:
        self.execution = execution

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [float(outcome.valid) for outcome in self.execution.outcomes(predictions, references)]


def resolve_metrics(
    evaluate: Evaluate,
    *,
    trains_on_embedded: bool,
    has_references: bool,
    database: Path | None = None,
) -> tuple[list[Metric], str]:
    """Returns the metrics to score answers with, the deciding one first, and why it is these.

    `auto` is sql_execution and exact_match where there is a database, exact_match where there is none, and nothing
    for plain text, which has no answers. sql_execution brings sql_valid along, as the last one.

    Args:
        trains_on_embedded: The data is the shipped task, whose database is known.
        has_references: Rows have an answer to compare with; text format has none.
        database: An SQLite file that goes before `evaluate.database`.

    Raises:
        ConfigError: the database is missing or is not SQLite, or metrics are named for data without answers.
    """
    if not has_references:
        if evaluate.metrics != "auto":
            raise ConfigError(
                f"evaluate.metrics must be auto for data without answers, got {evaluate.metrics}. "
                "Use data with prompts and answers, or leave evaluate.metrics out."
            )
        return [], "no metrics: the data is text without answers, so only its loss is measured"
    if evaluate.metrics == "auto":
        path, source = _find_database(evaluate, trains_on_embedded=trains_on_embedded, database=database)
        if path is None:
            return [ExactMatch()], "exact_match: evaluate.database names no database to run SQL on"
        return _build(["sql_execution", "exact_match"], path), f"sql_execution and exact_match: {source}"
    names = list(dict.fromkeys(evaluate.metrics))
    path = None
    if "sql_execution" in names:
        path, _ = _find_database(evaluate, trains_on_embedded=trains_on_embedded, database=database)
    return _build(names, path), f"{' and '.join(names) or 'no metrics'}: as evaluate.metrics says"


def _find_database(evaluate: Evaluate, *, trains_on_embedded: bool, database: Path | None) -> tuple[Path | None, str]:
    """Returns the checked path of the database, or None, and what to say of it."""
    if database is not None:
        path, source = database, f"SQL runs on {database.name}"
    elif evaluate.database == "embedded" or (evaluate.database is None and trains_on_embedded):
        from qlora_ray import embedded

        path, source = embedded.database_path(), "SQL runs on the embedded database"
    elif evaluate.database is not None:
        path, source = Path(evaluate.database).expanduser(), f"SQL runs on {evaluate.database}"
    else:
        return None, ""
    if not is_database(path):
        found = "not one" if path.exists() else "no such file"
        raise ConfigError(
            f"evaluate.database must be an SQLite file, got {path} ({found}). "
            "Correct the path, write embedded, or set evaluate.metrics to [exact_match]."
        )
    return path, source


def _build(names: Sequence[str], database: Path | None) -> list[Metric]:
    metrics: list[Metric] = []
    execution: SqlExecution | None = None
    for name in names:
        if name == "exact_match":
            metrics.append(ExactMatch())
        else:
            assert database is not None, "the config's own check: sql_execution needs a database"
            execution = SqlExecution(database)
            metrics.append(execution)
    if execution is not None:
        metrics.append(SqlValid(execution))
    return metrics


def _normalize(text: str) -> str:
    return " ".join(text.split()).rstrip("; ")
