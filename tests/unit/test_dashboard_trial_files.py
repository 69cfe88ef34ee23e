"""A trial's files as the live page shows them, whatever stands in them."""

from __future__ import annotations

import os
from pathlib import Path

from qlora_ray.dashboard.sweep_view import SweepView
from qlora_ray.dashboard.trial_files import read_trial_files
from qlora_ray.runs import SweepPaths, append_line


def test_losses_of_other_types_are_passed_over(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    trial = paths.trial("0000")
    trial.root.mkdir(parents=True)
    for losses in (5, None, "x", {"a": 1}, [5, None, [1], "ab", ["x", 1], [2, "y"], [3, 0.5]]):
        append_line(trial.metrics, {"train_losses": losses})
    found = read_trial_files(paths, "0000")
    assert found is not None and found.train_losses == [[2, None], [3, 0.5]]


def test_files_that_are_pipes_are_not_there(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    trial = paths.trial("0000")
    trial.root.mkdir(parents=True)
    for path in (trial.record, trial.metrics, trial.error, paths.events):
        os.mkfifo(path)
    found = read_trial_files(paths, "0000")
    assert found is not None and (found.record, found.metrics, found.events, found.error) == ("", [], [], None)


def test_events_of_other_types_cost_the_page_none_of_those_around_them(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path)
    for event in (["trial_opened"], {}, None, 5, "trial_opened"):
        append_line(paths.events, {"event": event, "trial": "0000", "time": 1.0, "params": {}})
    view = SweepView(paths)
    assert [row.id for row in view.poll().trials] == ["0000"]
