"""How long answers may be, what does not fit, and when cut answers weaken a verdict."""

from __future__ import annotations

from typing import Any

import pytest
from evaluation_fixtures import Split, make_split, make_tokenizer

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
    def split_of(references: list[str], answer_lengths: list[int]) -> Split:
        rows = make_split([(4, num) for num in answer_lengths])
        return Split(rows.input_ids, rows.completion_mask, rows.prompt_ids, references)

    # A token per byte: six and an end; a row of whose answer five tokens are left; one with thoughts before its answer.
    made = split_of(["SELECT", "SELECT 1", "é"], [7, 5, 11])
    assert count_reference_tokens(made, tokenizer=make_tokenizer()) == [7, 9, 11]
    assert count_reference_tokens(made, tokenizer=make_tokenizer(), num_rows=1) == [7]
    assert count_reference_tokens(split_of([], []), tokenizer=make_tokenizer()) == []


def test_room_counts_what_is_cut_and_says_it() -> None:
    prompts = [[5] * 40, [5] * 30, [5] * 3]
    room = measure_token_budget(prompts, max_new_tokens=8, limit=34, reference_tokens=[8, 9, 20])
    assert room == TokenBudget(8, num_cut_prompts=1, num_short_answers=1, num_references=3, num_long_references=2)
    long, cut, short = room.notes("test")
    assert long == (
        "test: 2 of 3 references are longer than evaluate.max_new_tokens (8): such answers are cut. Raise it."
    )
    assert cut.startswith("test: 1 prompts were longer than the room there is (the model's positions or evaluate.max")
    assert short.startswith("test: 1 answers had fewer than 8 tokens to spend")
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


def test_a_winner_that_is_cut_beside_longer_references_is_told_with_its_base() -> None:
    assert describe_cuts(scores(100, num_long=87), scores(52, num_long=87)) == (
        "52 of 100 answers of the winner were cut at 96 tokens (base: 100), and 87 references are longer: "
        "raise evaluate.max_new_tokens"
    )


def test_where_every_reference_fits_nobody_is_told_to_raise_anything() -> None:
    told = describe_cuts(scores(0), scores(52), base_name="base", tuned_name="adapter")
    assert told == (
        "52 of 100 answers of adapter were cut at 96 tokens (base: 0), though no reference is longer: "
        "it did not stop by itself"
    )


def test_a_base_that_never_stops_matters_only_where_references_are_longer() -> None:
    assert describe_cuts(scores(100), scores(0)) is None
    told = describe_cuts(scores(100, num_long=3), scores(0, num_long=3))
    assert told is not None and told.startswith("0 of 100 answers of the winner were cut at 96 tokens (base: 100)")


@pytest.mark.parametrize(("num_cut", "is_told"), [(4, False), (5, True)])
def test_one_answer_in_twenty_is_worth_a_note(num_cut: int, is_told: bool) -> None:
    assert (describe_cuts(scores(0), scores(num_cut)) is not None) == is_told


def test_nothing_is_cut_where_nothing_was_answered() -> None:
    assert describe_cuts(scores(0, num_answers=0), scores(0, num_answers=0)) is None


def test_a_lack_of_room_is_told_and_no_advice_given_that_would_not_help() -> None:
    tuned = scores(9, num_short_answers=9, num_cut_prompts=2)
    assert describe_cuts(scores(0), tuned) == "9 of 100 answers of the winner were cut at 96 tokens or fewer (base: 0)"
    prompts, answers = describe_limits(tuned)
    assert prompts.startswith("2 prompts lost their beginning, for lack of room")
    assert answers.startswith("9 answers had fewer tokens to spend, for lack of room")
    assert describe_limits(scores(9)) == []


def test_without_references_nothing_is_said_of_them() -> None:
    told = describe_cuts(scores(100), scores(100), tuned_name="adapter", has_references=False)
    assert told == (
        "100 of 100 answers of adapter were cut at 96 tokens (base: 100): raise evaluate.max_new_tokens if they should "
        "have ended"
    )
