r"""Answers in `\boxed{}`: which box counts, and which two are the same."""

from __future__ import annotations

import math

import pytest

from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import DataError
from qlora_ray.scoring.metrics.boxed import BoxedMatch, find_box, has_box, read_number
from qlora_ray.scoring.metrics.choice import resolve_metrics
from qlora_ray.scoring.metrics.metric import measure


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"The sum is $1+1=\boxed{2}$.", "2"),
        (r"First \boxed{1}, and then \boxed{2}.", "2"),
        (r"so $\boxed{\frac{\sqrt{3}}{2}}$ is {it}", r"\frac{\sqrt{3}}{2}"),
        # Braces that are printed need no partner.
        (r"$\boxed{\left\{ x \right.}$", r"\left\{ x \right."),
        # A line break has two backslashes, and leaves none for the brace behind it.
        (r"\boxed{\begin{pmatrix}1\\{2}\\3\end{pmatrix}} so", r"\begin{pmatrix}1\\{2}\\3\end{pmatrix}"),
        (r"\boxed{1\\\{2\\}", r"1\\\{2\\"),
        (r"\boxed{ 7 }", "7"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 5$ apples", "5"),
        (r"no box at all, \boxedup{4}", None),
        (r"\boxed{}", None),
        # The answer was cut: the box before is another step's.
        (r"\boxed{1} and finally \boxed{\frac{2", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box_counts_to_its_own_brace(text: str, box: str | None) -> None:
    assert find_box(text) == box


def test_a_box_that_holds_nothing_is_still_a_box() -> None:
    assert has_box(r"\boxed{\frac{2")
    assert not has_box("boxed {2}")


@pytest.mark.parametrize(
    ("box", "number"),
    [
        ("42", 42),
        ("-1,234.5", -1234.5),
        (r"1{,}000", 1000),
        (r"10,\!000", 10_000),
        (r"\$3.50", 3.5),
        (r"45\%", 45),
        (r"90^\circ", 90),
        (r"5\text{ cm}^2", 5),
        ("x = 7", 7),
        (".5", 0.5),
        ("3.", 3),
        ("2e3", 2000),
        (r"\frac{3}{4}", 0.75),
        (r"-\dfrac{1}{8}", -0.125),
        (r"\frac12", 0.5),
        ("3/4", 0.75),
        (r"\frac{1}{0}", None),
        (r"2\sqrt{3}", None),
        (r"3\frac{1}{2}", None),
        ("1,2", None),
        ("(1, 2)", None),
        ("x+1", None),
        ("7 or 8", None),
        (r"\text{no}", None),
        ("9" * 400, None),
    ],
)
def test_a_number_is_the_whole_box(box: str, number: float | None) -> None:
    assert read_number(box) == number


# The first six are what the comments of the benchmark's own `strip_string` say that it makes equal.
SAME = [
    (r"\frac12", r"\frac{1}{2}"),
    (r"\frac1b", r"\frac{1}{b}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    ("0.5", r"\frac{1}{2}"),
    (r"\sqrt3", r"\sqrt{3}"),
    ("k = 2", "2"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"\tfrac{\pi}{2}", r"\dfrac{\pi}{2}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\sqrt{2}\text{ inches}", r"\sqrt{2}"),
    ("1000", "1,000.0"),
    ("0.3333333333", r"\frac{1}{3}"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_answer_match(one: str, other: str) -> None:
    boxes = [rf"so $\boxed{{{one}}}$", rf"\boxed{{{other}}}."]
    assert BoxedMatch().score(boxes, boxes[::-1]) == [1, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2x+2", "2(x+1)"),
        ("0.33", r"\frac{1}{3}"),
        ("(1,2)", "(2,1)"),
        ("12", "1,2"),
        ("A", "a"),
        (r"\pi", "3.14159"),
        (r"\begin{pmatrix}1\\{2}\\3\end{pmatrix}", r"\begin{pmatrix}1\\{2}\\4\end{pmatrix}"),
    ],
)
def test_what_must_be_computed_or_differs_does_not_match(one: str, other: str) -> None:
    assert BoxedMatch().score([rf"\boxed{{{one}}}"], [rf"\boxed{{{other}}}"]) == [0]


def test_an_answer_without_a_box_is_wrong_and_a_reference_may_be_bare() -> None:
    measured = measure(BoxedMatch(), ["it is 72", r"\boxed{72}", r"\boxed{7"], ["72", "72", r"7\cdot1=\boxed{7}"])
    assert measured.row_scores == [0, 1, 0]
    assert measured.details == {"boxed": pytest.approx(1 / 3)}
    assert math.isnan(BoxedMatch().details([], [])["boxed"])


@pytest.mark.parametrize("reference", [" ", r"it is \boxed{}", r"it is \boxed{\frac{1"])
def test_a_reference_without_an_answer_is_a_data_error_that_names_its_row(reference: str) -> None:
    with pytest.raises(DataError, match="boxed_match: the reference of row 1 must be an answer"):
        BoxedMatch().score([r"\boxed{1}"] * 2, ["1", reference])


def names(references: list[str]) -> tuple[list[str], str]:
    metrics, reason = resolve_metrics(Evaluate(), trains_on_embedded=False, has_references=True, references=references)
    return [metric.name for metric in metrics], reason


def test_auto_reads_numbers_in_boxes_and_compares_other_boxes() -> None:
    numbers = [r"$1+1=\boxed{2}$", r"\boxed{\frac{1}{2}}", "no box: 3"]
    assert names(numbers)[0] == ["numeric_match", "absolute_error", "relative_error"]
    chosen, reason = names([*numbers, r"\boxed{x+1}"])
    assert chosen == ["boxed_match"] and "3 of 4 answers" in reason
    assert names(["a", "b", r"\boxed{x+1}"])[0] == ["exact_match"]


@pytest.mark.parametrize("unusable", [r"and so \boxed{\frac{1", r"\boxed{ }", "  "])
def test_auto_chooses_no_metric_that_one_of_the_references_is_refused_by(unusable: str) -> None:
    references = [*[r"so \boxed{x+1}"] * 99, unusable]
    chosen, reason = names(references)
    assert chosen == ["exact_match"]
    assert "not boxed_match: 1 of 100" in reason
