"""Short trials on a real Ray over fake executors: CPU seconds of all processes, and which processes there are."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks.books import NUM_REPORTS, SPACE
from benchmarks.processes import read_tree_cpu_s, watch_workers
from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.executor.actor import ExecutorTerms
from qlora_ray.orchestration.executor.launcher import ExecutorSpec, RayLauncher
from qlora_ray.orchestration.leased_trial import TrialTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.pool.starting import start_pool
from qlora_ray.orchestration.pool.terms import PoolTerms
from qlora_ray.orchestration.search_loop import run_trials
from qlora_ray.orchestration.searcher import StudySearcher
from qlora_ray.orchestration.stopping import SearchStop
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import open_study
from tests.fake_executor import FakeExecutor, FakePlacement

ROOT = Path(__file__).parents[1]
SLOTS_PER_EXECUTOR = 4
# Each executor is a process that imports torch: many slots come in fewer of them.
MOST_EXECUTORS = 3


def measure_light_trials(*, num_slots: int, num_trials: int, repetitions: int = 3) -> dict[str, Any]:
    """Runs sweeps of short trials, each of four reports that cost nothing, on one private Ray.

    Args:
        num_slots: Over executors of four slots each, or three larger ones.
        num_trials: Of each sweep.
        repetitions: Sweeps.

    Returns:
        A row of the JSON.
    """
    # Workers import the fakes of `tests`.
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        rows = [_run_sweep(num_slots, num_trials) for _ in range(repetitions)]
    finally:
        ray.shutdown()
    return {
        "slots": num_slots,
        "trials": num_trials,
        "cpu_ms_per_trial": round(statistics.median(row["cpu_ms"] for row in rows), 1),
        "cpu_ms_range": [round(min(row["cpu_ms"] for row in rows), 1), round(max(row["cpu_ms"] for row in rows), 1)],
        "driver_cpu_ms_per_trial": round(statistics.median(row["driver_ms"] for row in rows), 1),
        "other_processes": max(row["others"] for row in rows),
        "workers_started_meanwhile": max(row["started"] for row in rows),
    }


def _run_sweep(num_slots: int, num_trials: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="trials-") as scratch:
        search = {"space": SPACE, "num_trials": num_trials, "num_reports": NUM_REPORTS, "scheduler": "none"}
        training = {"max_samples": 8, "gradient_accumulation_steps": 1}
        config = SweepConfig.model_validate({"search": {**search, "sampler": "random"}, "training": training})
        paths = SweepPaths(Path(scratch) / "sweep")
        paths.create()
        ledger = Ledger(config, paths=paths, console=Console(io.StringIO()), common=SweepFacts())
        space = load_space(config)
        study = open_study(paths.study, name="sweep", search=config.search, space=space)
        searcher = StudySearcher(study, space=space, ledger=ledger, num_trials=num_trials, num_slots=num_slots)
        node_id = ray.get_runtime_context().get_node_id()
        num_executors = min(num_slots // SLOTS_PER_EXECUTOR, MOST_EXECUTORS)
        placement: Any = FakePlacement(num_slots // num_executors, num_cpus=0.01)
        pool = start_pool(
            RayLauncher(ExecutorTerms(config, paths.root), None, FakeExecutor),
            [ExecutorSpec(placement, node_id) for _ in range(num_executors)],
            terms=PoolTerms(config.cluster.lease_timeout_s),
            name="benchmark",
        )
        try:
            _wait_all_ready(pool, num_executors)
            own, tree = sum(os.times()[:2]), read_tree_cpu_s()
            with watch_workers() as seen:
                run_trials(TrialTerms(config, 8), searcher=searcher, ledger=ledger, pool=pool, stop=SearchStop())
            own, tree = sum(os.times()[:2]) - own, read_tree_cpu_s() - tree
        finally:
            ray.get(pool.close.remote())
            ray.kill(pool)
        if ledger.counts() != {"complete": num_trials}:
            raise RuntimeError(f"all {num_trials} trials must be complete, got {ledger.counts()}")
    return {
        "cpu_ms": tree / num_trials * 1e3,
        "driver_ms": own / num_trials * 1e3,
        "others": seen.most_at_once,
        "started": seen.num_started,
    }


def _wait_all_ready(pool: Any, num_executors: int) -> None:
    seen, num_ready = 0, 0
    while num_ready < num_executors:
        events = ray.get(pool.next_events.remote(seen, 10.0))
        seen += len(events)
        num_ready += sum(event["event"] == "executor_ready" for event in events)
