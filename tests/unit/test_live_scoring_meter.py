"""How far scoring is: rows of both kinds, looked at now and then, with parts that begin and end in between."""

from __future__ import annotations

import pytest

from qlora_ray.orchestration.live.scoring_meter import ANSWER_FACTOR, ANSWERS, LOSS, ScoringMeter, ScoringWork

WORK = ScoringWork.count(num_finalists=3, num_validation=100, num_verdict=50, num_answered=50)


def part(what: str, done: int, total: int) -> dict[str, object]:
    """What an executor says."""
    return {"what": what, "done": done, "total": total}


def test_the_work_is_the_finalists_losses_and_the_verdict_of_winner_and_base() -> None:
    assert WORK.rows == {LOSS: 400, ANSWERS: 100}
    assert ScoringWork.count(num_finalists=1, num_validation=5, num_verdict=5, num_answered=0).rows[ANSWERS] == 0


def test_before_it_begins_it_is_foretold_from_the_evaluations_at_reports() -> None:
    meter = ScoringMeter()
    assert meter.estimate_s(WORK, loss_rows_per_s=None, num_executors=2) is None
    expected_s = (400 / 50 + 100 * ANSWER_FACTOR / 50) / 2
    assert meter.estimate_s(WORK, loss_rows_per_s=50.0, num_executors=2) == pytest.approx(expected_s)
    assert meter.describe(WORK, eta_s=expected_s) is None


def test_what_ended_between_two_looks_counts_in_full() -> None:
    meter = ScoringMeter()
    meter.look({0: part("loss of 0001 on validation", 0, 100)}, now=0.0)
    meter.look({0: part("loss of 0001 on validation", 60, 100)}, now=2.0)
    meter.look({0: part("answers of 0001 on test", 10, 50)}, now=4.0)
    scoring = meter.describe(WORK, eta_s=9.0)
    assert scoring is not None
    assert (scoring.what, scoring.done, scoring.total, scoring.eta_s) == ("answers of 0001 on test", 110, 500, 9.0)
    meter.look({}, now=6.0)
    assert meter.describe(WORK, eta_s=9.0) is None


def test_measured_speeds_replace_the_foretold_ones() -> None:
    meter = ScoringMeter()
    meter.look({0: part("answers of base on test", 0, 50)}, now=0.0)
    meter.look({0: part("answers of base on test", 20, 50)}, now=10.0)
    # 80 rows are left to answer at 2 per s, and 400 losses at 100 per s.
    assert meter.estimate_s(WORK, loss_rows_per_s=100.0, num_executors=1) == pytest.approx(40.0 + 4.0)


def test_executors_that_score_at_once_are_all_named() -> None:
    meter = ScoringMeter()
    meter.look({0: part("loss of a on test", 1, 2), 1: part("loss of b on test", 1, 2)}, now=0.0)
    scoring = meter.describe(WORK, eta_s=None)
    assert scoring is not None and scoring.what == "loss of a on test, loss of b on test"
