r"""Ratings of emotions, `Relieved: 6` in four lines, scored as EQ-Bench 2 does.

Source: Paech, EQ-Bench: An Emotional Intelligence Benchmark for Large Language Models (arXiv 2312.06281), and the
"full scale" score of its version 2, `calculate_score_fullscale` in EQ-bench/EQ-Bench, lib/scoring.py; the task eq_bench
of the lm-evaluation-harness has the same. A rating that is d away from the reference costs 0 for d = 0, a sigmoid of d
up to 5, and d above; 100 is every rating right, and ratings drawn at random get 0 on average.

Two things differ from the script. An answer without its four ratings scores 0 and not nothing: two models are compared
over the rows that both have a score for, and one that does not rate at all would be compared over none. And where an
answer has `Revised scores:`, these count; the script takes the better of first and revised ones over all rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qlora_ray.errors import DataError

NUM_EMOTIONS = 4
MAX_RATING = 10
# Up to this difference the sigmoid counts; all constants are the script's.
MAX_SMALL_DIFFERENCE = 5
SIGMOID_HEIGHT, SIGMOID_SLOPE, SIGMOID_MIDDLE = 6.5, 1.2, 4
# Chosen by the benchmark's author, so that random ratings get 0.
RANDOM_ADJUSTMENT = 0.7477
UNRATED_SCORE = 0.0

_RATING = re.compile(r"(\w+):\s+(\d+)")
_REVISED = "Revised scores:"
_RATING_LINE = re.compile(r"\s*\w+:\s+(?:10|\d)\s*")


def holds_ratings(text: str) -> bool:
    """Returns whether a reference is four ratings from 0 to 10 of different names, a line each, and nothing else."""
    lines = text.strip().splitlines()
    return all(_RATING_LINE.fullmatch(line) for line in lines) and len(read_ratings(text)) == len(lines) == NUM_EMOTIONS


def read_ratings(text: str) -> dict[str, int]:
    """Returns the ratings of an answer by their names, the revised ones where it has some."""
    _, _, revised = text.rpartition(_REVISED)
    # int() of thousands of digits, as a loop writes them, is refused by Python.
    return {name: int(digits[: len(str(MAX_RATING)) + 1]) for name, digits in _RATING.findall(revised)}


class EqBench:
    """How close four ratings are to the reference's: 100 for the same, 0 for random ones, below 0 for worse."""

    name = "eq_bench"
    higher_is_better = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns a score per row.

        Raises:
            DataError: a reference is not four ratings.
        """
        pairs = zip(predictions, references, strict=True)
        return [
            _score(_find_rated(prediction, reference), _read_reference(reference)) for prediction, reference in pairs
        ]

    def details(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Returns `parseable`, the share of answers with the four ratings that were asked for."""
        pairs = list(zip(predictions, references, strict=True))
        num_rated = sum(_find_rated(prediction, reference) is not None for prediction, reference in pairs)
        return {"parseable": num_rated / len(pairs) if pairs else math.nan}


def _find_rated(prediction: str, reference: str) -> dict[str, int] | None:
    """The ratings of an answer; None unless they are of the reference's emotions, all of them, from 0 to 10."""
    ratings = read_ratings(prediction)
    is_whole = ratings.keys() == read_ratings(reference).keys()
    return ratings if is_whole and max(ratings.values(), default=0) <= MAX_RATING else None


def _read_reference(reference: str) -> dict[str, int]:
    if not holds_ratings(reference):
        raise DataError(
            f"eq_bench: a reference must be {NUM_EMOTIONS} lines like 'Relieved: 6', from 0 to {MAX_RATING}, got "
            f"{reference[:60]!r}. Correct the rows, or name another metric in evaluate.metrics."
        )
    return read_ratings(reference)


def _score(rated: dict[str, int] | None, expected: dict[str, int]) -> float:
    if rated is None:
        return UNRATED_SCORE
    cost = math.fsum(_cost(abs(rated[name] - rating)) for name, rating in expected.items())
    return 10 * (10 - RANDOM_ADJUSTMENT * cost)


def _cost(difference: int) -> float:
    if difference == 0 or difference > MAX_SMALL_DIFFERENCE:
        return difference
    return SIGMOID_HEIGHT / (1 + math.exp(-SIGMOID_SLOPE * (difference - SIGMOID_MIDDLE)))
