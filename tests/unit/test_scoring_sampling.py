"""Sampled answers: the right distribution, from nothing but seed, row and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, gumbel_r, kstest

from qlora_ray.config.schema import Evaluate
from qlora_ray.scoring import ExactMatch
from qlora_ray.scoring.generation import generate_answers
from qlora_ray.scoring.model_scoring import score_model
from qlora_ray.scoring.sampling import GumbelNoise, Sampling, choose_sampling, draw_gumbel
from qlora_ray.scoring.scores import Scores
from tests.unit.evaluation_fixtures import make_llama, make_split, make_tokenizer

PROMPTS = make_split([(n, 0) for n in (3, 17, 1, 9, 9, 25, 4)], seed=3).prompt_ids
WARM = Sampling(temperature=0.8, top_p=1.0, seed=7)
PROBABILITIES = [0.5, 0.25, 0.15, 0.06, 0.04]
NUM_DRAWS = 4000
# With fixed seeds a test is right or wrong for good; a wrong distribution has a p-value far below this.
SMALLEST_P = 0.01


def draw_tokens(
    sampling: Sampling, probabilities: list[float], *, rows: range = range(NUM_DRAWS), step: int = 0
) -> list[int]:
    """One token per row, as generation takes it: the argmax of the noisy logits."""
    scores = torch.tensor([probabilities]).log().repeat(len(rows), 1)
    ids = torch.zeros(len(rows), 3 + step, dtype=torch.long)
    return GumbelNoise(sampling, rows=rows, num_prompt_tokens=3)(ids, scores).argmax(dim=-1).tolist()


def p_value(tokens: list[int], expected: list[float]) -> float:
    counts = np.bincount(tokens, minlength=len(expected))
    return float(chisquare(counts, np.array(expected) * len(tokens)).pvalue)


def tempered(probabilities: list[float], temperature: float) -> list[float]:
    """softmax(log p / T), by hand."""
    powers = [p ** (1 / temperature) for p in probabilities]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_softmax_of_the_tempered_logits_says(temperature: float) -> None:
    tokens = draw_tokens(Sampling(temperature, 1.0, 7), PROBABILITIES)
    assert p_value(tokens, tempered(PROBABILITIES, temperature)) > SMALLEST_P
    assert p_value(tokens, tempered(PROBABILITIES, temperature * 1.3)) < SMALLEST_P / 1000


def test_the_steps_of_one_row_are_draws_of_their_own() -> None:
    tokens = [draw_tokens(WARM, PROBABILITIES, rows=range(5, 6), step=step)[0] for step in range(NUM_DRAWS)]
    expected = tempered(PROBABILITIES, WARM.temperature)
    assert p_value(tokens, expected) > SMALLEST_P
    # What follows a token does not depend on it.
    pairs = [5 * first + second for first, second in zip(tokens[::2], tokens[1::2], strict=True)]
    assert p_value(pairs, [p * q for p in expected for q in expected]) > SMALLEST_P


def test_top_p_keeps_the_fewest_tokens_that_reach_it_in_their_own_proportions() -> None:
    # 0.5 + 0.25 falls short of 0.8, and 0.5 + 0.25 + 0.15 = 0.9 reaches it.
    tokens = draw_tokens(Sampling(1.0, 0.8, 7), PROBABILITIES)
    assert set(tokens) == {0, 1, 2}
    assert p_value(tokens, [p / 0.9 for p in PROBABILITIES[:3]]) > SMALLEST_P
    # After the temperature: at 0.5 the squares count, 0.25 of 0.3402 is 0.73, so two tokens reach 0.8.
    assert set(draw_tokens(Sampling(0.5, 0.8, 7), PROBABILITIES)) == {0, 1}
    assert set(draw_tokens(Sampling(1.0, 1e-9, 7), PROBABILITIES)) == {0}


def test_models_that_are_alike_draw_alike() -> None:
    tuned = [0.4, 0.3, 0.2, 0.06, 0.04]
    same = np.mean(np.array(draw_tokens(WARM, PROBABILITIES)) == np.array(draw_tokens(WARM, tuned)))
    one, other = tempered(PROBABILITIES, 0.8), tempered(tuned, 0.8)
    distance = sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2
    # Tokens drawn by the same Gumbel noise are the same at least so often (Daliri, Musco and Suresh, Coupling without
    # Communication and Drafter-Invariant Speculative Decoding, 2024, theorem 1); independent ones far less.
    assert same > (1 - distance) / (1 + distance)
    others = draw_tokens(Sampling(0.8, 1.0, 8), tuned)
    apart = np.mean(np.array(draw_tokens(WARM, PROBABILITIES)) == np.array(others))
    assert apart == pytest.approx(sum(a * b for a, b in zip(one, other, strict=True)), abs=0.03)


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """The generator as its paper has it (Salmon et al., 2011, section 3.3), in whole numbers."""
    mask = 2**64 - 1
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_noise_is_gumbels_from_the_generator_of_the_paper() -> None:
    # NumPy counts up before its first block.
    blocks = [philox_4x64_10([at, 11, 0, 0], [7, 3]) for at in (1, 2)]
    uniform = np.array([((number >> 12) + 0.5) / 2**52 for block in blocks for number in block])
    assert draw_gumbel(7, row=3, step=11, num=8) == pytest.approx(gumbel_r.ppf(uniform), rel=1e-12)
    many = draw_gumbel(7, row=0, step=0, num=20_000)
    assert kstest(many, gumbel_r.cdf).pvalue > SMALLEST_P
    assert draw_gumbel(7, row=0, step=0, num=9).tolist() == many[:9].tolist()


@pytest.mark.parametrize(("seed", "row", "step"), [(8, 3, 11), (7, 4, 11), (7, 3, 12), (7, 11, 3), (3, 7, 11)])
def test_seed_row_and_step_each_change_the_noise(seed: int, row: int, step: int) -> None:
    usual = draw_gumbel(7, row=3, step=11, num=50)
    assert not np.isin(draw_gumbel(seed, row=row, step=step, num=50), usual).any()


def generate(
    model: torch.nn.Module, sampling: Sampling | None = WARM, *, batch_size: int = 4, prompts: list[list[int]] = PROMPTS
) -> list[str]:
    options = {"max_new_tokens": 12, "batch_size": batch_size, "sampling": sampling}
    return generate_answers(model, make_tokenizer(), prompts, precision="fp32", **options).texts


def by_hand(model: torch.nn.Module, row: int) -> str:
    """One prompt, no cache, no padding: the argmax of the last noisy logits again and again."""
    ids = list(PROMPTS[row])
    with torch.no_grad():
        for step in range(12):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
            noise = torch.from_numpy(draw_gumbel(WARM.seed, row=row, step=step, num=len(logits)))
            ids.append(int((logits / WARM.temperature + noise).argmax()))
            if ids[-1] == 2:
                break
    return str(make_tokenizer().decode(ids[len(PROMPTS[row]) :], skip_special_tokens=True)).strip()


def test_answers_are_the_draws_of_their_rows_in_any_batch() -> None:
    model = make_llama().eval()
    expected = [by_hand(model, row) for row in range(len(PROMPTS))]
    assert expected != generate(model, None)
    for batch_size in (1, 3, 100):
        assert generate(model, batch_size=batch_size) == expected
    assert generate(model, Sampling(0.8, 1.0, 8)) != expected


@pytest.mark.parametrize("temperature", [1e-6, 5e-324])
def test_a_temperature_near_0_answers_greedily(temperature: float) -> None:
    model = make_llama()
    assert generate(model, Sampling(temperature, 1.0, 7)) == generate(model, None)


def test_the_config_samples_only_at_a_temperature() -> None:
    assert choose_sampling(Evaluate()) is None
    chosen = choose_sampling(Evaluate(temperature=0.8, top_p=0.9, sample_seed=3))
    assert chosen is not None
    assert chosen.to_dict() == {"temperature": 0.8, "top_p": 0.9, "seed": 3}


def test_a_sweeps_scores_are_of_sampled_answers_where_the_config_says_so() -> None:
    split = make_split([(n, 2) for n in (3, 17, 1, 9)], seed=3)

    def score(**changes: float) -> Scores:
        evaluate = Evaluate(max_new_tokens=12, batch_size=3, **changes)
        options = {"metrics": [ExactMatch()], "evaluate": evaluate, "precision": "fp32", "loss_batch_size": 2}
        return score_model(make_llama(), make_tokenizer(), split, **options)

    greedy, drawn = score(), score(temperature=0.8)
    assert (greedy.to_dict()["sampling"], drawn.to_dict()["sampling"]) == (None, WARM.to_dict())
    assert drawn.answers != greedy.answers
    expected = generate(make_llama(), batch_size=1, prompts=split.prompt_ids)
    assert [scored.answer for scored in drawn.answers] == expected
