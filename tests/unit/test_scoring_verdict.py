"""The verdict on an adapter: which measure decides, and on which rows."""

import json
from dataclasses import replace

import pytest

from qlora_ray.scoring import ExactMatch
from qlora_ray.scoring.comparison import compare_rows, describe_silent
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from qlora_ray.scoring.verdict import CHOSEN_ON_THEM, Verdict, judge

NUM_ROWS = 40


def make_scores(matches: list[float], nll: float) -> Scores:
    """Scores of rows of ten tokens, with a little spread between rows."""
    row_nll = [10 * nll + 0.01 * row for row in range(NUM_ROWS)]
    return Scores(
        loss=sum(row_nll) / (10 * NUM_ROWS),
        num_tokens=10 * NUM_ROWS,
        num_rows=NUM_ROWS,
        metrics={"exact_match": sum(matches) / len(matches)} if matches else {},
        row_metrics={"exact_match": matches} if matches else {},
        answers=[ScoredAnswer(row, "a", "b") for row in range(len(matches))],
        num_cut_prompts=0,
        num_short_answers=0,
        row_nll=row_nll,
        row_tokens=[10] * NUM_ROWS,
    )


@pytest.mark.parametrize(("score", "words"), [(0.0, "0 of 40 for both"), (1.0, "40 of 40 for both")])
def test_a_metric_that_cannot_tell_leaves_the_verdict_to_the_loss_and_says_so(score, words):
    base, tuned = make_scores([score] * 40, nll=10.0), make_scores([score] * 40, nll=3.7)
    verdict = judge(base, tuned, metrics=[ExactMatch()], split="test", was_chosen_on=False)
    assert (verdict.word, verdict.deciding.measure) == ("better", "loss")
    assert [other.measure for other in verdict.others] == ["exact_match"]
    assert verdict.note == f"exact_match cannot tell: {words}"


@pytest.mark.parametrize(
    ("errors", "silence"),
    [
        ([0.0] * 40, "error cannot tell: 40 of 40 for both"),
        ([1.0] * 40, "error cannot tell: 0 of 40 for both"),
        ([0.0, 2.0] * 20, None),
    ],
)
def test_of_an_error_0_is_the_best_and_a_mean_of_1_is_not_every_row(errors, silence):
    compared = compare_rows("error", errors, errors, higher_is_better=False)
    assert describe_silent([compared]) == silence


def test_the_first_metric_decides_and_the_loss_stands_beside_it():
    base, tuned = make_scores([0.0, 1.0] * 20, nll=10.0), make_scores([1.0, 0.0] * 20, nll=3.7)
    verdict = judge(base, tuned, metrics=[ExactMatch()], split="test", was_chosen_on=False)
    assert (verdict.word, verdict.deciding.measure) == ("no different", "exact_match")
    low, high = verdict.deciding.interval
    assert low <= 0 <= high
    (loss,) = verdict.others
    assert (loss.measure, loss.verdict) == ("loss", "better")
    assert loss.difference == pytest.approx(tuned.loss - base.loss)


def test_without_answers_the_loss_decides():
    verdict = judge(make_scores([], 1.0), make_scores([], 1.2), metrics=[], split="validation", was_chosen_on=True)
    assert (verdict.word, verdict.deciding.measure, verdict.others) == ("worse", "loss", [])


def test_rows_that_chose_the_winner_weaken_the_verdict_in_words():
    base, tuned = make_scores([0.0] * 40, 1.0), make_scores([1.0] * 40, 0.5)
    chosen = judge(base, tuned, metrics=[ExactMatch()], split="validation", was_chosen_on=True)
    unseen = judge(base, tuned, metrics=[ExactMatch()], split="test", was_chosen_on=False)
    assert (chosen.word, unseen.word) == ("better", "better")
    assert "data.test" in chosen.note
    assert unseen.note is None


def test_a_verdict_comes_back_from_json_as_it_was():
    verdict = judge(make_scores([], 1.0), make_scores([], 0.9), metrics=[], split="test", was_chosen_on=False)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_cut_answers_stand_beside_what_else_weakens_a_verdict():
    base, tuned = make_scores([0.0, 1.0] * 20, 1.0), make_scores([0.0, 1.0] * 20, 0.5)
    cut = replace(tuned, num_cut_answers=30, num_long_references=25, max_new_tokens=96)
    verdict = judge(base, cut, metrics=[ExactMatch()], split="validation", was_chosen_on=True)
    assert verdict.note.startswith(f"{CHOSEN_ON_THEM}; 30 of 40 answers") and "25 references" in verdict.note
    lost = replace(tuned, num_cut_prompts=2)
    verdict = judge(base, lost, metrics=[ExactMatch()], split="test", was_chosen_on=False)
    assert verdict.note.startswith("2 prompts")
