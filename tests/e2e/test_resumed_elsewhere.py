"""A sweep goes on though its folder, its data and its machine are others by now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qlora_ray import sweep
from qlora_ray.runs import SweepPaths, read_json
from qlora_ray.runs.records import Manifest, Summary, TrialRecord, read_record
from tests.e2e.sweeps import run_sweep, write_config

FIRST_HEAD = "first-head.example"


def write_rows(folder: Path) -> None:
    rows = [{"prompt": f"Say {number}.", "completion": f"It is {number}."} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_a_finished_sweep_gets_more_trials_on_another_head_and_under_another_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_rows(first)
    data = {"train": str(first / "rows.jsonl"), "validation": 0.2, "max_train_rows": None, "max_validation_rows": None}
    search = {"num_trials": 2, "num_reports": 2}
    training = {"max_samples": 16}
    config = write_config(first, data=data, search=search, training=training)
    began = run_sweep("--config", config, "--set", f"results.dir={first}", "--set", "results.name=s", cwd=first)
    assert began.returncode == 0, began.stdout + began.stderr

    # Everything goes elsewhere, and every name of the first machine with it.
    shutil.move(first / "s", second / "renamed")
    shutil.move(first / "rows.jsonl", second / "rows.jsonl")
    shutil.rmtree(first)
    paths = SweepPaths(second / "renamed")
    hostname = read_json(paths.trial("0000").record)["executor"]["hostname"]
    for path in [paths.events, *paths.root.glob("*.json"), *paths.trials.rglob("*.json"), *paths.best.rglob("*.json")]:
        path.write_text(path.read_text().replace(f'"{hostname}', f'"{FIRST_HEAD}'))
    (paths.root / ".lock").write_text(json.dumps({"host": FIRST_HEAD, "pid": 1}))
    (paths.root / "study.journal.lock").symlink_to(first / "s" / "study.journal")
    untouched = paths.trial("0000").record.read_text()

    moved = ["--set", f"data.train={second / 'rows.jsonl'}", "--add-trials", "1"]
    went_on = run_sweep("--resume", "renamed", *moved, cwd=second)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    summary = read_record(paths.summary, Summary)
    assert (summary.status, dict(summary.counts)) == ("complete", {"complete": 3})
    assert paths.trial("0000").record.read_text() == untouched
    assert read_record(paths.trial("0002").record, TrialRecord).executor.hostname == hostname
    manifest = read_record(paths.manifest, Manifest)
    assert manifest.folder == str(first)
    assert [change.split(":")[0] for change in manifest.resumes[0].changes] == ["data.train", "search.num_trials"]

    # What was not there when it began is another sweep.
    before = {path: path.read_bytes() for path in paths.root.rglob("*.json")}
    assert sweep.main(["--resume", str(paths.root), *moved, "--set", "training.seed=8"]) == 2
    assert {path: path.read_bytes() for path in paths.root.rglob("*.json")} == before
