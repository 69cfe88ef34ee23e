"""What a metric is, and what it says of a model's answers: a score per row, one value of them, and further figures.

A metric is any class with `name`, `higher_is_better` and `score`; there is nothing to inherit from. More methods are
optional, each a protocol of its own below, and so is `needs_references = False`: such a metric also scores answers
that have none, and gets empty texts in their place. `decides = False` keeps a metric from being the verdict's measure.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from qlora_ray.errors import ConfigError, QloraRayError


class Metric(Protocol):
    """A score per answer. Metrics do not know where answers come from."""

    @property
    def name(self) -> str:
        """The key of its scores in records."""

    @property
    def higher_is_better(self) -> bool:
        """Which way a better model moves the mean."""

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns one score per row; NaN where the row has none."""


@runtime_checkable
class Summarizing(Protocol):
    """A metric whose value is not the mean of its rows. Models are still compared by their rows."""

    def summarize(self, row_scores: Sequence[float]) -> float:
        """Returns the value of the split."""


@runtime_checkable
class Detailing(Protocol):
    """A metric with more to say of a split than its value."""

    def details(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Returns further figures by name, e.g. R^2; NaN where there is none."""


@runtime_checkable
class Accompanied(Protocol):
    """A metric of `evaluate.metrics` beside which others are always measured."""

    def companions(self) -> list[Metric]:
        """Returns the others, which stand behind all that the config names."""


@runtime_checkable
class Settling(Protocol):
    """A metric that knows when the rest of an answer cannot change its score any more: the answer may end there.

    Its details must be settled with the score. Where a metric of a row does not know, the row is answered in full.
    """

    @property
    def settles_in_loops(self) -> bool:
        """Whether an answer that goes on repeating its end keeps the score that it has after any of the repeats."""

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether every text that begins with `prediction` has one score."""


@dataclass(frozen=True)
class Measurement:
    """What a metric says of a split: one score per row, NaN where there is none, their value, and further figures."""

    row_scores: list[float]
    value: float
    details: dict[str, float] = field(default_factory=dict)


def needs_references(metric: Metric) -> bool:
    """Whether the metric can score only answers that have a reference; true unless it says otherwise."""
    return bool(getattr(metric, "needs_references", True))


def may_decide(metric: Metric) -> bool:
    """Whether a verdict may be by this metric; true unless it says otherwise."""
    return bool(getattr(metric, "decides", True))


def measure(
    metric: Metric,
    predictions: Sequence[str],
    references: Sequence[str],
    alternatives: Sequence[Sequence[str]] | None = None,
) -> Measurement:
    """Returns the metric's scores of these answers.

    A row's score is the best of its reference and its alternatives, as in SQuAD's script. Details are by references.

    Args:
        metric: The metric.
        predictions: The model's answers, one for each row.
        references: The expected answers, in the same order.
        alternatives: Other answers of each row that are as right; None: there are none.

    Raises:
        ConfigError: the metric fails, or returns what is no score; the message names its file and line.
        DataError: a reference is not what the metric needs.
    """
    row_scores = checked_scores(metric, predictions, references)
    if alternatives is not None and any(alternatives):
        row_scores = _best_scores(metric, row_scores, predictions, alternatives)
    if isinstance(metric, Summarizing):
        value = _number(metric, "summarize", _call(metric, "summarize", row_scores))
    else:
        value = mean_of_scored(row_scores)
    return Measurement(row_scores, value, _checked_details(metric, predictions, references))


def checked_scores(metric: Metric, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Returns the metric's score per row, as floats.

    Args:
        metric: The metric.
        predictions: The model's answers, one for each row.
        references: The expected answers, in the same order.

    Raises:
        ConfigError: the metric fails, returns too few or too many scores, or some that are not numbers.
    """
    found = _call(metric, "score", predictions, references)
    if not isinstance(found, Iterable):
        raise _broken(metric, "score must return a list of floats", type(found).__name__)
    # One more than there should be: a generator may never end.
    scores = _run(metric, "score", lambda: list(islice(found, len(predictions) + 1)))
    if len(scores) != len(predictions):
        raise _broken(metric, "score must return one float per row", f"{len(scores)} for {len(predictions)} rows")
    return [_number(metric, "score", score, where=f" of row {row}") for row, score in enumerate(scores)]


def _best_scores(
    metric: Metric, row_scores: Sequence[float], predictions: Sequence[str], alternatives: Sequence[Sequence[str]]
) -> list[float]:
    rows = [row for row, others in enumerate(alternatives) for _ in others]
    others = [other for texts in alternatives for other in texts]
    best = list(row_scores)
    for row, score in zip(rows, checked_scores(metric, [predictions[row] for row in rows], others), strict=True):
        is_better = score > best[row] if metric.higher_is_better else score < best[row]
        if is_better or math.isnan(best[row]):
            best[row] = score
    return best


def mean_of_scored(row_scores: Sequence[float]) -> float:
    """Returns the mean over the rows that have a score; NaN if none has."""
    scored = [score for score in row_scores if not math.isnan(score)]
    if not scored:
        return math.nan
    try:
        return math.fsum(scored) / len(scored)
    except OverflowError:
        # The sum is beyond the largest float, the mean is not.
        return math.fsum(score / len(scored) for score in scored)
    except ValueError:
        # inf and -inf have no mean.
        return math.nan


def _checked_details(metric: Metric, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    if not isinstance(metric, Detailing):
        return {}
    found = _call(metric, "details", predictions, references)
    if not isinstance(found, Mapping):
        raise _broken(metric, "details must return a dict of floats", type(found).__name__)
    return {str(name): _number(metric, "details", figure, where=f" for {name}") for name, figure in found.items()}


def _call(metric: Metric, method: str, *arguments: Any) -> Any:
    """Returns what the method returns; what a stranger's code raises becomes one message that names its line."""
    return _run(metric, method, lambda: getattr(metric, method)(*arguments))


def _run(metric: Metric, method: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except QloraRayError:
        raise
    # A stranger's sys.exit() would end the command as if all were well.
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        raise _broken(metric, f"{method} must run on any answers", f"{type(error).__name__}: {error}{where}") from error


def _number(metric: Metric, method: str, value: Any, *, where: str = "") -> float:
    if not isinstance(value, Real):
        raise _broken(metric, f"{method} must return floats, NaN where there is no score", f"{value!r}{where}")
    try:
        return float(value)
    except OverflowError:
        raise _broken(metric, f"{method} must return floats", f"a number beyond them{where}") from None


def _broken(metric: Metric, rule: str, got: str) -> ConfigError:
    return ConfigError(f"metric {metric.name}: {rule}, got {got}. Correct the class {type(metric).__name__}.")
