"""The training loss, thinned out between two reports."""

from __future__ import annotations

import pytest

from qlora_ray.training.report_metrics import thin_losses


@pytest.mark.parametrize(
    ("losses", "last_step", "every", "points"),
    [
        ([4.0, 2.0, 1.0, 3.0], 4, 2, [(2, 3.0), (4, 2.0)]),
        ([4.0, 2.0, 1.0], 3, 2, [(2, 3.0), (3, 1.0)]),  # a report is a point also between two logging steps
        ([1.0, 5.0, 3.0], 12, 10, [(10, 1.0), (12, 4.0)]),  # steps are counted from the trial's first
        ([], 7, 10, []),
    ],
)
def test_points_are_means_since_the_point_before(
    losses: list[float], last_step: int, every: int, points: list[tuple[int, float]]
) -> None:
    assert thin_losses(losses, last_step=last_step, every=every) == points


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_trial_cut_at_a_report_has_the_points_of_one_that_was_not(cut: int) -> None:
    losses = [float(step) for step in range(1, 13)]
    parts = thin_losses(losses[:cut], last_step=cut, every=4) + thin_losses(losses[cut:], last_step=12, every=4)
    # Every step counts in exactly one point.
    ends = [0, *(step for step, _ in parts)]
    sums = [mean * (end - start) for (end, mean), start in zip(parts, ends, strict=False)]
    assert sum(sums) == pytest.approx(sum(losses), rel=1e-5)
