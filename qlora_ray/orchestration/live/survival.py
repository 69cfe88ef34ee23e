"""How far trials get before the scheduler stops them, estimated from those that have come so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_ray.config.schema import Search

# As many trials as the scheduler's own rule counts for, beside those that have been seen: the first ones at a rung go
# on with nobody to be compared with, and say too little of those that follow.
PRIOR_TRIALS = 3.0
# The fractional part of the golden ratio: its multiples are spread evenly, however many are taken.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Survival:
    """The chance to go on after each report but the last, 1 to R - 1."""

    goes_on: tuple[float, ...]

    @property
    def num_reports(self) -> int:
        """Reports of a whole trial, R."""
        return len(self.goes_on) + 1

    def final_share(self, number: int, *, num_made: int = 0, shift: float = 0.0) -> float:
        """The share of its samples at which a trial is expected to end.

        Trials are spread over the ends that they can have, each always to the same one: so that a schedule of many has
        short and long ones as the sweep will, and does not change from one look to the next.

        Args:
            number: The trial's.
            num_made: Reports after which it went on.
            shift: From 0 to 1: other draws of the same trials.
        """
        position = (number * GOLDEN + 0.5 + shift) % 1.0
        left = 1.0
        for index in range(num_made + 1, self.num_reports):
            left *= self.goes_on[index - 1]
            if position >= left:
                return index / self.num_reports
        return 1.0


def estimate_survival(
    ended: Iterable[tuple[int, bool]], running: Iterable[int], *, prior_stops: Sequence[float]
) -> Survival:
    """The chances by the trials so far.

    Those that still run count for the reports that they have passed, as in a Kaplan-Meier curve: without them the
    short-lived ones, which end first, would count for too much.

    Args:
        ended: Reports of each trial that has ended, and whether it was stopped or failed before its end.
        running: Reports after which each running trial went on.
        prior_stops: The chance to be stopped at each report but the last before anything was seen.
    """
    reached = [PRIOR_TRIALS] * len(prior_stops)
    stopped = [PRIOR_TRIALS * chance for chance in prior_stops]
    for num_reports, was_stopped in ended:
        for index in range(min(num_reports, len(reached))):
            reached[index] += 1
        if was_stopped and 1 <= num_reports <= len(stopped):
            stopped[num_reports - 1] += 1
    for num_reports in running:
        for index in range(min(num_reports, len(reached))):
            reached[index] += 1
    return Survival(tuple(1 - part / whole for part, whole in zip(stopped, reached, strict=True)))


def expect_stops(search: Search) -> list[float]:
    """The chance to be stopped at each report but the last, by the scheduler's rule alone.

    Successive halving lets one of `reduction_factor` go on at each rung (arXiv 1810.05934); the median rule stops half
    of them between its first report that counts and the last.
    """
    reports, grace = search.num_reports, min(search.grace_reports, search.num_reports)
    chances = [0.0] * (reports - 1)
    if search.scheduler == "median":
        for index in range(grace, reports):
            chances[index - 1] = 1 - 0.5 ** (1 / (reports - grace))
    elif search.scheduler != "none":
        rung = float(grace if search.scheduler == "asha" else 1)
        while round(rung) < reports:
            chances[round(rung) - 1] = 1 - 1 / search.reduction_factor
            rung *= search.reduction_factor
    return chances
