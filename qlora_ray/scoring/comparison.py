"""Two models on the same rows: how far apart they are, how sure that is, and the word for it.

Rows are paired: each was answered by both models. Two questions are asked of the same pairs, how large the difference
is and whether it could be chance (see `significance`), and both must say yes before a model is called better or worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from qlora_ray.errors import DataError
from qlora_ray.formats import format_score, plural
from qlora_ray.runs.files import to_plain_json
from qlora_ray.runs.typed_json import parse_number
from qlora_ray.scoring.metrics.metric import may_decide
from qlora_ray.scoring.significance import Floats, bootstrap_interval, mcnemar_p, sign_flip_p

if TYPE_CHECKING:
    from qlora_ray.scoring.metrics.metric import Metric
    from qlora_ray.scoring.scores import Scores

# What `from_dict` of a comparison, and of what holds one, raises for values that `to_dict` does not write.
UNREADABLE = (KeyError, TypeError, ValueError)
VerdictWord = Literal["better", "no different", "worse"]

LOSS = "loss"
MCNEMAR = "McNemar, exact"
SIGN_FLIP = "sign-flip permutation"

# The level of the p-value, as nearly every paper has it; the interval's is its complement.
SIGNIFICANCE = 0.05
# Of the means. float32 has seven digits, and a model's loss moves in the sixth with the batch its rows are in. Such a
# bias is the same on every row, so that it would be significant.
ROUNDING = 1e-5
# One row says nothing of how rows vary.
MIN_ROWS = 2


@dataclass(frozen=True)
class Comparison:
    """A tuned model held against its base on one measure.

    Attributes:
        measure: `loss` or a metric's name.
        base: Mean of the base over the paired rows; the weighted mean if rows have weights.
        difference: `tuned` - `base`, whichever way is better.
        interval: Bootstrap interval of the difference, 95 %; minus to plus infinity for fewer than two rows.
        p_value: Of the null hypothesis that the models' scores could be exchanged, two-sided.
        num_rows: Pairs compared.
        num_dropped: Rows that have no difference: one of the two has no score (NaN), or both are infinite.
        verdict: `better` and `worse` only if the interval excludes 0, p < 0.05, and the means differ by more than
            float32's rounding.
    """

    measure: str
    higher_is_better: bool
    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: str
    num_rows: int
    num_dropped: int
    verdict: VerdictWord

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON; numbers that are not finite, as the ends of an unknown interval, become None."""
        return to_plain_json(asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Comparison:
        """Returns the comparison that `to_dict` wrote; keys of other things beside it are left alone.

        Raises:
            KeyError, TypeError, ValueError: A value is missing, or is none that `to_dict` writes.
        """
        low, high = data["interval"]
        if data["verdict"] not in get_args(VerdictWord):
            raise ValueError(f"the verdict is none: {data['verdict']!r}")
        return cls(
            measure=read_text(data["measure"]),
            higher_is_better=bool(data["higher_is_better"]),
            base=_read_number(data["base"], missing=math.nan),
            tuned=_read_number(data["tuned"], missing=math.nan),
            difference=_read_number(data["difference"], missing=math.nan),
            interval=(_read_number(low, missing=-math.inf), _read_number(high, missing=math.inf)),
            p_value=_read_number(data["p_value"]),
            test=read_text(data["test"]),
            num_rows=_read_count(data["num_rows"]),
            num_dropped=_read_count(data["num_dropped"]),
            verdict=data["verdict"],
        )

    @property
    def cannot_tell(self) -> bool:
        """Whether every row of both models has a metric's worst score, or every row its best: it is too hard, or too
        easy, to tell two models apart."""
        # McNemar's test is of rows of 0 and 1 alone: a mean of 1 may be of errors of 0 and 2.
        is_binary = self.measure != LOSS and self.test == MCNEMAR
        return is_binary and self.base == self.tuned and self.base in (0.0, 1.0)

    def silence(self) -> str:
        """Returns why it cannot tell, in words."""
        is_best = bool(self.base) is self.higher_is_better
        num_right = self.num_rows if is_best else 0
        return f"{self.measure} cannot tell: {num_right} of {self.num_rows} for both"

    def sentence(self) -> str:
        """Returns one line with all figures but the verdict, to stand after it."""
        rows = plural(self.num_rows, "row")
        if self.num_dropped:
            rows += f", {self.num_dropped} without a score"
        means = f"{self.measure} {format_score(self.base)} -> {format_score(self.tuned)}"
        if self.num_rows < MIN_ROWS:
            return f"{means} ({rows}: too few to compare)"
        low, high = self.interval
        if low == high == 0:
            # A bootstrap of rows that are all the same has no width, which would look like certainty.
            return f"{means}: no row differs ({rows})"
        p = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return (
            f"{means}: {format_score(self.difference, sign='+')} (95 % interval {format_score(low, sign='+')} to "
            f"{format_score(high, sign='+')}, {p}, {self.test.replace(',', '')}, {rows})"
        )


def compare_rows(
    measure: str,
    base: Sequence[float],
    tuned: Sequence[float],
    *,
    higher_is_better: bool,
    weights: Sequence[float] | None = None,
    seed: int = 7,
) -> Comparison:
    """Returns how the tuned model's rows differ from the base's; rows of both in one order.

    Rows of 0 and 1 only, without weights, are tested by McNemar's exact test; all else by flipping the signs of the
    paired differences, every way where there are at most 10,000 ways, else 10,000 ways at random.

    Args:
        base: Score of each row; NaN where a row has none.
        weights: What each row counts in the means, e.g. its tokens; None: all the same.
        seed: Of the resampling. The same rows and seed give the same comparison.

    Raises:
        DataError: the rows do not pair up, or a weight is negative or not finite.
    """
    base_rows, tuned_rows, row_weights = _read_pairs(measure, base, tuned, weights)
    with np.errstate(invalid="ignore"):
        differences = tuned_rows - base_rows
    kept = ~np.isnan(differences)
    base_rows, tuned_rows, differences = base_rows[kept], tuned_rows[kept], differences[kept]
    row_weights = None if row_weights is None else row_weights[kept]
    num_rows = len(differences)
    base_mean, tuned_mean = _mean(base_rows, row_weights), _mean(tuned_rows, row_weights)

    binary = row_weights is None and bool(np.isin(np.concatenate([base_rows, tuned_rows]), (0.0, 1.0)).all())
    interval, p_value = (-math.inf, math.inf), 1.0
    if num_rows >= MIN_ROWS:
        interval = bootstrap_interval(differences, weights=row_weights, seed=seed)
        p_value = mcnemar_p(differences) if binary else sign_flip_p(differences, weights=row_weights, seed=seed)
    return Comparison(
        measure=measure,
        higher_is_better=higher_is_better,
        base=base_mean,
        tuned=tuned_mean,
        difference=tuned_mean - base_mean if num_rows else math.nan,
        interval=interval,
        p_value=p_value,
        test=MCNEMAR if binary else SIGN_FLIP,
        num_rows=num_rows,
        num_dropped=len(kept) - num_rows,
        verdict=_judge(
            interval,
            p_value,
            higher_is_better=higher_is_better,
            is_noise=abs(tuned_mean - base_mean) < ROUNDING * max(abs(base_mean), abs(tuned_mean)),
        ),
    )


def compare_scores(base: Scores, tuned: Scores, *, metrics: Sequence[Metric]) -> list[Comparison]:
    """Returns one comparison per metric and the loss, the deciding one first: the first metric that can tell two models
    apart and may decide, else the loss.

    Rows without references have no loss to compare.

    The loss is compared over all rows with a trained token, in mean nats per token weighted by tokens, so that the
    means are those of `evaluate_loss`. A loss that is NaN counts as infinite: it is worse than any other.

    Args:
        base: Scores to compare with.
        tuned: Scores that should be better.
        metrics: The metrics to compare, the deciding one first.

    Raises:
        DataError: the two were not scored on the same rows.
    """
    if base.row_tokens != tuned.row_tokens:
        raise DataError(
            f"comparison: both models must be scored on the same rows, got {len(base.row_tokens)} rows with "
            f"{sum(base.row_tokens)} tokens and {len(tuned.row_tokens)} with {sum(tuned.row_tokens)}. "
            "Score them with one tokenizer on one split."
        )
    compared = [
        compare_rows(
            metric.name,
            base.row_metrics[metric.name],
            tuned.row_metrics[metric.name],
            higher_is_better=metric.higher_is_better,
        )
        for metric in metrics
    ]
    trained = [row for row, num in enumerate(base.row_tokens) if num > 0]
    losses = [[_row_loss(scores, row) for row in trained] for scores in (base, tuned)]
    weights = [base.row_tokens[row] for row in trained]
    if trained or not compared:
        compared.append(compare_rows(LOSS, *losses, higher_is_better=False, weights=weights))
    beside = {metric.name for metric in metrics if not may_decide(metric)}
    telling = (at for at, one in enumerate(compared) if one.measure not in beside and not one.cannot_tell)
    decides = next(telling, 0)
    return [compared.pop(decides), *compared]


def describe_silent(comparisons: Sequence[Comparison]) -> str | None:
    """Returns a note on the metrics that cannot tell two models apart; None where all can."""
    return "; ".join(comparison.silence() for comparison in comparisons if comparison.cannot_tell) or None


def _row_loss(scores: Scores, row: int) -> float:
    nll = scores.row_nll[row]
    return math.inf if math.isnan(nll) else nll / scores.row_tokens[row]


def _read_pairs(
    measure: str, base: Sequence[float], tuned: Sequence[float], weights: Sequence[float] | None
) -> tuple[Floats, Floats, Floats | None]:
    """Returns the rows as arrays; rows of no weight are left out."""
    num_weights = len(base) if weights is None else len(weights)
    if not len(base) == len(tuned) == num_weights:
        raise DataError(
            f"comparison of {measure}: both models must have a score for each row, got {len(base)} and {len(tuned)} "
            f"scores, and {num_weights} weights. Score both on the same rows."
        )
    base_rows, tuned_rows = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    if weights is None:
        return base_rows, tuned_rows, None
    row_weights = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(row_weights).all() or (row_weights < 0).any():
        raise DataError(
            f"comparison of {measure}: weights must be finite and >= 0, got {row_weights.min(initial=0)} to "
            f"{row_weights.max(initial=0)}. Weigh rows by a count, such as their tokens."
        )
    counts = row_weights > 0
    return base_rows[counts], tuned_rows[counts], row_weights[counts]


def _mean(rows: Floats, weights: Floats | None) -> float:
    if not len(rows):
        return math.nan
    return float(np.average(rows, weights=weights))


def _judge(interval: tuple[float, float], p_value: float, *, higher_is_better: bool, is_noise: bool) -> VerdictWord:
    low, high = interval
    if is_noise or p_value >= SIGNIFICANCE or low <= 0 <= high:
        return "no different"
    return "better" if (low > 0) == higher_is_better else "worse"


def _read_number(value: Any, *, missing: float | None = None) -> float:
    """The number that JSON holds; `missing` for null, where there is one."""
    if value is None and missing is not None:
        return missing
    if not isinstance(value, float) and parse_number(value) is None:
        raise ValueError(f"must be a number, got {value!r:.80}")
    return value


def _read_count(value: Any) -> int:
    count: int | None = parse_number(value, int)
    if count is None:
        raise ValueError(f"must be a number, got {value!r:.80}")
    return count


def read_text(value: Any) -> str:
    """The text that JSON holds; raises ValueError if it is another value."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {value!r:.80}")
    return value
