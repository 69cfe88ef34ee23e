"""Three claimed classes of GPU in one sweep, on real Ray nodes of this machine that have none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_ray.export import main as export
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.records import Manifest, TrialRecord, read_record
from tests.e2e.sweeps import run_sweep, write_config
from tests.ray.small_clusters import claim_gpu, small_cluster

CLAIMS = {"T4": ("Tesla T4", "fp16"), "A100-40G": ("NVIDIA A100-SXM4-40GB", "bf16"), "P4": ("Tesla P4", "fp32")}


@pytest.fixture(scope="module")
def claiming_cluster() -> Iterator[str]:
    """The address of a cluster whose nodes claim a GPU each."""
    with small_cluster(*map(claim_gpu, CLAIMS)) as cluster:
        yield str(cluster.address)


@pytest.fixture(scope="module")
def sweep(claiming_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepPaths, str]:
    """A sweep over all of them, and what it printed."""
    folder = tmp_path_factory.mktemp("simulated")
    config = write_config(
        folder,
        cluster={"address": claiming_cluster, "simulate": True, "slots_per_device": 1},
        # Short, but more than one device would have done before the others are ready.
        training={"max_samples": 24, "precision": "auto"},
        search={"num_trials": 6},
        evaluate={"top_k": 1, "max_rows": 2, "max_new_tokens": 8},
        results={"dir": str(folder / "results"), "name": "mixed"},
    )
    done = run_sweep("--config", config, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return SweepPaths(folder / "results" / "mixed"), done.stdout


@pytest.mark.slow
def test_every_claimed_class_is_planned_in_its_own_precision_and_trains(sweep: tuple[SweepPaths, str]) -> None:
    paths, printed = sweep
    plan = read_record(paths.manifest, Manifest).plan
    planned = {item.device_name: item.precision.name for item in plan.placements}
    assert planned == {f"{name} (simulated)": precision for name, precision in CLAIMS.values()}
    records = [read_record(path / "record.json", TrialRecord) for path in sorted(paths.trials.iterdir())]
    assert [record.state for record in records] == ["complete"] * 6
    assert {record.executor.device for record in records} == set(planned)
    for record in records:
        executor = record.executor
        assert executor.simulated is True and executor.cuda_available is False
        assert executor.planned_precision == planned[str(executor.device)]
        assert executor.precision == record.ran.precision == "fp32"
        assert record.ran.effective_batch == 4 and sorted(record.reports) == [1, 2, 3]
    assert all(f"{name.removeprefix('NVIDIA ')} (simulated)" in printed for name, _ in CLAIMS.values())
    assert "(simulated)" in (paths.root / "report.html").read_text(encoding="utf-8")
    assert all(node["claims"]["num_gpus"] == 1 for node in read_json(paths.manifest)["nodes"] if node["claims"])


@pytest.mark.slow
def test_what_a_simulated_device_trained_is_not_exported(
    sweep: tuple[SweepPaths, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export([str(sweep[0].root), "--to", str(tmp_path / "bundle")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "(simulated), which a CPU stood for" in line
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_without_the_word_simulate_a_claim_counts_for_nothing(claiming_cluster: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"address": claiming_cluster})
    command = [sys.executable, "-m", "qlora_ray.plan", "--config", str(config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert '"device_kind": "cpu"' in done.stdout and '"device_kind": "cuda"' not in done.stdout
