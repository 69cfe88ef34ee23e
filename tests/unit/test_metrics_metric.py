from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qlora_ray.errors import ConfigError, DataError
from qlora_ray.scoring.metrics.metric import measure

ROWS = ["one", "two"]


class Own:
    """A metric whose every part a test can set."""

    name = "own"
    higher_is_better = True

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return self.scores() if callable(self.scores) else self.scores


class OwnWithMore(Own):
    """The optional methods."""

    def summarize(self, row_scores: Sequence[float]) -> Any:
        return max(row_scores)

    def details(self, predictions: Sequence[str], references: Sequence[str]) -> Any:
        return {"num_rows": len(predictions), "nothing": math.nan}


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ([1.0, 0.0], 0.5),
        ([math.nan, 0.25], 0.25),
        ([math.inf, 1], math.inf),
        ((True, False), 0.5),
        (np.array([0.5, 1.0], dtype=np.float32), 0.75),
        # Near the largest float.
        ([1.5e308, 1.7e308], 1.6e308),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, math.nan], math.nan),
        ([], math.nan),
    ],
)
def test_the_value_is_the_mean_of_the_rows_that_have_a_score(scores: Any, value: float) -> None:
    rows = ROWS[: len(scores)]
    found = measure(Own(scores), rows, rows)
    assert (found.value, found.details) == (pytest.approx(value, nan_ok=True), {})
    assert {type(score) for score in found.row_scores} <= {float}


def test_a_metric_may_sum_up_its_own_way_and_say_more() -> None:
    found = measure(OwnWithMore([0.25, 0.75]), ROWS, ROWS)
    assert found.value == 0.75
    assert found.details == pytest.approx({"num_rows": 2.0, "nothing": math.nan}, nan_ok=True)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"metric own: score must return one float per row, got 1 for 2 rows\. Correct the class Own\."),
        (0.5, "score must return a list of floats, got float"),
        (None, "score must return a list of floats, got NoneType"),
        ([1.0, None], "score must return floats, NaN where there is no score, got None of row 1"),
        (["1", "0"], "got '1' of row 0"),
        (lambda: sys.exit(0), "got SystemExit: 0"),
        (lambda: (sys.exit(0) for _ in ROWS), "got SystemExit: 0"),
        (lambda: itertools.repeat(1.0), "got 3 for 2 rows"),
        ([10**400] * 2, "got a number beyond them of row 0"),
        (lambda: 1 / 0, r"got ZeroDivisionError: division by zero \(test_metrics_metric\.py:\d+\)"),
    ],
)
def test_a_broken_metric_is_one_message_that_says_where(scores: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(Own(scores), ROWS, ROWS)


def test_a_method_of_other_parameters_is_said_without_a_line_of_ours() -> None:
    class Odd(Own):
        def score(self, rows: Sequence[str]) -> list[float]:  # type: ignore[override]
            return []

    with pytest.raises(ConfigError, match=r"got TypeError: .*were given\. Correct"):
        measure(Odd(None), ROWS, ROWS)


@pytest.mark.parametrize(
    ("method", "returned", "words"),
    [
        ("summarize", "high", r"summarize must return floats.*got 'high'\. Correct the class OwnWithMore"),
        ("details", 3, "details must return a dict of floats, got int"),
        ("details", {"spread": "wide"}, "got 'wide' for spread"),
    ],
)
def test_broken_optional_methods_are_named_too(method: str, returned: Any, words: str) -> None:
    metric = OwnWithMore([1, 2])
    setattr(metric, method, lambda *_: returned)
    with pytest.raises(ConfigError, match=words):
        measure(metric, ROWS, ROWS)


def test_errors_of_ours_keep_their_kind() -> None:
    def fail() -> None:
        raise DataError("data: no. Correct it.")

    with pytest.raises(DataError, match=r"^data: no\. Correct it\.$"):
        measure(Own(fail), ROWS, ROWS)
