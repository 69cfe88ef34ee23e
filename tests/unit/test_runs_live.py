"""live.json: what the driver writes is what a reader gets, and nothing else of the folder depends on it."""

from __future__ import annotations

import json
from pathlib import Path

from qlora_ray.runs import SweepPaths
from qlora_ray.runs.live import (
    LiveExecutor,
    LiveFigures,
    LivePhase,
    LiveScoring,
    LiveTrial,
    LiveTrialState,
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
