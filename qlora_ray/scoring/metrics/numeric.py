r"""Metrics of answers whose point is one number: GSM8K's `#### 72`, `\boxed{72}`, or `Price is $89.99`.

Which number an answer gives, by the first rule that applies:
1. The one right after the first `####` that is followed by a number, as in GSM8K's own grading (Cobbe et al., Training
   Verifiers to Solve Math Word Problems, 2021; openai/grade-school-math: `#### (\-?[0-9\.\,]+)`), so that a heading
   (`#### Step 1`) is passed over. Where no `####` is followed by a number, there is no number at all.
2. The one that the last `\boxed{}` is, be it a fraction (`\frac{3}{4}`, `3/4`; see `boxed`). Where that box holds
   anything else or more, there is no number at all.
3. The one right after the first `price is`, `price:` or `price =`, unless a sum starts with it (`price is $3 + $4`):
   what follows is often another listing.
4. The last one: reasoning ends in its result.

A number may have a sign, a currency sign, thousands separated by commas, decimals after a point and an exponent. A
percent sign is passed over: 45% is 45. Digits that follow a letter (`x5`, `Qwen2`) are part of a name. Digits that a
model repeats without end are no number that it means: see `LARGEST_ANSWER`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics.boxed import (
    ABSOLUTE_TOLERANCE,
    NUM_QUOTED_CHARACTERS,
    RELATIVE_TOLERANCE,
    find_box,
    has_box,
    read_number,
)
from qlora_ray.scoring.metrics.metric import Metric

# Ours: prices and counts end far below it, and up to 2^53, about 9e15, a float holds every whole number. What is larger
# is digits in a loop; one such answer would be the mean error of a whole split.
LARGEST_ANSWER = 1e15
# Characters behind a number that decide where it ends: `,000` and one more that is no digit.
NUM_NUMBER_TAIL = 5
# R^2 of fewer rows says nothing: one row has no variance.
MIN_R_SQUARED_ROWS = 2

_NUMBER = re.compile(
    r"""
    (?<!\w)(?<!\w\.)                     # not inside a name or a number
    (?P<sign>(?:(?<!\))[-+\u2212])?)     # 10-5 and (3)-5 subtract: their minus is no sign
    (?:[$€£]\s?(?P<inner>[-+\u2212]?))?  # $-5 as well as -$5
    (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
    (?P<exponent>(?:[eE][-+]?[0-9]+)?)
    """,
    re.VERBOSE,
)
_GSM8K = re.compile(r"#{4,}\s*")
_GOES_ON = re.compile(r"\s*[+*/=×]")
_PRICE = re.compile(r"\bprice\s*(?:is|:|=)\s*", re.IGNORECASE)


def find_number(text: str, *, largest: float = math.inf) -> float | None:
    """Returns the number that an answer gives, or None; see the module's rules.

    Args:
        largest: What is beyond it in absolute value is passed over, as no number.
    """
    markers = list(_GSM8K.finditer(text))
    if markers:
        marked = (_value(_NUMBER.match(text, marker.end()), largest) for marker in markers)
        return next((number for number in marked if number is not None), None)
    if has_box(text):
        box = find_box(text)
        return read_number(box, largest=largest) if box is not None else None
    price = _PRICE.search(text)
    at_price = _NUMBER.match(text, price.end()) if price else None
    if at_price and not _GOES_ON.match(text, at_price.end()) and (value := _value(at_price, largest)) is not None:
        return value
    numbers = [number for match in _NUMBER.finditer(text) if (number := _value(match, largest)) is not None]
    return numbers[-1] if numbers else None


def marks_number(text: str) -> bool:
    r"""Returns whether the text says which of its numbers is the answer, by `####`, `\boxed{}` or `price is`."""
    box = find_box(text)
    return (box is not None and read_number(box) is not None) or any(
        _value(_NUMBER.match(text, mark.end())) is not None for mark in _marks(text)
    )


def has_final_number(text: str, reference: str) -> bool:
    """Returns whether the number of `text`, and of every text that begins with it, is one that stands after a `####`.

    That is the first one after such a mark. All else may be followed by what counts more: another number, or a mark.
    """
    expected = find_number(reference)
    largest = _largest_answer(expected) if expected is not None else LARGEST_ANSWER
    for marker in _GSM8K.finditer(text):
        match = _NUMBER.match(text, marker.end())
        if match is not None and _value(match, largest) is not None:
            return match.end() + NUM_NUMBER_TAIL <= len(text)
    return False


class NumericMatch:
    """1 where the answer's number is the reference's, else 0; an answer without a number is wrong.

    Details: `answered`, the share of answers with a number, and `r_squared` over them, the coefficient of
    determination: 1 is perfect, 0 is as good as always answering their references' mean, below is worse.
    """

    name = "numeric_match"
    higher_is_better = True
    settles_in_loops = True

    def companions(self) -> list[Metric]:
        """Returns absolute_error and relative_error."""
        return [AbsoluteError(), RelativeError()]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [
            float(
                got is not None and math.isclose(got, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
            )
            for got, expected in _number_pairs(predictions, references)
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether the number that counts has come."""
        return has_final_number(prediction, reference)

    def details(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Returns `answered` and `r_squared`; NaN where no row allows them."""
        pairs = _number_pairs(predictions, references)
        answered = [(got, expected) for got, expected in pairs if got is not None]
        return {
            "answered": len(answered) / len(pairs) if pairs else math.nan,
            "r_squared": _r_squared(answered),
        }


class AbsoluteError:
    """How far the answer's number is from the reference's; no score where the answer has none.

    A single answer may be off by any amount, and the mean with it: it is told and does not decide.
    """

    name = "absolute_error"
    higher_is_better = False
    decides = False
    settles_in_loops = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 0 or more per row, in the reference's unit, or NaN."""
        return [
            math.nan if got is None else abs(got - expected) for got, expected in _number_pairs(predictions, references)
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether the number that counts has come."""
        return has_final_number(prediction, reference)


class RelativeError:
    """The absolute error in parts of the reference; no score where the answer has no number or the reference is 0."""

    name = "relative_error"
    higher_is_better = False
    decides = False
    settles_in_loops = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 0 or more per row (0.1 is 10 % off), or NaN."""
        return [
            math.nan if got is None or expected == 0 else abs(got - expected) / abs(expected)
            for got, expected in _number_pairs(predictions, references)
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether the number that counts has come."""
        return has_final_number(prediction, reference)


def _marks(text: str) -> list[re.Match[str]]:
    price = _PRICE.search(text)
    return [*_GSM8K.finditer(text), *([price] if price else [])]


def _value(match: re.Match[str] | None, largest: float = math.inf) -> float | None:
    """Returns the matched number; None where it is too large for a float, or beyond `largest`."""
    if match is None:
        return None
    value = float(match["digits"].replace(",", "") + match["exponent"])
    if not math.isfinite(value) or value > largest:
        return None
    return value if (match["sign"] or match["inner"] or "+") == "+" else -value


def _number_pairs(predictions: Sequence[str], references: Sequence[str]) -> list[tuple[float | None, float]]:
    """Returns the number of each answer, if any, beside its reference's.

    Raises:
        DataError: a reference has no number.
    """
    pairs = []
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        expected = find_number(reference)
        if expected is None:
            raise DataError(
                f"numeric: the reference of row {row} must hold a number, got "
                f"{reference[:NUM_QUOTED_CHARACTERS]!r}. Correct the row, or drop numeric from evaluate.metrics."
            )
        pairs.append((find_number(prediction, largest=_largest_answer(expected)), expected))
    return pairs


def _largest_answer(expected: float) -> float:
    """A reference may be as large as it likes; twice as much leaves room for an answer to be a little off."""
    return max(LARGEST_ANSWER, 2 * abs(expected))


def _r_squared(pairs: Sequence[tuple[float, float]]) -> float:
    if len(pairs) < MIN_R_SQUARED_ROWS:
        return math.nan
    got, expected = np.array(pairs, dtype=np.float64).T
    # References of 1e300 are possible; the square of an error is infinite then, and so is how bad the answer is.
    with np.errstate(over="ignore", invalid="ignore"):
        residual = float(((got - expected) ** 2).sum())
        total = float(((expected - expected.mean()) ** 2).sum())
    return 1 - residual / total if total > 0 else math.nan
