"""A sweep up to the end of its search: loop, pool, leases and study on real raylets, over fake executors."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.executor.actor import ExecutorTerms
from qlora_ray.orchestration.leased_trial import TrialTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.search_loop import run_trials
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import enqueue_known_points, open_study

SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "points_to_evaluate": [{"training.learning_rate": 1e-3}],
}
NUM_REPORTS = 4
NUM_TRIALS = 4


class Sweep:
    """A sweep over fake executors."""

    num_slots = 2

    def __init__(self, root: Path, make_pool: Callable[..., Any], **search: Any) -> None:
        self.paths = SweepPaths(root / "sweep")
        if not self.paths.root.exists():
            self.paths.create()
        self.config = SweepConfig.model_validate(
            {
                "training": {"max_samples": 8, "gradient_accumulation_steps": 1},
                "search": {"space": SPACE, "num_trials": NUM_TRIALS, "num_reports": NUM_REPORTS, **search},
            }
        )
        self.text = io.StringIO()
        self.ledger = Ledger(self.config, paths=self.paths, console=Console(self.text), common=SweepFacts())
        self.space = load_space(self.config)
        self.study = open_study(self.paths.study, name="sweep", search=self.config.search, space=self.space)
        self.make_pool = make_pool

    def run(self, **pool_options: Any) -> None:
        """Runs the search to its end."""
        terms = ExecutorTerms(self.config, self.paths.root.resolve())
        pool = self.pool = self.make_pool(terms, **pool_options)
        enqueue_known_points(self.study, search=self.config.search, space=self.space)
        searcher = StudySearcher(
            self.study,
            space=self.space,
            ledger=self.ledger,
            num_trials=self.config.search.num_trials,
            num_slots=self.num_slots,
        )
        run_trials(
            TrialTerms(self.config, 8),
            searcher=searcher,
            ledger=self.ledger,
            pool=pool,
            stop=SearchStop(),
        )

    def states(self) -> list[str]:
        """Every trial's state in the study."""
        return [trial.state.name for trial in self.study.get_trials()]
