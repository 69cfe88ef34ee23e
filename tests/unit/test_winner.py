"""Which trial wins, and on which rows it is judged, with executors that only give scores back."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import SweepFailed
from qlora_ray.orchestration import winner as winner_module
from qlora_ray.orchestration.winner import score_best
from qlora_ray.runs import SweepPaths
from qlora_ray.scoring.scores import Scores

CONFIG = SweepConfig.model_validate({"evaluate": {"metrics": [], "top_k": 3}})


class Worker:
    """An executor: gives the loss that a trial or the base has on a split, and keeps what it was asked."""

    def __init__(self, losses: dict[tuple[str | None, str], float]) -> None:
        self.asked: list[tuple[str | None, str]] = []
        self.score = SimpleNamespace(remote=self._score)
        self._losses = losses

    def _score(self, adapter: Any, split: str) -> Scores:
        key = (adapter.parent.name if adapter else None, split)
        self.asked.append(key)
        loss = self._losses[key]
        return Scores(loss, 40, 4, {}, {}, [], 0, 0, row_nll=[10 * loss] * 4, row_tokens=[10] * 4)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """score_best over trials in the order of their validation loss in the search."""
    monkeypatch.setattr(winner_module.ray, "get", lambda value: value)

    def run(trials: list[str], worker: Worker, *, has_test: bool = True) -> Any:
        rows = TokenizedSplit("rows", [[1, 2]], [[0, 1]], [[1]], ["answer"])
        data: Any = SimpleNamespace(validation=rows, test=rows if has_test else None)
        facts = {"device_class": "cpu"}
        pool = SimpleNamespace(ready_executors=SimpleNamespace(remote=lambda: [(worker, facts)]))
        ledger: Any = SimpleNamespace(ranked=lambda: [SimpleNamespace(id=trial) for trial in trials])
        return score_best(ledger, paths=SweepPaths(tmp_path), config=CONFIG, data=data, pool=pool)

    return run


def test_the_lowest_rescored_validation_loss_wins_and_is_judged_on_test_rows(choose):
    worker = Worker(
        {
            ("0001", "validation"): 0.3,
            ("0002", "validation"): 0.2,
            ("0002", "test"): 0.9,
            (None, "test"): 0.5,
        }
    )
    winner = choose(["0001", "0002"], worker)
    assert winner.entry.id == "0002"
    assert (winner.verdict.split, winner.verdict.note) == ("test", None)
    assert (winner.base.loss, winner.scores.loss) == (0.5, 0.9)
    # Four rows that all got worse: a sign flip of four has p = 2/16.
    assert winner.verdict.word == "no different"
    assert worker.asked == [("0001", "validation"), ("0002", "validation"), ("0002", "test"), (None, "test")]


def test_without_test_rows_the_rows_that_chose_the_winner_judge_it_and_that_is_said(choose):
    worker = Worker({("0001", "validation"): 0.3, (None, "validation"): 0.5})
    winner = choose(["0001"], worker, has_test=False)
    assert winner.verdict.split == "validation"
    assert "chosen on these rows" in winner.verdict.note
    assert worker.asked == [("0001", "validation"), (None, "validation")]


def test_a_trial_whose_rescored_loss_is_not_a_number_does_not_win(choose):
    worker = Worker(
        {("0001", "validation"): math.nan, ("0002", "validation"): 0.2, ("0002", "test"): 0.2, (None, "test"): 0.5}
    )
    assert choose(["0001", "0002"], worker).entry.id == "0002"


def test_a_sweep_whose_best_all_overflow_when_scored_again_fails(choose):
    worker = Worker({("0001", "validation"): math.nan, ("0002", "validation"): math.inf})
    with pytest.raises(SweepFailed, match=r"must have a finite loss when scored again, got none of 0001, 0002"):
        choose(["0001", "0002"], worker)


def test_a_sweep_without_a_complete_trial_has_no_winner(choose):
    assert choose([], Worker({})) is None
