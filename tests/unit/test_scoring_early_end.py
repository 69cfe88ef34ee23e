from __future__ import annotations

from collections.abc import Sequence

import pytest

from qlora_ray.scoring.early_end import MIN_LOOP_TOKENS, EarlyEnd, find_loop, make_early_end, measure_repeat
from qlora_ray.scoring.metrics.boxed import BoxedMatch
from qlora_ray.scoring.metrics.text import ExactMatch, TokenF1
from tests.unit.evaluation_fixtures import make_tokenizer


def encode(text: str) -> list[int]:
    """A token per byte."""
    ids: list[int] = make_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return ids


def make_end(metrics: Sequence[object], references: Sequence[str], *, is_greedy: bool = True) -> EarlyEnd | None:
    return make_early_end(list(metrics), references, tokenizer=make_tokenizer(), is_greedy=is_greedy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("The answer: " + "0" * 32, 1),
        ("0" * 31, None),
        ("Say " + "it again, " * 4, 10),
        ("Say " + "it again, " * 4 + "it ag", 10),
        # Three times, but shorter than 32 tokens; and long, but only twice.
        ("Say " + "it again, " * 3, None),
        ("This sentence is one of forty characters." * 2, None),
        ("ab" * 20 + "c", None),
    ],
)
def test_a_loop_is_what_comes_three_times_and_over_many_tokens_up_to_the_end(text: str, period: int | None) -> None:
    assert find_loop(encode(text), min_tokens=MIN_LOOP_TOKENS) == period


@pytest.mark.parametrize(
    ("text", "num_tokens"), [("", 0), ("abab", 0), ("ababab", 6), ("xx abcabcabca yy", 10), ("sum 1 + 1 + 1 + 2", 13)]
)
def test_how_long_a_reference_repeats_itself_is_measured_anywhere_in_it(text: str, num_tokens: int) -> None:
    assert measure_repeat(encode(text)) == num_tokens


def test_a_loop_is_cut_where_the_whole_answer_would_have_been_cut_in_it() -> None:
    end = make_end([BoxedMatch()], ["7"])
    assert end is not None
    whole = encode("Well. " + "again and " * 30)[:100]
    for num_tokens in range(50, 70):
        reason, kept = end.find(0, whole[:num_tokens], max_new_tokens=len(whole)) or (None, 0)
        assert reason == "loop" and num_tokens - 10 < kept <= num_tokens
        assert whole[:kept][-30:] == whole[-30:]


def test_an_answer_may_repeat_itself_twice_as_long_as_a_reference_does() -> None:
    end = make_end([BoxedMatch()], ["7", "5 + " * 10])
    assert end is not None
    assert end.find(0, encode("5 + " * 19), max_new_tokens=500) is None
    assert end.find(0, encode("5 + " * 20), max_new_tokens=500) == ("loop", 80)


def test_sampled_answers_leave_loops_and_are_not_ended_in_them() -> None:
    end = make_end([BoxedMatch()], ["7"], is_greedy=False)
    assert end is not None and end.find(0, encode("0" * 64), max_new_tokens=100) is None


def test_an_answer_ends_where_it_is_wrong_already_but_not_by_its_last_characters() -> None:
    end = make_end([ExactMatch()], ["SELECT 1", "SELECT name FROM t"])
    assert end is not None
    answer = encode("SELECT name FROM t")
    assert end.find(1, answer, max_new_tokens=100) is None
    # "SELECT na" is not "SELECT 1", and eight characters behind the first difference are not looked at.
    assert end.find(0, answer[:15], max_new_tokens=100) is None
    assert end.find(0, answer[:17], max_new_tokens=100) == ("settled", 17)


def test_an_answer_that_is_wrong_already_goes_on_for_as_long_as_its_reference() -> None:
    end = make_end([ExactMatch()], ["SELECT name FROM t WHERE a = 1"])
    answer = encode("To find the names, you can use the following query")
    assert end is not None and end.find(0, answer[:29], max_new_tokens=100) is None
    assert end.find(0, answer[:30], max_new_tokens=100) == ("settled", 30)


class Words:
    name = "words"
    higher_is_better = True

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [float(len(text.split())) for text in predictions]


@pytest.mark.parametrize("metrics", [[], [Words()], [ExactMatch(), Words()], [ExactMatch(), TokenF1()]])
def test_where_a_metric_looks_at_whole_answers_none_is_ended_early(metrics: list[object]) -> None:
    assert make_end(metrics, ["7"]) is None
