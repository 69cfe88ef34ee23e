"""A trial that diverges fails for it, and changes nothing for the trials that train beside it in the same pack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.records import TrialRecord, read_record
from tests.e2e.sweeps import run_sweep, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIVERGING = 1e9
NEIGHBOURS = (1e-3, 2e-3)


def run(folder: Path, rates: tuple[float, ...]) -> dict[float, TrialRecord]:
    """A sweep of one trial for each learning rate, all in one pack; their records."""
    points = [{"training.learning_rate": rate} for rate in rates]
    space: dict[str, Any] = {"training.learning_rate": {"low": 1e-4, "high": DIVERGING, "log": True}}
    config = write_config(
        folder,
        cluster={"packing": "packed", "slots_per_device": len(rates)},
        training={"max_samples": 24},
        search={"space": {**space, "points_to_evaluate": points}, "num_trials": len(rates)},
        evaluate={"top_k": 1, "max_rows": 2, "max_new_tokens": 8},
        results={"dir": str(folder / "results"), "name": f"s{len(rates)}"},
    )
    done = run_sweep("--config", config, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = SweepPaths(folder / "results" / f"s{len(rates)}")
    assert read_json(paths.summary)["status"] == "complete"
    records = [read_record(path / "record.json", TrialRecord) for path in sorted(paths.trials.iterdir())]
    return {record.params["training.learning_rate"]: record for record in records}


def test_a_diverging_trial_leaves_its_neighbours_as_they_would_be_without_it(tmp_path: Path) -> None:
    beside = run(tmp_path, (NEIGHBOURS[0], DIVERGING, NEIGHBOURS[1]))
    without = run(tmp_path, NEIGHBOURS)
    failed = beside[DIVERGING]
    assert (failed.state, failed.cause) == ("failed", "diverged")
    # In one executor, which has slots for all of them.
    executors = {
        read_json(path)["executor"]["pid"] for path in (tmp_path / "results" / "s3").glob("trials/*/record.json")
    }
    assert len(executors) == 1
    for rate in NEIGHBOURS:
        assert beside[rate].state == without[rate].state == "complete"
        assert len(without[rate].reports) == 3
        # A step with a third trial is cut into other micro-batches: sums of fp32 in another order.
        assert beside[rate].reports == pytest.approx(without[rate].reports, rel=1e-5)
