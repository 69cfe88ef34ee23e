"""What a trial leaves on disk at a report: its state, and its adapter at the end, before it is evaluated there."""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.modeling.identity import write_adapter_origin
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.whole import whole_folder
from qlora_ray.training.engine import Failure, Report

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState


@dataclass
class Kept:
    """A state given to be written before its report is made. Set once its tensors are on disk."""

    is_whole: bool = False


@dataclass(frozen=True)
class _TrainedJob:
    trial_id: str
    state: TrialState
    kept: Kept
    is_wanted: Callable[[], bool]
    then: Callable[[], None]


@dataclass(frozen=True)
class _ReportJob:
    report: Report
    state: TrialState | None
    kept: Kept | None
    is_wanted: Callable[[], bool]
    then: Callable[[Report], None]


class Keeper:
    """Writes states on a thread of its own, one after the other, so that the other trials train on meanwhile.

    Args:
        paths: The sweep's folder.
        origin: How every adapter of this executor is trained, for its folder: base and quantization.
    """

    def __init__(self, paths: SweepPaths, origin: dict[str, Any] | None = None) -> None:
        self._paths = paths
        self._origin = origin
        self._jobs: queue.SimpleQueue[_TrainedJob | _ReportJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def keep_adapter(self, trial_id: str, save: Callable[[str, Path], None]) -> None:
        """Writes a trial's adapter whole, now; `save` is the engine's."""
        with whole_folder(self._paths.trial(trial_id).adapter) as folder:
            save(trial_id, folder)
            if self._origin is not None:
                write_adapter_origin(folder, {"trial": trial_id, **self._origin})

    def drop_adapter(self, trial_id: str) -> None:
        """Takes back the adapter of a trial that has failed in its last evaluation."""
        shutil.rmtree(self._paths.trial(trial_id).adapter, ignore_errors=True)

    def keep_trained(
        self, trial_id: str, state: TrialState, *, is_wanted: Callable[[], bool], then: Callable[[], None]
    ) -> Kept:
        """Writes the state of a trial that owes a report soon, while the trial is evaluated.

        A state that cannot be written is told at the report, which tries again.

        Args:
            trial_id: Whose state it is.
            state: The state, which nobody changes any more.
            is_wanted: Asked just before; a trial that has left needs none.
            then: Called on the keeper's thread at the end.
        """
        kept = Kept()
        self._jobs.put(_TrainedJob(trial_id, state, kept, is_wanted, then))
        return kept

    def keep_state(
        self,
        report: Report,
        state: TrialState | None,
        *,
        kept: Kept | None,
        is_wanted: Callable[[], bool],
        then: Callable[[Report], None],
    ) -> None:
        """Writes a report's state soon, after all that was given before.

        Args:
            report: The report.
            state: The state, which nobody changes any more; None where nothing new is to be written.
            kept: Of the same tensors, given before the report was made.
            is_wanted: Asked just before; a trial that has left needs none.
            then: Called on the keeper's thread with the report, or with a failure if the state could not be written.
        """
        self._jobs.put(_ReportJob(report, state, kept, is_wanted, then))

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
            if isinstance(job, _TrainedJob):
                self._write_trained(job)
            else:
                self._write_reported(job)

    def _write_trained(self, job: _TrainedJob) -> None:
        if job.is_wanted():
            with contextlib.suppress(Exception):
                job.state.save(self._paths.trial(job.trial_id).state)
                job.kept.is_whole = True
        job.then()

    def _write_reported(self, job: _ReportJob) -> None:
        report = job.report
        if job.state is not None and job.is_wanted():
            folder = self._paths.trial(report.trial_id).state
            try:
                if job.kept is not None and job.kept.is_whole:
                    job.state.save_facts(folder)
                else:
                    job.state.save(folder)
            except Exception as error:
                report = self.fail(report, error)
        job.then(report)
