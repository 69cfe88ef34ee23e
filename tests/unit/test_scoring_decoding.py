"""Answers do not depend on the rounds that a batch is decoded in, nor on what else is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from qlora_ray.scoring import decoding
from qlora_ray.scoring.early_end import EarlyEnd
from qlora_ray.scoring.generation import Answer, Answers, answer_in_batches, generate_answers, generate_answers_of
from qlora_ray.scoring.metrics.text import ExactMatch
from qlora_ray.scoring.sampling import Sampling
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer

PROMPTS = make_split([(n, 0) for n in (3, 17, 1, 9, 9, 25, 4, 12)], seed=3).prompt_ids
NUM_TOKENS = 36


def make_ending_llama() -> torch.nn.Module:
    """A model whose answers end at many lengths: a fifth of all tokens are end tokens."""
    model = make_llama()
    model.generation_config.eos_token_id = list(range(2, 259, 5))
    return model


def answer(model: Any = None, **options: Any) -> list[Answers]:
    values: dict[str, Any] = {"num_models": 1, "batch_size": 8, "max_new_tokens": NUM_TOKENS, **options}
    return generate_answers_of(model or make_ending_llama(), make_tokenizer(), PROMPTS, precision="fp32", **values)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each round."""
    sizes: list[int] = []
    generate = decoding.Decoder._generate

    def watched(self: Any, going: Any, *args: Any, **rest: Any) -> Any:
        sizes.append(len(going))
        return generate(self, going, *args, **rest)

    monkeypatch.setattr(decoding.Decoder, "_generate", watched)
    return sizes


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.9, seed=7)])
def test_rows_that_go_on_without_the_ended_ones_get_the_answers_of_whole_batches(
    sampling: Sampling | None, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answer(sampling=sampling)
    assert batches[0] == 8 and len(batches) > 1 and batches == sorted(batches, reverse=True)
    monkeypatch.setattr(decoding, "MIN_ROUND_ROWS", 99)
    batches.clear()
    assert answer(sampling=sampling) == found
    assert batches == [8]


def test_a_cache_that_cannot_drop_rows_is_read_again_once(batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer()
    monkeypatch.setattr(decoding, "hasattr", lambda thing, name: name != "batch_select_indices", raising=False)
    batches.clear()
    assert answer() == found
    # After the first round that was left for it, rounds are left no more.
    assert len(batches) == 2


class Always:
    """Ends each answer at its first look, as long as it is."""

    def find(self, row: int, tokens: Sequence[int], *, max_new_tokens: int) -> tuple[str, int]:
        return "settled", len(tokens)


def test_answers_that_end_early_are_the_beginnings_of_whole_ones_and_say_so() -> None:
    early_end: Any = Always()
    [whole] = answer(make_llama())
    [early] = answer(make_llama(), early_end=early_end)
    ended = [finish for finish in early.finishes if finish == "settled"]
    assert ended and early.num_cut_answers == 0
    for one, full in zip(early.texts, whole.texts, strict=True):
        assert full.startswith(one)


def test_early_answers_are_the_same_with_other_rows_and_budgets_beside_them() -> None:
    end = EarlyEnd([ExactMatch()], ["x"] * len(PROMPTS), tokenizer=make_tokenizer(), finds_loops=True)
    expected = answer(make_llama(), early_end=end)
    assert "settled" in expected[0].finishes
    for batch_size in (1, 3):
        assert answer(make_llama(), early_end=end, batch_size=batch_size) == expected


def test_several_models_answer_in_one_batch_what_each_answers_alone(batches: list[int]) -> None:
    first, second = make_llama(), make_llama()
    with torch.no_grad():
        second.model.norm.weight.mul_(-1)
    alone = [
        generate_answers(model, make_tokenizer(), PROMPTS, max_new_tokens=12, batch_size=3, precision="fp32")
        for model in (first, second)
    ]
    assert alone[0] != alone[1]
    routed: list[int] = []
    # One body for both, and a norm that has each row's own sign.
    norm = first.model.norm.forward
    first.model.norm.forward = lambda hidden: norm(hidden) * torch.tensor([1.0, -1.0])[routed][:, None, None]

    @contextmanager
    def route(models: Sequence[int]) -> Iterator[None]:
        assert list(models) == sorted(models)
        routed[:] = models
        yield

    batches.clear()
    assert answer(first, num_models=2, route=route, batch_size=3, max_new_tokens=12) == alone
    assert batches[0] == 6


def test_a_batch_of_several_models_is_halved_between_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama()
    found: list[Answer] = []
    sizes: list[list[tuple[int, int]]] = []
    continue_prompts = decoding.Decoder.continue_prompts

    def with_room_for_four(self: Any, prompts: Any, asked: Any, **rest: Any) -> Any:
        sizes.append(list(asked))
        if len(asked) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return continue_prompts(self, prompts, asked, **rest)

    monkeypatch.setattr(decoding.Decoder, "continue_prompts", with_room_for_four)
    answer_in_batches(
        model,
        make_tokenizer(),
        PROMPTS[:4],
        max_new_tokens=4,
        batch_size=4,
        precision="fp32",
        on_batch=found.extend,
        num_models=2,
    )
    assert [len(asked) for asked in sizes] == [8, 4, 4]
    assert {row for row, _ in sizes[1]}.isdisjoint(row for row, _ in sizes[2])
    assert sorted((one.model, one.row) for one in found) == [(one, row) for one in range(2) for row in range(4)]


def test_the_cache_that_rows_are_dropped_from_is_transformers_own() -> None:
    assert hasattr(DynamicCache, "batch_select_indices")
