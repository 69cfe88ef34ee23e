"""A sweep's trials as runs of experiment trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.records import TrialRecord
from qlora_ray.runs.typed_json import to_json
from qlora_ray.tracking.reporter import TrackerReporter
from qlora_ray.tracking.tracker import TrackedSweep, flatten
from qlora_ray.training.engine import Report

TRAIN_LOSS = "train/loss"
# Of a record at a trial's begin: what is known only later is the run's state and figures.
CONFIG_KEYS = (
    *("trial", "number", "params", "resumed_from", "seed_of", "cloned_from", "cloned_at"),
    *("base", "dataset", "seeds", "versions", "git"),
)


class TrackedTrials:
    """The observer of a sweep's books that tells its trackers.

    Args:
        reporter: Hands what it is told to the trackers.
    """

    def __init__(self, reporter: TrackerReporter) -> None:
        self._reporter = reporter

    def opened(self, entry: TrialEntry, record: TrialRecord) -> None:
        """See TrialsObserver."""
        facts = to_json(record)
        self._reporter.start_trial(entry.id, flatten({key: facts[key] for key in CONFIG_KEYS if key in facts}))

    def reported(self, entry: TrialEntry, report: Report) -> None:
        """See TrialsObserver."""
        for step, loss in report.train_losses:
            self._reporter.log(entry.id, step, {TRAIN_LOSS: loss})
        self._reporter.log(entry.id, int(report.metrics.get("step", report.index)), _numbers(report.metrics))

    def closed(self, entry: TrialEntry, *, is_best: bool) -> None:
        """See TrialsObserver."""
        self._reporter.end_trial(entry.id, str(entry.state), entry.cause or "", _numbers(entry.metrics))


@contextmanager
def tracked_trials(
    names: Sequence[str], paths: SweepPaths, *, tell: Callable[[str], None]
) -> Iterator[TrackedTrials | None]:
    """The observer for a sweep's trackers, which have everything at the end of the block; None without trackers.

    Args:
        names: `results.report_to`.
        paths: The sweep's folder.
        tell: Takes a line for the user.
    """
    if not names:
        yield None
        return
    reporter = TrackerReporter(names, TrackedSweep(paths.name, paths.root), tell=tell)
    try:
        yield TrackedTrials(reporter)
    finally:
        reporter.close()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
