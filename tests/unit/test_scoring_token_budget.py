"""How long answers may be, what does not fit, and when cut answers weaken a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_ray.config.schema import Data
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from qlora_ray.scoring.token_budget import (
    MAX_NEW_TOKENS,
    TokenBudget,
    count_reference_tokens,
    find_limit,
    measure_token_budget,
    resolve_max_new_tokens,
)
from qlora_ray.scoring.verdict import describe_cuts, describe_limits
from tests.unit.evaluation_fixtures import make_split, make_tokenizer, with_columns


@pytest.mark.parametrize(
    ("reference_tokens", "expected"),
    [
        ([78, 20], 104),  # 78 * 1.25 = 97.5, in eights
        ([96], 120),  # 96 * 1.25 = 120, an eight already
        ([97], 128),  # 121.25
        ([2], 16),
        ([409], 512),  # 511.25
        ([700, 3], 512),
        ([], 256),
    ],
)
def test_auto_is_the_longest_reference_and_a_quarter_more_in_eights(reference_tokens: list[int], expected: int) -> None:
    assert resolve_max_new_tokens("auto", reference_tokens) == expected
    assert resolve_max_new_tokens(7, reference_tokens) == 7


def test_the_most_that_auto_gives_is_what_a_training_row_may_have() -> None:
    assert Data().max_length == MAX_NEW_TOKENS


def test_references_are_counted_with_their_end_token_and_what_a_template_adds() -> None:
    # A token per byte: six and an end; a row of whose answer five tokens are left; one with thoughts before its answer.
    split = with_columns(make_split([(4, 7), (4, 5), (4, 11)]), references=["SELECT", "SELECT 1", "é"])
    assert count_reference_tokens(split, tokenizer=make_tokenizer()) == [7, 9, 11]
    assert count_reference_tokens(split, tokenizer=make_tokenizer(), num_rows=1) == [7]
    assert count_reference_tokens(make_split([]), tokenizer=make_tokenizer()) == []


def test_a_budget_counts_what_is_cut_and_says_it() -> None:
    prompts = [[5] * 40, [5] * 30, [5] * 3]
    budget = measure_token_budget(prompts, max_new_tokens=8, limit=34, reference_tokens=[8, 9, 20])
    assert budget == TokenBudget(8, num_cut_prompts=1, num_short_answers=1, num_references=3, num_long_references=2)
    long, cut, short = budget.notes("test")
    assert "2 of 3 references" in long and "evaluate.max_new_tokens (8)" in long
    assert "1 prompts" in cut and "evaluate.max_length" in cut
    assert "1 answers had fewer than 8 tokens" in short
    assert measure_token_budget(prompts, max_new_tokens=20, limit=None, reference_tokens=[20]).notes("test") == []


@pytest.mark.parametrize(
    ("positions", "max_length", "expected"),
    [(64, None, 64), (64, 32, 32), (64, 99, 64), (None, 9, 9), (None, None, None)],
)
def test_the_smaller_limit_counts(positions: int | None, max_length: int | None, expected: int | None) -> None:
    assert find_limit(positions, max_length) == expected


def scores(num_cut: int, *, num_long: int = 0, num_answers: int = 100, **changes: Any) -> Scores:
    answers = [ScoredAnswer(row, "", "") for row in range(num_answers)]
    values = {"num_cut_prompts": 0, "num_short_answers": 0, **changes}
    return Scores(
        1.0, 10, 10, {}, {}, answers, **values, num_cut_answers=num_cut, num_long_references=num_long, max_new_tokens=96
    )


@pytest.mark.parametrize(
    ("base", "tuned", "has_references", "facts"),
    [
        (
            scores(100, num_long=87),
            scores(52, num_long=87),
            True,
            ["52 of 100", "at 96 tokens (base: 100)", "87 references are longer", "raise evaluate.max_new_tokens"],
        ),
        (scores(0), scores(52), True, ["52 of 100", "(base: 0)", "no reference is longer"]),
        # A base that never stops matters only where references are longer.
        (scores(100), scores(0), True, []),
        (scores(100, num_long=3), scores(0, num_long=3), True, ["0 of 100", "(base: 100)", "raise"]),
        # A twentieth of the answers is worth a note.
        (scores(0), scores(4), True, []),
        (scores(0), scores(5), True, ["5 of 100", "no reference is longer"]),
        (scores(0, num_answers=0), scores(0, num_answers=0), True, []),
        (scores(100), scores(100), False, ["100 of 100", "raise evaluate.max_new_tokens if"]),
        # It had no more positions to spend: raising the limit would not help.
        (scores(0), scores(9, num_short_answers=9), True, ["9 of 100", "96 tokens or fewer (base: 0)"]),
    ],
)
def test_cut_answers_are_told_with_the_bases_where_they_weaken_a_verdict(
    base: Scores, tuned: Scores, has_references: bool, facts: list[str]
) -> None:
    told = describe_cuts(base, tuned, tuned_name="adapter", has_references=has_references)
    assert (told is None) == (not facts)
    assert [fact for fact in facts if fact not in str(told)] == []
    for advice in ("raise", "no reference is longer"):
        assert (advice in str(told)) == any(advice in fact for fact in facts)
    assert has_references or "reference" not in str(told)


def test_prompts_and_answers_that_lack_positions_are_told() -> None:
    prompts, answers = describe_limits(scores(9, num_short_answers=9, num_cut_prompts=2))
    assert "2 prompts" in prompts and "9 answers" in answers
    assert describe_limits(scores(9)) == []
