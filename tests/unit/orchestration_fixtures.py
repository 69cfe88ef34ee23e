"""A sweep's books, study and searcher without Ray, and the results that trials hand to the search's loop."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.searcher import AskedTrial, StudySearcher
from qlora_ray.orchestration.trial_entry import TrialResult
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import enqueue_known_points, open_study
from qlora_ray.training.engine import Report

KNOWN_RATE = 1e-3
SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "points_to_evaluate": [{"training.learning_rate": KNOWN_RATE}],
}


class Books:
    """A sweep's folder as one driver has it: config, ledger and study. A second one of the same folder resumes it."""

    def __init__(self, root: Path, **search: Any) -> None:
        self.paths = SweepPaths(root / "sweep")
        if not self.paths.root.exists():
            self.paths.create()
        choices = {"space": SPACE, "num_trials": 3, "num_reports": 4, "sampler": "random", **search}
        self.config = SweepConfig.model_validate({"search": choices})
        self.text = io.StringIO()
        self.ledger = Ledger(self.config, paths=self.paths, console=Console(self.text), common=SweepFacts())
        self.space = load_space(self.config)
        self.study = open_study(self.paths.study, name="sweep", search=self.config.search, space=self.space)
        enqueue_known_points(self.study, search=self.config.search, space=self.space)

    def make_searcher(self, *, num_slots: int = 99) -> StudySearcher:
        """The searcher of the search's loop."""
        return StudySearcher(
            self.study,
            space=self.space,
            ledger=self.ledger,
            num_trials=self.config.search.num_trials,
            num_slots=num_slots,
        )

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The study's trials, read from its journal."""
        again = open_study(self.paths.study, name="sweep", search=self.config.search, space=self.space)
        return again.get_trials()

    def states(self) -> list[str]:
        """Their states."""
        return [trial.state.name for trial in self.trials()]


def ask(searcher: StudySearcher) -> AskedTrial:
    """The next trial, entered into the books."""
    asked = searcher.ask().result()
    searcher.open(asked)
    return asked


def make_result(number: int, report_index: int, *, loss: float = 0.5, **fields: Any) -> TrialResult:
    """One of a trial's reports; `fields` are the report's, and replace what is in it."""
    report = {"index": report_index, "is_final": False, "metrics": {"eval_loss": loss}, **fields}
    return TrialResult(number, Report(trial_id_of(number), **report), executor=0)


def remote(method: Callable[..., Any]) -> Any:
    """An actor's method, called at once: what it returns is what `ray.get` would give."""
    return SimpleNamespace(remote=method)


@dataclass
class FakePool:
    """The pool's actor as the driver calls it, without a process; `ray.get` must give back what it is given.

    Attributes:
        events: What `next_events` returns, from the first one not seen.
        executors: What `ready_executors` returns.
        calls: The names of the methods that were called, with the trial where there is one.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    executors: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next_events = remote(lambda seen, timeout_s: self.events[seen:])
        self.live = remote(lambda: {"seats": [], "waiting": []})
        self.ready_executors = remote(lambda: self.executors)
        self.begin_scoring = remote(lambda: self.calls.append("begin_scoring"))
        self.wait_ready = remote(lambda: self.calls.append("wait_ready"))
        self.end = remote(lambda trial: self.calls.append(f"end {trial}"))
        self.close = remote(lambda: self.calls.append("close"))
