"""ROUGE, for summaries and other free text, by Google Research's rouge-score (the extra `metrics`).

Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004. Each is an F-measure, and words are not
stemmed, as in Hugging Face's `evaluate`. The library's words are runs of a-z and 0-9 in lower case: texts in other
scripts have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics.metric import Metric

# By the metric's name, which is the library's too.
TYPES = ("rougeL", "rouge1", "rouge2", "rougeLsum")
# Of a reference in an error message.
NUM_QUOTED_CHARACTERS = 60


class Rouge:
    """F-measure of what answer and reference share, 0 to 1; NaN where the reference has no word.

    Args:
        kind: `rougeL` (longest common subsequence of words), `rouge1`, `rouge2` (words, pairs of words), or `rougeLsum`
            (rougeL line by line).
    """

    higher_is_better = True

    def __init__(self, kind: str = TYPES[0]) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self.name = kind
        self._scorer = RougeScorer([kind])

    def companions(self) -> list[Metric]:
        """Returns the other three."""
        return [Rouge(kind) for kind in TYPES if kind != self.name]

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns 0 to 1 per row.

        Raises:
            DataError: no reference has a word.
        """
        from rouge_score.tokenize import tokenize

        has_words = [bool(tokenize(reference, None)) for reference in references]
        if references and not any(has_words):
            raise DataError(
                "rouge: references must have words of the letters a to z or digits, which are all that rouge-score "
                f"reads, got {references[0][:NUM_QUOTED_CHARACTERS]!r}. Drop rouge from evaluate.metrics."
            )
        return [
            float(self._scorer.score(reference, prediction)[self.name].fmeasure) if scored else math.nan
            for prediction, reference, scored in zip(predictions, references, has_words, strict=True)
        ]
