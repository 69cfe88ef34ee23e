"""One sweep over a node that computes in bf16 and one that is held to fp32, both on this machine's processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Model
from qlora_ray.hardware import probe_node
from qlora_ray.hardware.cpu_bf16 import CACHE_NAME, name_processor, name_step, read_bf16_flags
from qlora_ray.modeling.loading import read_shape
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.records import Manifest, TrialRecord, read_record
from tests.contracts.bench import BF16_TOLERANCE
from tests.e2e.sweeps import started_sweep, write_config
from tests.ray.small_clusters import small_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not read_bf16_flags(), reason="this processor has neither avx512_bf16 nor amx_bf16, and would emulate bf16"
    ),
]
MEASURED = 1.58
VARIABLE = "QLORA_RAY_PRECISION"
REASONS = {
    "bf16": f"bf16: measured {MEASURED}x fp32 on this processor at this base's widths",
    "fp32": f"fp32: {VARIABLE} holds its node to it",
}
NUM_TRIALS, NUM_REPORTS = 5, 6
# Joins before it is needed, so that the drain comes while the trial that it is meant for still trains.
DRAIN = """
import sys
from qlora_ray.config.schema import Cluster
from qlora_ray.orchestration.cluster.joining import ray_cluster
from qlora_ray.orchestration.pool_directory import drain_node
with ray_cluster(Cluster(address=sys.argv[1])):
    sys.stdin.readline()
    drain_node(sys.argv[2], reason="the test drains it", deadline_s=60.0)
"""


def keep_measurement(folder: Path) -> None:
    """A cache in which bf16 was found to gain, so that no test depends on this machine's speed."""
    processor = name_processor(probe_node().cpu_name, read_bf16_flags())
    steps = [name_step(read_shape(Model()), num_threads=threads) for threads in range(1, 65)]
    (folder / CACHE_NAME).write_text(json.dumps({processor: dict.fromkeys(steps, MEASURED)}))


class Seats:
    """Which executor computes in what, and who trains there, as the sweep's events say."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.events = events
        self.precisions = {
            event["executor"]: next(name for name, reason in REASONS.items() if event["reason"].endswith(reason))
            for event in events
            if event["event"] == "executor_ready"
        }

    def leases(self, trial_id: str) -> list[str]:
        """The formats in which a trial was given slots, in order."""
        return [
            self.precisions[event["executor"]]
            for event in self.events
            if event["event"] == "trial_leased" and event["trial"] == trial_id
        ]

    def reported(self, trial_id: str) -> list[str]:
        """The formats in which it made its reports."""
        return [
            self.precisions[event["executor"]]
            for event in self.events
            if event["event"] == "trial_reported" and event["trial"] == trial_id
        ]

    def can_move(self) -> bool:
        """Whether a trial has ended in bf16 and another has begun there."""
        ended = {event["trial"] for event in self.events if event["event"] == "trial_complete"}
        begun = {event["trial"] for event in self.events if event["event"] == "trial_reported"}
        return any("bf16" in self.reported(trial) for trial in ended) and any(
            "bf16" in self.reported(trial) for trial in begun - ended
        )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, "the sweep ended first"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SweepPaths]:
    """Trials that are alike on both nodes; the bf16 node is drained in mid-sweep."""
    folder = tmp_path_factory.mktemp("mixed")
    keep_measurement(folder)
    held, free = {"num_cpus": 1, "env_vars": {VARIABLE: "fp32"}}, {"num_cpus": 1}
    # How often the training curve gets a point changes no number.
    space = {"training.logging_steps": {"choices": [*range(5, 5 + NUM_TRIALS)]}}
    search = {"space": space, "num_trials": NUM_TRIALS, "num_reports": NUM_REPORTS, "sampler": "grid"}
    paths = SweepPaths(folder / "results" / "s")
    with small_cluster(held, free, QLORA_RAY_CACHE=str(folder)) as cluster:
        (node,) = cluster.worker_nodes
        config = write_config(
            folder,
            cluster={"address": cluster.address, "slots_per_device": 1},
            search=search,
            training={"precision": "auto"},
            evaluate={"top_k": 1, "max_rows": 2, "max_new_tokens": 8},
            results={"dir": str(folder / "results"), "name": "s"},
        )
        command = [sys.executable, "-c", DRAIN, cluster.address, node.node_id]
        drainer = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=os.environ)
        try:
            with started_sweep("--config", config, cwd=folder) as process:
                assert process.stdout is not None
                printed: list[str] = []
                reading = threading.Thread(target=lambda: printed.extend(process.stdout or ()), daemon=True)
                reading.start()
                wait_for(lambda: paths.events.exists(), process)
                wait_for(lambda: Seats(list(read_events(paths.events))).can_move(), process)
                drainer.communicate("now\n")
                process.wait()
                reading.join()
                assert (process.returncode, drainer.returncode) == (0, 0), "".join(printed)
        finally:
            drainer.kill()
            drainer.wait()
    yield paths


def records_of(paths: SweepPaths) -> list[TrialRecord]:
    return [read_record(paths.trial(f"{number:04d}").record, TrialRecord) for number in range(NUM_TRIALS)]


def reports_of(paths: SweepPaths, trial_id: str) -> list[dict[str, Any]]:
    return list(read_lines(paths.trial(trial_id).metrics))


def test_each_node_serves_in_its_own_format_and_records_say_why(sweep: SweepPaths) -> None:
    plan = read_record(sweep.manifest, Manifest).plan
    assert {item.precision.name: item.precision.reason for item in plan.placements} == REASONS
    assert any(note.startswith("losses are compared across precisions") for note in plan.notes)
    records = records_of(sweep)
    assert [record.state for record in records] == ["complete"] * NUM_TRIALS
    assert {record.executor.precision: record.executor.precision_reason for record in records} == REASONS
    for record in records:
        assert record.ran.precision == record.executor.precision
        assert record.ran.training["bf16"] is (record.ran.precision == "bf16")
    nodes = {(record.executor.precision, record.executor.ray_node_id) for record in records}
    assert len(nodes) == len({node for _, node in nodes}) == 2
    assert read_json(sweep.summary)["status"] == "complete"


def test_batches_data_order_and_reports_are_the_same_and_losses_within_the_bound(sweep: SweepPaths) -> None:
    assert {record.ran.effective_batch for record in records_of(sweep)} == {4}
    first = reports_of(sweep, "0000")
    assert len(first) == NUM_REPORTS
    for number in range(1, NUM_TRIALS):
        for got, expected in zip(reports_of(sweep, f"{number:04d}"), first, strict=True):
            for name in ("step", "samples_seen", "learning_rate"):
                assert got[name] == expected[name]
            for name in ("train_loss", "eval_loss"):
                assert got[name] == pytest.approx(expected[name], rel=BF16_TOLERANCE)


def test_a_trial_whose_node_leaves_goes_on_in_the_other_format(sweep: SweepPaths) -> None:
    seats = Seats(list(read_events(sweep.events)))
    ids = [f"{number:04d}" for number in range(NUM_TRIALS)]
    (moved,) = [trial_id for trial_id in ids if seats.leases(trial_id) == ["bf16", "fp32"]]
    reported = seats.reported(moved)
    assert reported == sorted(reported) and set(reported) == {"bf16", "fp32"} and len(reported) == NUM_REPORTS
    record = read_record(sweep.trial(moved).record, TrialRecord)
    assert (record.executor.precision, sorted(record.reports)) == ("fp32", list(range(1, NUM_REPORTS + 1)))
    # Those who reported in bf16 alone differ from fp32's in the last digits: nothing was computed in one format only.
    whole = {
        seats.reported(trial_id)[0]: reports_of(sweep, trial_id)[-1]["eval_loss"]
        for trial_id in ids
        if trial_id != moved
    }
    assert whole["bf16"] != whole["fp32"]
