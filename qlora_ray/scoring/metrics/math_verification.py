r"""Answers in mathematics that are equal as mathematics, by Hugging Face's math-verify (the extra `metrics`).

`2x+2` is `2(x+1)` here, `\frac{1}{2}` is 0.5, and sets and intervals are compared as such. What the answer is, the
library finds: a box before other LaTeX, LaTeX before plain numbers.

It computes with sympy, which a text that nobody has read can keep busy for hours (`9^{9^{9^9}}`), in C code that no
signal ends. So it runs in a process of its own (math_judge.py), which ends itself where a pair takes too long: that
answer is wrong, and another process takes the rest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics import math_judge
from qlora_ray.scoring.metrics.boxed import has_box

# Of a reference in an error message.
NUM_QUOTED_CHARACTERS = 60


class MathVerify:
    """1 where the answer equals the reference (see the module), else 0; one without anything to compare is wrong.

    A reference without a box and without LaTeX's dollar signs is the answer itself, as in the `answer` column of many
    sets.
    """

    name = "math_verify"
    higher_is_better = True
    settles_in_loops = True

    def __init__(self) -> None:
        self._outcomes: dict[tuple[str, str], str] = {}

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row.

        Raises:
            DataError: a reference holds nothing that can be compared.
        """
        pairs = [
            (_as_latex(reference), prediction) for prediction, reference in zip(predictions, references, strict=True)
        ]
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._outcomes]
        self._outcomes |= dict(zip(new, judge_pairs(new), strict=True))
        outcomes = [self._outcomes[pair] for pair in pairs]
        if math_judge.UNREADABLE in outcomes:
            row = outcomes.index(math_judge.UNREADABLE)
            raise DataError(
                f"math_verify: the reference of row {row} must be a number or LaTeX that math-verify reads, got "
                f"{references[row][-NUM_QUOTED_CHARACTERS:]!r}. Correct the row, or drop math_verify from "
                "evaluate.metrics."
            )
        return [float(outcome == math_judge.EQUAL) for outcome in outcomes]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns False: the last of what can be compared counts, and more may follow."""
        return False


def judge_pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Returns for each reference and answer which of math_judge's words holds."""
    outcomes: list[str] = []
    while len(outcomes) < len(pairs):
        # -P: files beside the script are not modules of other packages.
        done = subprocess.run(
            [sys.executable, "-P", math_judge.__file__],
            input=json.dumps(pairs[len(outcomes) :]),
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        found = done.stdout.split()
        if not found and math_judge.STARTED not in done.stderr:
            raise RuntimeError(f"math-verify does not start: {done.stderr.strip()[-500:]}")
        outcomes += found
        if len(outcomes) < len(pairs):
            outcomes.append(math_judge.DIFFERENT)
    return outcomes


def _as_latex(reference: str) -> str:
    is_found_as_it_is = has_box(reference) or any(mark in reference for mark in ("$", r"\(", r"\["))
    return reference if is_found_as_it_is else rf"\boxed{{{reference}}}"
