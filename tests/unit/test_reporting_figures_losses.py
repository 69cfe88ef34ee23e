"""A trial's training loss beside its validation loss, as data and as it stands on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qlora_ray.pages.blocks import Drawing, Folded, Grid
from qlora_ray.reporting.figures_losses import describe_losses, draw_losses
from qlora_ray.reporting.searches import MAX_SMALL, tell_search
from qlora_ray.reporting.story import Story, read_story
from tests.sweep_folder import Sketch, traces, write_sweep


def test_the_winners_training_loss_has_all_its_points_and_its_validation_loss_each_report(usual: Story) -> None:
    drawn = traces(draw_losses(usual.trials[3]))
    assert len(drawn["training"]["x"]) == 12
    assert drawn["training"]["x"][:3] == [200, 400, 600]
    assert drawn["validation"]["x"] == [600, 1200, 1800, 2400]
    assert drawn["validation"]["y"] == [0.9, 0.4, 0.2, 0.1]


def test_losses_that_span_a_decade_are_drawn_on_a_log_axis(usual: Story, tmp_path: Path) -> None:
    near = read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.9])])).trials[0]
    for trial, kind in ((usual.trials[3], "log"), (near, None)):
        figure = draw_losses(trial)
        assert figure is not None and figure.layout.yaxis.type == kind


def test_labels_of_lines_that_end_together_stand_apart(usual: Story) -> None:
    near = draw_losses(replace(usual.trials[3], train_losses=((600, 1.0), (2400, 0.1001))))
    assert near is not None
    shifts = {label.text.split()[0]: label.yshift for label in near.layout.annotations[1:]}
    assert shifts["training"] > 0 > shifts["validation"]


def test_the_words_tell_where_the_validation_loss_was_lowest(tmp_path: Path) -> None:
    rising = read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5, 0.6, 0.8])])).trials[0]
    told = describe_losses(rising)
    assert all(fact in told for fact in ("0000", "1.1 to 0.72", "0.5 after 1,200 samples", "0.8 at the last report"))


def test_a_trial_that_has_reported_nothing_has_no_figure(usual: Story) -> None:
    assert draw_losses(usual.trials[5]) is None


def test_the_winner_is_shown_and_the_other_trials_can_be_unfolded(usual: Story) -> None:
    blocks = tell_search(usual).blocks
    shown = next(block for block in blocks if isinstance(block, Drawing) and block.name == "losses")
    assert describe_losses(usual.trials[3]) in shown.caption and "every 10 steps" in shown.caption
    folded = next(block for block in blocks if isinstance(block, Folded))
    (grid,) = folded.blocks
    assert isinstance(grid, Grid)
    # By the leaderboard; the trial that never reported has none.
    assert [drawing.name for drawing in grid.drawings] == ["losses0000", "losses0002", "losses0001", "losses0004"]


def test_of_very_many_trials_the_best_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    story = read_story(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])], winner=0))
    many = tuple(replace(story.trials[0], id=f"{number:04d}", number=number) for number in range(100))
    folded = next(block for block in tell_search(replace(story, trials=many)).blocks if isinstance(block, Folded))
    (grid,) = folded.blocks
    assert isinstance(grid, Grid)
    assert len(grid.drawings) == MAX_SMALL
    assert f"{99 - MAX_SMALL} more" in grid.caption
