"""The `packed` engine scores several models at once, and ends answers early: with the scores of one by one, in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qlora_ray import embedded
from qlora_ray.config.schema import Evaluate
from qlora_ray.modeling.multi_lora import adapters as adapters_module
from qlora_ray.scoring import ExactMatch, SqlExecution, model_scoring
from qlora_ray.scoring.scores import Scores
from qlora_ray.training.engine import TrainingData
from qlora_ray.training.packed.engine import PackedEngine
from tests.contracts.bench import Bench, bench, make_spec, run_trial
from tests.unit.evaluation_fixtures import with_columns

__all__ = ["bench"]

NUM_MODELS = 4


@pytest.fixture(scope="module")
def engine(bench: Bench) -> PackedEngine:
    """One that measures what a sweep of the shipped task measures."""
    sql = SqlExecution(embedded.database_path())
    return PackedEngine(
        bench.base,
        TrainingData(bench.data.train, bench.data.validation),
        slots=4,
        max_tokens_per_micro_batch=2048,
        evaluate=Evaluate(batch_size=5),
        metrics=[sql, ExactMatch(), *sql.companions()],
    )


@pytest.fixture(scope="module")
def models(engine: PackedEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    """Two adapters of one shape and one of another, with the bare base between them."""
    folder = tmp_path_factory.mktemp("adapters")
    found: dict[str, Path | None] = {}
    for name, rank in (("0000", 8), ("0001", 4), ("0002", 8)):
        run_trial(engine, make_spec(name, lora={"r": rank}, seed=int(name)))
        found[name] = folder / name
        engine.save_adapter(name, folder / name)
        engine.evict(name)
        if name == "0000":
            found["base"] = None
    return found


@pytest.fixture(scope="module")
def together(engine: PackedEngine, models: dict[str, Path | None], bench: Bench) -> dict[str, Scores]:
    """The scores of all models in one call."""
    return engine.score(models, bench.data.validation)


def test_models_that_are_scored_at_once_have_the_scores_of_one_by_one(
    engine: PackedEngine, models: dict[str, Path | None], bench: Bench, together: dict[str, Scores]
) -> None:
    alone = {name: engine.score({name: path}, bench.data.validation)[name] for name, path in models.items()}
    assert len({scores.loss for scores in alone.values()}) == NUM_MODELS
    for name, expected in alone.items():
        assert together[name].loss == pytest.approx(expected.loss, abs=1e-6)
        assert together[name].row_metrics == expected.row_metrics
        assert [answer.answer for answer in together[name].answers] == [answer.answer for answer in expected.answers]
    assert len({tuple(answer.answer for answer in scores.answers) for scores in alone.values()}) > 1


def test_scores_are_those_of_whole_answers_though_some_are_ended_early(
    engine: PackedEngine,
    models: dict[str, Path | None],
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What every answer goes on behind, and is wrong by.
    rows = with_columns(bench.data.validation, references=["SELECT 1"] * len(bench.data.validation))
    monkeypatch.setattr(engine, "_metrics", [ExactMatch()])
    together = engine.score(models, rows)
    monkeypatch.setattr(model_scoring, "make_early_end", lambda *args, **rest: None)
    whole = engine.score(models, rows)
    assert sum(scores.num_settled_answers for scores in together.values()) > 0
    for name, expected in whole.items():
        assert together[name].metrics == expected.metrics
        assert together[name].row_metrics == expected.row_metrics
        for early, full in zip(together[name].answers, expected.answers, strict=True):
            assert full.answer.startswith(early.answer)
            assert early.finish in (full.finish, "settled", "loop")
            if early.finish == full.finish:
                assert early == full


def test_without_answers_there_is_the_loss_alone_and_one_adapter_in_memory(
    engine: PackedEngine,
    models: dict[str, Path | None],
    bench: Bench,
    together: dict[str, Scores],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[int] = []

    def answering(wrapped: Any, adapters: Sequence[Path | None]) -> Any:
        held.append(len(adapters))
        return adapters_module.answering(wrapped, adapters)

    monkeypatch.setattr("qlora_ray.training.packed.engine.answering", answering)
    scores = engine.score(models, bench.data.validation, with_answers=False)
    for name, expected in together.items():
        assert (scores[name].loss, scores[name].row_nll) == (expected.loss, expected.row_nll)
        assert (scores[name].answers, scores[name].metrics) == ([], {})
    # However many the finalists are, with their seeds.
    assert held == [1] * NUM_MODELS
