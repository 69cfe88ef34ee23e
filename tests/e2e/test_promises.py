"""The promises of a sweep under fire: a killed driver, divergence, a base that will not load, bad input."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from qlora_ray import embedded, sweep
from qlora_ray.runs import SweepPaths, read_events, read_json
from tests.e2e.sweeps import read_until, run_sweep, started_sweep, write_config

OPTIONS = ("--set", "results.name=s")


def test_a_driver_killed_at_any_moment_loses_no_finished_trial(tmp_path: Path) -> None:
    config = write_config(tmp_path, cluster={"max_slots": 1})
    paths = SweepPaths(tmp_path / "results" / "s")
    with started_sweep("--config", config, *OPTIONS, cwd=tmp_path) as process:
        read_until(process, "trial 0000  complete")
        process.send_signal(signal.SIGKILL)
        process.wait()
    adapter = paths.trial("0000").adapter / "adapter_model.safetensors"
    written = adapter.stat().st_mtime_ns
    resumed = run_sweep("--resume", paths.root, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert adapter.stat().st_mtime_ns == written
    summary = read_json(paths.summary)
    assert summary["counts"]["complete"] == 3
    opened = [event["trial"] for event in read_events(paths.events) if event["event"] == "trial_opened"]
    assert len(opened) == len(set(opened))


def test_all_trials_failing_is_exit_code_1_with_the_first_cause(tmp_path: Path) -> None:
    space = {"training.learning_rate": {"choices": [1e30, 1e31]}}
    search = {"space": space, "sampler": "grid", "num_trials": 2}
    # One after the other, so that there is a first one.
    config = write_config(
        tmp_path,
        search=search,
        training={"max_grad_norm": 0.0, "warmup_ratio": 0.0},
        cluster={"max_slots": 1},
    )
    run = run_sweep("--config", config, *OPTIONS, cwd=tmp_path)
    assert run.returncode == 1
    assert "no winner" in run.stdout
    assert "First cause: trial 0000: " in run.stdout
    assert "loss is nan" in run.stdout or "loss is inf" in run.stdout
    assert "Traceback" not in run.stdout
    records = [read_json(path) for path in SweepPaths(tmp_path / "results" / "s").trials.glob("*/record.json")]
    assert [(record["state"], record["cause"]) for record in records] == [("failed", "diverged")] * 2


@pytest.mark.slow
def test_a_base_whose_weights_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(embedded.base_path(), base)
    weights = base / "model.safetensors"
    assert load_file(weights)
    weights.write_bytes(weights.read_bytes()[:1000])
    config = write_config(tmp_path, model={"name": str(base)})
    run = run_sweep("--config", config, *OPTIONS, cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    assert "model.safetensors: must be a whole safetensors file" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "s").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.train=missing.jsonl"], "missing.jsonl"),
        (["lora.rank=8"], "lora.rank is not a known key. Here it is lora.r"),
        (["lora.r=0"], "lora.r must be > 0, got 0"),
        (["search.space={lora.rank: {choices: [1, 2]}}"], "names no config path"),
        (["lora.target_modules=[no_such_proj]"], "no linear module 'no_such_proj'"),
        (["model.name=./nowhere"], "./nowhere"),
        (["results.dir=/proc/none"], "results.dir"),
        # No processor takes fp16; bf16 some do.
        (["training.precision=fp16"], "fp16"),
        (["search.num_reports=100"], "search.num_reports"),
    ],
)
def test_bad_input_is_one_clear_message_exit_code_2_and_nothing_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    settings: list[str],
    words: str,
) -> None:
    config = write_config(tmp_path)
    options = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.chdir(tmp_path)
    # In this process: nine more would do little but import. The test above has one of its own.
    assert sweep.main(["--config", str(config), *OPTIONS, *options]) == 2
    errors = capfd.readouterr().err
    assert words in errors
    assert "Traceback" not in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()
