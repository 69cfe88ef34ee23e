"""What it costs to see a running sweep: CPU of one look, which comes every 2 s, on a real Ray over fake executors.

    python -m benchmarks.live_figures --executors 2 --slots 2 --json FILE

A look asks the pool, which asks its executors, estimates the time left, writes live.json and draws the block on a
terminal. CPU seconds of all processes, less those of as many seconds without looks.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from benchmarks.light_trials import ROOT
from benchmarks.processes import read_tree_cpu_s
from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.executor.actor import ExecutorTerms
from qlora_ray.orchestration.executor.launcher import ExecutorSpec, RayLauncher
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.live.collecting import LiveCollector
from qlora_ray.orchestration.live.outlook import Outlook, RowCounts
from qlora_ray.orchestration.live.watch import LOOK_INTERVAL_S, LiveWatch
from qlora_ray.orchestration.pool.starting import start_pool
from qlora_ray.orchestration.pool.terms import PoolTerms
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.live import LivePhase
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import TrialSpec
from tests.fake_executor import FakeExecutor, FakePlacement

NUM_REPORTS = 4
NUM_ROWS = 100
# Nobody asks for the trials here, and none may be lost for it.
LEASE_TIMEOUT_S = 3600.0


def main(argv: list[str] | None = None) -> int:
    """Measures and prints one object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_figures", description=__doc__.splitlines()[0])
    parser.add_argument("--executors", type=int, default=2, help="executors (default: as the quickstart has, 2)")
    parser.add_argument("--slots", type=int, default=2, help="trials on each (default: 2)")
    parser.add_argument("--trials", type=int, default=12, help="trials of the sweep (default: 12)")
    parser.add_argument("--looks", type=int, default=15, help="looks, one every 2 s (default: 15)")
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(argv)
    figures = measure_looks(
        num_executors=options.executors, slots=options.slots, num_trials=options.trials, num_looks=options.looks
    )
    text = json.dumps(figures, indent=2) + "\n"
    sys.stdout.write(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")
    return 0


def measure_looks(*, num_executors: int, slots: int, num_trials: int, num_looks: int) -> dict[str, Any]:
    """CPU of the looks at a sweep whose slots are all held.

    Args:
        num_executors: Executors, a process each.
        slots: Trials on each of them.
        num_trials: Trials that the sweep has, running ones and those to come.
        num_looks: Over how many the mean is taken.
    """
    # Workers import the fakes of `tests`.
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory(prefix="looks-") as scratch, _terminal() as console:
            watch = _start_sweep(
                SweepPaths(Path(scratch) / "sweep"), console, num_executors, slots=slots, num_trials=num_trials
            )
            with watch as look:
                look()
                idle_s, _ = _measure(lambda: None, num_looks)
                all_s, own_s = _measure(look, num_looks)
    finally:
        ray.shutdown()
    return {
        "executors": num_executors,
        "running_trials": num_executors * slots,
        "trials": num_trials,
        "looks": num_looks,
        "cpu_ms_per_look": round(max(0.0, all_s - idle_s) / num_looks * 1e3, 2),
        "driver_cpu_ms_per_look": round(own_s / num_looks * 1e3, 2),
        "idle_cpu_ms_per_look": round(idle_s / num_looks * 1e3, 2),
        "load_average": os.getloadavg()[0],
    }


@contextmanager
def _start_sweep(
    paths: SweepPaths, console: Console, num_executors: int, *, slots: int, num_trials: int
) -> Iterator[Any]:
    config = SweepConfig.model_validate({"search": {"num_trials": num_trials, "num_reports": NUM_REPORTS}})
    paths.create()
    ledger = Ledger(config, paths=paths, console=console, common=SweepFacts())
    placement: Any = FakePlacement(slots, num_cpus=0.01)
    node_id = ray.get_runtime_context().get_node_id()
    pool = start_pool(
        RayLauncher(ExecutorTerms(config, paths.root), None, FakeExecutor),
        [ExecutorSpec(placement, node_id) for _ in range(num_executors)],
        terms=PoolTerms(LEASE_TIMEOUT_S),
        name="looks",
    )
    budget = make_budget(config.training, num_train_rows=8 * NUM_ROWS, num_reports=NUM_REPORTS)
    for number in range(num_executors * slots):
        ledger.open(number, {})
        trial_id = trial_id_of(number)
        lease = ray.get(pool.lease.remote(trial_id))
        ray.get(lease.executor.admit.remote(TrialSpec(trial_id, config.lora, config.training, budget), lease.number))
    collector = LiveCollector(
        ledger,
        pool,
        outlook=Outlook(config.search, top_k=3, rows=RowCounts(8 * NUM_ROWS, NUM_ROWS, NUM_ROWS, NUM_ROWS)),
        device_kind="cpu",
    )
    watch = LiveWatch(console)
    gauges: Any = SimpleNamespace(publish=lambda figures, **books: None)
    try:
        with watch.following(collector, ledger=ledger, paths=paths, gauges=gauges):
            watch.begin(LivePhase.SEARCH, "training")
            yield watch.look
    finally:
        ray.get(pool.close.remote())
        ray.kill(pool)


@contextmanager
def _terminal() -> Iterator[Console]:
    """A console on a pseudo-terminal whose other end is read."""
    reader, writer = os.openpty()
    os.environ.setdefault("TERM", "xterm-256color")

    def drain() -> None:
        try:
            while os.read(reader, 65536):
                pass
        except OSError:
            # Linux says EIO where a file would say that it ends.
            pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    with os.fdopen(writer, "w") as stream:
        yield Console(stream)
    thread.join()
    os.close(reader)


def _measure(look: Any, num_looks: int) -> tuple[float, float]:
    """CPU seconds of all processes, and of this one's calls, over so many looks at their own pace."""
    tree_s, own_s = read_tree_cpu_s(), 0.0
    for _ in range(num_looks):
        began = time.process_time()
        look()
        own_s += time.process_time() - began
        time.sleep(LOOK_INTERVAL_S)
    return read_tree_cpu_s() - tree_s, own_s


if __name__ == "__main__":
    sys.exit(main())
