"""Which trial wins, and on which rows it is judged, with executors that only give scores back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import ExecutorsLost, NoExecutors, PoolLost, SweepFailed
from qlora_ray.orchestration import winner as winner_module
from qlora_ray.orchestration.trial_entry import CloneOrigin
from qlora_ray.orchestration.winner import Winner, choose_winner, keep_winner, score_best
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.records import TrialStatus
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from qlora_ray.scoring.verdict import Verdict

CONFIG = SweepConfig.model_validate({"evaluate": {"metrics": [], "top_k": 3}})


class Worker:
    """An executor: gives the loss that a trial or the base has on a split, and keeps what it was asked."""

    def __init__(self, losses: dict[tuple[str | None, str], float]) -> None:
        self.asked: list[tuple[str | None, str]] = []
        self.answered: list[str] = []
        self.score = SimpleNamespace(remote=self._score)
        self._losses = losses

    def _score(self, models: Mapping[str, Any], split: str, *, with_answers: bool) -> dict[str, Scores]:
        self.answered += [split] * with_answers
        scores = {}
        for name, adapter in models.items():
            key = (adapter.parent.name if adapter else None, split)
            assert key[0] == (None if name == "base" else name)
            self.asked.append(key)
            loss = self._losses[key]
            scores[name] = Scores(loss, 40, 4, {}, {}, [], 0, 0, row_nll=[10 * loss] * 4, row_tokens=[10] * 4)
        return scores


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """score_best over trials in the order of their validation loss in the search."""
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)

    def run(
        trials: list[str],
        worker: Worker,
        *,
        has_test: bool = True,
        executors: Any = None,
        seeds: Any = None,
        clone_of: CloneOrigin | None = None,
    ) -> Any:
        rows = TokenizedSplit.of("rows", [[1, 2]], [[0, 1]], [[1]], ["answer"])
        data: Any = SimpleNamespace(
            validation=rows, test=rows if has_test else None, report=SimpleNamespace(format="prompt_completion")
        )
        ready = [(worker, {"device_class": "cpu"})] if executors is None else executors
        pool = SimpleNamespace(ready_executors=SimpleNamespace(remote=lambda: ready))
        ledger: Any = SimpleNamespace(
            ranked=lambda: [
                SimpleNamespace(id=trial, seed_of=None, clone_of=clone_of, number=int(trial)) for trial in trials
            ],
            entries={
                int(trial): SimpleNamespace(id=trial, seed_of=seed_of, clone_of=None, state=TrialStatus.COMPLETE)
                for trial, seed_of in (seeds or {}).items()
            },
        )
        search = CONFIG.search.model_copy(update={"final_seeds": 2 if seeds else 0})
        config = CONFIG.model_copy(update={"search": search})
        return score_best(ledger, paths=SweepPaths(tmp_path), config=config, data=data, pool=pool)

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
    # The loss alone decides who wins: only the verdict's rows are answered, by both in one call.
    assert worker.answered == ["test"]


def test_the_lowest_mean_over_new_seeds_wins_with_its_best_seed_and_not_the_luckiest_trial(choose):
    losses = {"0003": 0.10, "0004": 0.50, "0005": 0.25, "0006": 0.21, "0007": math.nan, "0008": 0.01}
    worker = Worker(
        {(trial, "validation"): loss for trial, loss in losses.items()} | {("0006", "test"): 0.3, (None, "test"): 0.5}
    )
    seeds = {"0003": 0, "0004": 0, "0005": 1, "0006": 1, "0007": 2, "0008": 2}
    winner = choose(["0000", "0001", "0002"], worker, seeds=seeds)
    # A setting of which one seed is not finite is no winner, however good its other seed is.
    assert [(group.trial, len(group.losses)) for group in winner.seeds] == [("0001", 2), ("0000", 2), ("0002", 2)]
    assert winner.entry.id == "0006" and winner.seeds[0].mean == pytest.approx(0.23)
    # The search's own trials are not scored again: they were chosen by their luck.
    assert ("0000", "validation") not in worker.asked


def test_without_test_rows_the_rows_that_chose_the_winner_judge_it_and_that_is_said(choose):
    worker = Worker({("0001", "validation"): 0.3, (None, "validation"): 0.5})
    winner = choose(["0001"], worker, has_test=False)
    assert worker.answered == ["validation"]
    assert winner.verdict.split == "validation"
    assert "chosen on these rows" in winner.verdict.note
    assert worker.asked == [("0001", "validation"), ("0001", "validation"), (None, "validation")]


def test_a_clone_that_wins_is_said_not_to_have_run_its_setting_from_its_start(choose):
    worker = Worker({("0003", "validation"): 0.2, ("0003", "test"): 0.3, (None, "test"): 0.9})
    winner = choose(["0003"], worker, clone_of=CloneOrigin(1, 2))
    said = "the winner is a clone of 0001 at report 2: its setting was not run from its start"
    assert said in (winner.verdict.note or "")
    assert "clone" not in (choose(["0003"], worker).verdict.note or "")


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


def test_only_executors_of_one_device_class_score_so_that_the_losses_compare(choose):
    other = Worker({})
    worker = Worker(
        {("0001", "validation"): 0.3, ("0002", "validation"): 0.2, ("0002", "test"): 0.2, (None, "test"): 1}
    )
    executors = [(worker, {"device_class": "t4"}), (other, {"device_class": "h200"}), (worker, {"device_class": "t4"})]
    assert choose(["0001", "0002"], worker, executors=executors).entry.id == "0002"
    assert (len(worker.asked), other.asked) == (4, [])


def test_without_an_executor_nothing_is_scored_and_the_resume_is_told(choose):
    with pytest.raises(ExecutorsLost, match=r"no executor is left .* --resume"):
        choose(["0001"], Worker({}), executors=[])


@pytest.fixture
def choose_with_deaths(tmp_path, monkeypatch):
    """choose_winner where scoring first raises each of some errors; gives the winner, and what was called."""

    def run(errors: list[Exception], winner: Any, *, wait_ready: Any = None) -> tuple[Any, list[Any]]:
        called: list[Any] = []
        left = list(errors)

        def score(*args: Any, **kwargs: Any) -> Any:
            called.append("score")
            if left:
                raise left.pop(0)
            return winner

        monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
        monkeypatch.setattr(winner_module, "score_best", score)
        monkeypatch.setattr(winner_module, "keep_winner", lambda *args, **kwargs: called.append("keep"))
        pool = SimpleNamespace(wait_ready=SimpleNamespace(remote=wait_ready or (lambda: called.append("wait"))))
        inputs: dict[str, Any] = {"paths": SweepPaths(tmp_path), "config": CONFIG, "data": None, "pool": pool}
        ledger: Any = SimpleNamespace(note=lambda event, **facts: called.append((event, *facts.values())))
        return choose_winner(ledger, **inputs), called

    return run


def test_an_executor_that_dies_while_it_scores_is_waited_for_and_asked_again(choose_with_deaths):
    the_winner = SimpleNamespace(entry=SimpleNamespace(id="0007"))
    winner, called = choose_with_deaths([RayActorError(), RayActorError()], the_winner)
    scored = [("scoring_started",), *["wait", "score"] * 3, ("scoring_ended", "0007")]
    assert (winner, called) == (the_winner, [*scored, "keep"])


def test_executors_that_die_again_and_again_end_the_sweep_with_the_way_to_go_on(choose_with_deaths):
    deaths: list[Exception] = [RayActorError() for _ in range(CONFIG.cluster.max_trial_retries + 1)]
    with pytest.raises(ExecutorsLost, match=r"they died again and again: .* --resume"):
        choose_with_deaths(deaths, None)


def test_the_loss_of_the_last_executor_while_it_scores_names_its_cause_and_the_way_to_go_on(choose_with_deaths):
    gone = RayTaskError("wait_ready", "remote traceback", NoExecutors("no seat is left: CUDA driver died"))
    with pytest.raises(ExecutorsLost, match=r"CUDA driver died\. Go on with: .* --resume"):
        choose_with_deaths([gone], None)


def test_a_pool_that_dies_while_trials_are_scored_is_no_executors_fault(choose_with_deaths):
    def die() -> None:
        raise RayActorError

    with pytest.raises(PoolLost, match="the pool is gone"):
        choose_with_deaths([], None, wait_ready=die)


def test_an_error_of_scoring_itself_is_not_tried_again(choose_with_deaths):
    with pytest.raises(RayTaskError):
        choose_with_deaths([RayTaskError("score", "remote traceback", ValueError("bad metric"))], None)


def test_a_sweep_without_a_winner_keeps_none(choose_with_deaths):
    assert choose_with_deaths([], None) == (None, [("scoring_started",), "wait", "score", ("scoring_ended", None)])


def test_what_is_kept_is_the_adapter_with_its_tokenizer_record_scores_and_answers(tmp_path, monkeypatch):
    paths = SweepPaths(tmp_path)
    trial = paths.trial("0002")
    trial.adapter.mkdir(parents=True)
    (trial.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    trial.record.write_text("{}")
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (Path(folder) / "tokenizer.json").touch())
    monkeypatch.setattr(winner_module, "load_tokenizer", lambda model: tokenizer)
    base, tuned = (
        Scores(loss, 40, 4, {}, {}, [ScoredAnswer(0, answer, "7")], 0, 0) for loss, answer in ((0.9, "no"), (0.5, "7"))
    )
    verdict = Verdict("test", compare_rows("loss", [9.0] * 8, [5.0] * 8, higher_is_better=False), [])
    entry: Any = SimpleNamespace(id="0002")
    keep_winner(Winner(entry, tuned, base, {"0001": base, "0002": tuned}, verdict), paths=paths, config=CONFIG)
    files = {str(path.relative_to(paths.best)) for path in paths.best.rglob("*") if path.is_file()}
    adapter = {"adapter/adapter_model.safetensors", "adapter/tokenizer.json"}
    assert files == adapter | {"record.json", "scores.json", "answers.jsonl"}
    scores = read_json(paths.best / "scores.json")
    assert (scores["trial"], scores["winner"]["loss"], scores["base"]["loss"]) == ("0002", 0.5, 0.9)
    assert set(scores["rescored"]) == {"0001", "0002"} and "answers" not in scores["winner"]
    answers = read_lines(paths.best / "answers.jsonl")
    assert [(line["model"], line["answer"]) for line in answers] == [("0002", "7"), ("base", "no")]
