"""A driver's surroundings without Ray: a cluster, executors and a search's loop that do what a test says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from qlora_ray.hardware import Plan
from qlora_ray.orchestration import driver
from qlora_ray.orchestration.cluster.planning import PlannedCluster
from qlora_ray.orchestration.cluster.probing import ProbedCluster
from qlora_ray.orchestration.live import collecting
from qlora_ray.orchestration.pool.terms import PoolTerms
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.orchestration.winner import Winner
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs import SweepPaths, read_events
from qlora_ray.runs.record_parts import BaseRecord, SweepFacts
from qlora_ray.runs.records import Manifest, Summary
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.scores import Scores
from qlora_ray.scoring.verdict import Verdict
from tests.unit.hardware_fixtures import TINY, cpu_node, plan
from tests.unit.orchestration_fixtures import Books, FakePool, ask, make_result

HEAD = "a" * 56


class World:
    """Everything around the driver: what it did there, in order, and what a test lets happen.

    Attributes:
        done: What the driver did, in order.
        schedulers: The scheduler of each search that was run.
        search: What happens in the search's loop.
        winner: What happens when the winner is chosen.
        pool: The pool that the driver gets; it was told of the executors in `specs`, and of `max_slots`.
        nodes: The cluster.
        folder: Where the user calls the sweep.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = SweepPaths(root / "results" / "s")
        self.folder = "first"
        self.done: list[str] = []
        self.schedulers: list[str] = []
        self.pool = FakePool(calls=self.done)
        self.nodes = {HEAD: cpu_node("head")}
        self.search: Callable[..., None] = complete_all
        self.winner: Callable[..., Winner | None] = lambda ledger, **_: make_winner(ledger.ranked()[0])
        books = Books(root / "inputs", scheduler="asha")
        report = SimpleNamespace(summary_lines=lambda: ["3 rows"], fingerprint="f", classes={})
        data: Any = SimpleNamespace(train=[0] * 8, validation=[0] * 4, test=None, report=report, folder=root)
        self.preflight = Preflight(books.config, books.space, [], TINY, data, "loss only", [])
        for name, replacement in {
            "watched_ray": lambda cluster, stops: contextlib.nullcontext(),
            "watched_nodes": lambda *_, **__: contextlib.nullcontext(),
            "plan_nodes": self._plan_nodes,
            "SweepGauges": lambda name: SimpleNamespace(publish=lambda *_, **__: None),
            "common_facts": lambda preflight: SweepFacts(base=BaseRecord(hash="sha256:b")),
            "describe_sweep": self._describe_sweep,
            "choose_winner": self._choose_winner,
        }.items():
            monkeypatch.setattr(driver, name, replacement)
        monkeypatch.setattr("qlora_ray.orchestration.searching.run_trials", self._run_trials)
        monkeypatch.setattr(collecting, "resolve_data_metrics", lambda config, data: ([], "loss only"))
        monkeypatch.setattr("qlora_ray.orchestration.cluster.joining.ray_cluster", self._join)
        monkeypatch.setattr("qlora_ray.reporting.write_report", self.write_report)
        monkeypatch.setattr("qlora_ray.orchestration.executor.shared_data.own_node_id", lambda: HEAD)
        monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
        monkeypatch.setattr("qlora_ray.orchestration.executor.shared_data.own_node_id", lambda: HEAD)
        monkeypatch.setattr(ray, "kill", lambda actor: self.done.append("kill pool"))
        monkeypatch.setattr("qlora_ray.orchestration.pool.starting.start_pool", self._start_pool)

    def run(self, *, is_resume: bool = False) -> Summary:
        """Runs the sweep; whatever comes of it, Ray is left and the folder is nobody's any more."""
        # As outside pytest: what is printed goes to the descriptor that the driver sends to its log.
        descriptor = os.fdopen(2, "w", closefd=False)
        try:
            with contextlib.redirect_stderr(descriptor):
                return driver.run_sweep(self.preflight, paths=self.paths, is_resume=is_resume)
        finally:
            assert self.done.count("join Ray") == self.done.count("leave Ray")
            if self.paths.root.exists():
                with self.paths.lock():
                    pass

    def events(self) -> list[str]:
        """The names of the sweep's events."""
        return [event["event"] for event in read_events(self.paths.events)]

    def write_report(self, paths: SweepPaths) -> Path:
        """The report, made of a summary that is there already."""
        assert paths.summary.exists()
        self.done.append("write report")
        return paths.root / "report.html"

    @contextlib.contextmanager
    def _join(self, cluster: Any) -> Iterator[None]:
        self.done.append("join Ray")
        try:
            yield
        finally:
            self.done.append("leave Ray")

    def _plan_nodes(self, preflight: Preflight, folder: Path, *, request: Any, tell: Any) -> PlannedCluster:
        # What every node must see.
        assert folder == self.paths.root and request is None
        self.done.append("probe nodes")
        return PlannedCluster(ProbedCluster(self.nodes), plan(*self.nodes.values()))

    def _describe_sweep(self, preflight: Preflight, plan: Plan, profiles: Any, *, common: SweepFacts) -> Manifest:
        return Manifest(**vars(common), folder=self.folder, config=preflight.config.model_dump())

    def _start_pool(self, launcher: Any, specs: Any, *, terms: PoolTerms, name: str) -> FakePool:
        self.done.append("start executors")
        # A killed driver's folder says what was planned.
        assert self.paths.manifest.exists()
        self.specs, self.max_slots = specs, terms.max_slots
        return self.pool

    def _run_trials(self, terms: Any, *, searcher: Any, ledger: Any, pool: Any, stop: SearchStop, **_: Any) -> None:
        assert pool is self.pool
        self.done.append("search")
        self.schedulers.append(terms.config.search.scheduler)
        try:
            self.search(searcher, stop)
        finally:
            searcher.finish()

    def _choose_winner(self, ledger: Any, **inputs: Any) -> Winner | None:
        self.done.append("choose winner")
        return self.winner(ledger, **inputs)


def make_winner(entry: Any) -> Winner:
    """A winner that is better on each of 8 rows."""
    scores = Scores(0.5, 80, 8, {}, {}, [], 0, 0)
    deciding = compare_rows("loss", [10.0] * 8, [3.5] * 8, higher_is_better=False)
    return Winner(entry, scores, scores, {entry.id: scores}, Verdict("test", deciding, []))


def complete_all(searcher: Any, stop: SearchStop, **last: Any) -> None:
    """The search's loop, one trial after the other: each makes its last report and is told."""
    while not stop.is_requested and searcher.has_more():
        asked = ask(searcher)
        searcher.enter_report(make_result(asked.number, 4, **{"is_final": True, **last}))
        searcher.close(asked.number)


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail
