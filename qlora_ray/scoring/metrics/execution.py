"""Metrics of SQL: whether an answer returns the reference's rows, and whether it runs at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qlora_ray.scoring.metrics.metric import Metric
from qlora_ray.scoring.metrics.sql import TIMEOUT_S, ExecutionOutcome, SqlProcess
from qlora_ray.scoring.metrics.sql_prefix import can_become_statement


class SqlExecution:
    """1 where the answer, run as SQL, returns the rows of the reference (`sql.SqlProcess.match` says when), else 0."""

    name = "sql_execution"
    higher_is_better = True
    settles_in_loops = True

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
        with SqlProcess(self.database, timeout_s=self.timeout_s) as process:
            for pair in pairs:
                if pair not in self._outcomes:
                    self._outcomes[pair] = process.match(*pair)
        return [self._outcomes[pair] for pair in pairs]

    def companions(self) -> list[Metric]:
        """Returns sql_valid, from the same runs."""
        return [SqlValid(self)]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [float(outcome.correct) for outcome in self.outcomes(predictions, references)]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether it can become no statement that runs: then it is wrong."""
        return not can_become_statement(prediction)


class SqlValid:
    """1 where the answer runs at all, else 0: tells wrong SQL from no SQL. Shares its runs with `execution`."""

    name = "sql_valid"
    higher_is_better = True
    settles_in_loops = True

    def __init__(self, execution: SqlExecution) -> None:
        self.execution = execution

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [float(outcome.valid) for outcome in self.execution.outcomes(predictions, references)]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether it can become no statement that runs."""
        return self.execution.is_settled(prediction, reference)
