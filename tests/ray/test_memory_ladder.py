"""What a sweep does with trials that run out of memory, on nodes that claim GPUs: smaller micro-batches at the same
effective batch, recomputed activations, the whole of a GPU, a larger class, and only then a failure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from qlora_ray.config.loading import load_config
from qlora_ray.formats import GIB
from qlora_ray.hardware import estimate_memory, probe_node
from qlora_ray.hardware.device import GpuClaims
from qlora_ray.hardware.memory_counts import FRAGMENTATION
from qlora_ray.preflight.checks import check_sweep, plan_sweep
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.records import TrialRecord, read_record
from qlora_ray.search.parsing import load_space
from tests.e2e.sweeps import run_sweep, write_config
from tests.ray.small_clusters import claim_gpu, small_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Ray's names of the classes, and the catalogue's.
T4, A100 = "T4", "A100-40G"
T4_NAME, A100_NAME = "Tesla T4 (simulated)", "NVIDIA A100-SXM4-40GB (simulated)"
BATCH = 4
MARGIN_BYTES = 2**20
HELD_S = 60.0
TRAINING = {
    "max_samples": 16,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 1,
    "precision": "auto",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of a T4 and an A100, as they say."""
    with small_cluster(claim_gpu(T4), claim_gpu(A100)) as cluster:
        yield str(cluster.address)


def make_config(folder: Path, *, address: str, ranks: list[int], **cluster: Any) -> Path:
    """A sweep of one trial for each rank, in this order."""
    points = [{"lora.r": rank} for rank in ranks]
    return write_config(
        folder,
        cluster={"address": address, "simulate": True, "prefer_gpu_classes": ["T4"], **cluster},
        training=TRAINING,
        search={
            "space": {"lora.r": {"choices": sorted(ranks)}, "points_to_evaluate": points},
            "num_trials": len(ranks),
        },
        evaluate={"top_k": 1, "max_rows": 2, "max_new_tokens": 8},
        results={"dir": str(folder / "results"), "name": "s"},
    )


def count_needed_bytes(config: Path, gpu_class: str, *, rank: int, recomputes: bool) -> int:
    """What the memory model says of one trial on a claimed GPU, at one row as long as the longest, beside nobody."""
    loaded = load_config(config)
    preflight = check_sweep(loaded, load_space(loaded))
    plan = plan_sweep(preflight, [replace(probe_node(), claims=GpuClaims(gpu_class, 1))])
    planned = plan.placements[0].workload
    assert planned is not None
    alone = replace(planned, num_trials=1)
    row = replace(alone, micro_batch=1, micro_batch_tokens=None, gradient_checkpointing=recomputes)
    adapters = [estimate_memory(preflight.shape, replace(alone, r=r)).adapter_bytes for r in (rank, alone.r)]
    step_bytes = estimate_memory(preflight.shape, row).total_bytes
    return step_bytes + int((1 + FRAGMENTATION) * (adapters[0] - adapters[1]))


@contextmanager
def occupied_until_a_lease(address: str, gpu_class: str, paths: SweepPaths) -> Iterator[None]:
    """Holds the GPU of a class, as another job would, until the sweep has leased a slot of what is free."""

    def hold(events: Path) -> None:
        while not events.exists() or '"trial_leased"' not in events.read_text():
            time.sleep(0.05)

    ray.init(address=address, log_to_driver=False)
    try:
        # Its name is not resolved here: the node's process has no tests to import.
        held = ray.remote(num_cpus=0, num_gpus=1, resources={f"accelerator_type:{gpu_class}": 0.001})(hold)
        waiting = held.remote(paths.events)
        yield
        ray.get(waiting, timeout=HELD_S)
    finally:
        ray.shutdown()


def run(config: Path, limits_bytes: dict[str, int]) -> SweepPaths:
    """Runs the sweep with devices that turn out to have so much memory."""
    limits = ", ".join(f"{name}: {size / GIB:.6f}" for name, size in limits_bytes.items())
    done = run_sweep("--config", config, "--set", f"cluster.simulated_limits_gib={{{limits}}}", cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return SweepPaths(config.parent / "results" / "s")


def record_of(paths: SweepPaths, rank: int) -> TrialRecord:
    records = [read_record(path / "record.json", TrialRecord) for path in sorted(paths.trials.iterdir())]
    (record,) = [record for record in records if record.params["lora.r"] == rank]
    return record


def micro_batch_of(record: TrialRecord) -> tuple[int, bool]:
    """Rows through the device at once, and whether activations were recomputed."""
    training = record.ran.training
    return training["per_device_train_batch_size"], training["gradient_checkpointing"]


def devices_of(paths: SweepPaths, trial_id: str) -> list[str]:
    """On which devices a trial was given slots, in order."""
    events = list(read_events(paths.events))
    names = {event["executor"]: event["reason"].split(",")[0] for event in events if event["event"] == "executor_ready"}
    leases = [event for event in events if event["event"] == "trial_leased" and event["trial"] == trial_id]
    return [names[event["executor"]] for event in leases]


def test_a_trial_climbs_to_a_larger_class_and_fails_for_memory_only_above_it(address: str, tmp_path: Path) -> None:
    small, middle, huge = 8, 512, 2048
    config = make_config(tmp_path, address=address, ranks=[huge, small, middle], packing="packed", slots_per_device=1)
    limits = {
        "T4": count_needed_bytes(config, T4, rank=small, recomputes=True) + MARGIN_BYTES,
        "A100-40": count_needed_bytes(config, A100, rank=middle, recomputes=False) + MARGIN_BYTES,
    }
    # So that the first trial begins on the smaller one, whichever executor would have been quicker to start.
    with occupied_until_a_lease(address, A100, SweepPaths(tmp_path / "results" / "s")):
        paths = run(config, limits)
    fits, climbs, fails = (record_of(paths, rank) for rank in (small, middle, huge))
    assert [record.state for record in (fits, climbs, fails)] == ["complete", "complete", "failed"]
    assert {fits.ran.effective_batch, climbs.ran.effective_batch} == {BATCH}
    assert climbs.executor.device == A100_NAME
    # Wherever one began, the larger class was the last that it was given, and the smaller one never after it.
    paths_taken = [devices_of(paths, record.trial) for record in (climbs, fails)]
    assert devices_of(paths, fails.trial) == [T4_NAME, A100_NAME]
    assert all(path in ([A100_NAME], [T4_NAME, A100_NAME]) for path in paths_taken)
    assert fails.cause == "oom" and fails.message.startswith("CUDA out of memory. NVIDIA A100-SXM4-40GB (simulated)")
    needing = [event for event in read_events(paths.events) if event["event"] == "trial_needs_more_memory"]
    assert all("out of memory" in event["reason"] for event in needing)
    assert len(needing) == sum(map(len, paths_taken)) - 1
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(paths.study))))
    states = {trial.params["lora.r"]: trial.state.name for trial in study.get_trials()}
    assert states == {small: "COMPLETE", middle: "COMPLETE", huge: "FAIL"}
    assert read_json(paths.summary)["first_failure"] is not None


def test_processes_that_share_a_gpu_make_room_for_a_trial_that_needs_all_of_it(address: str, tmp_path: Path) -> None:
    small, large = 8, 256
    config = make_config(
        tmp_path, address=address, ranks=[large, small], packing="single", slots_per_device=2, gpu_classes=["T4"]
    )
    share_bytes = count_needed_bytes(config, T4, rank=small, recomputes=True) + MARGIN_BYTES
    paths = run(config, {"T4": 2 * share_bytes})
    shares, whole = record_of(paths, small), record_of(paths, large)
    assert [shares.state, whole.state] == ["complete", "complete"]
    assert micro_batch_of(shares) == (1, True)
    assert micro_batch_of(whole) == (BATCH, False)
    assert {shares.ran.effective_batch, whole.ran.effective_batch} == {BATCH}
    events = list(read_events(paths.events))
    (needing,) = [event for event in events if event["event"] == "trial_needs_more_memory"]
    (cleared,) = [event for event in events if event["event"] == "device_cleared"]
    assert needing["trial"] == whole.trial and "out of memory" in needing["reason"]
    assert devices_of(paths, whole.trial) == [T4_NAME] * 2
    leases = [event for event in events if event["event"] == "trial_leased" and event["trial"] == whole.trial]
    assert leases[-1]["executor"] == cleared["executor"] != leases[0]["executor"]
