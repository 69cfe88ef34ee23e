from __future__ import annotations

import pytest

from qlora_ray.scoring.metrics.text import NormalizedMatch, TokenF1, normalize_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        # evaluate-v1.1.py, step by step: lower case, no string.punctuation, \b(a|an|the)\b to a space, one space.
        ("The Denver Broncos", "denver broncos"),
        ("Levi's Stadium!", "levis stadium"),
        ("  a  cat\tand\nan owl ", "cat and owl"),
        ("theory of an anthill", "theory of anthill"),
        ("U.S.A.", "usa"),
        ("10:30 a.m.", "1030 am"),
        ("vitamin A", "vitamin"),
        ("well-known", "wellknown"),
        # A dash and quotes outside ASCII are no punctuation to the script.
        ("1914–1918", "1914–1918"),
        ("“the” end", "“ ” end"),
        ("...", ""),
    ],
)
def test_answers_are_normalized_as_squads_script_does(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "reference", "f1", "match"),
    [
        # SQuAD v1.1 dev, Super_Bowl_50: answers of annotators to "Where did Super Bowl 50 take place?" and to
        # "Which NFL team represented the AFC at Super Bowl 50?", held against each other; F1 worked out by hand.
        ("Santa Clara, California", "santa clara california.", 1.0, 1.0),
        (
            "Santa Clara, California",
            "Levi's Stadium in the San Francisco Bay Area at Santa Clara, California.",
            # 3 of 3 words are right, and 3 of the reference's 11.
            2 * (3 / 3) * (3 / 11) / (3 / 3 + 3 / 11),
            0.0,
        ),
        ("Levi's Stadium", "Santa Clara, California", 0.0, 0.0),
        ("the Denver Broncos", "Denver Broncos", 1.0, 1.0),
        ("Broncos", "Denver Broncos", 2 / 3, 0.0),
        # A word counts as often as both have it, in any order.
        ("gold gold gold", "gold and gold", 2 * (2 / 3) * (2 / 3) / (4 / 3), 0.0),
        ("Broncos Denver", "Denver Broncos", 1.0, 0.0),
        ("", "Denver Broncos", 0.0, 0.0),
        # v1.1 gives two answers without words a match, but no F1; v2.0 gives both.
        ("the", "a", 0.0, 1.0),
    ],
)
def test_f1_and_match_are_those_of_squad(prediction: str, reference: str, f1: float, match: float) -> None:
    assert TokenF1().score([prediction], [reference]) == [pytest.approx(f1)]
    assert TokenF1().score([reference], [prediction]) == [pytest.approx(f1)]
    assert NormalizedMatch().score([prediction], [reference]) == [match]
