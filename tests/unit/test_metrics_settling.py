"""What a metric calls settled keeps its score, and its details, whatever the answer goes on to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.scoring.metrics.boxed import BoxedMatch
from qlora_ray.scoring.metrics.execution import SqlExecution, SqlValid
from qlora_ray.scoring.metrics.metric import Detailing, Settling, measure
from qlora_ray.scoring.metrics.numeric import AbsoluteError, NumericMatch, RelativeError
from qlora_ray.scoring.metrics.text import ExactMatch, NormalizedMatch, TokenF1
from tests.unit.evaluation_fixtures import make_database

# Answers of small models to a question, the right one first, as they come when nothing ends them.
SQL_ANSWERS = [
    "SELECT name FROM products WHERE stock > 2;",
    "SELECT name FROM products WHERE stock > 2; SELECT name FROM products WHERE stock > 2; SELECT",
    "SELECT name FROM products WHERE stock > 2\n\nQuestion: Which products are sold out?\nSELECT name FROM products",
    "```sql\nSELECT name FROM products WHERE stock > 2;\n```\nThis query selects the names of all products.",
    "To find the names of all products with a stock above 2, you can use the following query: SELECT name",
    "SELECT name, name, name, name, name, name, name, name, name, name, name, name, name, name FROM products",
    "SELECT name FROM products WHERE name = 'it''s; it' AND note IS NULL",
]
NUMERIC_ANSWERS = [
    "3 + 4 = 7\n#### 7",
    "3 + 4 = 7\n#### 7\n\nQuestion: Tim has 5 apples and eats 2. How many are left?\n5 - 2 = 3\n#### 3",
    "#### Step 1\nWe add 3 and 4.\n#### Step 2\n3 + 4 = 7\n#### 1,007.50 dollars in all, or so it seems.",
    "The answer is 7. The answer is 7. The answer is 7. The answer is 7. The answer is 12.",
    r"So we have \boxed{7} and then \boxed{8}, which is #### 9 as it was before, and more.",
    "#### 1111111111111111111111111111111111111 #### 7 and some more words at the end of it",
]
GOES_ON = [
    "",
    " ",
    ";",
    "\n",
    "7",
    ",000",
    ".5",
    "e5",
    " #### 5",
    r" \boxed{3}",
    "; SELECT 1",
    " -- end",
    "'",
    " UNION x",
]


def make_metrics(folder: Path) -> list[tuple[Any, list[str], str]]:
    sql = SqlExecution(make_database(folder / "shop.sqlite"))
    return [
        (ExactMatch(), SQL_ANSWERS, SQL_ANSWERS[0]),
        (sql, SQL_ANSWERS, SQL_ANSWERS[0]),
        (SqlValid(sql), SQL_ANSWERS, SQL_ANSWERS[0]),
        *((metric, NUMERIC_ANSWERS, "#### 7") for metric in (NumericMatch(), AbsoluteError(), RelativeError())),
        (BoxedMatch(), NUMERIC_ANSWERS, "7"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_settled_score_stays_whatever_follows(number: int, tmp_path: Path) -> None:
    metric, answers, reference = make_metrics(tmp_path)[number]
    assert isinstance(metric, Settling)
    num_settled = 0
    for answer in answers:
        beginnings = [answer[:end].strip() for end in range(1, len(answer) + 1)]
        settled = next((text for text in beginnings if metric.is_settled(text, reference)), None)
        if settled is None:
            continue
        num_settled += 1
        rest = answer[len(settled) :]
        texts = [settled, answer, *(settled + more + rest for more in GOES_ON), *(settled + more for more in GOES_ON)]
        found = measure(metric, texts, [reference] * len(texts))
        assert len({str(score) for score in found.row_scores}) == 1, (settled, found.row_scores)
        if isinstance(metric, Detailing):
            details = {str(metric.details([text], [reference])) for text in texts}
            assert len(details) == 1, (settled, details)
    assert num_settled >= {"boxed_match": 0, "exact_match": 6, "sql_execution": 4, "sql_valid": 4}.get(metric.name, 3)


def test_the_right_answer_and_its_beginnings_are_never_settled_as_long_as_they_may_turn_wrong(tmp_path: Path) -> None:
    for metric, _, reference in make_metrics(tmp_path)[:3]:
        assert not any(metric.is_settled(reference[:end], reference) for end in range(len(reference) + 1))


@pytest.mark.parametrize("metric", [TokenF1(), NormalizedMatch()])
def test_metrics_of_all_words_say_nothing_so_that_they_see_whole_answers(metric: Any) -> None:
    assert not isinstance(metric, Settling)
