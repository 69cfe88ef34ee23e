"""The whole-sweep part of the benchmark: the naive job that repeats our sweep, and how the speed-up splits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.stopwatch import median_ratio, read_peak
from benchmarks.sweeps import OurSweep, Trial, read_ours, run_logged, write_rows
from benchmarks.tables import describe_sweep, format_bytes, format_sweep, split_speedup
from qlora_ray.config.schema import SweepConfig, Training
from qlora_ray.data import TokenizedSplit
from qlora_ray.errors import RunError
from qlora_ray.runs import SweepPaths, append_line, write_json
from qlora_ray.runs.records import TrialRecord, from_dict

LORA = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05, "target_modules": ["q_proj"], "use_rslora": False}


def make_record(trial_id: str, *, num_reports: int, step: int) -> dict[str, Any]:
    """What a trial's record.json says, as far as the benchmark reads it."""
    training = Training(learning_rate=1e-3, weight_decay=0.0).model_dump()
    return {
        "trial": trial_id,
        "reports": {str(index): 1.0 for index in range(1, num_reports + 1)},
        "metrics": {"step": step},
        "memory": {"peak_bytes": 1000},
        "ran": {
            "num_steps": 40,
            "lora": {**LORA, "bias": "none"},
            "training": {**training, "warmup_steps": 2, "max_steps": 40},
        },
    }


def make_folder(folder: Path) -> SweepPaths:
    """A sweep's folder: one complete trial, one stopped at its first report, one that failed before any."""
    paths = SweepPaths(folder / "ours")
    paths.logs.mkdir(parents=True)
    records = [
        make_record("0000", num_reports=4, step=40),
        make_record("0001", num_reports=1, step=10),
        {"trial": "0002", "reports": {}, "metrics": {}, "ran": {}},
    ]
    for record in records:
        paths.trial(record["trial"]).root.mkdir(parents=True)
        write_json(paths.trial(record["trial"]).record, record)
    plan = {"placements": [{"engine": "packed", "slots_per_device": 4}]}
    write_json(paths.manifest, {"config": SweepConfig().model_dump(), "plan": plan})
    write_json(paths.summary, {"winner": "0000", "device_wait_share": 0.25})
    append_line(paths.trial("0000").metrics, {"train_s": 3.0, "eval_s": 1.0})
    for time, trial_id in ((124.0, "0000"), (128.0, "0001"), (160.0, "0000")):
        append_line(paths.events, {"time": time, "event": "trial_reported", "trial": trial_id})
    return paths


@pytest.fixture
def ours(tmp_path: Path) -> OurSweep:
    """A sweep of 80 seconds that began at 100."""
    return read_ours(make_folder(tmp_path), began=100.0, wall_s=80.0)


def test_a_sweep_falls_into_start_up_search_and_scoring_and_its_trials_stop_where_they_stopped(ours: OurSweep) -> None:
    assert (ours.startup_s, ours.search_s, ours.scoring_s) == (20.0, 40.0, 20.0)
    assert ours.startup_s + ours.search_s + ours.scoring_s == ours.wall_s
    assert ours.training_s == 30.0
    assert ours.placement["slots_per_device"] == 4
    stops = [(trial.id, trial.num_reports, trial.num_steps) for trial in ours.trials]
    assert stops == [("0000", 4, 40), ("0001", 1, 10)]
    assert ours.untrained == 1


def test_a_trial_is_repeated_with_all_that_decides_its_result() -> None:
    record = from_dict(make_record("0000", num_reports=4, step=40), TrialRecord, where=Path("record.json"))
    trial = Trial.of_record(record)
    assert trial.lora == LORA
    assert trial.training["learning_rate"] == 1e-3
    assert "max_steps" not in trial.training


def test_a_sweep_without_a_report_cannot_be_measured(tmp_path: Path) -> None:
    paths = make_folder(tmp_path)
    paths.events.unlink()
    with pytest.raises(RunError, match=r"must have trained .*, got no report"):
        read_ours(paths, began=100.0, wall_s=80.0)


def make_naive() -> dict[str, Any]:
    """Two trials at once, of which one ran on after the other."""
    trials = [
        {"trial": "0000", "step": 40, "setup_s": 10.0, "train_s": 80.0, "peak_bytes": 5},
        {"trial": "0001", "step": 10, "setup_s": 10.0, "train_s": 20.0, "peak_bytes": 7},
    ]
    return {"trials": trials, "concurrency": 2, "wall_s": 160.0, "winner": "0000", "errors": []}


def test_the_speed_up_splits_into_factors_that_multiply_to_it(ours: OurSweep) -> None:
    split = split_speedup(ours, make_naive())
    assert split["fusion"] == pytest.approx(50 / 30, abs=1e-3)
    assert split["fusion"] * split["start_up"] == pytest.approx(160 / 80, abs=1e-3)
    assert split["early_stopping"] == pytest.approx((90 + 90) / (90 + 30), abs=1e-3)
    assert split["all"] == pytest.approx(2 * 1.5, abs=1e-3)


def test_the_sweeps_entry_says_whether_both_stopped_alike(ours: OurSweep) -> None:
    naive = make_naive()
    entry = describe_sweep(ours, naive)
    assert entry["same_stopping"] is True
    assert entry["naive_over_ours"] == 2.0
    assert entry["naive_over_ours_without_scoring"] == pytest.approx(160 / 60, abs=1e-3)
    assert entry["naive_peak_bytes"] == 12
    assert json.loads(json.dumps(entry)) == entry
    naive["trials"][1]["step"] = 20
    other = describe_sweep(ours, naive)
    assert "NOT the same stopping" in format_sweep(other)


def test_rows_are_written_as_sft_trainer_takes_tokenized_ones(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", TokenizedSplit.of("train", [[1, 2, 3]], [[0, 1, 1]], [[1]], ["b"]))
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]}]


def test_a_command_that_fails_is_an_error_with_the_end_of_its_output(tmp_path: Path) -> None:
    program = "print('what went wrong'); raise SystemExit(3)"
    with pytest.raises(RunError, match=r"must succeed, got exit code 3:\nwhat went wrong"):
        run_logged([sys.executable, "-c", program], folder=tmp_path, log="out.log")


def test_the_peak_of_a_process_is_read_from_its_status() -> None:
    assert read_peak("VmPeak:\t  9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n") == 2048 * 1024
    assert read_peak("VmRSS:\t 1 kB\n") is None
    assert format_bytes(3 * 2**29) == "1.50 GiB"
    assert format_bytes(None) == "-"


def test_neighbouring_measurements_are_compared_with_each_other() -> None:
    assert median_ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2.0
