"""How an executor shows that it lives and gets somewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.orchestration.executor.progress import ProgressCounter
from qlora_ray.runs import SweepPaths
from tests.fake_engine import WAIT_S, GatedEngine
from tests.simulation.test_executor_model import make_spec


@pytest.fixture
def engine() -> GatedEngine:
    """Stands in the middle of a step until it is let on."""
    return GatedEngine()


@pytest.fixture
def core(engine: GatedEngine, tmp_path: Path) -> Iterator[ExecutorCore]:
    """An executor over it."""
    SweepPaths(tmp_path).trial("0000").root.mkdir(parents=True)
    core = ExecutorCore(engine, paths=SweepPaths(tmp_path), lease_timeout_s=600, keep_state=True)
    yield core
    engine.allow(99)
    core.close()


def test_a_heartbeat_is_answered_while_the_engine_stands_and_says_so(core: ExecutorCore, engine: GatedEngine) -> None:
    core.admit(make_spec("0000"), 7)
    engine.wait_entered(1)
    standing = core.heartbeat()
    assert (standing["held"], standing["is_training"], standing["slots"]) == ({"0000": 7}, True, 2)
    assert core.heartbeat()["progress"] == standing["progress"]
    engine.allow()
    assert core.next_report("0000", 7, timeout_s=WAIT_S) is not None
    waiting = core.heartbeat()
    assert waiting["progress"] > standing["progress"]
    # It waits for its driver, which is no work.
    assert waiting["is_training"] is False


def test_an_executor_that_scores_is_at_work_though_no_trial_is_there(core: ExecutorCore) -> None:
    assert core.heartbeat()["is_training"] is False
    with core.scoring():
        assert core.heartbeat()["is_training"] is True
    assert core.heartbeat()["is_training"] is False


def test_an_executor_tells_how_far_the_part_is_that_it_scores_and_nothing_before_and_after(core: ExecutorCore) -> None:
    progress = core.scoring_progress
    assert progress.to_dict() is None
    with core.scoring():
        progress.begin("loss of base on test", 9)
        progress.add(4)
        progress.add(5)
        assert progress.to_dict() == {"what": "loss of base on test", "done": 9, "total": 9}
        progress.begin("answers of base on test", 3)
        progress.add(1)
        assert progress.to_dict() == {"what": "answers of base on test", "done": 1, "total": 3}
    assert progress.to_dict() is None


def test_forward_passes_count_also_those_that_a_wrapper_makes() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 2)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embedding

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embedding(ids)

    model, counter = Model(), ProgressCounter()
    counter.count_forwards(model)
    model(torch.tensor([1]))
    model.forward(torch.tensor([1]))
    assert counter.count == 2
