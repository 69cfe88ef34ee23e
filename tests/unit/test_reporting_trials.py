"""What is read of each trial, and in which order trials stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_ray.reporting.trials import rank_trials, read_trials
from tests.sweep_folder import Sketch, usual_sketches, write_sweep


def test_a_trial_is_read_with_its_reports_and_the_last_line_of_its_traceback(tmp_path: Path) -> None:
    trials, problems = read_trials(write_sweep(tmp_path / "s", usual_sketches()))
    assert problems == []
    assert [trial.state for trial in trials] == ["complete", "pruned", "pruned", "complete", "failed", "failed"]
    stopped = trials[2]
    assert [(report.index, report.num_samples, report.loss) for report in stopped.reports] == [
        (1, 600, 1.1),
        (2, 1200, 0.8),
    ]
    assert (stopped.loss, stopped.tokens_per_s, stopped.trainable_parameters) == (0.8, 100.0, 3000)
    assert trials[4].error_line == "Tried to allocate 漢字 GiB"
    assert trials[5].reports == () and trials[5].loss is None and trials[5].error_line is None


def test_a_loss_that_is_not_finite_is_none(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", [Sketch([1.0, float("nan")], state="failed", cause="diverged")])
    (trial,), _ = read_trials(paths)
    assert [report.loss for report in trial.reports] == [1.0, None]
    assert trial.loss is None or trial.loss == trial.reports[-1].loss


def test_training_losses_are_read_by_samples_seen(tmp_path: Path) -> None:
    (trial,), _ = read_trials(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])]))
    # 75 steps and 600 samples a report, three points each.
    assert [samples for samples, _ in trial.train_losses] == [200, 400, 600, 800, 1000, 1200]
    assert [loss for _, loss in trial.train_losses] == pytest.approx([1.1, 1.0, 0.9, 0.55, 0.5, 0.45])


@pytest.mark.parametrize(
    ("written", "read"),
    [
        # A sweep of before there were points has the mean of each report.
        ({"train_loss": 0.9}, (600, 0.9)),
        ({"train_losses": [[25, None], [50], ["x", 1.0], [75, 0.5]]}, (600, 0.5)),
    ],
)
def test_older_training_losses_are_read_and_what_is_no_point_is_left_out(
    tmp_path: Path, written: dict[str, object], read: tuple[int, float]
) -> None:
    paths = write_sweep(tmp_path / "s", [Sketch([1.0])])
    metrics = paths.trial("0000").metrics
    line = json.loads(metrics.read_text())
    del line["train_losses"]
    metrics.write_text(json.dumps({**line, **written}) + "\n")
    (trial,), _ = read_trials(paths)
    assert trial.train_losses == (read,)


def test_without_metrics_the_record_tells_the_reports(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])])
    paths.trial("0000").metrics.unlink()
    (trial,), _ = read_trials(paths)
    assert [(report.index, report.num_samples, report.loss) for report in trial.reports] == [
        (1, None, 1.0),
        (2, None, 0.5),
    ]


def test_a_trial_whose_record_is_broken_is_left_out_and_named(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches()[:2])
    paths.trial("0001").record.write_text("{")
    trials, problems = read_trials(paths)
    assert [trial.id for trial in trials] == ["0000"]
    assert len(problems) == 1 and problems[0].startswith("trial 0001 is left out")


def test_complete_trials_stand_first_by_loss_then_stopped_ones_by_how_far_they_got(tmp_path: Path) -> None:
    trials, _ = read_trials(write_sweep(tmp_path / "s", usual_sketches()))
    assert [trial.id for trial in rank_trials(trials)] == ["0003", "0000", "0002", "0001", "0004", "0005"]
