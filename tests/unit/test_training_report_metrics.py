"""The training loss, thinned out between two reports."""

from __future__ import annotations

import pytest

from qlora_ray.training.report_metrics import thin_losses


def test_points_are_means_since_the_point_before() -> None:
    assert thin_losses([4.0, 2.0, 1.0, 3.0], last_step=4, every=2) == [(2, 3.0), (4, 2.0)]


def test_a_report_is_a_point_also_between_two_logging_steps() -> None:
    assert thin_losses([4.0, 2.0, 1.0], last_step=3, every=2) == [(2, 3.0), (3, 1.0)]


def test_steps_are_counted_from_the_trials_first() -> None:
    assert thin_losses([1.0, 5.0, 3.0], last_step=12, every=10) == [(10, 1.0), (12, 4.0)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_trial_cut_at_a_report_has_the_points_of_one_that_was_not(cut: int) -> None:
    losses = [float(step) for step in range(1, 13)]
    parts = thin_losses(losses[:cut], last_step=cut, every=4) + thin_losses(losses[cut:], last_step=12, every=4)
    # Every step counts in exactly one point.
    ends = [0, *(step for step, _ in parts)]
    sums = [mean * (end - start) for (end, mean), start in zip(parts, ends, strict=False)]
    assert sum(sums) == pytest.approx(sum(losses), rel=1e-5)


def test_no_losses_make_no_points() -> None:
    assert thin_losses([], last_step=7, every=10) == []
