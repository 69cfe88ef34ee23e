"""A sweep over the weight of an auxiliary head, 0 among them: what each trial leaves, and what evaluate finds in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.e2e.sweeps import run_sweep, write_config

WEIGHT = "heads.kind.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep of two trials, one without the head."""
    folder = tmp_path_factory.mktemp("heads")
    config = write_config(
        folder,
        heads={"kind": {"column": "kind", "weight": 0.3}},
        training={"max_samples": 24},
        search={"space": {WEIGHT: {"choices": [0, 0.3]}}, "sampler": "grid", "num_trials": 2, "num_reports": 2},
        evaluate={"top_k": 2, "metrics": []},
    )
    done = run_sweep("--config", config, "--set", "results.name=s", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "s"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_weight_of_0_leaves_the_head_out_and_nothing_else(root: Path) -> None:
    trials = {read(path)["params"][WEIGHT]: path.parent for path in root.glob("trials/*/record.json")}
    assert sorted(trials) == [0, 0.3]
    assert [(folder / "adapter" / "heads.safetensors").exists() for _, folder in sorted(trials.items())] == [
        False,
        True,
    ]
    reports = {weight: (folder / "metrics.jsonl").read_text().splitlines() for weight, folder in trials.items()}
    assert all("heads.kind.accuracy" not in line for line in reports[0])
    assert all(0 <= json.loads(line)["heads.kind.macro_f1"] <= 1 for line in reports[0.3])
    without, with_head = (read(trials[weight] / "record.json")["ran"] for weight in (0, 0.3))
    classes = with_head["heads"]["kind"]["classes"]
    assert without["heads"] == {} and classes == read(root / "manifest.json")["data"]["classes"]["kind"]
    # One row of 192 numbers for each class.
    assert with_head["trainable_parameters"] - without["trainable_parameters"] == 192 * len(classes)


def test_the_summary_has_the_winners_heads_and_evaluate_finds_the_same(root: Path) -> None:
    rescored = read(root / "best" / "scores.json")["rescored"]
    (trial,) = [name for name, scores in rescored.items() if "heads" in scores]
    winner = read(root / "summary.json")["winner"]
    assert ("kind" in read(root / "summary.json")["heads"]) == (winner == trial)
    adapter = root / "trials" / trial / "adapter"
    with safe_open(adapter / "heads.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["kind.weight"]
    to = root.parent / "evaluated"
    command = [sys.executable, "-m", "qlora_ray.evaluate", str(root), "--trial", trial, "--to", str(to)]
    done = subprocess.run([*command, "--split", "validation", "--models", "adapter"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (scores,) = read(to / "evaluation.json")["scores"]
    found, before = scores["heads"]["kind"], rescored[trial]["heads"]["kind"]
    assert (found["num_rows"], found["accuracy"]) == (before["num_rows"], before["accuracy"])
    assert found["loss"] == pytest.approx(before["loss"], rel=1e-4)
