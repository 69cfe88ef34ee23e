"""Metrics that compare texts: exact_match, and two of short answers in plain language by the rules of SQuAD v1.1.

Source of those two: Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, 2016, section 6.1,
and the authors' evaluate-v1.1.py, which decides where the paper is silent. The script takes the best of several
references, which `metric.measure` does for every metric.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from qlora_ray.scoring.metrics.metric import Metric

_ARTICLE = re.compile(r"\b(a|an|the)\b")
# ASCII only, as in the script: typographic quotes and dashes stay.
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without punctuation and articles, words one space apart."""
    # The order counts: "a.m." loses its dots before articles are looked for, and stays "am".
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


class ExactMatch:
    """1 where the answer is the reference but for runs of white space and final semicolons, else 0.

    Case counts: it is part of literals ('USA'), and an adapter should learn the case of its data. White space inside
    literals is collapsed like any other.
    """

    name = "exact_match"
    higher_is_better = True
    settles_in_loops = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [
            float(_collapse(prediction) == _collapse(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]

    def is_settled(self, prediction: str, reference: str) -> bool:
        """Returns whether it is wrong already: the reference begins otherwise, or has ended before."""
        begun, expected = " ".join(prediction.split()), _collapse(reference)
        if len(begun) <= len(expected):
            return not expected.startswith(begun)
        return not begun.startswith(expected) or bool(begun[len(expected) :].strip("; "))


class TokenF1:
    """Harmonic mean of precision and recall of the answer's words, a word counting as often as both have it.

    As in v1.1 of the script, 0 where the two share no word, even if both have none left after normalization.
    """

    name = "token_f1"
    higher_is_better = True

    def companions(self) -> list[Metric]:
        """Returns normalized_match, SQuAD's other measure."""
        return [NormalizedMatch()]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 0 to 1 per row."""
        return [
            _f1(normalize_answer(prediction).split(), normalize_answer(reference).split())
            for prediction, reference in zip(predictions, references, strict=True)
        ]


class NormalizedMatch:
    """1 where answer and reference are the same after normalization, else 0: SQuAD's exact match."""

    name = "normalized_match"
    higher_is_better = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 1.0 or 0.0 per row."""
        return [
            float(normalize_answer(prediction) == normalize_answer(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]


def _collapse(text: str) -> str:
    return " ".join(text.split()).rstrip("; ")


def _f1(predicted: list[str], expected: list[str]) -> float:
    num_same = (Counter(predicted) & Counter(expected)).total()
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted), num_same / len(expected)
    return 2 * precision * recall / (precision + recall)
