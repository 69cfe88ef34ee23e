"""The schedulers that a config can name: one function per entry of `config.choices.SCHEDULERS`.

They count a trial's reports, not Tune's own iterations: a trial that goes on from an earlier state does not start again
at 1.
"""

from __future__ import annotations

import pkgutil

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from qlora_ray.config.choices import SCHEDULERS
from qlora_ray.config.schema import Search

TIME_ATTRIBUTE = "report_index"
# Trials the median is taken over before it stops any.
MEDIAN_MIN_TRIALS = 3


def make_scheduler(search: Search) -> TrialScheduler:
    """Returns the scheduler that a config names."""
    scheduler: TrialScheduler = pkgutil.resolve_name(SCHEDULERS[search.scheduler].make)(search)
    return scheduler


def make_asha(search: Search) -> TrialScheduler:
    """Returns asynchronous successive halving: one bracket, whose rungs grow by search.reduction_factor."""
    return AsyncHyperBandScheduler(
        time_attr=TIME_ATTRIBUTE,
        max_t=search.num_reports,
        grace_period=search.grace_reports,
        reduction_factor=search.reduction_factor,
    )


def make_hyperband(search: Search) -> TrialScheduler:
    """Returns HyperBand, whose brackets wait for each other: trials pause."""
    return HyperBandScheduler(
        time_attr=TIME_ATTRIBUTE, max_t=search.num_reports, reduction_factor=search.reduction_factor
    )


def make_median(search: Search) -> TrialScheduler:
    """Returns the median stopping rule."""
    return MedianStoppingRule(
        time_attr=TIME_ATTRIBUTE,
        grace_period=search.grace_reports,
        min_samples_required=MEDIAN_MIN_TRIALS,
        hard_stop=True,
    )


def make_none(search: Search) -> TrialScheduler:
    """Returns a scheduler that stops no trial."""
    return FIFOScheduler()
