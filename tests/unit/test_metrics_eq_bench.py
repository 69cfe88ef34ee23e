"""Ratings of emotions are scored as EQ-Bench 2 scores them."""

from __future__ import annotations

import math
import random

import pytest

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import DataError
from qlora_ray.evaluation.prompt_sets.files import read_prompts
from qlora_ray.scoring.metrics.choice import resolve_metrics
from qlora_ray.scoring.metrics.eq_bench import EqBench, holds_ratings
from qlora_ray.scoring.metrics.metric import measure

NAMES = ("Relieved", "Guilty", "Bored", "Grateful")
REFERENCE = "Relieved: 10\nGuilty: 6\nBored: 0\nGrateful: 9"


def write_ratings(*ratings: int) -> str:
    return "\n".join(f"{name}: {rating}" for name, rating in zip(NAMES, ratings, strict=True))


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ((10, 6, 0, 9), (10, 6, 0, 9), 100),
        # Each 4 away, the middle of the sigmoid: 6.5 / 2 for each of four.
        ((6, 6, 4, 5), (10, 10, 8, 9), 10 * (10 - 0.7477 * 4 * 6.5 / 2)),
        # Above 5 a difference counts as it is.
        ((0, 0, 0, 0), (10, 6, 0, 7), 10 * (10 - 0.7477 * 23)),
        # 1 and 5 away: 6.5 / (1 + e^3.6) = 0.172881 and 6.5 / (1 + e^-1.2) = 4.995410.
        ((5, 5, 5, 5), (6, 10, 5, 5), 10 * (10 - 0.7477 * (0.172881 + 4.995410))),
        ((0, 0, 10, 0), (10, 10, 0, 10), 10 * (10 - 0.7477 * 40)),
    ],
)
def test_a_score_is_the_published_formulas(reference: tuple[int, ...], answer: tuple[int, ...], score: float) -> None:
    assert EqBench().score([write_ratings(*answer)], [write_ratings(*reference)]) == pytest.approx([score], abs=1e-3)


def test_random_ratings_get_about_nothing_on_the_shipped_prompts() -> None:
    # The benchmark's constant was chosen so; its own questions are others, so that ours are near it only.
    references = [row.reference or "" for row in read_prompts("eqbench")] * 200
    draw = random.Random(0)
    answers = [
        "\n".join(f"{line.split(':')[0]}: {draw.randint(0, 10)}" for line in text.splitlines()) for text in references
    ]
    assert abs(measure(EqBench(), answers, references).value) < 10


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "She is relieved.",
        "Relieved: 10\nGuilty: 6\nBored: 0",
        f"{REFERENCE}\nHappy: 3",
        REFERENCE.replace("Bored", "Angry"),
        REFERENCE.replace("9", "90"),
        REFERENCE.replace("9", "9" * 5000),
        f"{REFERENCE}\nRevised scores:\nRelieved: 10",
    ],
)
def test_an_answer_without_its_four_ratings_scores_nothing_and_is_counted(answer: str) -> None:
    measured = measure(EqBench(), [answer, REFERENCE], [REFERENCE, REFERENCE])
    assert measured.row_scores == [0, 100]
    assert measured.details == {"parseable": 0.5}


def test_revised_ratings_count_where_there_are_some() -> None:
    first = write_ratings(0, 0, 10, 0)
    asked = f"First pass scores:\n{first}\n\nCritique: too harsh.\n\nRevised scores:\n{REFERENCE}\n[End of answer]"
    assert EqBench().score([asked, f"First pass scores:\n{REFERENCE}"], [REFERENCE] * 2) == [100, 100]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (REFERENCE, True),
        (f"\n{REFERENCE}\n", True),
        (f"{REFERENCE}\nSad: 1", False),
        (REFERENCE.replace("10", "11"), False),
        (REFERENCE.replace("Guilty", "Relieved"), False),
        (f"Here they are:\n{REFERENCE}", False),
        ("", False),
    ],
)
def test_what_holds_ratings_is_known_and_what_does_not_is_no_reference(text: str, holds: bool) -> None:
    assert holds_ratings(text) is holds
    metrics, _ = resolve_metrics(
        Evaluate(), trains_on_embedded=False, has_references=True, references=[text, REFERENCE]
    )
    assert [metric.name for metric in metrics] == (["eq_bench"] if holds else ["exact_match"])
    if not holds:
        with pytest.raises(DataError, match="eq_bench: a reference must be 4 lines like 'Relieved: 6'"):
            EqBench().score([REFERENCE], [text])


def test_no_answers_have_no_share_of_parseable_ones() -> None:
    assert math.isnan(EqBench().details([], [])["parseable"])
