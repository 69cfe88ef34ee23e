"""Validation rows are held out by prompt and seed, and shared rows are found."""

from types import SimpleNamespace

import pytest

from qlora_ray.data.examples import Example, Turn
from qlora_ray.data.splits import Overlap, RowChoice, RowKeys, find_overlap, hold_out
from qlora_ray.errors import DataError


def example(prompt, answer="x"):
    return Example((Turn("user", prompt), Turn("assistant", answer)), "a.jsonl:1")


def prompts(examples):
    return [row.turns[0].content for row in examples]


ROWS = [example(f"question {number}") for number in range(100)]


def keys_of(rows, data_seed=7):
    keys = RowKeys(data_seed)
    for row in rows:
        keys.add(row)
    return keys


def split(rows, fraction=0.1, data_seed=7):
    held = hold_out(keys_of(rows, data_seed), fraction, source_name="a.jsonl")
    sides = list(zip(rows, held.is_validation.tolist(), strict=True))
    return SimpleNamespace(
        train=[row for row, is_held in sides if not is_held],
        validation=[row for row, is_held in sides if is_held],
        num_grouped=held.num_grouped,
    )


def overlap(**splits):
    return find_overlap({name: keys_of(rows) for name, rows in splits.items()})


@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_validation"), [(100, 0.1, 10), (2, 0.01, 1), (2, 0.99, 1), (3, 0.9, 2)]
)
def test_the_fraction_is_kept_with_at_least_one_row_on_each_side(num_rows, fraction, num_validation):
    held = split(ROWS[:num_rows], fraction)
    assert (len(held.train), len(held.validation)) == (num_rows - num_validation, num_validation)


def test_the_seed_alone_decides_which_rows_are_held_out():
    assert split(ROWS) == split(ROWS)
    assert prompts(split(ROWS).validation) != prompts(split(ROWS, data_seed=8).validation)
    assert set(prompts(split(ROWS[::-1]).validation)) == set(prompts(split(ROWS).validation))


def test_the_held_out_rows_are_frozen():
    # A change here changes every user's validation rows: raise CACHE_VERSION and say so in the changelog.
    assert prompts(split(ROWS[:20]).validation) == ["question 5", "question 12"]


def test_both_sides_keep_the_order_of_the_file():
    held = split(ROWS)
    assert [row for row in ROWS if row in held.train] == held.train
    assert [row for row in ROWS if row in held.validation] == held.validation


def test_rows_of_one_prompt_stay_on_one_side():
    asked = ("question {}", "Question  {}")
    rows = [example(asked[number % 2].format(number % 10), str(number)) for number in range(40)]
    held = split(rows, 0.3)
    assert {row.prompt_key for row in held.train}.isdisjoint(row.prompt_key for row in held.validation)
    assert len(held.validation) == 12
    assert held.num_grouped == 40


def test_prompts_that_repeat_too_often_for_the_fraction_give_the_smallest_group():
    held = split([example("a")] * 9 + [example("b")] * 4, 0.1)
    assert prompts(held.validation) == ["b"] * 4


@pytest.mark.parametrize("rows", [[example("a")], [example("a"), example("A ", "y")]])
def test_fewer_than_two_prompts_cannot_be_split(rows):
    with pytest.raises(DataError, match=r"a\.jsonl: splitting off data\.validation needs at least 2 rows"):
        split(rows)


def test_overlap_counts_prompts_and_whole_rows_of_the_second_split():
    found = overlap(
        train=[example("one", "1"), example("two", "2")],
        validation=[example("ONE", "1"), example(" two", "3"), example("three")],
        test=[example("four")],
    )
    assert found == {
        "train/validation": Overlap(num_prompts=2, num_pairs=1),
        "train/test": Overlap(0, 0),
        "validation/test": Overlap(0, 0),
    }


def test_a_shared_system_prompt_does_not_hide_overlap_and_makes_none():
    with_system = Example((Turn("system", "Be brief."), *example("one").turns), "a:1")
    found = overlap(train=[with_system], validation=[example("one"), example("two")])
    assert found["train/validation"].num_prompts == 1


def test_rows_are_drawn_from_everywhere_in_their_order_and_the_seed_alone_decides_which():
    chosen = RowChoice(20, data_seed=7).choose(1000)
    assert chosen == sorted(set(chosen)) and len(chosen) == 20
    # Twenty of the first half alone would be one chance in a million.
    assert chosen[0] < 500 <= chosen[-1]
    assert RowChoice(20, data_seed=7).choose(1000) == chosen != RowChoice(20, data_seed=8).choose(1000)


def test_more_rows_are_the_same_ones_and_others():
    assert set(RowChoice(20, data_seed=7).choose(1000)) < set(RowChoice(21, data_seed=7).choose(1000))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (RowChoice(None, data_seed=7), [0, 1, 2]),
        (RowChoice(3, data_seed=7), [0, 1, 2]),
        (RowChoice(9, data_seed=7), [0, 1, 2]),
        (RowChoice(2, data_seed=7, takes_first=True), [0, 1]),
    ],
)
def test_all_rows_or_the_first_ones_are_taken_where_that_is_asked(choice, expected):
    assert list(choice.choose(3)) == expected
