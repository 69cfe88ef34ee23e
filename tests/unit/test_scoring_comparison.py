from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from qlora_ray.errors import DataError
from qlora_ray.scoring import ExactMatch, significance
from qlora_ray.scoring.comparison import Comparison, compare_rows, compare_scores
from qlora_ray.scoring.metrics.numeric import AbsoluteError, NumericMatch, RelativeError
from qlora_ray.scoring.scores import Scores

NAN, INF = math.nan, math.inf
# Darwin's plants, crossed less self-fertilized, in eighths of an inch (Fisher, The Design of Experiments, 1935, III).
FISHER_DIFFERENCES = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# Fisher's own count, section 21: 863 of 32,768 ways to sign them sum to 314 or more.
FISHER_P = 2 * 863 / 32_768


@pytest.fixture(autouse=True)
def no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def answers(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    """Rows of 0 and 1 from a fourfold table of base and tuned."""
    cells = [(1.0, 1.0)] * both + [(1.0, 0.0)] * lost + [(0.0, 1.0)] * gained + [(0.0, 0.0)] * neither
    return [base for base, _ in cells], [tuned for _, tuned in cells]


def scores(*, nll: Sequence[float], tokens: Sequence[int], row_metrics: dict[str, list[float]] | None = None) -> Scores:
    num_tokens = sum(tokens)
    return Scores(
        loss=math.fsum(nll) / num_tokens,
        num_tokens=num_tokens,
        num_rows=len(tokens),
        metrics={},
        row_metrics=row_metrics or {},
        answers=[],
        num_cut_prompts=0,
        num_short_answers=0,
        row_nll=list(nll),
        row_tokens=list(tokens),
    )


def test_mcnemar_is_the_published_one() -> None:
    # R's exact2x2, help of mcnemar.exact: matrix(c(21, 9, 2, 12), 2, 2) has b = 2, c = 9, p-value = 0.06543.
    found = compare_rows("accuracy", *answers(21, 2, 9, 12), higher_is_better=True)
    assert found.p_value == pytest.approx(0.06543, abs=5e-6)
    assert found.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert (found.test, found.num_rows, found.verdict) == ("McNemar, exact", 44, "no different")
    assert (found.base, found.tuned) == (23 / 44, 30 / 44)
    assert found.difference == pytest.approx(7 / 44)


def test_many_flips_give_the_p_value_that_fisher_counted() -> None:
    found = compare_rows("height", [0.0] * 15, FISHER_DIFFERENCES, higher_is_better=True)
    assert found.test == "sign-flip permutation"
    standard_error = math.sqrt(FISHER_P * (1 - FISHER_P) / significance.NUM_RESAMPLES)
    assert found.p_value == pytest.approx(FISHER_P, abs=4 * standard_error)
    assert found.verdict == "no different"


def test_few_rows_are_flipped_every_way_and_weights_count() -> None:
    base, tuned, weights = (
        [1.0, 2.0, 3.0, 2.5, 1.5, 4.0, 1.0],
        [0.5, 2.1, 2.0, 2.0, 1.1, 3.9, 0.8],
        [3, 1, 4, 1, 5, 9, 2],
    )
    found = compare_rows("loss", base, tuned, higher_is_better=False, weights=weights)
    terms = [(t - b) * w / sum(weights) for b, t, w in zip(base, tuned, weights, strict=True)]
    ways = [
        sum(s * term for s, term in zip(signs, terms, strict=True)) for signs in itertools.product((1, -1), repeat=7)
    ]
    num_as_far = sum(abs(way) >= abs(sum(terms)) - 1e-12 for way in ways)
    assert found.p_value == pytest.approx(num_as_far / 2**7)
    assert found.difference == pytest.approx(sum(terms))
    assert found.base == pytest.approx(np.average(base, weights=weights))


def test_ties_count_as_far_however_their_sums_are_rounded() -> None:
    # All flips of twenty equal differences but two are as far or less; 0.1 has no exact sum.
    found = compare_rows("error", [0.0] * 20, [0.1] * 20, higher_is_better=False)
    assert found.p_value == pytest.approx(1 / (significance.NUM_RESAMPLES + 1), abs=3e-4)
    even = compare_rows("error", [0.0] * 20, [0.1, -0.1] * 10, higher_is_better=False)
    assert even.p_value == 1.0


def test_the_interval_of_few_rows_is_as_wide_as_students() -> None:
    # Twelve evenly spread differences: their resampled means are all but normal.
    differences = np.linspace(-1.0, 2.0, 12)
    found = compare_rows("x", [0.0] * 12, differences, higher_is_better=True)
    half = 2.200985 * differences.std(ddof=1) / math.sqrt(12)
    assert found.interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.05 * half)
    two = compare_rows("x", [0.0, 0.0], [1.0, 2.0], higher_is_better=True)
    assert (two.interval, two.verdict) == ((1.0, 2.0), "no different")


def test_a_row_of_weight_two_is_two_rows_to_the_means_and_one_to_chance() -> None:
    base, tuned = [1.0, 2.0, 4.0], [2.0, 2.0, 1.0]
    weighted = compare_rows("x", base, tuned, higher_is_better=True, weights=[2, 1, 1])
    doubled = compare_rows("x", [1.0, *base], [2.0, *tuned], higher_is_better=True)
    assert (weighted.base, weighted.tuned) == (doubled.base, doubled.tuned)
    assert (weighted.num_rows, doubled.num_rows) == (3, 4)
    ignored = compare_rows("x", [*base, 9.0], [*tuned, NAN], higher_is_better=True, weights=[2, 1, 1, 0])
    assert ignored == weighted


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["accuracy", "skewed"])
def test_the_interval_covers_the_truth_about_95_times_in_100(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 1000)
    generator = np.random.default_rng(5)
    num_samples, num_rows, num_covered = 400, 100, 0
    for seed in range(num_samples):
        if kind == "accuracy":
            base = (generator.random(num_rows) < 0.5).astype(float)
            tuned = np.where(generator.random(num_rows) < 0.3, generator.random(num_rows) < 0.8, base)
            truth = 0.3 * (0.8 - 0.5)
        else:
            base = generator.normal(size=num_rows)
            tuned = base + generator.exponential(2.0, size=num_rows) - 1.5
            truth = 0.5
        low, high = compare_rows("x", base, tuned, higher_is_better=True, seed=seed).interval
        num_covered += low <= truth <= high
    # 400 trials of 0.95 are 380, give or take 3 x 4.4; the percentile interval is known to be a little short.
    assert 0.91 <= num_covered / num_samples <= 0.98


@pytest.mark.slow
def test_two_models_of_one_worth_are_seldom_called_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "NUM_RESAMPLES", 1000)
    generator = np.random.default_rng(6)
    words = [
        compare_rows("x", *generator.exponential(size=(2, 40)), higher_is_better=True, seed=seed).verdict
        for seed in range(300)
    ]
    assert sum(word != "no different" for word in words) <= 0.09 * 300


@pytest.mark.parametrize(("higher_is_better", "word"), [(True, "better"), (False, "worse")])
def test_the_word_follows_the_direction_that_is_better(higher_is_better: bool, word: str) -> None:
    found = compare_rows("x", *answers(5, 1, 20, 5), higher_is_better=higher_is_better)
    assert found.verdict == word
    assert found.interval[0] > 0
    assert found.p_value < 0.05
    swapped = compare_rows("x", *answers(5, 20, 1, 5), higher_is_better=higher_is_better)
    assert {swapped.verdict, word} == {"better", "worse"}
    assert swapped.difference == -found.difference


def test_an_interval_that_excludes_0_is_not_enough() -> None:
    found = compare_rows("x", [0.0] * 5, [0.3, 0.1, 0.2, 0.4, 0.2], higher_is_better=True)
    assert found.interval[0] > 0
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.verdict == "no different"


@pytest.mark.parametrize("weights", [None, [0.1] * 10])
@pytest.mark.parametrize("step", [0.0, 0.1, 1.0, -7.0])
def test_rows_that_all_differ_by_the_same_have_an_interval_without_width(
    step: float, weights: list[float] | None
) -> None:
    found = compare_rows("x", [0.0] * 10, [step] * 10, higher_is_better=True, weights=weights)
    assert found.interval == (step, step)
    assert found.verdict == ("no different" if step == 0 else "better" if step > 0 else "worse")
    assert found.p_value == pytest.approx(1.0 if step == 0 else 2 / 2**10)
    assert ("no row differs (10 rows)" in found.sentence()) == (step == 0)


@pytest.mark.parametrize(
    ("base", "tuned", "rows"),
    [([], [], "0 rows"), ([1.0], [0.0], "1 row"), ([NAN, 0.5, 1.0], [1.0, NAN, 0.0], "1 row, 2 without a score")],
)
def test_too_few_rows_are_no_difference_and_say_so(base: list[float], tuned: list[float], rows: str) -> None:
    found = compare_rows("x", base, tuned, higher_is_better=True)
    assert (found.verdict, found.p_value, found.interval) == ("no different", 1.0, (-INF, INF))
    assert found.sentence().endswith(f"({rows}: too few to compare)")
    assert found.to_dict()["interval"] == [None, None]
    back = Comparison.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert back.to_dict() == found.to_dict()
    assert back.interval == (-INF, INF)


def test_rows_without_a_score_are_dropped_from_both_and_counted() -> None:
    found = compare_rows("x", [1.0, NAN, 3.0, 8.0], [2.0, 5.0, NAN, 8.0], higher_is_better=True)
    assert (found.num_rows, found.num_dropped) == (2, 2)
    assert (found.base, found.tuned) == (4.5, 5.0)
    assert "2 rows, 2 without a score" in found.sentence()


def test_an_infinite_score_is_worse_than_any_other_and_stays_out_of_json() -> None:
    generator = np.random.default_rng(2)
    base = generator.normal(5, 1, size=40)
    broken = np.where(np.arange(40) < 10, INF, base - 0.5)
    found = compare_rows("loss", base, broken, higher_is_better=False)
    assert (found.verdict, found.difference, found.interval) == ("worse", INF, (INF, INF))
    assert found.to_dict()["difference"] is None
    assert compare_rows("loss", broken, base, higher_is_better=False).verdict == "better"
    # One bad row of forty may be chance, but it is no improvement either.
    once = compare_rows("loss", base, np.where(np.arange(40) < 1, INF, base - 0.5), higher_is_better=False)
    assert (once.verdict, once.interval[1]) == ("no different", INF)
    both = compare_rows("loss", broken, broken, higher_is_better=False)
    assert (both.num_rows, both.num_dropped, both.verdict) == (30, 10, "no different")


def test_the_sentence_has_the_figures_and_dicts_come_back() -> None:
    found = compare_rows("sql_execution", *answers(5, 2, 60, 33), higher_is_better=True)
    low, high = found.interval
    for fact in ("0.070 -> 0.650: +0.580", f"+{low:.3f} to +{high:.3f}", "p < 0.001", "McNemar exact, 100 rows"):
        assert fact in found.sentence()
    assert low == pytest.approx(0.48, abs=0.02)
    assert high == pytest.approx(0.67, abs=0.02)
    read = json.loads(json.dumps({"prompts": "0-shot", **found.to_dict()}))
    assert Comparison.from_dict(read) == found
    small = replace(found, base=12345.6, tuned=12345.59958, difference=-0.00042, p_value=0.0123)
    assert "12346 -> 12346: -0.00042" in small.sentence() and "p = 0.012" in small.sentence()


def test_the_same_seed_gives_the_same_comparison_and_small_batches_change_no_more_than_the_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, tuned = np.random.default_rng(4).normal(size=(2, 200))
    first = compare_rows("x", base, tuned, higher_is_better=True)
    assert compare_rows("x", base, tuned, higher_is_better=True) == first
    assert compare_rows("x", base, tuned, higher_is_better=True, seed=8).interval != first.interval
    monkeypatch.setattr(significance, "BATCH_BYTES", 200 * 8 * 7)
    parts = compare_rows("x", base, tuned, higher_is_better=True)
    assert parts.p_value == pytest.approx(first.p_value, abs=0.03)
    assert parts.interval == pytest.approx(first.interval, abs=0.02)


@pytest.mark.parametrize(
    ("tuned", "weights", "words"),
    [
        ([1.0], None, "comparison of x: .* a score for each row, got 2 and 1"),
        ([1.0, 2.0], [1, 2, 3], "and 3 weights"),
        *(([1.0, 2.0], weights, "weights must be finite and >= 0") for weights in ([1, -1], [1, NAN], [INF, 1])),
    ],
)
def test_rows_that_do_not_pair_up_are_a_data_error(tuned: list[float], weights: list[float] | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compare_rows("x", [1.0, 2.0], tuned, higher_is_better=True, weights=weights)


def test_scores_are_compared_by_their_first_metric_and_the_loss_always() -> None:
    base_rows, tuned_rows = answers(5, 1, 20, 4)
    errors = [NAN, *range(29)]
    tokens = [1 + row % 7 for row in range(30)] + [0]
    base = scores(
        nll=[2.0 * num for num in tokens],
        tokens=tokens,
        row_metrics={"numeric_match": base_rows, "absolute_error": errors},
    )
    tuned = scores(
        nll=[1.5 * num + 0.1 * (row % 3) for row, num in enumerate(tokens[:-1])] + [0.0],
        tokens=tokens,
        row_metrics={"numeric_match": tuned_rows, "absolute_error": [0.0] * 30},
    )
    found = compare_scores(base, tuned, metrics=[NumericMatch(), AbsoluteError()])
    assert [(compared.measure, compared.test, compared.verdict) for compared in found] == [
        ("numeric_match", "McNemar, exact", "better"),
        ("absolute_error", "sign-flip permutation", "better"),
        ("loss", "sign-flip permutation", "better"),
    ]
    assert found[1].num_dropped == 1
    loss = found[2]
    assert (loss.num_rows, loss.num_dropped) == (30, 0)
    # As evaluate_loss has them: over all tokens, however they fall into rows.
    assert (loss.base, loss.tuned) == (pytest.approx(base.loss), pytest.approx(tuned.loss))
    assert [compared.measure for compared in compare_scores(base, tuned, metrics=[])] == ["loss"]


def test_where_no_number_is_right_the_loss_decides_and_not_a_mean_that_one_answer_drives() -> None:
    rows = 12
    metrics = [NumericMatch(), AbsoluteError(), RelativeError()]
    errors = [1.0] * (rows - 1) + [1e12]
    base, tuned = (
        scores(
            nll=[nll + 0.01 * row for row in range(rows)],
            tokens=[1] * rows,
            row_metrics={"numeric_match": [0.0] * rows, "absolute_error": errors, "relative_error": errors},
        )
        for nll in (2.0, 1.0)
    )
    found = compare_scores(base, tuned, metrics=metrics)
    assert [comparison.measure for comparison in found] == ["loss", "numeric_match", "absolute_error", "relative_error"]
    assert found[0].verdict == "better"


def test_a_loss_that_is_not_a_number_is_no_improvement() -> None:
    base = scores(nll=[2.0] * 20, tokens=[1] * 20)
    tuned = replace(base, row_nll=[NAN] * 10 + [1.0] * 10)
    (found,) = compare_scores(base, tuned, metrics=[])
    assert (found.verdict, found.num_dropped) == ("worse", 0)


def test_scores_of_other_rows_are_a_data_error() -> None:
    base = scores(nll=[1.0, 2.0], tokens=[3, 4], row_metrics={"exact_match": [1.0, 0.0]})
    with pytest.raises(DataError, match="same rows, got 2 rows with 7 tokens and 1 with 3"):
        compare_scores(base, scores(nll=[1.0], tokens=[3]), metrics=[])
    fewer = replace(base, row_metrics={"exact_match": [1.0]})
    with pytest.raises(DataError, match="comparison of exact_match"):
        compare_scores(base, fewer, metrics=[ExactMatch()])


def test_a_difference_of_roundings_is_none_however_sure_it_is() -> None:
    base = [1.0 + 0.01 * row for row in range(200)]
    rounded = compare_rows("loss", base, [loss * (1 + 4e-7) for loss in base], higher_is_better=False)
    real = compare_rows("loss", base, [loss * (1 + 4e-5) for loss in base], higher_is_better=False)
    assert rounded.p_value < 0.05 and rounded.interval[0] > 0
    assert (rounded.verdict, real.verdict) == ("no different", "worse")
