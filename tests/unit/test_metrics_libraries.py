"""rouge and math_verify against published examples, and the message where a library is missing."""

from __future__ import annotations

import importlib.util
import math

import pytest

from qlora_ray.config.choices import METRICS
from qlora_ray.config.schema import Evaluate
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.scoring.metrics import math_judge
from qlora_ray.scoring.metrics.choice import resolve_metrics
from qlora_ray.scoring.metrics.math_verification import MathVerify, judge_pairs
from qlora_ray.scoring.metrics.metric import Settling, measure
from qlora_ray.scoring.metrics.rouge import Rouge


def test_rouge_is_that_of_lins_paper() -> None:
    # Lin 2004, section 3.1: S1 is the reference, S2 and S3 the candidates. All have four words.
    reference = ["police killed the gunman"] * 2
    candidates = ["police kill the gunman", "the gunman kill police"]
    scored = {metric.name: metric for metric in [Rouge(), *Rouge().companions()]}
    assert list(scored) == ["rougeL", "rouge1", "rouge2", "rougeLsum"]
    assert scored["rougeL"].score(candidates, reference) == [3 / 4, 2 / 4]
    assert scored["rouge2"].score(candidates, reference) == pytest.approx([1 / 3, 1 / 3])
    assert scored["rouge1"].score(candidates, reference) == [3 / 4, 3 / 4]


def test_rouge_lsum_goes_by_lines_and_rouge_l_does_not() -> None:
    # Lin 2004, section 3.2: the union of common subsequences with each line of the candidate is w1 w2 w3 w5.
    reference, candidate = "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"
    recall, precision = 4 / 5, 4 / 10
    assert Rouge("rougeLsum").score([candidate], [reference]) == pytest.approx(
        [2 * precision * recall / (precision + recall)]
    )
    assert Rouge().score([candidate], [reference]) == pytest.approx([2 * 4 / 15])


def test_a_reference_in_another_script_has_no_rouge_and_is_an_error_where_all_are() -> None:
    found = measure(Rouge(), ["one two", "one"], ["одна", "one"])
    assert math.isnan(found.row_scores[0]) and found.value == 1
    with pytest.raises(DataError, match="rouge: references must have words of the letters a to z or digits"):
        Rouge().score(["one"], ["одна"])
    assert not isinstance(Rouge(), Settling)


# The first is the README's own example; the others are what its text says that is compared, and boxed_match is not.
EQUAL = [
    (r"${1,3} \cup {2,4}$", "${1,2,3,4}$"),
    ("2(x+1)", r"so it is \boxed{2x+2}"),
    ("0.5", r"The answer is $\frac{1}{2}$."),
    (r"\frac{1}{2}", r"\boxed{\dfrac12}"),
    ("7", "first 3, so the answer is 7."),
    (r"A long way. \boxed{(1, 2)}", "$(1,2)$"),
]
DIFFERENT = [("2(x+1)", r"\boxed{2x+1}"), ("$[0,1)$", r"\boxed{[0,1]}"), ("7", "no number"), ("7", "")]


@pytest.mark.slow  # Starts a process that imports sympy.
def test_what_is_equal_as_mathematics_is_right() -> None:
    pairs = [*EQUAL, *DIFFERENT]
    references, predictions = zip(*pairs, strict=True)
    assert MathVerify().score(predictions, references) == [1.0] * len(EQUAL) + [0.0] * len(DIFFERENT)
    with pytest.raises(DataError, match="math_verify: the reference of row 1 must be a number or LaTeX"):
        MathVerify().score(["7", "7"], ["7", ""])


@pytest.mark.slow
def test_an_answer_that_ends_the_process_is_wrong_and_the_others_are_judged() -> None:
    tower = r"\boxed{" + "9^{" * 6 + "9" + "}" * 6 + "}"
    assert judge_pairs([("7", tower), ("7", "7"), ("7", "\\boxed{" + "(" * 3000), ("7", "7")]) == [
        math_judge.DIFFERENT,
        math_judge.EQUAL,
        math_judge.DIFFERENT,
        math_judge.EQUAL,
    ]


@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if entry.library])
def test_a_missing_library_is_one_line_that_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(
        ConfigError, match=rf'{name} needs {METRICS[name].library}, .*pip install "qlora_ray\[metrics\]"'
    ):
        resolve_metrics(Evaluate(metrics=[name]), trains_on_embedded=False, has_references=True)
