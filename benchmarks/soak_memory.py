"""How memory grows with the number of trials: a long sweep that nothing disturbs, and a line through what is seen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import psutil

from benchmarks.soak_processes import find_titled
from benchmarks.soak_scratch import Scratch
from benchmarks.soak_sweep import SoakedSweep
from qlora_ray.runs import read_events

INTERVAL_S = 1.0
# Until then caches fill: allocators, imports, compiled kernels.
WARM_SHARE = 0.25
MIB = 1 << 20
Points = Sequence[tuple[int, float]]


def measure_growth(scratch: Scratch, num_trials: int) -> dict[str, dict[str, float]]:
    """Resident memory of driver, pool and executors (of all together) over a sweep of many trials.

    Returns:
        For each, in MiB: at the first and the last trials, and what a hundred trials add.
    """
    folder = scratch.sweeps / "memory"
    folder.mkdir()
    search = {"num_trials": num_trials, "num_reports": 2}
    training = {"max_samples": 8}
    mark = scratch.mark("memory")
    sweep = SoakedSweep(folder, mark, scratch.environment, {"search": search, "training": training})
    sweep.start()
    points: dict[str, list[tuple[int, float]]] = {"driver": [], "pool": [], "executors": []}
    while sweep.is_running:
        time.sleep(INTERVAL_S)
        events = [event["event"] for event in read_events(sweep.paths.events)]
        if "scoring_started" in events or "executor_ready" not in events:
            continue
        count = events.count("trial_complete")
        pids = {"driver": [sweep.pid], "pool": find_titled(mark, "ray::Pool")}
        pids["executors"] = find_titled(mark, "ray::Executor")
        for name, of_name in pids.items():
            if of_name:
                points[name].append((count, sum(_rss(pid) for pid in of_name) / MIB))
    end = sweep.wait()
    if end.exit_code != 0:
        raise RuntimeError(f"memory: the undisturbed sweep ended with {end.exit_code}:\n{end.output}")
    return {name: describe_growth(of_name, num_trials) for name, of_name in points.items()}


def describe_growth(points: Points, num_trials: int) -> dict[str, float]:
    """A line through the points after the warm-up: MiB at its two ends, and per hundred trials."""
    warm = [(count, mib) for count, mib in points if count >= WARM_SHARE * num_trials]
    slope, intercept = statistics.linear_regression(*zip(*warm, strict=True))
    return {
        "first_mib": round(points[0][1], 1),
        "last_mib": round(intercept + slope * num_trials, 1),
        "mib_per_100_trials": round(100 * slope, 2),
    }


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
