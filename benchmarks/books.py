"""What a trial costs the driver, by how many there were before: loop, scheduler, study and books, without Ray."""

from __future__ import annotations

import asyncio
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.leased_trial import LeasedTrial
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.search_loop import SearchLoop
from qlora_ray.orchestration.searcher import AskedTrial, StudySearcher
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import open_study
from qlora_ray.training.engine import Report
from tests.fake_engine import fake_loss

SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "training.weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "lora.r": {"choices": [4, 8, 16, 32]},
}
NUM_REPORTS = 4
NUM_SLOTS = 4
# Trials over which a cost is taken.
WINDOW = 100


def measure_books(num_trials: int, *, sampler: str = "tpe", scheduler: str = "asha") -> list[float]:
    """Runs a search of trials that report at once.

    Args:
        num_trials: Trials of the search.
        sampler: The config's search.sampler.
        scheduler: Its search.scheduler.

    Returns:
        CPU milliseconds of the driver per trial, for each WINDOW of trials in turn.
    """
    with tempfile.TemporaryDirectory(prefix="books-") as scratch:
        search = {"space": SPACE, "num_trials": num_trials, "num_reports": NUM_REPORTS}
        config = SweepConfig.model_validate({"search": {**search, "sampler": sampler, "scheduler": scheduler}})
        paths = SweepPaths(Path(scratch) / "sweep")
        paths.create()
        ledger = Ledger(config, paths=paths, console=Console(io.StringIO()), common=SweepFacts())
        space = load_space(config)
        study = open_study(paths.study, name="sweep", search=config.search, space=space)
        searcher = StudySearcher(study, space=space, ledger=ledger, num_trials=num_trials, num_slots=NUM_SLOTS)
        marks = [time.process_time()]

        def make_trial(asked: AskedTrial) -> LeasedTrial:
            if asked.number and asked.number % WINDOW == 0:
                marks.append(time.process_time())
            return cast(LeasedTrial, _InstantTrial(asked))

        loop = SearchLoop(
            searcher, ledger=ledger, search=config.search, make_trial=make_trial, events=None, stop=SearchStop()
        )
        asyncio.run(loop.run())
        marks.append(time.process_time())
    return [(end - begin) / WINDOW * 1e3 for begin, end in itertools.pairwise(marks)]


def describe_books(num_trials: int, **choices: str) -> dict[str, Any]:
    """A row of the JSON: the last hundred trials, and the mean, over a sweep of a hundred."""
    short = statistics.median(measure_books(WINDOW, **choices)[0] for _ in range(3))
    costs = measure_books(num_trials, **choices)
    return {
        "trials": num_trials,
        **choices,
        "first_100_ms": round(short, 2),
        "last_100_ms": round(costs[-1], 2),
        "mean_ms": round(statistics.mean(costs), 2),
        "last_over_first": round(costs[-1] / short, 2),
        "mean_over_first": round(statistics.mean(costs) / short, 2),
        "ms_by_1000": [round(statistics.mean(costs[at : at + 10]), 2) for at in range(0, len(costs), 10)],
    }


class _InstantTrial:
    """Reports without a pool, whenever it is asked."""

    lease = None
    waited_s = 0.0
    num_retries = 0

    def __init__(self, asked: AskedTrial) -> None:
        self._id = trial_id_of(asked.number)
        self._rate = asked.params["training.learning_rate"]
        self._index = 0

    async def next_report(self) -> Report:
        await asyncio.sleep(0)
        self._index += 1
        metrics = {"eval_loss": fake_loss(self._rate, 2 * self._index), "train_s": 1.0, "tokens_per_s": 10.0}
        return Report(self._id, self._index, self._index == NUM_REPORTS, metrics, {"trainable_parameters": 800})

    async def leave(self) -> None:
        return None
