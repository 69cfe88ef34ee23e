"""Every preset from command to winner, on the base and task that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ray.config.presets import list_presets
from tests.e2e.sweeps import run_sweep

# What a preset says of data and device is its user's; the rest runs as it is, with few rows.
HERE = (
    "model.name=embedded",
    "data.train=embedded",
    "data.validation=null",
    "data.columns=null",
    "data.format=auto",
    "data.max_train_rows=32",
    "data.max_validation_rows=8",
    "data.max_test_rows=8",
    "training.precision=fp32",
    "training.max_samples=32",
    "training.per_device_train_batch_size=4",
    "training.gradient_accumulation_steps=1",
    "search.num_trials=1",
    "search.num_reports=1",
    "evaluate.metrics=auto",
    "evaluate.max_rows=2",
    "evaluate.max_new_tokens=8",
    "results.name=small",
)


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_runs_small_on_the_shipped_base(name: str, tmp_path: Path) -> None:
    overrides = [part for text in HERE for part in ("--set", text)]
    run = run_sweep("--preset", name, *overrides, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    folder = tmp_path / "results" / "small"
    assert json.loads((folder / "summary.json").read_text())["status"] == "complete"
    config = json.loads((folder / "best" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] in (8, 16, 32, 64) and config["target_modules"]
