"""How rows are cut into micro-batches: as cheaply as any cut, within the limit, each row once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest

from qlora_ray.training.packed import batching
from qlora_ray.training.packed.batching import StepRow, cut_micro_batches, padding_of


def make_rows(lengths: Sequence[int], *, num_trials: int = 3) -> list[StepRow]:
    """Rows of these lengths, dealt out to trials in turn."""
    return [StepRow(at % num_trials, at // num_trials, at, length) for at, length in enumerate(lengths)]


def cost_of(micro_batches: Sequence[Sequence[int]]) -> int:
    """Padded tokens of all micro-batches, and what each micro-batch costs by itself."""
    return sum(max(lengths) * len(lengths) + batching.MICRO_BATCH_COST_TOKENS for lengths in micro_batches)


def all_cuts(lengths: Sequence[int]) -> Iterator[list[Sequence[int]]]:
    """Every way to cut rows, longest first, into contiguous micro-batches."""
    ordered = sorted(lengths, reverse=True)
    inner = range(1, len(ordered))
    for number in range(len(ordered)):
        for cuts in itertools.combinations(inner, number):
            edges = [0, *cuts, len(ordered)]
            yield [ordered[start:end] for start, end in itertools.pairwise(edges)]


def find_cheapest(lengths: Sequence[int], max_tokens: int) -> int:
    """The cost of the cheapest cut within the limit, by trying all."""
    return min(
        cost_of(cut)
        for cut in all_cuts(lengths)
        if all(len(part) == 1 or max(part) * len(part) <= max_tokens for part in cut)
    )


def lengths_of(micro_batches: list[list[StepRow]]) -> list[list[int]]:
    return [[row.num_tokens for row in batch] for batch in micro_batches]


def test_no_cut_of_the_sorted_rows_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for _ in range(300):
        monkeypatch.setattr(batching, "MICRO_BATCH_COST_TOKENS", draw.choice([0, 10, 30, 100]))
        different = [draw.randint(3, 20) for _ in range(3)]
        lengths = [draw.choice(different) for _ in range(draw.randint(1, 11))]
        max_tokens = draw.choice([20, 30, 40])
        micro_batches = cut_micro_batches(make_rows(lengths), max_tokens=max_tokens)
        assert cost_of(lengths_of(micro_batches)) == find_cheapest(lengths, max_tokens), (lengths, max_tokens)


def test_rows_of_one_length_may_be_cut_apart_where_that_saves_a_pass() -> None:
    micro_batches = cut_micro_batches(make_rows([10, 5, 5, 5, 5, 5]), max_tokens=20)
    assert [sorted(lengths, reverse=True) for lengths in lengths_of(micro_batches)] == [[10, 5], [5, 5, 5, 5]]


def test_few_short_rows_are_one_pass_and_rows_of_very_unlike_lengths_are_not() -> None:
    assert len(cut_micro_batches(make_rows([30, 20, 10]), max_tokens=4096)) == 1
    assert len(cut_micro_batches(make_rows([900, 20, 20, 20]), max_tokens=4096)) == 2


@pytest.mark.parametrize("seed", range(10))
def test_passes_keep_to_the_limit_and_hold_each_row_once(seed: int) -> None:
    draw = random.Random(seed)
    rows = make_rows([draw.randint(1, 500) for _ in range(60)], num_trials=7)
    max_tokens = draw.choice([500, 1000, 4000])
    micro_batches = cut_micro_batches(rows, max_tokens=max_tokens)
    assert all(max(lengths) * len(lengths) <= max_tokens for lengths in lengths_of(micro_batches))
    assert sorted(row.row for batch in micro_batches for row in batch) == list(range(60))


def test_a_row_longer_than_the_limit_is_a_pass_of_its_own() -> None:
    micro_batches = cut_micro_batches(make_rows([300, 120, 100, 40, 40]), max_tokens=100)
    assert lengths_of(micro_batches)[:3] == [[300], [120], [100]]
    assert sorted(itertools.chain(*lengths_of(micro_batches))) == [40, 40, 100, 120, 300]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_rows_come_in_changes_no_pass(seed: int) -> None:
    draw = random.Random(seed)
    rows = make_rows([draw.randint(1, 12) for _ in range(30)], num_trials=4)
    shuffled = draw.sample(rows, k=len(rows))
    assert cut_micro_batches(shuffled, max_tokens=40) == cut_micro_batches(rows, max_tokens=40)


def test_the_longest_pass_comes_first_and_a_trials_rows_are_together_in_order() -> None:
    draw = random.Random(1)
    micro_batches = cut_micro_batches(make_rows([draw.randint(1, 900) for _ in range(40)]), max_tokens=4000)
    longest = [max(lengths) for lengths in lengths_of(micro_batches)]
    assert len(micro_batches) > 2
    assert longest == sorted(longest, reverse=True)
    for batch in micro_batches:
        places = [(row.trial, row.index) for row in batch]
        assert places == sorted(places)


def test_padding_is_what_a_row_lacks_of_the_longest() -> None:
    assert padding_of(make_rows([3, 7, 5])) == [4, 0, 2]
