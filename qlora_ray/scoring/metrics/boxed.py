r"""Answers in a box, `\boxed{42}`, as MATH and the sets made after it have them.

The last box counts, to its own closing brace; where that one is not closed, the answer was cut and there is none. So do
the benchmark's authors and the lm-evaluation-harness (Hendrycks et al., Measuring Mathematical Problem Solving With the
MATH Dataset, 2021; `last_boxed_only_string` in lm_eval/tasks/hendrycks_math/utils.py). Two boxes are the same if both
hold a number, and the numbers agree, or if their LaTeX is the same but for how it looks: spaces, `\left` and `\right`,
`\dfrac` for `\frac`, `\frac12` for `\frac{1}{2}`, signs of currency, percent and degrees, a unit in `\text{}` after a
number, and `x=` before it. Nothing is computed: `2x+2` is not `2(x+1)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from qlora_ray.errors import DataError

# Ours: two spellings of one number differ by rounding only, and prices and counts differ by more.
RELATIVE_TOLERANCE = 1e-6
# Ours, for a reference of 0, to which nothing is relative.
ABSOLUTE_TOLERANCE = 1e-9
# Of a reference in an error message.
NUM_QUOTED_CHARACTERS = 60

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])[ \t]*(?P<brace>\{)?")
# A brace that is printed has a backslash of its own; of two, a line break, none is left for it.
_BRACE = re.compile(r"(?<!\\)(?:\\\\)*[{}]")
# A box without braces, as some of MATH are: `$\boxed 5$`.
_BARE = re.compile(r"[^$\n]+")

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_WHOLE = re.compile(rf"(?P<sign>[-+\u2212]?)(?P<value>{_NUMBER})(?P<exponent>(?:[eE][-+]?[0-9]+)?)")
_FRACTION = re.compile(
    r"(?P<sign>[-+\u2212]?)"
    rf"(?:\\frac\{{(?P<above>{_NUMBER})\}}\{{(?P<below>{_NUMBER})\}}|(?P<first>{_NUMBER})/(?P<second>{_NUMBER}))"
)

# In this order. Source of most: `strip_string` of the same file.
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\(?:left|right)(?![a-zA-Z])", ""),
        (r"\\[td]frac", r"\\frac"),
        (r"\{,\}", ","),
        (r"\\[!,;: ]|\\q?quad(?![a-zA-Z])|~", ""),
        (r"\^\{?\\circ\}?", ""),
        (r"\\?[$%]|[€£]", ""),
        # A unit, which may be squared.
        (r"(?<=[0-9}])\s*\\(?:text|mathrm|mbox)\{[^{}]*\}(?:\^\{?[23]\}?)?\s*$", ""),
        (r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1"),
        (r"\s+", ""),
        (r"^[a-zA-Z]=(?=[^=]+$)", ""),
        (r"\\frac([0-9a-zA-Z])([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac([0-9a-zA-Z])\{", r"\\frac{\1}{"),
        (r"\\frac(\{[^{}]*\})([0-9a-zA-Z])", r"\\frac\1{\2}"),
        (r"\\sqrt([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"\.$", ""),
    )
)


def find_box(text: str) -> str | None:
    """Returns what the last box holds; None without a box, or where the last one is empty or not closed."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if boxes[-1]["brace"] is None:
        bare = _BARE.match(text, start)
        return (bare[0].strip() or None) if bare else None
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0].endswith("{") else -1
        if depth == 0:
            return text[start : brace.end() - 1].strip() or None
    return None


def has_box(text: str) -> bool:
    """Returns whether the text has a box, be it empty or not closed."""
    return _BOX.search(text) is not None


def find_expected(reference: str) -> str | None:
    """Returns what an answer's box is held against: the reference's own, or all of a reference without one.

    None where that is empty or not closed.
    """
    return find_box(reference) if has_box(reference) else reference.strip() or None


def read_number(box: str, *, largest: float = math.inf) -> float | None:
    r"""Returns the number that a box is: `-1,234.5`, `\frac{3}{4}` or `3/4`; None if it is anything else or more.

    Args:
        largest: What is beyond it in absolute value is no number.
    """
    plain = _strip_looks(box)
    if whole := _WHOLE.fullmatch(plain):
        value, sign = _float(whole["value"] + whole["exponent"]), whole["sign"]
    elif fraction := _FRACTION.fullmatch(plain):
        above, below = (
            _float(fraction[braced] or fraction[bare]) for braced, bare in (("above", "first"), ("below", "second"))
        )
        value, sign = (above / below if below else math.nan), fraction["sign"]
    else:
        return None
    if not math.isfinite(value) or value > largest:
        return None
    return value if sign in ("", "+") else -value


class BoxedMatch:
    """1 where the answer's last box is the reference's (see the module), else 0; an answer without a box is wrong.

    A reference without a box is the answer itself, as in the `answer` column of many sets. Details: `boxed`, the
    share of answers with a box.
    """

    name = "boxed_match"
    higher_is_better = True
    settles_in_loops = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row.

        Raises:
            DataError: a reference is empty, or its last box is empty or not closed.
        """
        return [
            float(self._is_same(find_box(prediction), self._expected(reference, row)))
            for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True))
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns False: the last box counts, and another one may follow."""
        return False

    def details(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Returns `boxed`; NaN without rows."""
        boxed = [find_box(prediction) is not None for prediction in predictions]
        return {"boxed": sum(boxed) / len(boxed) if boxed else math.nan}

    def _expected(self, reference: str, row: int) -> str:
        expected = find_expected(reference)
        if expected is None:
            raise DataError(
                rf"boxed_match: the reference of row {row} must be an answer or end in \boxed{{answer}}, got "
                f"{reference[-NUM_QUOTED_CHARACTERS:]!r}. Correct the row, or drop boxed_match from evaluate.metrics."
            )
        return expected

    def _is_same(self, got: str | None, expected: str) -> bool:
        if got is None:
            return False
        number, right = read_number(got), read_number(expected)
        if number is not None and right is not None:
            return math.isclose(number, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
        return _strip_looks(got) == _strip_looks(expected)


def _strip_looks(latex: str) -> str:
    for pattern, to in _LOOKS:
        latex = pattern.sub(to, latex.strip())
    return latex


def _float(digits: str) -> float:
    return float(digits.replace(",", ""))
