"""What a report leaves on disk, before it is handed out: the trial's state on the way, its adapter at the end."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_ray.runs.files import whole_folder
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Failure, Report

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState


@dataclass(frozen=True)
class _Job:
    report: Report
    state: TrialState
    is_wanted: Callable[[], bool]
    then: Callable[[Report], None]


class Keeper:
    """Writes states on a thread of its own, one after the other, so that the other trials train on meanwhile.

    Args:
        paths: The sweep's folder.
    """

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def keep_adapter(self, trial_id: str, save: Callable[[str, Path], None]) -> None:
        """Writes a trial's adapter whole, now; `save` is the engine's."""
        with whole_folder(self._paths.trial(trial_id).adapter) as folder:
            save(trial_id, folder)

    def keep_state(
        self, report: Report, state: TrialState, *, is_wanted: Callable[[], bool], then: Callable[[Report], None]
    ) -> None:
        """Writes a report's state soon.

        Args:
            report: The report.
            state: The state, which nobody changes any more.
            is_wanted: Asked just before; a trial that has left needs none.
            then: Called on the keeper's thread with the report, or with a failure if the state could not be written.
        """
        self._jobs.put(_Job(report, state, is_wanted, then))

    def fail(self, report: Report, error: Exception) -> Report:
        """The report of a trial whose state or adapter cannot be written: it has failed."""
        root = self._paths.trial(report.trial_id).root
        if "No space left" in str(error):
            # The next trial would meet the same: the search ends, and a resume goes on.
            message = f"{root}: the disk is full. Free some, then go on with --resume."
            failure = Failure("lost", message, traceback.format_exc())
        else:
            failure = Failure("error", f"{root}: cannot be written: {error}", traceback.format_exc())
        return Report(report.trial_id, report.index, True, report.metrics, report.facts, failure)

    def close(self) -> None:
        """Ends the thread once all is written."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            report = job.report
            if job.is_wanted():
                try:
                    job.state.save(self._paths.trial(report.trial_id).state)
                except Exception as error:
                    report = self.fail(report, error)
            job.then(report)
