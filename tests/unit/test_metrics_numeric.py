from __future__ import annotations

import math
import re

import pytest

from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics.metric import measure
from qlora_ray.scoring.metrics.numeric import AbsoluteError, NumericMatch, RelativeError, find_number, marks_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        # Ends of answers as GSM8K has them: its grader takes what follows ####, without commas.
        ("Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72", 72),
        ("Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10", 10),
        ("the property costs 98*3400 = $<<98*3400=333200.00>>333,200.00\n#### 333,200", 333_200),
        ("He is 2 levels below ground.\n#### -2", -2),
        ("#### 18\n\nQuestion: how many are 3 and 4?\n#### 7", 18),
        ("#### $1,000.50.", 1000.5),
        # A heading is no marker of an answer: the grader's own search passes it over.
        ("#### Step 1: count\n3*4=12\n#### 12", 12),
        ("##### Solution\nso 12\n##### 12", 12),
        # The marker promises a number right after it.
        ("There are 12 of them.\n#### none of the 12", None),
        ("#### Step 1\n12\n####", None),
    ],
)
def test_gsm8k_answers_are_read_as_its_grader_reads_them(text: str, number: float | None) -> None:
    assert find_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"There are 3 of 4, so $\frac{3}{4}=\boxed{\frac{3}{4}}$ of 80.", 0.75),
        (r"\boxed{12} at first, and \boxed{1{,}200\text{ g}} in all: 5 times more.", 1200),
        (r"The price is $5, so \boxed{10}", 10),
        (r"\boxed{5}\n#### 6", 6),
        # The box promises to be the answer.
        (r"with 3 of them, \boxed{x+3}", None),
        (r"\boxed{3} and \boxed{4", None),
    ],
)
def test_a_box_is_the_answer_and_a_number_only_as_a_whole(text: str, number: float | None) -> None:
    assert find_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Price is $89.99", 89.99),
        ("How much does it cost? PRICE IS $1,234.50.", 1234.5),
        ("Price is $89.99\n\nTitle: 12 spoons, 2022 edition. Price is $12.00", 89.99),
        ("price: 5 for 3 of them", 5.0),
        # A sum that starts with a price is no price.
        ("the new price is $220 + $33 = $253", 253.0),
        ("The price is what 40 others pay", 40.0),
    ],
)
def test_the_price_is_what_follows_its_name(text: str, number: float) -> None:
    assert find_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 3, then 4, so 7.", 7),
        ("-5", -5),
        ("it fell by \u22127", -7),
        ("-$5", -5),
        ("$-5", -5),
        ("+5", 5),
        ("10-5", 5),
        ("(3)-5", 5),
        ("- 5 apples", 5),
        ("1,234,567.89", 1_234_567.89),
        ("1,2,3", 3),
        ("1,2345", 2345),
        ("£ 12", 12),
        (".5", 0.5),
        ("3.", 3),
        ("45%", 45),
        ("1e5", 100_000),
        ("2.5E-3 m", 0.0025),
        ("20th", 20),
        ("the year 2024", 2024),
        ("Qwen2 has it", None),
        ("x5.12", None),
        ("no idea", None),
        ("", None),
        # Too large for a float.
        ("9" * 400, None),
        ("7 or 1e999", 7),
    ],
)
def test_else_the_last_number_counts(text: str, number: float | None) -> None:
    assert find_number(text) == number


@pytest.mark.parametrize("text", ["#### Step 1\n#### 5\n#### 6", "a\n#### 7", "#### 1,000 #### 2", "#### x #### -3"])
def test_headings_and_answers_are_told_apart_as_by_gsm8ks_own_search(text: str) -> None:
    # ANS_RE of openai/grade-school-math, grade_school_math/dataset.py.
    found = re.search(r"#### (\-?[0-9\.\,]+)", text)
    assert found is not None
    assert find_number(text) == float(found[1].replace(",", ""))


@pytest.mark.parametrize(
    ("texts", "is_marked"),
    [
        (["4\n#### 9", "Price is $9.99", "price: 3", "#### Step 1\n#### 9", "#### A. Price is $9", r"\boxed{9}"], True),
        (["9", r"\boxed{x}", "####", "#### none", "The price is high", "SELECT price FROM t"], False),
    ],
)
def test_an_answer_is_marked_where_it_says_which_number_it_is(texts: list[str], is_marked: bool) -> None:
    assert [marks_number(text) for text in texts] == [is_marked] * 6


def test_a_number_within_rounding_matches_and_a_missing_one_is_wrong() -> None:
    predictions = ["#### 72", "it is 72.00001", "72.1", "who knows", "0", "1e-12", "0.001"]
    references = ["#### 72", "#### 72", "#### 72", "#### 72", "0", "0", "0"]
    assert NumericMatch().score(predictions, references) == [1, 1, 0, 0, 1, 1, 0]


def test_errors_are_in_the_references_unit_and_in_parts_of_it() -> None:
    predictions, references = ["Price is $110", "$80", "free", "3", "-90"], ["100", "100", "100", "0", "-100"]
    assert AbsoluteError().score(predictions, references) == pytest.approx([10, 20, math.nan, 3, 10], nan_ok=True)
    assert RelativeError().score(predictions, references) == pytest.approx(
        [0.1, 0.2, math.nan, math.nan, 0.1], nan_ok=True
    )


def test_r_squared_and_mean_error_are_those_of_scikit_learns_own_example() -> None:
    # scikit-learn's help of r2_score and mean_absolute_error, both on these four rows: 0.948... and 0.5.
    references, predictions = ["3", "-0.5", "2", "7"], ["2.5", "0.0", "2", "8"]
    assert NumericMatch().details(predictions, references)["r_squared"] == pytest.approx(0.9486081370449679)
    assert measure(AbsoluteError(), predictions, references).value == 0.5


def test_answers_without_a_number_lower_the_match_but_not_the_errors() -> None:
    predictions, references = ["10", "none", "20", "40"], ["10", "10", "20", "30"]
    match = measure(NumericMatch(), predictions, references)
    assert match.value == 0.5
    assert match.details["answered"] == 0.75
    # Over 10, 20 and 30: the errors' squares are 100, and those around the mean 200.
    assert match.details["r_squared"] == pytest.approx(0.5)
    assert measure(AbsoluteError(), predictions, references).value == pytest.approx(10 / 3)
    assert measure(RelativeError(), predictions, references).value == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("predictions", "references"), [([], []), (["5"], ["5"]), (["5", "6"], ["5", "5"]), (["none", "none"], ["1", "2"])]
)
def test_r_squared_of_rows_that_do_not_vary_is_none(predictions: list[str], references: list[str]) -> None:
    assert math.isnan(NumericMatch().details(predictions, references)["r_squared"])


@pytest.mark.parametrize("loop", ["1" * 309, "#### " + "9" * 16, "Price is $" + "7" * 40, "-1e300"])
def test_digits_in_a_loop_are_no_answer(loop: str) -> None:
    predictions, references = [loop, "3"], ["1", "2"]
    assert NumericMatch().details(predictions, references)["answered"] == 0.5
    assert measure(AbsoluteError(), predictions, references).value == 1


def test_an_answer_may_be_as_large_as_its_reference() -> None:
    predictions, references = ["1e300", "6e15", "1e16"], ["2e300", "6e15", "1"]
    assert NumericMatch().score(predictions, references) == [0, 1, 0]
    assert AbsoluteError().score(predictions, references) == pytest.approx([1e300, 0, math.nan], nan_ok=True)
    assert NumericMatch().details(["1e300", "0"], ["2e300", "0"])["answered"] == 1.0


@pytest.mark.parametrize("metric", [NumericMatch(), AbsoluteError(), RelativeError()])
def test_a_reference_without_a_number_is_a_data_error_that_names_its_row(metric: NumericMatch) -> None:
    with pytest.raises(DataError, match=r"of row 1 must hold a number, got 'SELECT a'.*drop num"):
        measure(metric, ["1", "2"], ["1", "SELECT a"])
