"""live.json: what the driver writes is what a reader gets, and nothing else of the folder depends on it."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_ray.runs import SweepPaths
from qlora_ray.runs.live import (
    LiveExecutor,
    LiveFigures,
    LivePhase,
    LiveScoring,
    LiveTrial,
    LiveTrialState,
    is_running,
    read_live,
    write_live,
)

FIGURES = LiveFigures(
    time=1.5,
    phase=LivePhase.SEARCH,
    eta_s=60.0,
    num_planned=8,
    slots=4,
    slots_used=1,
    trials={"0003": LiveTrial(state=LiveTrialState.TRAINING, step=7, num_steps=100, train_loss=1.25, executor=0)},
    executors=(LiveExecutor(executor=0, device="T4", gpu_ids=(1,), trials=("0003",), memory_bytes=3),),
    scoring=LiveScoring(what="0003 on test", done=8, total=64),
)


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)

    write_live(paths, FIGURES)

    assert read_live(paths) == FIGURES


def test_a_file_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)

    write_live(paths, FIGURES)
    write_live(paths, LiveFigures(phase=LivePhase.ENDED))

    figures = read_live(paths)
    assert figures is not None and figures.phase is LivePhase.ENDED
    assert [path.name for path in tmp_path.iterdir()] == ["live.json"]


def test_every_key_is_written_and_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)

    write_live(paths, LiveFigures(eta_s=float("inf"), trials={"0000": LiveTrial(train_loss=float("nan"))}))

    data = json.loads(paths.live.read_text())
    assert data["eta_s"] is None and data["scoring"] is None
    assert data["trials"]["0000"] == {
        "state": "waiting",
        "step": 0,
        "num_steps": 0,
        "train_loss": None,
        "eval_loss": None,
        "tokens_per_s": None,
        "executor": None,
    }


def test_a_folder_without_figures_or_with_broken_ones_has_none(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)

    assert read_live(paths) is None
    for text in ("", "[]", '{"time": 1'):
        paths.live.write_text(text)
        assert read_live(paths) is None


@pytest.mark.parametrize(
    ("host", "age_s", "phase", "runs"),
    [
        ("another-node", 1.0, LivePhase.SEARCH, True),
        ("another-node", -5.0, LivePhase.SCORING, True),
        ("another-node", 300.0, LivePhase.SEARCH, False),
        ("another-node", 1.0, LivePhase.ENDED, False),
        # Here the lock says it, at once.
        (socket.gethostname(), 1.0, LivePhase.SEARCH, False),
    ],
)
def test_a_sweep_of_another_node_runs_as_long_as_its_figures_are_new(
    tmp_path: Path, host: str, age_s: float, phase: LivePhase, runs: bool
) -> None:
    paths = SweepPaths(tmp_path)
    assert not is_running(paths)
    with paths.lock():
        assert is_running(paths)
    (tmp_path / ".lock").write_text(json.dumps({"host": host, "pid": 1}))
    assert not is_running(paths)
    write_live(paths, replace(FIGURES, time=time.time() - age_s, phase=phase))
    assert is_running(paths) is runs
